"""How often symmetric matrices whose Krylov spaces end early are called not symmetric.

    python benchmarks/false_alarms.py [--matrices 10000]

Random matrices of low rank, with few distinct eigenvalues, zero, and multiples of the identity;
diagonal or dense, with products in float64 or float32, in several sizes and orders. Each is
tridiagonalized with and without reorthogonalization. The Krylov space of a random vector ends
within a few steps, and what follows is rounding, which another BLAS kernel rounds differently:
`OPENBLAS_CORETYPE=Haswell python benchmarks/false_alarms.py`, and so on.

The same matrices with a skew part of one to three percent of their norm (of 0.1 for zero) are the
other side: how many of these are recognized as not symmetric. No number of steps that is smaller
than the rank of the skew part can see all of it, so it is dense.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from spectral_density.linalg import lanczos

KINDS = ("low rank", "repeated eigenvalues", "zero", "identity")
SIZES = (10, 30, 60, 120)
ORDERS = (2, 4, 6, 10, 25)


def eigenvalues_of(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return random eigenvalues of a kind, in random order."""
    values = np.zeros(size)
    if kind == "low rank":
        rank = int(rng.integers(1, 4))
        values[:rank] = rng.uniform(1, 5, rank)
    elif kind == "repeated eigenvalues":
        values = rng.choice(rng.normal(size=int(rng.integers(2, 6))), size)
    elif kind == "identity":
        values[:] = rng.choice([-1, 1]) * rng.uniform(0.1, 10)
    return 10.0 ** rng.integers(-6, 7) * rng.permutation(values)


def symmetric_cases(count: int) -> Iterator[tuple[str, int, int, LinearOperator]]:
    """Yield the kind, a seed, the order and the operator of each case."""
    for seed in range(count):
        rng = np.random.default_rng([15, seed])
        kind = KINDS[seed % len(KINDS)]
        size, order = int(rng.choice(SIZES)), int(rng.choice(ORDERS))
        values = eigenvalues_of(kind, size, rng)
        dense, single = rng.integers(2, size=2)
        if dense:
            rotation, _ = np.linalg.qr(rng.standard_normal((size, size)))
            matrix = (rotation * values) @ rotation.T
            matrix = (matrix + matrix.T) / 2
        else:
            matrix = np.diag(values)
        dtype = np.float32 if single else np.float64
        yield kind, seed, min(order, size), in_precision(matrix.astype(dtype))


def in_precision(matrix: np.ndarray) -> LinearOperator:
    """Return an operator whose products are computed in the precision of the matrix."""

    def multiply(block: np.ndarray) -> np.ndarray:
        return matrix @ block.astype(matrix.dtype)

    return LinearOperator(matrix.shape, matvec=multiply, matmat=multiply, dtype=matrix.dtype)


def skewed(operator: LinearOperator, seed: int) -> LinearOperator:
    """Return the operator with a dense skew part of a few percent of its norm."""
    rng = np.random.default_rng([16, seed])
    size = operator.shape[0]
    matrix = operator @ np.eye(size)
    norm = float(np.linalg.norm(matrix, 2)) or 0.1
    skew = rng.standard_normal((size, size))
    skew -= skew.T
    skew *= rng.uniform(0.1, 0.3) * norm / np.linalg.norm(skew, 2)
    return aslinearoperator(matrix + skew)


def is_refused(operator: LinearOperator, order: int, seed: int, reorthogonalize: str) -> bool:
    """Tell whether a matrix is called not symmetric."""
    draws = 1 + seed % 3
    try:
        lanczos(
            operator,
            order,
            num_draws=draws,
            seed=seed,
            reorthogonalize=reorthogonalize,
            progress=False,
        )
    except ValueError as error:
        if "not symmetric" not in str(error):
            raise
        return True
    return False


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", type=int, default=10_000)
    count = parser.parse_args().matrices
    print(f"{count:,} matrices, kernel {os.environ.get('OPENBLAS_CORETYPE', 'of the machine')}")
    for reorthogonalize in ("full", "none"):
        alarms = dict.fromkeys(KINDS, 0)
        recognized = 0
        for kind, seed, order, operator in symmetric_cases(count):
            alarms[kind] += is_refused(operator, order, seed, reorthogonalize)
            recognized += is_refused(skewed(operator, seed), order, seed, reorthogonalize)
        found = ", ".join(f"{kind} {number}" for kind, number in alarms.items())
        print(
            f"reorthogonalize={reorthogonalize!r}: false alarms: {sum(alarms.values())} ({found})"
        )
        print(f"    of the same with a skew part: {recognized:,} recognized")


if __name__ == "__main__":
    main()
