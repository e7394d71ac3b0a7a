"""Spectra that decay, for randomized factorizations, and their errors."""

import numpy as np
from cases import log_uniform_bulk
from scipy.sparse.linalg import LinearOperator

NETWORK = log_uniform_bulk()
GEOMETRIC = np.resize([1.0, -1.0], 500) * 0.7 ** np.arange(500)
QUADRATIC = np.arange(1, 1001.0) ** -2
SIGNED_LOW_RANK = np.concatenate([[7.0, -5.0, 3.0, -1.0, 0.1], np.zeros(195)])


def magnitudes(eigenvalues, count):
    return np.sort(np.abs(eigenvalues))[::-1][:count]


def relative_error(values, eigenvalues, count):
    true = magnitudes(eigenvalues, count)
    return np.abs(np.abs(values[:count]) / true - 1).max()


def counted(matrix):
    """The operator of a dense matrix, and the widths of the blocks it has multiplied."""
    widths = []

    def matmat(block):
        widths.append(block.shape[1])
        return matrix @ block

    def rmatmat(block):
        widths.append(block.shape[1])
        return matrix.T @ block

    operator = LinearOperator(
        matrix.shape, matvec=None, matmat=matmat, rmatmat=rmatmat, dtype=float
    )
    return operator, widths
