"""Products that are off the matrix that is meant, by as much as the operator states: bounds."""

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

from spectral_density import (
    lanczos,
    nystrom,
    power_iteration,
    randomized_eigh,
    randomized_svd,
    top_eigenpairs,
    trace,
)

SIZE, RANK, OFF = 60, 6, 3e-3


def orthogonal(seed, columns=SIZE):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, columns)))[0]


# Positive semidefinite, of low rank: what is left of it is the error of the products.
_VECTORS = orthogonal(0, RANK)
TRUE = np.linspace(1.0, 2.0, RANK)
MATRIX = (_VECTORS * TRUE) @ _VECTORS.T
_SIGNS = np.where(np.arange(SIZE) % 2, -1.0, 1.0)
ERROR = OFF * TRUE[-1] * (orthogonal(1) * _SIGNS) @ orthogonal(1).T  # of norm OFF ||A||


def off(states, error=ERROR):
    operator = LinearOperator(
        MATRIX.shape,
        matvec=lambda v: (MATRIX + error) @ v,
        matmat=lambda v: (MATRIX + error) @ v,
        dtype=np.float64,
    )
    if states:
        operator.product_error = OFF
    return operator


def pairs(operator):
    found = top_eigenpairs(operator, 3, tolerance=1e-9, progress=False)
    return np.abs(TRUE[:, None] - found.values).min(axis=0), found.residuals


def power(operator):
    found = power_iteration(operator, tolerance=1e-9, progress=False)
    return np.abs(TRUE - found.value).min(), found.residual


def eigh_residuals(operator):
    found = randomized_eigh(operator, 3, progress=False)
    return np.abs(TRUE[:, None] - found.values).min(axis=0), found.residuals


def eigh(operator):
    found = randomized_eigh(operator, SIZE - 1, progress=False)
    low_rank = (found.vectors * found.values) @ found.vectors.T
    return np.linalg.norm(MATRIX - low_rank, 2), found.error_bound


def svd(operator):
    found = randomized_svd(operator, SIZE - 1, symmetric=True, progress=False)
    low_rank = (found.U * found.singular_values) @ found.Vt
    return np.linalg.norm(MATRIX - low_rank, 2), found.error_bound


def exact_trace(operator):
    found = trace(operator, num_products=SIZE, progress=False)
    return abs(found.value - TRUE.sum()), found.standard_error


@pytest.mark.parametrize("bounded", [pairs, power, eigh, svd, eigh_residuals, exact_trace])
def test_what_products_are_off_by_is_in_the_bounds(bounded):
    errors, bounds = bounded(off(states=True))
    # Relative to the norm of the products that there are, which are off themselves.
    assert np.all(errors <= bounds / (1 - OFF))
    # Where nothing is stated they do not hold.
    errors, bounds = bounded(off(states=False))
    if bounded not in (eigh_residuals, exact_trace):
        assert np.all(errors > bounds)


def test_nystrom_counts_it_too():
    positive = OFF * TRUE[-1] * np.eye(SIZE)
    found = nystrom(off(True, positive), SIZE - 1, progress=False)
    without = nystrom(off(False, positive), SIZE - 1, progress=False)
    assert found.error_bound - without.error_bound == pytest.approx(OFF * found.values[0])
    # What it makes indefinite is no matrix that is.
    nystrom(off(True), RANK, progress=False)


def test_pairs_converge_to_what_products_are_worth():
    assert top_eigenpairs(off(states=True), 1, progress=False).tolerance == 2 * OFF
    assert top_eigenpairs(off(states=False), 1, progress=False).tolerance < 1e-11


def test_products_that_are_off_are_not_taken_for_a_matrix_that_is_not_symmetric():
    first, second = lanczos(MATRIX, 2, progress=False).basis[0]
    skew = OFF * TRUE[-1] / 2 * (np.outer(second, first) - np.outer(first, second))
    with pytest.raises(ValueError, match="not symmetric"):
        lanczos(off(False, skew), 4, progress=False)
    lanczos(off(True, skew), 4, progress=False)
