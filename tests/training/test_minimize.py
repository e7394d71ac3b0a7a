import numpy as np
import pytest
import tensorflow as tf
from minimization import DESCENDING, L2, METHODS, logistic_regression, saddle_free

from spectral_density.curvature.hessian import HessianOperator
from spectral_density.training import (
    FixedStep,
    LevenbergMarquardt,
    LowRankSaddleFreeNewton,
    NewtonCG,
    NewtonGMRES,
    NewtonMINRES,
    TrainingStatus,
    TrustRegion,
    minimize,
)


def saddle(x):
    return x[0] ** 2 * x[1] ** 2 + x[0] * x[1]


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def monkey_saddle(x):
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2


def run(function, start, method, **options):
    x = tf.Variable(start, dtype=tf.float64)
    result = minimize(HessianOperator.from_function(function, x), method, **options)
    return result, x.numpy()


@pytest.mark.parametrize("name", DESCENDING)
def test_methods_that_see_negative_curvature_leave_the_saddle_for_a_minimum(name):
    result, x = run(saddle, [0.1, 0.2], DESCENDING[name](), max_steps=200)
    assert result.status is TrainingStatus.CONVERGED
    assert abs(result.loss + 0.25) < 1e-8
    assert abs(x[0] * x[1] + 0.5) < 1e-4
    assert np.all(np.diff(result.losses) <= 1e-15)


@pytest.mark.parametrize(
    "method",
    [
        NewtonGMRES(globalization="fixed"),
        NewtonMINRES(globalization="fixed", follow_negative_curvature=False),
    ],
    ids=["gmres", "minres"],
)
def test_plain_newton_goes_to_the_saddle(method):
    result, x = run(saddle, [0.1, 0.2], method)
    assert result.converged
    assert np.abs(x).max() < 1e-8
    assert abs(result.loss) < 1e-15


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_the_minimum_of_rosenbrock(name):
    result, x = run(rosenbrock, [-1.2, 1.0], METHODS[name](), max_steps=400)
    assert result.converged
    np.testing.assert_allclose(x, 1.0, atol=1e-7)


@pytest.mark.parametrize("name", DESCENDING)
def test_a_monkey_saddle_has_no_minimum_and_the_status_says_that_the_loss_falls_without_end(name):
    result, _ = run(monkey_saddle, [0.5, 0.3], DESCENDING[name](), max_steps=300)
    assert result.status is TrainingStatus.UNBOUNDED
    assert result.loss < -1e15


def test_plain_newton_says_that_its_direction_at_the_monkey_saddle_leads_up():
    result, x = run(monkey_saddle, [0.5, 0.3], NewtonGMRES(globalization="fixed"))
    assert result.status is TrainingStatus.NOT_DESCENT
    assert "LowRankSaddleFreeNewton" in result.status.message
    np.testing.assert_array_equal(x, [0.5, 0.3])


@pytest.fixture(scope="module")
def logistic():
    """Logistic regression on the breast cancer data, and its optimum from SciPy."""
    x, signs, best, at = logistic_regression()
    features, labels = tf.constant(x), tf.constant(signs)

    def loss(w):
        margins = labels * tf.linalg.matvec(features, w)
        return tf.reduce_mean(tf.nn.softplus(-margins)) + L2 * tf.reduce_sum(w * w)

    return loss, best, at


@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets_scipys_optimum_of_a_logistic_regression(name, logistic):
    loss, best, at = logistic
    result, w = run(loss, np.zeros(31), METHODS[name](), max_steps=300)
    assert result.converged
    assert abs(result.loss - best) < 1e-8
    np.testing.assert_allclose(w, at, atol=1e-5)


def test_newtons_method_converges_quadratically_once_it_is_near():
    method = NewtonCG(
        learning_rate=1.0,
        globalization="armijo",
        max_iterations=20,
        max_forcing=1e-10,
        warm_start=0.0,
    )
    norms = []
    result, _ = run(
        rosenbrock,
        [-1.2, 1.0],
        method,
        gradient_tolerance=1e-12,
        callback=lambda step: norms.append(step.gradient_norm),
    )
    assert result.converged
    # The digits of the gradient double: three steps are enough for most of them.
    assert result.gradient_norm < 1e-7 * norms[-3]


def test_conjugate_gradients_step_down_along_negative_curvature_at_once():
    # f = -x^2 / 2 has nothing but negative curvature: CG meets it in its first product.
    method = NewtonCG(globalization="fixed", learning_rate=1.0)
    result, x = run(lambda x: -0.5 * x[0] ** 2, [1.0], method, max_steps=1)
    assert result.steps[0].status is TrainingStatus.NEGATIVE_CURVATURE
    np.testing.assert_allclose(x, 2.0)
    assert result.loss == -2.0


def test_steihaugs_exit_goes_to_the_boundary_of_the_trust_region():
    method = NewtonCG(globalization=TrustRegion(initial_radius=0.5), learning_rate=1.0)
    result, x = run(lambda x: -0.5 * x[0] ** 2, [1.0], method, max_steps=1)
    assert result.steps[0].status is TrainingStatus.NEGATIVE_CURVATURE
    np.testing.assert_allclose(x, 1.5)
    assert result.steps[0].radius == 1.0  # the model was exact, at the boundary


def test_a_zero_gradient_needs_no_step():
    result, x = run(saddle, [0.0, 0.0], NewtonCG())
    assert result.status is TrainingStatus.CONVERGED
    assert result.steps == ()
    np.testing.assert_array_equal(x, 0.0)


