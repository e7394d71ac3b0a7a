"""Conjugate gradients: the iterations of SciPy, negative curvature, and the trust radius."""

import numpy as np
import pytest
import scipy.sparse.linalg
from cases import dense_symmetric, log_uniform_bulk
from linalg.systems import INDEFINITE, SINGULAR, normal, spd, true_norm

from spectral_density.linalg.solvers import Status, solve

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.ones(100),
        np.geomspace(1e-2, 1, 100),
        np.geomspace(5e-3, 1, 200),
        np.abs(log_uniform_bulk(200)) + 0.5,
        SINGULAR + 0.01,
    ],
)
@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_takes_as_many_iterations_as_that_of_scipy(eigenvalues, rtol, preconditioned):
    matrix, b = dense_symmetric(eigenvalues), normal(len(eigenvalues))
    m = np.diag(np.linspace(1, 2, len(b))) if preconditioned else None
    calls = []
    scipy.sparse.linalg.cg(matrix, b, rtol=rtol, M=m, callback=calls.append)
    solution = solve(matrix, b, rtol=rtol, preconditioner=m)
    assert abs(solution.iterations - len(calls)) <= 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_cg_returns_negative_curvature_and_the_iterate_so_far(seed, damping):
    matrix = dense_symmetric(np.concatenate([[-0.5, -0.1], np.geomspace(1e-2, 1, 98)]), seed)
    shifted, b = matrix + damping * np.eye(100), normal(100, seed)
    values = [0.0]

    def note(step):
        values.append(0.5 * step.x @ shifted @ step.x - b @ step.x)

    solution = solve(matrix, b, damping=damping, rtol=1e-12, callback=note)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert not solution.converged
    d = solution.negative_curvature
    assert np.linalg.norm(d) == pytest.approx(1)
    assert d @ shifted @ d < 0
    assert solution.curvature == pytest.approx(d @ shifted @ d, rel=1e-9)
    assert d @ b > 0
    # The model fell at every step, and d descends from the iterate too.
    assert (np.diff(values) < 0).all()
    assert solution.model_value == pytest.approx(values[-1], rel=1e-9, abs=1e-12)
    assert d @ (b - shifted @ solution.x) > 0
    assert solution.iterations == len(values) - 1


def test_cg_meets_negative_curvature_at_the_first_product():
    solution = solve(np.diag([-1.0, -2.0, 0.5]), [1.0, 1.0, 0.0])
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert solution.iterations == 0
    assert not solution.x.any()
    np.testing.assert_allclose(solution.negative_curvature, [0.5**0.5, 0.5**0.5, 0])
    assert solution.curvature == pytest.approx(-1.5)
    # Damping beyond it makes the system positive definite.
    assert solve(np.diag([-1.0, -2.0, 0.5]), [1.0, 1.0, 0.0], damping=2.5).converged


def test_cg_with_a_preconditioner_still_reports_negative_curvature():
    matrix = dense_symmetric(INDEFINITE)
    m = dense_symmetric(1 / np.abs(INDEFINITE))
    solution = solve(matrix, normal(120), preconditioner=m)
    assert solution.status is Status.NEGATIVE_CURVATURE
    d = solution.negative_curvature
    assert d @ matrix @ d < 0
    assert solution.curvature == pytest.approx(d @ matrix @ d, rel=1e-9)


def test_within_the_radius_nothing_changes():
    matrix, b = spd(100), normal(100)
    free = solve(matrix, b)
    bound = solve(matrix, b, radius=1.01 * np.linalg.norm(free.x))
    assert bound.converged
    np.testing.assert_array_equal(bound.x, free.x)


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_path_stops_at_the_radius(share, preconditioned):
    matrix, b = spd(1000), normal(100)
    m = np.diag(1 / np.diag(matrix)) if preconditioned else None
    free = solve(matrix, b)
    radius = share * np.linalg.norm(free.x)
    values = [0.0]
    solution = solve(
        matrix,
        b,
        radius=radius,
        preconditioner=m,
        callback=lambda s: values.append(0.5 * s.x @ matrix @ s.x - b @ s.x),
    )
    assert solution.status is Status.TRUST_RADIUS
    assert np.linalg.norm(solution.x) == pytest.approx(radius, rel=1e-12)
    assert solution.iterations <= free.iterations + 1
    assert (np.diff(values) < 0).all()
    # At least as low as the Cauchy point, on which trust-region theory rests.
    t = min(radius / np.linalg.norm(b), b @ b / (b @ matrix @ b))
    if not preconditioned:
        assert values[-1] <= 0.5 * t**2 * b @ matrix @ b - t * b @ b + 1e-12


def test_negative_curvature_is_followed_to_the_radius():
    matrix, b = dense_symmetric(INDEFINITE), normal(120)
    inside = solve(matrix, b)
    assert inside.status is Status.NEGATIVE_CURVATURE
    solution = solve(matrix, b, radius=1e3)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert np.linalg.norm(solution.x) == pytest.approx(1e3)
    along = solution.x - inside.x
    np.testing.assert_allclose(along / np.linalg.norm(along), solution.negative_curvature)
    assert solution.model_value < inside.model_value
    assert solution.residual_norm == pytest.approx(true_norm(matrix, solution, b))


def test_a_start_within_the_radius_counts_for_it():
    matrix, b, x0 = spd(1000), normal(100), np.full(100, 0.05)
    solution = solve(matrix, b, x0=x0, radius=2.0)
    assert solution.status is Status.TRUST_RADIUS
    assert np.linalg.norm(solution.x) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="outside the radius"):
        solve(matrix, b, x0=x0, radius=0.1)
