"""What does one Lanczos step cost, in passes of plain compiled gradients over the same batches?

    python benchmarks/lanczos_step.py [mlp] [cnn] [blocks] [--rounds 5]

Each round times the plain gradients and the Lanczos runs in turn; the table has medians of the
rounds. "Outside products" is orthogonalization and bookkeeping, averaged over all steps. At the end
stands what a block of b start vectors costs beside its products, as a product does nothing here: a
diagonal matrix of the same size.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator

import spectral_density as sd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Timed(LinearOperator):
    """An operator that adds up the time of its products."""

    def __init__(self, operator: Any):
        super().__init__(operator.dtype, operator.shape)
        self.operator = operator
        self.product_dtype = operator.product_dtype
        self.seconds = 0.0

    def _timed(self, product: Callable[[np.ndarray], np.ndarray], block: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        result = product(block)
        self.seconds += time.perf_counter() - start
        return result

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._timed(self.operator.matvec, x)

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._timed(self.operator.matmat, X)


def mlp() -> tuple[Any, tuple[int, ...], int, int]:
    layers = [keras.layers.Dense(width, activation="relu") for width in (128, 64)]
    model = keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])
    return model, (784,), 10_000, 512


def cnn(shape: tuple[int, ...] = (32, 32, 3)) -> tuple[Any, tuple[int, ...], int, int]:
    def conv(filters: int) -> Any:
        return keras.layers.Conv2D(filters, 3, activation="relu")

    model = keras.Sequential(
        [
            keras.Input(shape),
            *(conv(64), conv(64), keras.layers.MaxPooling2D()),
            *(conv(128), conv(128), keras.layers.MaxPooling2D()),
            keras.layers.Flatten(),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    return model, shape, 512, 64


def make_operator(model: Any, shape: tuple[int, ...], samples: int, batch: int) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, *shape)).astype(np.float32)
    y = rng.integers(0, 10, samples)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    return sd.HessianOperator(model, LOSS, data)


def gradient_pass(hessian: Any, model: Any) -> Callable[[], None]:
    """Return one pass of plain compiled gradients over the operator's own batches in memory."""
    variables = hessian.parameters.variables

    @tf.function
    def gradient(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=False))
        return tape.gradient(loss, variables)

    batches = list(hessian.batches)

    def run() -> None:
        for x, y in batches:
            result = gradient(x, y)
        np.asarray(result[0])

    return run


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def measure(name: str, network: Any, order: int, widths: list[int], rounds: int) -> None:
    hessian = make_operator(*network)
    plain = gradient_pass(hessian, network[0])
    plain()
    for width in widths:
        sd.lanczos(hessian, 2, num_draws=width, draws_at_once=width, keep_basis=False)
    gradients: list[float] = []
    steps: dict[int, list[tuple[float, float]]] = {width: [] for width in widths}
    for _ in range(rounds):
        for width in widths:
            gradient = seconds(plain, 5)
            timed = Timed(hessian)
            total = seconds(
                lambda timed=timed, width=width: sd.lanczos(
                    timed, order, num_draws=width, draws_at_once=width, keep_basis=False
                )
            )
            # The machine's speed drifts: the gradients before and after a run are its measure.
            gradient = (gradient + seconds(plain, 5)) / 2
            gradients.append(gradient)
            steps[width].append((total / order / width / gradient, 1 - timed.seconds / total))
    print(
        f"{name}: {hessian.parameters.size:,} parameters, {len(hessian.batches)} batches, "
        f"one gradient pass {statistics.median(gradients):.3f} s, {hessian.num_traces} traces"
    )
    for width, measured in steps.items():
        ratio = statistics.median(r for r, _ in measured)
        outside = statistics.median(o for _, o in measured)
        spread = f"{min(r for r, _ in measured):.2f} - {max(r for r, _ in measured):.2f}"
        print(
            f"  {width:2d} draws  step / gradient pass, per draw {ratio:5.2f}  ({spread})   "
            f"outside products {100 * outside:4.1f} %"
        )


def measure_blocks(size: int, products: int, blocks: tuple[int, ...], rounds: int) -> None:
    """Print the seconds outside products for each product, for blocks of several widths."""
    diagonal = np.linspace(-1, 1, size)

    def multiply(block: np.ndarray) -> np.ndarray:
        return diagonal.reshape(-1, *[1] * (block.ndim - 1)) * block

    matrix = LinearOperator((size, size), matvec=multiply, matmat=multiply, dtype=np.float64)
    matrix.product_dtype = np.dtype(np.float64)
    spent: dict[int, list[float]] = {block: [] for block in blocks}
    for _ in range(rounds):
        for block in blocks:
            timed = Timed(matrix)
            run = partial(sd.lanczos, timed, products // block, block=block, keep_basis=False)
            spent[block].append((seconds(run) - timed.seconds) / products)
    figures = ", ".join(
        f"b = {block}: {1e3 * statistics.median(times):.2f} ms" for block, times in spent.items()
    )
    print(f"outside products for each of {products} products, {size:,} parameters: {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["mlp", "cnn", "blocks"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, spectral-density {sd.__version__}; "
        f"medians of {options.rounds} rounds"
    )
    if "mlp" in options.networks:
        measure("MLP 784-128-64-10", mlp(), 90, [1, 8], options.rounds)
    if "cnn" in options.networks:
        measure("CIFAR CNN", cnn(), 8, [1], options.rounds)
    if "blocks" in options.networks:
        measure_blocks(109_386, 88, (1, 2, 4), options.rounds)
        measure_blocks(3_548_810, 40, (1, 2, 4), options.rounds)


if __name__ == "__main__":
    main()
