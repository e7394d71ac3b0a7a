import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spectral_density.analysis.finite_difference import finite_difference_check
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator


def model_and_data(dtype="float64"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((4,), dtype=dtype),
            layers.Dense(6, "tanh", dtype=dtype),
            layers.Dense(2, dtype=dtype),
        ]
    )
    rng = np.random.default_rng(0)
    return model, [(rng.normal(size=(9, 4)).astype(dtype), rng.normal(size=(9, 2)).astype(dtype))]


def test_errors_of_a_smooth_model_fall_with_the_square_of_the_step():
    model, data = model_and_data()
    check = finite_difference_check(HessianOperator(model, "mse", data))
    assert check.slope("gradient", 1e-4, 1e-1) == pytest.approx(2.0, abs=0.05)
    assert check.slope("product", 1e-4, 1e-1) == pytest.approx(2.0, abs=0.05)
    assert check.gradient_errors.min() < 1e-9
    assert check.product_errors.min() < 1e-9
    assert check.gradient_slopes.shape == check.product_slopes.shape == (12,)
    assert "gradient" in str(check)


def test_a_polynomial_has_the_error_that_its_third_derivative_says():
    x = tf.Variable([2.0], dtype=tf.float64)
    operator = HessianOperator.from_function(lambda x: x[0] ** 3, x)
    check = finite_difference_check(operator, direction=[1.0], steps=[0.5, 0.1])
    # (f(x + h) - f(x - h)) / 2h = 3 x^2 + h^2; the gradient is quadratic: its difference is exact.
    np.testing.assert_allclose(check.gradient_errors, np.array([0.25, 0.01]) / 12, rtol=1e-12)
    np.testing.assert_allclose(check.product_errors, 0.0, atol=1e-14)
    assert check.derivative == 12.0


def test_the_error_of_a_product_is_relative_to_the_product():
    x = tf.Variable([2.0], dtype=tf.float64)
    operator = HessianOperator.from_function(lambda x: x[0] ** 4, x)
    check = finite_difference_check(operator, direction=[1.0], steps=[0.5, 0.1])
    # The gradient 4 x^3 has the central difference 12 x^2 + 4 h^2, and the product is 12 x^2.
    np.testing.assert_allclose(check.product_errors, np.array([0.25, 0.01]) / 12, rtol=1e-12)
    assert (check.gradient_norm, check.product_norm) == (32.0, 48.0)


def test_a_matrix_that_is_not_the_hessian_keeps_its_error():
    model, data = model_and_data()
    check = finite_difference_check(GaussNewtonOperator(model, "mse", data), steps=[1e-3, 1e-5])
    assert check.gradient_errors[1] < 1e-8
    assert (check.product_errors > 1e-2).all()


def test_the_weights_come_back_bit_for_bit():
    model, data = model_and_data("float32")
    before = [w.tobytes() for w in model.get_weights()]
    check = finite_difference_check(HessianOperator(model, "mse", data), steps=[1e-2])
    assert [w.tobytes() for w in model.get_weights()] == before
    assert check.product_errors[0] < 1e-2


def test_arguments_out_of_range_are_refused():
    model, data = model_and_data()
    operator = HessianOperator(model, "mse", data)
    with pytest.raises(TypeError, match="CurvatureOperator"):
        finite_difference_check(np.eye(3))
    with pytest.raises(ValueError, match="shape"):
        finite_difference_check(operator, direction=np.ones(3))
    with pytest.raises(ValueError, match="not zero"):
        finite_difference_check(operator, direction=np.zeros(operator.shape[0]))
    with pytest.raises(ValueError, match="positive"):
        finite_difference_check(operator, steps=[1e-3, 0.0])
    check = finite_difference_check(operator, steps=[1e-3])
    with pytest.raises(ValueError, match="two steps"):
        check.slope("product")
    with pytest.raises(ValueError, match="gradient"):
        check.slope("hessian", 0)
