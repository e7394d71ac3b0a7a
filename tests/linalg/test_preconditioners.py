"""Preconditioners: the formulas they state, positive definite, and fewer iterations."""

import numpy as np
import pytest
import scipy.sparse
from cases import dense_symmetric, diagonal_operator
from linalg.systems import normal
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.nystrom_approximation import nystrom
from spectral_density.linalg.preconditioners import (
    LowRankPreconditioner,
    NystromPreconditioner,
    low_rank_preconditioner,
    nystrom_preconditioner,
)
from spectral_density.linalg.randomized import randomized_eigh
from spectral_density.linalg.solvers import METHODS, solve

pytestmark = pytest.mark.filterwarnings("error")

DECAYING = np.arange(1, 201) ** -2.0
SIGNED = DECAYING * np.where(np.arange(200) % 3 == 1, -1, 1)


def eigenpairs(matrix, rank):
    values, vectors = np.linalg.eigh(matrix)
    top = np.argsort(-np.abs(values))[:rank]
    return values[top], vectors[:, top]


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("make", [nystrom_preconditioner, low_rank_preconditioner])
def test_it_is_the_formula_of_the_paper(make, damping):
    matrix = dense_symmetric(DECAYING if make is nystrom_preconditioner else SIGNED)
    values, u = eigenpairs(matrix, 30)
    magnitudes = np.abs(values)
    expected = (magnitudes[-1] + damping) * (u / (magnitudes + damping)) @ u.T
    expected += np.eye(200) - u @ u.T
    m = make((values, u), damping)
    np.testing.assert_allclose(m @ np.eye(200), expected, atol=1e-13)
    np.testing.assert_allclose(m @ normal(200), expected @ normal(200), atol=1e-13)
    assert np.linalg.eigvalsh(m @ np.eye(200)).min() > 0
    np.testing.assert_allclose(m.T @ normal(200), m @ normal(200))
    np.testing.assert_allclose(m.H @ normal(200), m @ normal(200))
    assert (m @ normal(200)).shape == (200,)
    assert m.matvec(normal(200)[:, np.newaxis]).shape == (200, 1)
    assert m.dtype == np.float64


def test_exact_eigenpairs_leave_the_condition_number_of_the_rest():
    matrix, damping = dense_symmetric(DECAYING), 1e-4
    for rank in (1, 10, 50):
        m = nystrom_preconditioner(eigenpairs(matrix, rank), damping)
        product = (m @ np.eye(200)) @ (matrix + damping * np.eye(200))
        values = np.sort(np.linalg.eigvals(product).real)
        expected = (DECAYING[rank - 1] + damping) / (DECAYING[-1] + damping)
        assert values[-1] / values[0] == pytest.approx(expected, rel=1e-6)


def test_a_full_decomposition_solves_in_one_iteration():
    matrix, b = dense_symmetric(DECAYING), normal(200)
    m = nystrom_preconditioner(eigenpairs(matrix, 200), 1e-3)
    for method in METHODS:
        solution = solve(matrix, b, method=method, damping=1e-3, preconditioner=m, rtol=1e-8)
        assert solution.converged
        assert solution.iterations == 1


def test_rank_zero_is_the_identity():
    m = LowRankPreconditioner(np.zeros(0), np.zeros((5, 0)), 0.1)
    np.testing.assert_array_equal(m @ np.arange(5.0), np.arange(5.0))


@pytest.mark.parametrize(
    ("method", "signed"), [*((m, False) for m in METHODS), ("minres", True), ("gmres", True)]
)
def test_the_preconditioned_solution_is_that_of_numpy(method, signed):
    matrix, b, damping = dense_symmetric(SIGNED if signed else DECAYING), normal(200), 2e-4
    if signed:
        m = low_rank_preconditioner(randomized_eigh(matrix, 40, krylov_depth=2), damping)
    else:
        m = nystrom_preconditioner(nystrom(matrix, 40), damping)
    plain = solve(matrix, b, method=method, damping=damping, rtol=1e-9, restart=200)
    solution = solve(
        matrix, b, method=method, damping=damping, preconditioner=m, rtol=1e-9, restart=200
    )
    assert solution.converged
    expected = np.linalg.solve(matrix + damping * np.eye(200), b)
    assert np.linalg.norm(solution.x - expected) <= 1e-5 * np.linalg.norm(expected)
    assert solution.iterations < (0.9 if method == "gmres" else 0.6) * plain.iterations


