"""How many iterations does a Nystrom preconditioner save CG on a damped Gauss-Newton matrix?

    python benchmarks/preconditioned_cg.py [--rank 200] [--epochs 20] [--dtype float32]

A network 64-32-20-10 (2,950 parameters) on scikit-learn's digits, before and after training, with
its gradient as right-hand side. The damping gives the matrix the condition number of --condition.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.linalg.preconditioners import NystromPreconditioner
from spectral_density.linalg.solvers import solve

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def digits(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(dtype), labels


def network(dtype: str) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, "tanh", dtype=dtype) for width in (32, 20)]
    return keras.Sequential(
        [keras.Input((64,), dtype=dtype), *layers, keras.layers.Dense(10, dtype=dtype)]
    )


def row(name: str, operator: Any, arguments: argparse.Namespace) -> None:
    gradient = operator.gradient()
    largest = power_norm(operator)
    damping = largest / (arguments.condition - 1)  # the smallest eigenvalue of G is 0
    begin = time.perf_counter()
    preconditioner = NystromPreconditioner.from_operator(operator, arguments.rank, damping)
    setup = time.perf_counter() - begin
    for rtol in arguments.rtol:
        results = []
        for m in (None, preconditioner):
            begin = time.perf_counter()
            solution = solve(operator, -gradient, damping=damping, preconditioner=m, rtol=rtol)
            results.append((solution, time.perf_counter() - begin))
        (plain, plain_time), (fast, fast_time) = results
        share = fast.iterations / max(plain.iterations, 1)
        print(
            f"{name:10s} {largest:9.3g} {damping:9.2g} {rtol:7.0e} | "
            f"{plain.iterations:6d} {plain.status.name:11s} {plain_time:6.1f} | "
            f"{fast.iterations:6d} {fast.status.name:11s} {fast_time:6.1f} | {share:6.3f} | "
            f"{preconditioner.num_products:5d} {setup:6.1f} | "
            f"{plain.num_products:6d} {preconditioner.num_products + fast.num_products:6d}",
            flush=True,
        )


def power_norm(operator: Any, steps: int = 30) -> float:
    vector = np.random.default_rng(0).standard_normal(operator.shape[0])
    norm = 0.0
    for _ in range(steps):
        product = operator @ (vector / np.linalg.norm(vector))
        vector, norm = product, float(np.linalg.norm(product))
    return norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--condition", type=float, default=1e6)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rtol", type=float, nargs="+", default=[1e-1, 1e-2, 1e-3])
    arguments = parser.parse_args()

    images, labels = digits(arguments.dtype)
    model = network(arguments.dtype)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(len(images))
    print(f"{model.count_params():,} parameters, {arguments.dtype}, rank {arguments.rank}")
    print(
        f"{'':10s} {'||G||':>9s} {'damping':>9s} {'rtol':>7s} | {'CG':>6s} {'':11s} {'s':>6s} | "
        f"{'PCG':>6s} {'':11s} {'s':>6s} | {'share':>6s} | {'setup':>5s} {'s':>6s} | "
        f"{'all CG':>6s} {'PCG':>6s}  products"
    )
    row("initial", GaussNewtonOperator(model, LOSS, data), arguments)
    model.compile(keras.optimizers.Adam(1e-3), LOSS, metrics=["accuracy"])
    model.fit(images, labels, batch_size=32, epochs=arguments.epochs, verbose=0)
    row("trained", GaussNewtonOperator(model, LOSS, data), arguments)


if __name__ == "__main__":
    main()
