"""The step of each method on a quadratic function, whose every figure is known."""

import numpy as np
import pytest
import tensorflow as tf

from spectral_density.curvature.hessian import HessianOperator
from spectral_density.linalg.solvers import Status
from spectral_density.training import (
    FixedStep,
    LevenbergMarquardt,
    LowRankSaddleFreeNewton,
    NewtonCG,
    NewtonGMRES,
    NewtonMINRES,
    TrainingStatus,
    TrustRegion,
    newton_krylov,
)
from spectral_density.training.problem import problem_of

VALUES = np.array([4.0, -2.0, 1.0, -0.25, 0.1])
START = np.array([0.5, -1.0, 2.0, 1.0, -3.0])


def problem(values=VALUES, start=START):
    """f(x) = 1/2 sum of values_i x_i^2, at a start."""
    x = tf.Variable(start, dtype=tf.float64)
    scale = tf.constant(values, tf.float64)
    operator = HessianOperator.from_function(lambda x: 0.5 * tf.reduce_sum(scale * x * x), x)
    return problem_of(operator), x


def saddle_free(**options):
    defaults = {"rank": 5, "oversampling": 0, "refresh": 1, "globalization": "fixed"}
    return LowRankSaddleFreeNewton(**(defaults | options))


class Seen(FixedStep):
    """A fixed step that keeps what the method said of its direction."""

    def choose(self, ray):
        self.ray = ray
        return super().choose(ray)


class Within(FixedStep):
    """A fixed step of at most a length."""

    def __init__(self, radius):
        super().__init__()
        self.longest = radius

    @property
    def radius(self):
        return self.longest


@pytest.fixture
def solved(monkeypatch):
    """The options that each Newton system is solved with."""
    options, whole = [], newton_krylov.solve

    def solve(*system, **given):
        options.append(given)
        return whole(*system, **given)

    monkeypatch.setattr(newton_krylov, "solve", solve)
    return options


# Saddle-free Newton ------------------------------------------------------------------------------


@pytest.mark.parametrize("relative_to", ["absolute", "largest", "smallest"])
def test_the_saddle_free_step_divides_the_gradient_by_the_damped_magnitudes(relative_to):
    method = saddle_free(damping=0.3, damping_relative_to=relative_to, learning_rate=0.5)
    task, x = problem()
    step = method.step(task)
    gamma = 0.3 * {"absolute": 1.0, "largest": 4.0, "smallest": 0.1}[relative_to]
    gradient = VALUES * START
    direction = -gradient / (np.abs(VALUES) + gamma)
    np.testing.assert_allclose(x, START + 0.5 * direction, rtol=1e-8)
    assert step.status is TrainingStatus.ACCEPTED
    assert step.loss == pytest.approx(0.5 * np.sum(VALUES * START**2))
    assert step.gradient_norm == pytest.approx(np.linalg.norm(gradient))
    assert step.slope == pytest.approx(gradient @ direction)
    assert step.damping == pytest.approx(gamma)
    assert step.step_length == 0.5
    assert step.step_norm == pytest.approx(0.5 * np.linalg.norm(direction))
    assert (step.rank, step.smallest_eigenvalue) == (5, pytest.approx(-2.0))
    assert step.largest_eigenvalue == pytest.approx(4.0)
    # Every coordinate of negative curvature moved away from the saddle, the others towards it.
    assert np.all((np.abs(x) > np.abs(START)) == (VALUES < 0))


