"""How do the seconds of a run grow with parameters, examples, steps and draws?

    python benchmarks/scaling.py [--quick] [--rounds 3]

An MLP 784-w-64-10: exponents of the seconds of a whole run, fitted by least squares to medians,
and the seconds of the largest run. An exponent of 1 is proportional; less where what is done once a
pass weighs, or where draws share it; more with the steps where orthogonalization does.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
from peers.problems import dense
from peers.runner import (
    EVERYBODY,
    AnswerError,
    at_work,
    figure,
    machine,
    progress,
    table,
    written,
)

BASE = {"parameters": 128, "examples": 2048, "steps": 8, "draws": 1}  # parameters: the width
RANGES = {
    "parameters": (16, 64, 256, 1024),
    "examples": (512, 2048, 8192),
    "steps": (8, 24, 72),
    "draws": (1, 4, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two sizes, one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    rows = []
    with at_work() as children:
        about = machine(children)
        for quantity, sizes in RANGES.items():
            if options.quick:
                sizes = sizes[:2]
            found: dict[str, list[float]] = {child.name: [] for child in children}
            scale = []
            for size in sizes:
                progress(f"{quantity} {size}")
                setting: dict[str, Any] = {**BASE, quantity: size}
                widths = [784, setting["parameters"], 64, 10]
                problem = dense(widths, setting["examples"], 512)
                scale.append(problem.num_parameters if quantity == "parameters" else size)
                run = {"order": setting["steps"], "draws": setting["draws"]}
                seconds: dict[str, list[float]] = {child.name: [] for child in children}
                with written(problem) as path:
                    for child in children:
                        child.ask("load", problem=path, matrix="hessian")
                        child.ask("warm", **run)
                    for _ in range(rounds):
                        for child in children:
                            try:
                                seconds[child.name].append(child.ask("lanczos", **run)["seconds"])
                            except AnswerError as error:
                                progress(f"{child.name}: {error}")
                for name, times in seconds.items():
                    found[name].append(statistics.median(times) if times else float("nan"))
            cells = []
            for child in children:
                times = np.array(found[child.name])
                exponent = np.polyfit(np.log(scale), np.log(times), 1)[0]
                cells.append(f"{exponent:.2f} ({figure(times[-1])} s)")
            rows.append([quantity, f"{scale[0]:,} to {scale[-1]:,}", *cells])
    names = [implementation.name for implementation in EVERYBODY]
    print(f"{about}\n")
    fixed = "784-128-64-10 (109,386 parameters), 2,048 examples in batches of 512, 8 steps, 1 draw"
    print(f"Around {fixed}; exponent, and seconds of the largest run:\n")
    print(table(["of", "range", *names], rows))


if __name__ == "__main__":
    main()
