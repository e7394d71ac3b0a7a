"""MINRES: the iterates of SciPy, least-squares solutions, and negative curvature on the way."""

import numpy as np
import pytest
import scipy.sparse.linalg
from cases import dense_symmetric
from linalg.systems import (
    INDEFINITE,
    SINGULAR,
    float32_products,
    normal,
    relative_error,
    spd,
    true_norm,
)

from spectral_density.linalg.solvers import Status, solve

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("preconditioned", [False, True])
def test_iterates_are_those_of_scipy(preconditioned):
    matrix, b = dense_symmetric(INDEFINITE), normal(120)
    m = np.diag(np.geomspace(0.5, 2, 120)) if preconditioned else None
    theirs, ours = [], []
    scipy.sparse.linalg.minres(
        matrix, b, rtol=1e-14, maxiter=25, M=m, callback=lambda x: theirs.append(x.copy())
    )
    solve(
        matrix,
        b,
        method="minres",
        preconditioner=m,
        maxiter=25,
        callback=lambda step: ours.append(step.x),
    )
    for ours_k, theirs_k in zip(ours, theirs, strict=True):
        assert relative_error(ours_k, theirs_k) <= 1e-9


def test_rounding_is_no_least_squares_solution():
    matrix = dense_symmetric(SINGULAR)
    for seed in range(5):
        solution = solve(matrix, matrix @ normal(100, seed), method="minres", rtol=0.0)
        assert solution.status is Status.STAGNATION
        assert solution.residual_norm <= 1e-13 * np.linalg.norm(matrix @ normal(100, seed))


@pytest.mark.parametrize("preconditioned", [False, True])
def test_minres_goes_on_and_remembers_the_negative_curvature(preconditioned):
    matrix, b = dense_symmetric(INDEFINITE), normal(120)
    m = np.diag(np.geomspace(0.5, 2, 120)) if preconditioned else None
    solution = solve(matrix, b, method="minres", preconditioner=m, damping=0.001, rtol=1e-9)
    assert solution.converged
    d = solution.negative_curvature
    curvature = d @ matrix @ d + 0.001
    assert curvature < 0
    assert solution.curvature == pytest.approx(curvature, rel=1e-6)
    assert d @ b > 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("eigenvalues", [SINGULAR, SINGULAR - 3 * (SINGULAR > 2.5)])
def test_minres_calls_a_least_squares_solution_one(seed, eigenvalues):
    matrix, b = dense_symmetric(eigenvalues, seed), normal(100, seed)
    least = np.linalg.norm(b - matrix @ np.linalg.lstsq(matrix, b, rcond=1e-10)[0])
    solution = solve(matrix, b, method="minres")
    assert solution.status is Status.LEAST_SQUARES
    assert not solution.converged
    assert solution.residual_norm == pytest.approx(least, rel=1e-6)


def test_a_least_squares_solution_of_float32_products_is_called_one():
    matrix, b = dense_symmetric(SINGULAR), normal(100)
    least = np.linalg.norm(b - matrix @ np.linalg.lstsq(matrix, b, rcond=1e-10)[0])
    solution = solve(float32_products(matrix), b, method="minres")
    assert solution.status is Status.LEAST_SQUARES
    assert solution.residual_norm == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("condition", [1e4, 1e6])
def test_minres_does_not_stop_where_the_estimates_of_scipy_do(condition):
    matrix, b = spd(condition, 50), normal(50)
    x, info = scipy.sparse.linalg.minres(matrix, b, rtol=1e-5)
    assert info == 0
    assert np.linalg.norm(b - matrix @ x) > 0.1 * np.linalg.norm(b)
    solution = solve(matrix, b, method="minres", rtol=1e-5, maxiter=100_000)
    assert solution.converged
    assert true_norm(matrix, solution, b) <= 1.001e-5 * np.linalg.norm(b)
