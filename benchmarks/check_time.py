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
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NETWORKS = ("mlp", "transformer", "resnet")
STEPS = ("construct", "check", "product", "product again")


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
    seconds = []
    start = time.perf_counter()

    def lap() -> None:
        nonlocal start
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()

    operator = sd.HessianOperator(*arguments)
    lap()
    verdict = operator.check().verdict
    lap()
    vector = np.random.default_rng(0).standard_normal(operator.shape[0])
    for _ in range(2):
        operator @ vector
        lap()
    print(json.dumps({"seconds": seconds, "verdict": verdict}))


def child(name: str, checkout: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", __file__, "--measure", name]
    output = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of this package")
    parser.add_argument("--measure", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {NETWORKS}")
    checkouts = {"this": HERE.parent}
    if options.against is not None:
        checkouts["other"] = options.against.resolve()
    print(f"| network | checkout | verdict | {' | '.join(STEPS)} |")
    print(f"|---|---|---|{'---|' * len(STEPS)}")
    for name in options.networks:
        results: dict[str, list[dict[str, Any]]] = {which: [] for which in checkouts}
        for _ in range(options.rounds):
            for which, path in checkouts.items():
                results[which].append(child(name, path))
        for which, found in results.items():
            medians = [
                statistics.median(times)
                for times in zip(*(each["seconds"] for each in found), strict=True)
            ]
            row = " | ".join(f"{value:.2f}" for value in medians)
            print(f"| {name} | {which} | {found[0]['verdict']} | {row} |", flush=True)


if __name__ == "__main__":
    main()
