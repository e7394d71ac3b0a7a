"""Solvers: the dense solution where there is one, and the truth about how they ended elsewhere."""

import dataclasses
import re

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from cases import dense_symmetric, diagonal_operator, log_uniform_bulk
from linalg.systems import (
    INDEFINITE,
    SINGULAR,
    counted,
    float32_products,
    normal,
    relative_error,
    spd,
    true_norm,
)
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.solvers import METHODS, Solution, SolverStep, Status, solve

pytestmark = pytest.mark.filterwarnings("error")

SYMMETRIC = ("cg", "minres")


# The solution --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e6, 1e8])
def test_a_positive_definite_system_is_solved_as_numpy_does(method, condition):
    matrix, b = spd(condition, 40), normal(40)
    # CG and MINRES lose orthogonality and take many times n steps; GMRES takes n.
    rtol = max(1e-9, 1e-14 * condition)
    solution = solve(matrix, b, method=method, rtol=rtol, maxiter=10_000)
    assert solution.converged
    assert true_norm(matrix, solution, b) <= rtol * np.linalg.norm(b) * (1 + 1e-6)
    assert relative_error(solution.x, np.linalg.solve(matrix, b)) <= rtol * condition


@pytest.mark.parametrize("method", ["minres", "gmres"])
def test_an_indefinite_system_is_solved_as_numpy_does(method):
    matrix, b = dense_symmetric(INDEFINITE), normal(120)
    solution = solve(matrix, b, method=method, rtol=1e-10, restart=120)
    assert solution.converged
    assert relative_error(solution.x, np.linalg.solve(matrix, b)) <= 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, "diagonal", "integer"])
