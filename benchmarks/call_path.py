"""How many of the package's files does a product pass through, compiled, and while it is traced?

    python benchmarks/call_path.py [hessian] [ggn] [fisher]

Counted are the files whose functions run, and how often each is entered from another of them. The
network is a small one of Keras on two batches of unequal size, so that it is traced twice. What is
imported on first use is imported by an operator before: a file counts for what it does, not for
being loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import spectral_density as sd

PACKAGE = Path(sd.__file__).resolve().parent
MATRICES = {
    "hessian": sd.HessianOperator,
    "ggn": sd.GaussNewtonOperator,
    "fisher": sd.FisherOperator,
}


def entries(function: Callable[[], Any]) -> Counter[str]:
    """Return how often each file of the package is entered from outside of it, by a call."""
    counts: Counter[str] = Counter()
    stack = [""]  # the files of the package's frames that are running

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(PACKAGE):
            return
        if event == "return":
            # The frames that were running before the watch began are not on the stack.
            if len(stack) > 1:
                stack.pop()
            return
        file = str(path.relative_to(PACKAGE))
        if file != stack[-1]:
            counts[file] += 1
        stack.append(file)

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counts


def operator(kind: Callable[..., Any]) -> Any:
    """Return an operator of a new network, without any graph of a product."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(13, 5)).astype("float32"), rng.integers(0, 3, 13)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return kind(model, loss, [(x[:8], y[:8]), (x[8:], y[8:])])


def show(title: str, counts: Counter[str]) -> None:
    print(f"{title}: {len(counts)} files, entered {sum(counts.values())} times")
    for file, count in counts.most_common():
        print(f"  {count:5d}  {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("matrices", nargs="*", default=list(MATRICES), metavar="MATRIX")
    options = parser.parse_args()
    unknown = set(options.matrices) - set(MATRICES)
    if unknown:
        parser.error(f"no such matrix: {', '.join(sorted(unknown))}; there are {list(MATRICES)}")
    for name in options.matrices:
        first = operator(MATRICES[name])
        vector = np.ones(first.shape[0])
        first @ vector
        fresh = operator(MATRICES[name])
        traced = entries(lambda fresh=fresh, vector=vector: fresh @ vector)
        for _ in range(2):
            fresh @ vector
        compiled = entries(lambda fresh=fresh, vector=vector: fresh @ vector)
        show(f"{name}, a compiled product", compiled)
        show(f"{name}, the first product, which is traced", traced)


if __name__ == "__main__":
    main()
