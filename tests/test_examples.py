"""Small problems whose curvature is known on paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import flat_gradient, jacobian_hessian, set_random_weights, tf_variables

from spectral_density import (
    GaussNewtonOperator,
    HessianOperator,
    effective_dimension,
    log_determinant,
    power_iteration,
    solve,
    top_eigenpairs,
)
from spectral_density.linalg.solvers import Status


@pytest.fixture
def cubic():
    """2 x^3 y^3 at (1, 1)."""
    return HessianOperator.from_function(
        lambda w: 2 * w[0] ** 3 * w[1] ** 3, tf.Variable([1.0, 1.0], dtype=tf.float64)
    )


def test_the_hessian_of_the_cubic(cubic):
    np.testing.assert_allclose(cubic.to_dense(), [[12, 18], [18, 12]], rtol=1e-14)


def test_the_eigenvalues_of_the_cubic(cubic):
    np.testing.assert_allclose(top_eigenpairs(cubic, 2).values, [30, -6], rtol=1e-12)
    np.testing.assert_allclose(power_iteration(cubic).value, 30, rtol=1e-12)


INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
TARGETS = np.array([[0], [1], [1], [0]], np.float64)


def xor_network(hidden="softmax", dtype="float64"):
    return set_random_weights(
        keras.Sequential(
            [
                keras.Input((2,), dtype=dtype),
                keras.layers.Dense(2, activation=hidden, dtype=dtype),
                keras.layers.Dense(1, dtype=dtype),
            ]
        )
    )


def xor_hessian(dtype="float64"):
    model = xor_network(dtype=dtype)
    data = [(INPUTS.astype(dtype), TARGETS.astype(dtype))]
    return model, HessianOperator(model, keras.losses.MeanSquaredError(dtype=dtype), data)


def test_the_products_of_the_xor_network_are_those_of_its_dense_hessian():
    model, hessian = xor_hessian("float32")
    variables = tf_variables(model)

    def objective():
        outputs = model(INPUTS.astype(np.float32))
        return tf.reduce_mean(tf.square(outputs - TARGETS.astype(np.float32)))

    dense = jacobian_hessian(objective, variables)
    vectors = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_allclose(hessian @ vectors, dense @ vectors, atol=1e-6)
    assert hessian.shape == (9, 9)
    assert flat_gradient(objective, variables).shape == (9,)


def test_four_eigenvalues_of_the_xor_network_are_found_as_zero():
    # The softmax of two units sees only the difference of their inputs (one direction lost for
    # each of three inputs), and its outputs sum to one, as does the bias (one more).
    _, hessian = xor_hessian()
    values = top_eigenpairs(hessian, 9).values
    largest = np.abs(values).max()
    assert np.sum(np.abs(values) <= 1e-14 * largest) == 4
    np.testing.assert_allclose(
        np.sort(values), np.linalg.eigvalsh(hessian.to_dense()), atol=1e-14 * largest
    )


def test_conjugate_gradients_report_the_negative_curvature_of_the_xor_network():
    _, hessian = xor_hessian()
    dense = hessian.to_dense()
    assert np.linalg.eigvalsh(dense)[0] < -1e-3
    diagonal = np.diag(1 / (np.abs(np.diag(dense)) + 1e-3))
    for preconditioner in (None, diagonal):
        solution = solve(
            hessian, -hessian.gradient(), method="cg", preconditioner=preconditioner, rtol=1e-10
        )
        assert solution.status is Status.NEGATIVE_CURVATURE
        assert not solution.converged
        direction = solution.negative_curvature
        assert direction @ dense @ direction < 0


@pytest.fixture(scope="module")
def damped_ggn():
    """A Gauss-Newton matrix of 355 parameters, too many for its traces to be taken exactly."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 12)).astype(np.float32), rng.integers(0, 5, 64)
    model = set_random_weights(
        keras.Sequential(
            [keras.Input((12,)), keras.layers.Dense(18, "tanh"), keras.layers.Dense(5)]
        )
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ggn = GaussNewtonOperator(model, loss, [(x[:40], y[:40]), (x[40:], y[40:])])
    return ggn, ggn.to_dense()


@pytest.mark.parametrize("damping", [1e-1, 1e-3])
def test_the_log_determinant_of_a_damped_ggn_is_right_to_its_error_bar(damped_ggn, damping):
    ggn, dense = damped_ggn
    estimate = log_determinant(ggn, damping, order=25, num_draws=8, lower_bound=0.0)
    low, high = estimate.interval()
    exact = np.linalg.slogdet(dense + damping * np.eye(len(dense)))[1]
    assert low <= exact <= high
    assert high - low <= 0.2 * abs(exact)


def test_the_effective_dimension_of_a_damped_ggn_is_right_to_its_error_bar(damped_ggn):
    ggn, dense = damped_ggn
    estimate = effective_dimension(ggn, 1e-2, order=25, num_draws=8, lower_bound=0.0)
    low, high = estimate.interval()
    values = np.linalg.eigvalsh(dense)
    assert low <= np.sum(values / (values + 1e-2)) <= high
