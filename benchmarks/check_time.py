"""How long do an operator, its `check()` and its first product take, tracing included?

    python benchmarks/check_time.py [mlp] [transformer] [resnet] [--rounds 3] [--against CHECKOUT]

Each figure is the median of processes of their own, since graphs are traced once a process. With
`--against` another checkout of this package, an older one say, takes turns with this one. The
networks are those of `speed.py`, and Keras's ResNet-50 on 32 images of 64 x 64 in two batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NETWORKS = ("mlp", "transformer", "resnet")
STEPS = ("construct", "check", "product", "product again")

Measures = dict[str, Callable[[], None]]


def resnet() -> tuple[Any, Any, Any]:
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=100)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 64, 64, 3)).astype(np.float32)
    y = rng.integers(0, 100, 32)
    loss = keras.losses.SparseCategoricalCrossentropy()
    return model, loss, [(x[:16], y[:16]), (x[16:], y[16:])]


def of_speed(name: str) -> tuple[Any, Any, Any]:
    sys.path[:0] = [str(HERE), str(HERE / "peers")]
    from peers import ours, problems

    problem = getattr(problems, name)()
    network = dict(problem.network)
    model = ours.NETWORKS[network.pop("kind")](**network)
    model.set_weights(
        [w.reshape(v.shape) for w, v in zip(problem.weights, model.weights, strict=True)]
    )
    return model, ours.LOSSES[network["loss"]], problem.batches


def measure(name: str) -> None:
    """Print the seconds of each step, as one line of JSON."""
    import numpy as np

    import spectral_density as sd

    arguments = resnet() if name == "resnet" else of_speed(name)
    clock = Clock()
    operator = sd.HessianOperator(*arguments)
    clock.lap()
    verdict = operator.check().verdict
    clock.lap()
    vector = np.random.default_rng(0).standard_normal(operator.shape[0])
    for _ in range(2):
        operator @ vector
        clock.lap()
    clock.report(verdict)


class Clock:
    """Measures steps one after another, in a process of their own."""

    def __init__(self) -> None:
        """Begin the first step."""
        self.seconds: list[float] = []
        self._start = time.perf_counter()

    def lap(self) -> None:
        """End a step, and begin the next."""
        now = time.perf_counter()
        self.seconds.append(now - self._start)
        self._start = now

    def report(self, verdict: str) -> None:
        """Print the steps for `compare`."""
        print(json.dumps({"seconds": self.seconds, "verdict": verdict}))


def child(script: str, name: str, checkout: Path) -> dict[str, Any]:
    """Return what `script --measure name` prints with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", script, "--measure", name]
    output = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def compare(script: str, description: str, networks: Measures, steps: tuple[str, ...]) -> None:
    """Run a script that measures networks: this checkout and another in turn, as a table.

    Args:
        script: its `__file__`.
        description: its first line.
        networks: what prints the measurement of each network, see `Clock`.
        steps: what is measured, in order.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("networks", nargs="*", default=list(networks), metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of this package")
    parser.add_argument("--measure", choices=networks, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        networks[options.measure]()
        return
    unknown = set(options.networks) - set(networks)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {list(networks)}")
    checkouts = {"this": HERE.parent}
    if options.against is not None:
        checkouts["other"] = options.against.resolve()
    print(f"| network | checkout | verdict | {' | '.join(steps)} |")
    print(f"|---|---|---|{'---|' * len(steps)}")
    for name in options.networks:
        results: dict[str, list[dict[str, Any]]] = {which: [] for which in checkouts}
        for _ in range(options.rounds):
            for which, path in checkouts.items():
                results[which].append(child(script, name, path))
        for which, found in results.items():
            medians = [
                statistics.median(times)
                for times in zip(*(each["seconds"] for each in found), strict=True)
            ]
            row = " | ".join(f"{value:.2f}" for value in medians)
            print(f"| {name} | {which} | {found[0]['verdict']} | {row} |", flush=True)


if __name__ == "__main__":
    compare(
        __file__,
        (__doc__ or "").splitlines()[0],
        {name: partial(measure, name) for name in NETWORKS},
        STEPS,
    )