def test_beyond_its_rank_the_saddle_free_step_is_the_gradients_over_gamma():
    task, x = problem()
    saddle_free(rank=2, oversampling=3, damping=0.5, damping_relative_to="absolute").step(task)
    magnitudes = np.array([4.0, 2.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(
        x, START - 0.3 * VALUES * START / (magnitudes + 0.5), rtol=1e-7, atol=1e-9
    )


def test_the_model_of_a_saddle_free_step_has_the_magnitudes_of_the_curvature():
    seen = Seen()
    task, x = problem()
    saddle_free(damping=0.3, damping_relative_to="absolute", globalization=seen).step(task)
    d = (x.numpy() - START) / seen.ray.first
    assert seen.ray.curvature == pytest.approx(np.sum((np.abs(VALUES) + 0.3) * d * d))


def test_eigenpairs_are_refreshed_after_10_20_40_steps_and_then_every_so_many():
    method = saddle_free(refresh=25, learning_rate=1e-3)
    task, _ = problem()
    refreshed, before = [], 0
    for number in range(1, 100):
        after = method.step(task).num_products
        if after > before:
            refreshed.append(number)
        before = after
    assert refreshed == [1, 11, 21, 41, 66, 91]


def test_a_refresh_tracks_by_rank_products_unless_a_warm_start_is_refused():
    for options, first, later in (
        ({"rank": 2, "oversampling": 1}, 6, 2),
        ({"rank": 2, "oversampling": 1, "warm_start": False}, 6, 6),
        ({"rank": 2, "oversampling": 1, "factorization": "lanczos", "warm_start": False}, 3, 3),
    ):
        method = saddle_free(learning_rate=1e-3, refresh=100, **options)
        task, _ = problem()
        counts = [method.step(task).num_products for _ in range(2 * 10 + 1)]
        assert counts[0] == first
        assert counts[10] - counts[9] == later
        assert counts[9] == first


@pytest.mark.parametrize("range_finder", ["fixed", "adaptive"])
def test_every_refresh_has_random_vectors_of_its_own_and_a_rerun_the_same(range_finder):
    method = saddle_free(
        rank=3, range_finder=range_finder, signal_to_noise=0, warm_start=False, seed=3
    )
    found = []
    for _ in range(2):
        method.reset()
        # The weights stay: the gradient and the matrix are those of the first step.
        found.append([method.step(problem()[0]).largest_eigenvalue for _ in range(2)])
    assert abs(found[0][0] - found[0][1]) > 1e-6
    assert found[1] == found[0]


def test_tracked_eigenpairs_are_in_single_precision_where_products_are():
    x = tf.Variable(np.linspace(1.0, 2.0, 30), dtype=tf.float32)
    scale = tf.constant(np.linspace(1.0, 30.0, 30), tf.float32)
    operator = HessianOperator.from_function(lambda x: 0.5 * tf.reduce_sum(scale * x * x), x)
    method = saddle_free(rank=4, learning_rate=1e-4)
    task = problem_of(operator)
    for _ in range(11):
        step = method.step(task)
    pairs = method._pairs
    assert pairs.vectors.dtype == pairs.images.dtype == np.float32
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(4), atol=1e-5)
    ritz = np.sum(np.linspace(1.0, 30.0, 30)[:, np.newaxis] * pairs.vectors**2, axis=0)
    np.testing.assert_allclose(pairs.values, ritz, rtol=1e-5)
    assert step.largest_eigenvalue == pytest.approx(30.0, rel=0.05)


# Newton-Krylov -----------------------------------------------------------------------------------


def test_the_forcing_term_is_the_second_choice_of_eisenstat_and_walker(solved):
    power = (1 + 5**0.5) / 2
    method = NewtonCG(max_forcing=0.5, globalization="fixed", warm_start=0)

    def forcing(norm):
        method.step(problem(np.ones(1), [norm])[0])  # whose gradient has this norm
        return solved[-1]["rtol"]

    assert forcing(10.0) == 0.5
    # Where the safeguard is above 0.1 the term falls no faster than it.
    second = forcing(1.0)
    assert second == pytest.approx(0.9 * 0.5**power)
    assert forcing(0.5) == pytest.approx(0.9 * 0.5**power)
    fourth = forcing(0.05)
    assert fourth == pytest.approx(0.9 * second**power)
    assert 0.9 * fourth**power < 0.1
    assert forcing(0.005) == pytest.approx(0.9 * 0.1**power)
    assert forcing(5.0) == 0.5  # at most max_forcing
    method.reset()
    assert forcing(3.0) == 0.5


def test_the_forcing_term_is_what_the_system_is_solved_to():
    values = np.linspace(1.0, 100.0, 40)
    for forcing in (0.5, 1e-3):
        task, x = problem(values, np.ones(40))
        method = NewtonCG(
            max_forcing=forcing, max_iterations=40, globalization="fixed", learning_rate=1.0
        )
        step = method.step(task)
        assert step.solver_status is Status.CONVERGED
        residual = np.linalg.norm(values * x.numpy()) / np.linalg.norm(values)
        assert 1e-3 * forcing < residual <= forcing


@pytest.mark.parametrize("make", [NewtonCG, NewtonMINRES, NewtonGMRES])
def test_damping_is_added_to_the_matrix(make):
    values = np.array([3.0, 1.0])
    task, x = problem(values, [1.0, 1.0])
    method = make(damping=0.5, globalization="fixed", learning_rate=1.0, max_forcing=1e-8)
    step = method.step(task)
    np.testing.assert_allclose(x, 1 - values / (values + 0.5), rtol=1e-7)
    assert step.damping == 0.5
    assert step.slope == pytest.approx(-np.sum(values**2 / (values + 0.5)))


@pytest.mark.parametrize("make", [NewtonCG, NewtonMINRES])
def test_along_negative_curvature_the_step_goes_down_by_the_slope_over_its_magnitude(make):
    # The gradient is an eigenvector: of curvature -2, which the first product shows.
    task, x = problem(np.array([-2.0, 5.0]), [1.5, 0.0])
    method = make(globalization="fixed", learning_rate=1.0, curvature="hessian")
    step = method.step(task)
    assert step.status is TrainingStatus.NEGATIVE_CURVATURE
    np.testing.assert_allclose(x, [3.0, 0.0], atol=1e-12)
    assert step.slope == pytest.approx(-3.0 * 1.5)


def test_the_model_of_a_step_along_negative_curvature_is_that_of_the_matrix():
    # CG makes one step, then meets negative curvature: a base, and a direction conjugate to it.
    values, start = np.array([4.0, 1.0, -0.1]), np.array([1.0, 1.0, 1.0])
    seen = Seen()
    task, x = problem(values, start)
    step = NewtonCG(globalization=seen, max_iterations=3, max_forcing=1e-6).step(task)
    assert step.status is TrainingStatus.NEGATIVE_CURVATURE
    d = (x.numpy() - start) / seen.ray.first
    assert values * start @ d < 0
    assert seen.ray.curvature == pytest.approx(np.sum(values * d * d), rel=1e-8)
    # Further along it than the base goes: the last part of it is along the negative curvature.
    assert d[2] > 0


@pytest.mark.parametrize("make", [NewtonCG, NewtonMINRES, NewtonGMRES])
def test_the_model_of_a_solution_is_that_of_the_damped_matrix(make):
    values, start, seen = np.array([3.0, 2.0, 0.5]), np.array([1.0, -1.0, 2.0]), Seen()
    task, x = problem(values, start)
    make(damping=0.25, globalization=seen, max_iterations=2).step(task)
    d = (x.numpy() - start) / seen.ray.first
    assert seen.ray.curvature == pytest.approx(np.sum((values + 0.25) * d * d), rel=1e-8)


def test_cg_starts_from_a_part_of_the_last_direction_until_a_step_is_rejected(solved):
    values = np.linspace(1.0, 50.0, 20)
    method = NewtonCG(globalization="fixed", learning_rate=0.1, warm_start=0.5)
    task, x = problem(values, np.ones(20))
    method.step(task)
    assert solved[-1]["x0"] is None
    first = (x.numpy() - 1) / 0.1
    method.step(task)
    np.testing.assert_allclose(solved[-1]["x0"], 0.5 * first)
    # Within a trust region it lies inside.
    last = (x.numpy() - 1 - 0.1 * first) / 0.1
    method.globalization = Within(0.1 * np.linalg.norm(last))
    method.step(task)
    assert np.linalg.norm(solved[-1]["x0"]) == pytest.approx(0.09 * np.linalg.norm(last))
    refused = NewtonCG(globalization=TrustRegion(accept_above=2, shrink_below=2, grow_above=2))
    for _ in range(2):
        refused.step(problem(values, np.ones(20))[0])
    assert solved[-1]["x0"] is None


def test_a_gradient_without_curvature_is_followed_itself():
    task, x = problem(np.zeros(2), [1.0, 1.0])
    assert NewtonCG(globalization="fixed").step(task).status is TrainingStatus.CONVERGED
    x = tf.Variable([1.0, 2.0], dtype=tf.float64)
    task = problem_of(HessianOperator.from_function(lambda x: 3 * x[0] - x[1], x))
    step = NewtonCG(globalization="fixed", learning_rate=0.5).step(task)
    np.testing.assert_allclose(x, [-0.5, 2.5])
    assert step.solver_status is Status.SINGULAR


# Figures and work --------------------------------------------------------------------------------


def test_levenberg_marquardts_damping_is_that_of_the_step_and_begins_with_one_product():
    task, _ = problem(np.array([3.0, 1.0]), [1.0, 0.0])
    method = NewtonCG(globalization=LevenbergMarquardt(), max_iterations=1)
    step = method.step(task)
    assert step.damping == pytest.approx(3.0)
    assert step.num_products == 2
    # A gradient, the two products, one trial.
    assert step.data_passes == 1 + 2 * 2 + 0.5


def test_a_search_costs_half_a_pass_a_trial_and_a_fixed_step_none():
    for globalization, trials in (("armijo", 1), (FixedStep(), 0), ("trust_region", 1)):
        task, _ = problem()
        step = saddle_free(globalization=globalization).step(task)
        assert step.accepted
        assert step.data_passes == 1 + 2 * step.num_products + 0.5 * trials


def test_a_spectral_step_is_the_minimum_of_the_matrix_itself_along_the_direction():
    task, _ = problem(np.array([3.0, 1.0]), [1.0, 0.0])
    step = saddle_free(
        rank=2, damping=1.0, damping_relative_to="absolute", globalization="spectral"
    ).step(task)
    # The direction is 3/4 of the way to the minimum: t = 4/3, beyond the learning rate of 0.3.
    assert step.step_length == 0.3
    task, x = problem(np.array([3.0, 1.0]), [1.0, 0.0])
    saddle_free(
        rank=2,
        damping=1.0,
        damping_relative_to="absolute",
        globalization="spectral",
        learning_rate=5.0,
    ).step(task)
    np.testing.assert_allclose(x, 0.0, atol=1e-9)


def test_a_method_names_its_options():
    text = repr(NewtonCG(learning_rate=0.25, globalization=FixedStep(0.5)))
    assert text.startswith("NewtonCG(")
    assert "learning_rate=0.25" in text
    assert "FixedStep(max_relative_step=0.5)" in text
    assert "last_step" not in text


def test_where_the_matrix_is_zero_the_saddle_free_step_is_the_gradients():
    x = tf.Variable([1.0, 2.0], dtype=tf.float64)
    task = problem_of(HessianOperator.from_function(lambda x: 3 * x[0] - x[1], x))
    method = saddle_free(rank=2, learning_rate=0.5)
    for place in ([-0.5, 2.5], [-2.0, 3.0]):
        step = method.step(task)
        assert step.damping == 1.0
        np.testing.assert_allclose(x, place)