@pytest.mark.parametrize(
    ("name", "eigenvalues"),
    [
        # Damping makes each of condition number 1e6.
        ("exponential", 10.0 ** (-np.arange(3000) / 100)),
        ("square", np.arange(1, 3001) ** -2.0),
    ],
)
def test_rank_200_leaves_a_third_of_the_iterations_at_most(name, eigenvalues):
    operator, b = diagonal_operator(eigenvalues), normal(3000)
    damping = 1e-6 * eigenvalues[0]
    m = NystromPreconditioner.from_operator(operator, 200, damping)
    plain = solve(operator, b, damping=damping, rtol=1e-5)
    preconditioned = solve(operator, b, damping=damping, preconditioner=m, rtol=1e-5)
    assert plain.converged
    assert preconditioned.converged
    assert 3 * preconditioned.iterations <= plain.iterations
    assert m.num_products + preconditioned.num_products < plain.num_products


def test_products_of_the_setup_are_counted():
    columns = []
    matrix = dense_symmetric(DECAYING)

    def matmat(block):
        columns.append(block.shape[1])
        return matrix @ block

    operator = LinearOperator(
        (200, 200), matvec=lambda v: matmat(v.reshape(-1, 1))[:, 0], matmat=matmat, dtype=float
    )
    m = NystromPreconditioner.from_operator(operator, 20, 1e-3, seed=3)
    assert m.num_products == sum(columns) == 30
    assert len(columns) == 1
    again = NystromPreconditioner.from_operator(matrix, 20, 1e-3, seed=3)
    np.testing.assert_allclose(m @ normal(200), again @ normal(200), rtol=1e-9)
    approximation = nystrom(matrix, 20)
    assert nystrom_preconditioner(approximation, 1e-3).num_products == approximation.num_products
    assert nystrom_preconditioner((DECAYING[:3], np.eye(200)[:, :3]), 1.0).num_products == 0
    assert repr(m) == "NystromPreconditioner(n=200, rank=20, damping=0.001, 30 products)"


def test_any_operator_serves_as_a_preconditioner():
    diagonal, b = np.geomspace(1e-4, 1, 200), normal(200)
    matrix = np.diag(diagonal)
    for m in (np.diag(1 / diagonal), scipy.sparse.diags_array(1 / diagonal)):
        solution = solve(matrix, b, preconditioner=m)
        assert solution.converged
        assert solution.iterations == 1


def test_float32_eigenvectors_are_taken():
    matrix, b = dense_symmetric(DECAYING), normal(200)
    values, vectors = eigenpairs(matrix, 40)
    m = nystrom_preconditioner((values.astype(np.float32), vectors.astype(np.float32)), 1e-4)
    assert (m @ b).dtype == np.float64
    plain = solve(matrix, b, damping=1e-4)
    assert solve(matrix, b, damping=1e-4, preconditioner=m).iterations < 0.5 * plain.iterations


@pytest.mark.parametrize(
    ("values", "vectors", "damping", "error", "message"),
    [
        ([1.0], np.ones((3, 2)), 1.0, ValueError, r"got \(1,\) and \(3, 2\)"),
        ([[1.0]], np.ones((3, 1)), 1.0, ValueError, r"values of shape \(r,\)"),
        ([np.nan], np.eye(3)[:, :1], 1.0, ValueError, "finite"),
        ([1j], np.eye(3)[:, :1], 1.0, TypeError, "real"),
        ([1.0], 2 * np.eye(3)[:, :1], 1.0, ValueError, "orthonormal: U'U is 3 away"),
        ([1.0], np.eye(3)[:, :1], -1.0, ValueError, "damping must be at least 0"),
        ([1.0, 0.0], np.eye(3)[:, :2], 0.0, ValueError, "0, is nothing beside the largest, 1,"),
        ([1.0, 1e-17], np.eye(3)[:, :2], 0.0, ValueError, "1e-17, is nothing beside"),
        ([1.0, -1.0], np.eye(3)[:, :2], 0.0, ValueError, "no negative eigenvalues, got -1"),
    ],
)
def test_bad_arguments_are_named(values, vectors, damping, error, message):
    with pytest.raises(error, match=message):
        nystrom_preconditioner((values, vectors), damping)


def test_what_has_no_eigenpairs_is_an_error():
    for thing in (np.eye(3), None, (1, 2, 3)):
        with pytest.raises(TypeError, match="values and vectors"):
            low_rank_preconditioner(thing, 1.0)
    with pytest.raises(ValueError, match="square"):
        NystromPreconditioner.from_operator(np.ones((3, 2)), 1, 1.0)
    with pytest.raises(ValueError, match="damping"):
        NystromPreconditioner.from_operator(np.eye(3), 1, -1.0)
