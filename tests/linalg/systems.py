"""Linear systems of known spectrum, shared by the tests of their solvers."""

import numpy as np
from cases import dense_symmetric
from scipy.sparse.linalg import LinearOperator

INDEFINITE = np.concatenate([-np.geomspace(1e-2, 1, 30), np.geomspace(1e-2, 2, 90)])
SINGULAR = np.concatenate([np.zeros(20), np.linspace(1, 5, 80)])


def normal(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n)


def spd(condition, n=100):
    return dense_symmetric(np.geomspace(1 / condition, 1, n))


def float32_products(matrix):
    single = matrix.astype(np.float32)
    return LinearOperator(
        matrix.shape, matvec=lambda v: single @ np.ravel(v).astype(np.float32), dtype=np.float32
    )


def relative_error(x, truth):
    return np.linalg.norm(x - truth) / np.linalg.norm(truth)


def true_norm(matrix, solution, b):
    shifted = matrix + solution.damping * np.eye(len(matrix))
    return np.linalg.norm(b - shifted @ solution.x)


def counted(matrix):
    """An operator, and the list that grows by an entry for each of its products."""
    calls = []

    def matvec(v):
        calls.append(1)
        return matrix @ np.ravel(v)

    return LinearOperator(matrix.shape, matvec=matvec, dtype=np.float64), calls