def test_operators_of_every_form_are_taken(method, form):
    diagonal = np.arange(1, 41)
    if form == "diagonal":
        operator = diagonal_operator(diagonal.astype(float))
    elif form == "integer":
        operator = np.diag(diagonal)
    else:
        operator = form(np.diag(diagonal.astype(float)))
    b = normal(40)
    solution = solve(operator, b, method=method, rtol=1e-10)
    assert solution.converged
    np.testing.assert_allclose(solution.x, b / diagonal, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_unknown_is_solved_in_one_iteration(method):
    solution = solve(np.array([[4.0]]), [2.0], method=method)
    assert solution.converged
    assert solution.iterations == 1
    assert solution.x == pytest.approx([0.5])


@pytest.mark.parametrize("method", METHODS)
def test_damping_is_added_to_the_diagonal(method):
    matrix, b = dense_symmetric(SINGULAR), normal(100)
    solution = solve(matrix, b, method=method, damping=0.3, rtol=1e-10)
    assert solution.converged
    expected = np.linalg.solve(matrix + 0.3 * np.eye(100), b)
    assert relative_error(solution.x, expected) <= 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale_b", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("scale_a", [1e-100, 1.0, 1e100])
def test_scales_change_nothing(method, scale_a, scale_b):
    matrix, b = spd(100), normal(100)
    plain = solve(matrix, b, method=method)
    scaled = solve(scale_a * matrix, scale_b * b, method=method)
    assert scaled.converged
    assert abs(scaled.iterations - plain.iterations) <= 1
    assert relative_error(scaled.x / scale_b * scale_a, plain.x) <= 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_right_hand_side_zero_needs_no_product(method):
    operator, calls = counted(spd(10))
    solution = solve(operator, np.zeros(100), method=method, x0=np.ones(100))
    assert solution.converged
    assert not solution.x.any()
    assert (solution.iterations, solution.num_products, len(calls)) == (0, 0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_start_at_the_solution_stays_there(method):
    matrix, b = spd(10), normal(100)
    x0 = np.linalg.solve(matrix, b)
    solution = solve(matrix, b, method=method, x0=x0)
    assert solution.converged
    assert (solution.iterations, solution.num_products) == (0, 1)
    np.testing.assert_array_equal(solution.x, x0)


@pytest.mark.parametrize("method", METHODS)
def test_a_solve_goes_on_from_where_another_ended(method):
    matrix, b = spd(1e3), normal(100)
    first = solve(matrix, b, method=method, maxiter=20, restart=100)
    assert first.status is Status.MAX_ITERATIONS
    assert first.iterations == 20
    second = solve(matrix, b, method=method, x0=first.x, rtol=1e-8, restart=100)
    assert second.converged
    assert second.residual_norms[0] == pytest.approx(first.residual_norm, rel=1e-9)
    assert relative_error(second.x, np.linalg.solve(matrix, b)) <= 1e-5


def test_the_arguments_are_not_written_to():
    matrix, b, x0 = spd(10), normal(100), normal(100, 1)
    copies = matrix.copy(), b.copy(), x0.copy()
    for method in METHODS:
        solve(matrix, b, method=method, x0=x0)
    for array, copy in zip((matrix, b, x0), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("method", METHODS)
def test_an_operator_may_return_its_argument_or_a_buffer_of_its_own(method):
    b = normal(30)
    identity = LinearOperator((30, 30), matvec=lambda v: v, dtype=np.float64)
    solution = solve(identity, b, method=method, preconditioner=identity, rtol=1e-10)
    assert solution.converged
    np.testing.assert_allclose(solution.x, b, rtol=1e-12)
    diagonal, buffer = np.linspace(1, 9, 30), np.empty(30)
    reusing = LinearOperator(
        (30, 30), matvec=lambda v: np.multiply(diagonal, np.ravel(v), out=buffer), dtype=np.float64
    )
    np.testing.assert_allclose(
        solve(reusing, b, method=method, rtol=1e-10).x, b / diagonal, rtol=1e-6
    )


# Residuals and counts -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_history_is_that_of_the_true_residuals(method, preconditioned):
    matrix, b = spd(100, 40), normal(40)
    m = np.diag(1 / np.diag(matrix)) if preconditioned else None
    solution = solve(matrix, b, method=method, damping=0.01, preconditioner=m, rtol=1e-6)
    assert solution.converged
    assert len(solution.residual_norms) == solution.iterations + 1
    for k in range(solution.iterations + 1):
        # Runs of k iterations, so that GMRES, which shows no iterates, is held to it too.
        if k % 10:
            continue
        stopped = solve(
            matrix, b, method=method, damping=0.01, preconditioner=m, rtol=1e-6, maxiter=k
        )
        assert solution.residual_norms[k] == pytest.approx(true_norm(matrix, stopped, b), rel=1e-6)
    assert solution.residual_norm == pytest.approx(true_norm(matrix, solution, b), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_products_are_counted_and_few(method):
    operator, calls = counted(spd(100))
    solution = solve(operator, normal(100), method=method, restart=100)
    assert solution.num_products == len(calls) == solution.iterations + 1


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_the_last_product_can_be_spared(method):
    matrix, b = spd(100), normal(100)
    operator, calls = counted(matrix)
    solution = solve(operator, b, method=method, rtol=0.1, verify=False)
    assert solution.converged
    assert solution.num_products == len(calls) == solution.iterations
    assert solution.residual_norm == pytest.approx(true_norm(matrix, solution, b), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_value_is_that_of_the_quadratic(method):
    matrix, b = spd(100), normal(100)
    for x0 in (None, normal(100, 1)):
        solution = solve(matrix, b, method=method, damping=0.5, rtol=1e-2, x0=x0)
        x = solution.x
        expected = 0.5 * (x @ matrix @ x + 0.5 * x @ x) - b @ x
        assert solution.model_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_callback_sees_every_iteration(method):
    steps = []
    solution = solve(spd(100), normal(100), method=method, callback=steps.append, restart=10)
    assert [step.iteration for step in steps] == list(range(1, solution.iterations + 1))
    np.testing.assert_array_equal([s.residual_norm for s in steps], solution.residual_norms[1:])
    assert isinstance(steps[0], SolverStep)
    if method == "gmres":
        assert steps[-1].x is None
    else:
        np.testing.assert_array_equal(steps[-1].x, solution.x)
        assert not steps[-1].x.flags.writeable


def test_the_result_says_what_it_is():
    solution = solve(spd(10), normal(100))
    assert isinstance(solution, Solution)
    assert re.fullmatch(
        r"Solution\(CONVERGED, cg, n=100, \d+ iterations, \d+ products, "
        r"residual_norm=[\d.e-]+, tolerance=[\d.e-]+\)",
        repr(solution),
    )
    assert "curvature=-1" in repr(solve(-np.eye(3), np.ones(3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.x = None
    messages = [status.message for status in Status]
    assert len(set(messages)) == len(Status) == len(Status.__members__)
    assert all(message.endswith(".") for message in messages)


# Negative curvature ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_the_saddle_of_a_product_is_reported(method):
    # The Hessian of f(x, y) = x y: what XOR-like networks have at their saddles.
    saddle = np.array([[0.0, 1.0], [1.0, 0.0]])
    solution = solve(saddle, [1.0, -0.5], method=method, rtol=1e-12)
    d = solution.negative_curvature
    assert d @ saddle @ d < 0
    assert d @ [1.0, -0.5] > 0
    if method == "cg":
        assert solution.status is Status.NEGATIVE_CURVATURE
    else:
        np.testing.assert_allclose(solution.x, [-0.5, 1.0])


def test_unverified_claims_that_rounding_may_have_made_are_measured_all_the_same():
    matrix = dense_symmetric(np.resize([-1.0, 0.0, 1.0], 29))
    for seed in range(20):
        b = normal(29, seed)
        for method in METHODS:
            solution = solve(matrix, b, method=method, verify=False)
            assert not solution.converged
            if solution.status in (Status.LEAST_SQUARES, Status.STAGNATION):
                assert solution.residual_norm == pytest.approx(true_norm(matrix, solution, b))


@pytest.mark.parametrize("method", METHODS)
def test_what_float32_products_cannot_reach_is_not_claimed_unverified(method):
    matrix, b = spd(1e3), normal(100)
    solution = solve(float32_products(matrix), b, method=method, rtol=1e-9, verify=False)
    rounded = matrix.astype(np.float32).astype(np.float64)
    if solution.converged:
        assert true_norm(rounded, solution, b) <= 1e-6 * np.linalg.norm(solution.x)
    assert method == "gmres" or not solution.converged


@pytest.mark.parametrize(
    ("method", "eigenvalues"),
    [
        ("gmres", np.concatenate([np.zeros(20), np.geomspace(1e-4, 5, 120)])),
        ("minres", np.concatenate([1e-12 * np.linspace(1, 3, 20), np.linspace(1, 5, 100)])),
    ],
)
def test_a_failure_is_never_worse_than_the_start(method, eigenvalues):
    for seed in range(4):
        matrix, b = dense_symmetric(eigenvalues, seed), normal(len(eigenvalues), seed)
        solution = solve(matrix, b, method=method, rtol=1e-10, restart=200)
        assert not solution.converged
        assert solution.residual_norm <= np.linalg.norm(b) * (1 + 1e-9)
        if not solution.x.any():
            assert solution.residual_norm == pytest.approx(np.linalg.norm(b))


def test_no_negative_curvature_is_made_up():
    for matrix in (spd(1e8), dense_symmetric(SINGULAR)):
        for method in SYMMETRIC:
            b = matrix @ normal(100)
            solution = solve(matrix, b, method=method, rtol=1e-5)
            assert solution.status in (Status.CONVERGED, Status.MAX_ITERATIONS)
            assert solution.negative_curvature is None
            assert solution.curvature is None


# Singular systems -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_singular_system_with_a_solution_is_solved(method):
    matrix = dense_symmetric(SINGULAR)
    truth = matrix @ normal(100)  # no part in the null space, as the iterates have none
    solution = solve(matrix, matrix @ truth, method=method, rtol=1e-10)
    assert solution.converged
    assert relative_error(solution.x, truth) <= 1e-8


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", METHODS)
def test_a_system_without_a_solution_is_never_called_solved(method, dtype):
    for seed in range(3):
        matrix, b = dense_symmetric(SINGULAR, seed), normal(100, seed)
        operator = matrix if dtype == np.float64 else float32_products(matrix)
        solution = solve(operator, b, method=method, maxiter=200)
        assert not solution.converged
        assert solution.residual_norm > 0.1
    if method == "cg":
        assert solution.status is Status.SINGULAR
        d = solution.negative_curvature
        eps = np.finfo(dtype).eps
        assert abs(d @ matrix @ d) <= 100 * eps * 5
        assert solution.residual_norm <= np.linalg.norm(b)


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_matrix_is_singular(method):
    solution = solve(np.zeros((5, 5)), np.ones(5), method=method)
    assert solution.status in (Status.SINGULAR, Status.LEAST_SQUARES)
    assert not solution.x.any()
    assert solve(np.zeros((5, 5)), np.ones(5), method=method, damping=0.5).x == pytest.approx(2.0)


# Rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("condition", [1e2, 1e3])
def test_float32_products_end_with_the_truth(method, condition):
    matrix, b = spd(condition), normal(100)
    operator = float32_products(matrix)
    loose = solve(operator, b, method=method, rtol=1e-2, restart=100)
    assert loose.converged
    for rtol in (1e-6, 1e-12):
        solution = solve(operator, b, method=method, rtol=rtol, restart=100)
        rounded = matrix.astype(np.float32).astype(np.float64)
        # Measured with float32 products, whose own rounding is eps ||A|| ||x||.
        slack = 1e-6 * np.linalg.norm(solution.x)
        assert abs(true_norm(rounded, solution, b) - solution.residual_norm) <= slack
        assert solution.converged == (solution.residual_norm <= solution.tolerance)
        assert solution.converged or solution.status is Status.STAGNATION
        assert solution.residual_norm <= loose.residual_norm


@pytest.mark.parametrize("method", METHODS)
def test_no_tolerance_at_all_ends_at_rounding(method):
    matrix, b = spd(100), normal(100)
    solution = solve(matrix, b, method=method, rtol=0.0, restart=100)
    assert solution.status is Status.STAGNATION
    assert solution.residual_norm <= 1e-13 * np.linalg.norm(b)
    assert solution.iterations < 1000


def test_a_stated_product_dtype_is_believed():
    operator = LinearOperator((50, 50), matvec=lambda v: 0.0 * v + 1e-7 * v, dtype=np.float64)
    operator.product_dtype = np.dtype(np.float32)
    assert solve(operator, np.ones(50)).converged
    matrix = np.diag(np.concatenate([[1.0], np.full(49, 1e-8)]))
    operator = scipy.sparse.linalg.aslinearoperator(matrix)
    b = np.ones(50)
    assert solve(operator, b).converged
    operator.product_dtype = np.dtype(np.float32)
    assert solve(operator, b).status is Status.SINGULAR
    # Damping is exact, whatever the products are.
    assert solve(operator, b, damping=1e-8).converged


def test_damping_below_the_rounding_of_the_products_is_no_false_alarm():
    eigenvalues = np.abs(log_uniform_bulk(200))
    eigenvalues[:60] = 0
    operator = float32_products(dense_symmetric(eigenvalues))
    for method in SYMMETRIC:
        solution = solve(operator, normal(200), method=method, damping=5e-5, rtol=0.1)
        assert solution.converged


@pytest.mark.parametrize("seed", [1, 6, 12, 17])
def test_a_claim_missed_by_a_hair_is_no_stagnation_while_the_residual_still_falls(seed):
    eigenvalues = np.abs(log_uniform_bulk(200))
    eigenvalues[:60] = 0
    operator, b = float32_products(dense_symmetric(eigenvalues)), normal(200, seed)
    for rtol in (0.1, 0.05, 0.02):
        solution = solve(operator, b, method="minres", damping=5e-5, rtol=rtol)
        assert solution.converged
        residual = b - operator.matvec(solution.x) - 5e-5 * solution.x
        assert np.linalg.norm(residual) <= 1.001 * rtol * np.linalg.norm(b)


def test_a_matrix_that_is_not_symmetric_is_not_called_solved_wrongly():
    for seed in range(10):
        matrix = np.random.default_rng(seed).standard_normal((30, 30)) + 6 * np.eye(30)
        b = normal(30, seed)
        for method in SYMMETRIC:
            solution = solve(matrix, b, method=method, maxiter=300)
            if solution.converged:
                assert true_norm(matrix, solution, b) <= 1.001e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("method", METHODS)
def test_no_iterations_at_all_is_the_start(method):
    solution = solve(spd(10), np.ones(100), method=method, maxiter=0)
    assert solution.status is Status.MAX_ITERATIONS
    assert (solution.iterations, solution.num_products) == (0, 0)
    assert not solution.x.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [0.5, 0.999999, 1.0, 2.0])
def test_a_tolerance_near_one_is_met(method, rtol):
    solution = solve(spd(100), normal(100), method=method, rtol=rtol)
    assert solution.converged
    assert (solution.iterations == 0) == (rtol >= 1)


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": np.ones(4)}, ValueError, r"b must have shape \(3,\), .* got \(4,\)"),
        ({"b": np.ones((3, 1))}, ValueError, r"b must have shape \(3,\)"),
        ({"b": [1, np.nan, 1]}, ValueError, "b must be finite"),
        ({"b": [1, 1j, 1]}, TypeError, "b must be real"),
        ({"b": ["a", "b", "c"]}, TypeError, "b must be an array of real numbers"),
        ({"x0": np.ones(2)}, ValueError, r"x0 must have shape \(3,\)"),
        ({"x0": [1, np.inf, 1]}, ValueError, "x0 must be finite"),
        ({"x0": [1, 1j, 1]}, TypeError, "x0 must be real"),
        ({"operator": np.ones((3, 2))}, ValueError, "square"),
        ({"operator": 1j * np.eye(3)}, TypeError, "must be real"),
        ({"operator": "matrix"}, TypeError, "LinearOperator"),
        ({"method": "lu"}, ValueError, "cg, minres, gmres, got 'lu'"),
        ({"damping": -1e-3}, ValueError, "damping must be at least 0"),
        ({"damping": np.nan}, ValueError, "damping must be finite"),
        ({"rtol": -1.0}, ValueError, "rtol must be at least 0"),
        ({"atol": -1.0}, ValueError, "atol must be at least 0"),
        ({"rtol": "tight"}, TypeError, "rtol must be a real number"),
        ({"maxiter": -1}, ValueError, "maxiter"),
        ({"maxiter": 1.5}, TypeError, "maxiter must be an integer"),
        ({"restart": 0}, ValueError, "restart"),
        ({"radius": 0.0}, ValueError, "radius must be greater than 0"),
        ({"radius": 1.0, "method": "minres"}, ValueError, "radius needs method='cg'"),
        ({"preconditioner": np.eye(4)}, ValueError, r"operator's shape \(3, 3\), got \(4, 4\)"),
        ({"preconditioner": 1j * np.eye(3)}, TypeError, "preconditioner: .* real"),
        ({"preconditioner": "jacobi"}, TypeError, "preconditioner: "),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"operator": np.eye(3), "b": np.ones(3), **change}
    with pytest.raises(error, match=message):
        solve(arguments.pop("operator"), arguments.pop("b"), **arguments)


@pytest.mark.parametrize("method", SYMMETRIC)
def test_a_preconditioner_that_is_not_positive_definite_is_an_error_with_its_figure(method):
    matrix, b = spd(10), normal(100)
    with pytest.raises(ValueError, match=r"positive definite: r'M r is -1 of .* at iteration 0"):
        solve(matrix, b, method=method, preconditioner=-np.eye(100))
    with pytest.raises(ValueError, match="positive definite: r'M r is 0 of"):
        solve(matrix, b, method=method, preconditioner=np.zeros((100, 100)))
    indefinite = dense_symmetric(np.concatenate([[-2.0], np.ones(99)]))
    with pytest.raises(ValueError, match=r"positive definite: r'M r is -[\d.]+ of .* iteration"):
        solve(matrix, b, method=method, preconditioner=indefinite, rtol=1e-12)
    assert solve(matrix, b, method="gmres", preconditioner=indefinite).converged


@pytest.mark.parametrize("method", METHODS)
def test_a_product_that_is_not_finite_names_its_iteration(method):
    matrix, calls = np.diag(np.arange(1.0, 31)), []

    def matvec(v):
        calls.append(1)
        return matrix @ np.ravel(v) * (np.nan if len(calls) == 3 else 1.0)

    broken = LinearOperator((30, 30), matvec=matvec, dtype=np.float64)
    with pytest.raises(FloatingPointError, match="not finite at iteration 3"):
        solve(broken, np.ones(30), method=method)
    calls.clear()
    with pytest.raises(FloatingPointError, match=r"preconditioner's, at iteration \d"):
        solve(matrix, np.ones(30), method=method, preconditioner=broken)


@pytest.mark.parametrize("method", METHODS)
def test_complex_products_are_an_error(method):
    operator = LinearOperator((3, 3), matvec=lambda v: 1j * v, dtype=np.float64)
    with pytest.raises(TypeError, match="complex"):
        solve(operator, np.ones(3), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_in_the_callback_comes_through(method):
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(spd(100), normal(100), method=method, callback=stop)