def test_a_loss_that_is_linear_is_followed_down_without_curvature():
    result, _ = run(lambda x: 3 * x[0], [1.0], NewtonCG(), max_steps=3)
    assert result.loss < 3
    assert all(step.accepted for step in result.steps)


# Failures: the weights are those of the last accepted step ---------------------------------------


def test_a_loss_that_becomes_nan_is_refused_by_searches():
    # Beyond x = 2 there is no logarithm.
    def loss(x):
        return -tf.math.log(2.0 - x[0]) - 40.0 * x[0] + 10 * x[0] ** 2

    for name in ("armijo", "trust_region", "levenberg_marquardt"):
        result, x = run(loss, [0.0], NewtonCG(globalization=name), max_steps=60)
        assert np.isfinite(result.loss)
        assert x[0] < 2


def test_a_fixed_step_into_nan_is_taken_back_and_the_status_says_so():
    def cliff(x):
        return tf.where(x[0] < 0.0, tf.constant(np.nan, tf.float64), x[0] ** 2)

    method = NewtonGMRES(globalization="fixed", learning_rate=1.5)
    result, x = run(cliff, [1.0], method)
    assert result.status is TrainingStatus.LOSS_NOT_FINITE
    np.testing.assert_array_equal(x, 1.0)
    assert result.loss == 1.0
    assert "learning_rate" in result.status.message


def test_a_gradient_that_is_not_finite_ends_the_run_where_it_is():
    result, x = run(lambda x: tf.sqrt(x[0]) + x[0], [0.0], NewtonCG())
    assert result.status is TrainingStatus.GRADIENT_NOT_FINITE
    np.testing.assert_array_equal(x, 0.0)


def test_curvature_that_is_not_finite_ends_the_run_where_it_is():
    # |x|^1.5 has a gradient at 0 and no curvature.
    def loss(x):
        return tf.reduce_sum(tf.pow(x, 1.5)) + tf.reduce_sum(x)

    result, x = run(loss, [0.0, 1.0], NewtonCG())
    assert result.status is TrainingStatus.CURVATURE_NOT_FINITE
    np.testing.assert_array_equal(x, [0.0, 1.0])


def test_an_interrupted_step_leaves_the_weights_of_the_last_accepted_one():
    x = tf.Variable([-1.2, 1.0], dtype=tf.float64)
    operator = HessianOperator.from_function(rosenbrock, x)
    method = NewtonCG(globalization="armijo")
    accepted = []

    def interrupt(step):
        accepted.append(x.numpy())
        if len(accepted) == 3:
            # The next trial of the line search is interrupted, with the weights on their way.
            operator.loss = _interrupted

    def _interrupted():
        if not np.array_equal(x.numpy(), accepted[-1]):
            raise KeyboardInterrupt
        return float(rosenbrock(x))

    with pytest.raises(KeyboardInterrupt):
        minimize(operator, method, callback=interrupt)
    assert len(accepted) == 3
    np.testing.assert_array_equal(x.numpy(), accepted[-1])
    assert method.last_step.status is TrainingStatus.INTERRUPTED


@pytest.mark.parametrize("globalization", [TrustRegion(initial_radius=1e3), LevenbergMarquardt()])
def test_a_rejected_step_leaves_every_bit_of_the_weights(globalization):
    # Whatever the model foretells, the loss is higher everywhere else.
    x = tf.Variable([0.1, 0.3], dtype=tf.float64)
    start = x.numpy()

    def loss(x):
        wall = tf.where(tf.reduce_all(x == start), tf.constant(0.0, tf.float64), 1e6)
        return x[0] + x[1] ** 2 + wall

    operator = HessianOperator.from_function(loss, x)
    result = minimize(operator, saddle_free(globalization=globalization), max_steps=1)
    assert result.steps[0].status is TrainingStatus.REJECTED
    assert x.numpy().tobytes() == start.tobytes()


def test_work_counts_gradients_once_products_twice_and_trials_half():
    x = tf.Variable([-1.2, 1.0], dtype=tf.float64)
    operator = HessianOperator.from_function(rosenbrock, x)
    result = minimize(operator, saddle_free(rank=2), max_steps=1)
    # A gradient, four products (a block of two, twice), one trial.
    assert result.num_products == 4
    assert result.data_passes == 1 + 2 * 4 + 0.5 * round((result.data_passes - 9) / 0.5)
    fixed = minimize(operator, saddle_free(rank=2, globalization=FixedStep()), max_steps=1)
    assert fixed.data_passes == 1 + 2 * 4


def test_arguments_that_are_none_are_refused():
    operator = HessianOperator.from_function(saddle, tf.Variable([0.1, 0.2], dtype=tf.float64))
    with pytest.raises(TypeError, match="CurvatureOperator"):
        minimize(np.eye(2), NewtonCG())
    with pytest.raises(TypeError, match="NewtonCG"):
        minimize(operator, "newton")
    for options, match in (
        ({"curvature": "fisher"}, "curvature"),
        ({"globalization": "wolfe"}, "globalization"),
        ({"hessian_data": [1], "hessian_batch_size": 3}, "either"),
        ({"max_forcing": 1.0}, "max_forcing"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ):
        with pytest.raises(ValueError, match=match):
            NewtonCG(**options)
    with pytest.raises(ValueError, match="range_finder"):
        LowRankSaddleFreeNewton(range_finder="best")
