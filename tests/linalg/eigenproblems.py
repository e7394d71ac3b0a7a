"""Symmetric eigenvalue problems of known spectrum, shared by the tests of their solvers."""

from functools import cache

import numpy as np
from cases import (
    dense_symmetric,
    distinct_eigenvalues,
    log_uniform_bulk,
    orthogonality_error,
    rank_two,
    semicircle_with_outliers,
)
from scipy.sparse.linalg import LinearOperator

WHICH = ("LM", "LA", "SA", "BE")


def wanted(eigenvalues, k, which):
    """The eigenvalues that are asked for, in the documented order."""
    values = np.sort(eigenvalues)
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")][:k]
    if which == "LA":
        return values[::-1][:k]
    low = k if which == "SA" else k // 2
    return np.concatenate([values[:low], values[len(values) - (k - low) :]])


@cache
def dense(name):
    """The matrix of a spectrum, made once."""
    return dense_symmetric(SPECTRA[name])


def assert_exact(result, matrix, eigenvalues, k, which, limit=1e-12):
    """Compare values, residuals and vectors with what is known; `limit` is relative to ||A||."""
    norm = np.abs(eigenvalues).max()
    expected = wanted(eigenvalues, k, which)
    values = result.values
    if which == "LM":  # of l and -l either is right
        expected, values = np.abs(expected), np.abs(values)
    assert np.abs(values - expected).max() <= limit * norm
    assert result.vectors.shape == (len(eigenvalues), k)
    assert orthogonality_error(result.vectors.T) <= 1e-14
    true = np.linalg.norm(matrix @ result.vectors - result.vectors * result.values, axis=0)
    np.testing.assert_allclose(result.residuals, true, atol=max(limit * norm, 0.0))
    assert result.converged.all()
    assert result.complete
    assert (result.residuals <= result.tolerance * result.norm).all()
    assert result.norm <= norm * (1 + 1e-6)


SPECTRA = {
    "semicircle": semicircle_with_outliers(100),
    "log_uniform": log_uniform_bulk(100),
    "indefinite": np.concatenate([-np.geomspace(1e-3, 9, 40), np.geomspace(1e-3, 10, 60)]),
    "triple": np.concatenate([[5.0, 5.0, 5.0], np.linspace(-1, 1, 77)]),
    "double_at_the_edge": np.concatenate([[6.0, 5.0, 4.0, 4.0, 3.0], np.linspace(-2, 2, 75)]),
    "plus_and_minus": np.concatenate([np.repeat([3.0, -3.0], 4), np.linspace(-1, 1, 72)]),
    "cluster": np.concatenate([1 + 1e-10 * np.arange(3), np.linspace(-0.5, 0.5, 77)]),
    "identity": np.ones(50),
    "zero": np.zeros(50),
    "rank_two": rank_two(60),
    "three_distinct": distinct_eigenvalues(3, 60),
    "twenty_distinct": distinct_eigenvalues(20, 100),
}


def single_precision(matrix, dtype=np.float32):
    """The operator whose products are computed in float32, whatever dtype it states."""
    matrix = matrix.astype(np.float32)
    return LinearOperator(matrix.shape, matvec=lambda v: matrix @ v.astype(np.float32), dtype=dtype)


def bits(result):
    return [result.values, result.vectors, result.residuals, result.converged]
