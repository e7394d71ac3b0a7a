import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import CASES, batch_norm, classification, compiled, mlp, relative_error, split, truth
from scipy.sparse.linalg import LinearOperator

from spectral_density.analysis.quadratic import (
    StepStatus,
    gradient_step,
    newton_decrement,
    quadratic_model_error,
)
from spectral_density.curvature import HessianOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.submatrix import SubmatrixOperator
from spectral_density.linalg.solvers import Status

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def cubic(point=(1.0, 1.0), dtype=tf.float64):
    def loss(x):
        return 2 * x[0] ** 3 * x[1] ** 3

    x = tf.Variable(point, dtype=dtype)
    return HessianOperator.from_function(loss, x), x


def small(dtype="float64", kind=HessianOperator, **options):
    return kind(mlp(dtype), SPARSE, split(classification()), **options)


def damped():
    """A positive definite matrix, a gradient, and the truth by numpy."""
    a = truth("mlp").hessian + 2 * np.eye(31)
    g = truth("mlp").gradient
    return a, g, g @ np.linalg.solve(a, g)


# The best gradient step --------------------------------------------------------------------------


def test_the_gradient_step_is_the_ratio_of_the_two_forms():
    true = truth("mlp")
    g, h = true.gradient, true.hessian
    hessian = small()
    before = hessian.num_passes
    found = gradient_step(hessian)
    assert hessian.num_passes == before + 2
    assert found.status is StepStatus.MINIMUM
    assert found.step == pytest.approx(g @ g / (g @ h @ g), rel=1e-10)
    assert found.curvature == pytest.approx(g @ h @ g / (g @ g), rel=1e-10)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-10)
    assert found.decrease == pytest.approx((g @ g) ** 2 / (2 * g @ h @ g), rel=1e-10)
    assert str(found).startswith("step ")


def test_no_other_step_makes_the_model_less():
    a, g, _ = damped()
    found = gradient_step(a, gradient=g)
    model = [t * g @ -g + t**2 / 2 * g @ a @ g for t in found.step * np.linspace(0.5, 1.5, 11)]
    assert np.argmin(model) == 5
    assert -min(model) == pytest.approx(found.decrease)


def test_a_cubic_by_hand():
    operator, _ = cubic()
    assert gradient_step(operator).step == pytest.approx(1 / 30)


@pytest.mark.parametrize(
    ("matrix", "gradient", "status"),
    [
        (np.diag([1.0, -3.0]), [1.0, 1.0], StepStatus.NEGATIVE_CURVATURE),
        (np.diag([1.0, -1.0]), [1.0, 1.0], StepStatus.ZERO_CURVATURE),
        # Within the rounding of float32, and far beyond that of float64.
        (np.diag([1.0, -1 - 2.0**-23]).astype("f4"), [1.0, 1.0], StepStatus.ZERO_CURVATURE),
        (np.diag([1.0, -1 - 2.0**-23]), [1.0, 1.0], StepStatus.NEGATIVE_CURVATURE),
        (np.zeros((2, 2)), [1.0, 1.0], StepStatus.ZERO_CURVATURE),
        (np.eye(2), [0.0, 0.0], StepStatus.ZERO_GRADIENT),
    ],
)
def test_where_there_is_no_step_the_result_says_why(matrix, gradient, status):
    found = gradient_step(matrix, gradient=gradient)
    assert found.status is status
    assert np.isnan(found.step)
    assert np.isnan(found.decrease)
    assert status.message in str(found)


def test_negative_curvature_of_a_loss_is_reported():
    operator, _ = cubic((1.0, -1.0))  # along (-6, 6): [[-12, 18], [18, -12]] has -30
    found = gradient_step(operator)
    assert found.status is StepStatus.NEGATIVE_CURVATURE
    assert found.curvature == pytest.approx(-30)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_step_does_not_depend_on_the_size_of_the_gradient(scale):
    found = gradient_step(np.diag([1.0, 3.0]), gradient=scale * np.ones(2))
    assert found.step == pytest.approx(0.5)
    assert found.gradient_norm == pytest.approx(scale * np.sqrt(2))


def test_blocks_and_matrices_need_their_gradient():
    hessian = small()
    block = SubmatrixOperator(hessian, "logits")
    with pytest.raises(TypeError, match="SubmatrixOperator has no gradient of its own"):
        gradient_step(block)
    alone = small(variables="logits")
    found = gradient_step(block, gradient=hessian.gradient()[block.rows])
    assert found.step == pytest.approx(gradient_step(alone).step)
    for wrong, message in (
        (np.ones(3), "shape"),
        (np.full(15, np.nan), "NaN"),
        (1j * np.ones(15), "complex"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_step(block, gradient=wrong)


# The Newton decrement ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cg", "minres", "gmres"])
def test_the_decrement_is_that_of_a_dense_solve(method):
    a, g, true = damped()
    found = newton_decrement(a, gradient=g, method=method, damping=0.0, rtol=1e-4)
    assert found.converged
    # The square of the residual's accuracy.
    assert found.value == pytest.approx(true, rel=1e-7)
    assert found.decrease == found.value / 2
    assert "products" in str(found)


def test_damping_is_added_to_the_matrix_of_a_loss():
    _, _, true = damped()
    found = newton_decrement(small(), damping=2.0, rtol=1e-8)
    assert found.value == pytest.approx(true, rel=1e-8)


def test_negative_curvature_is_no_number():
    operator, _ = cubic((1.0, 0.5))
    found = newton_decrement(operator)
    assert found.solution.status is Status.NEGATIVE_CURVATURE
    assert np.isnan(found.value)
    assert np.isnan(found.decrease)
    assert not found.converged
    assert "negative curvature" in str(found)
    assert found.message in str(found)
    g, h = operator.gradient(), operator.to_dense()
    indefinite = newton_decrement(operator, method="minres", rtol=1e-10)
    assert indefinite.value == pytest.approx(g @ np.linalg.solve(h, g))


def test_by_default_the_damping_is_a_share_of_the_largest_eigenvalue():
    eigenvalues = np.r_[np.zeros(50), np.geomspace(1e-8, 1.0, 49), 40.0]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 100)))[0]
    g = np.random.default_rng(1).normal(size=100)
    found = newton_decrement((rotation * eigenvalues) @ rotation.T, gradient=g)
    assert found.damping == pytest.approx(0.04, rel=1e-6)
    true = np.sum((rotation.T @ g) ** 2 / (eigenvalues + found.damping))
    assert found.value == pytest.approx(true, rel=1e-6)
    assert found.num_products == found.solution.num_products + 10 < 200
    assert "(A + 0.04 I)^-1" in str(found)


def test_a_singular_matrix_without_damping_says_so():
    a = np.diag(np.r_[np.zeros(5), np.arange(1.0, 6.0)])
    found = newton_decrement(a, gradient=np.ones(10), damping=0.0)
    assert not found.converged
    assert "A is singular" in str(found)
    assert "Raise the damping" in found.message


def test_negative_curvature_says_which_damping_is_enough():
    a = np.diag(np.r_[-2.0, np.arange(1.0, 6.0)])
    found = newton_decrement(a, gradient=np.ones(6))
    advised = float(re.search(r"damping=([\d.]+)", found.message)[1])
    assert 0 < advised <= 2.2  # a tenth more than the curvature, -2 at the least
    assert newton_decrement(a, gradient=np.ones(6), damping=2.2).converged


def test_too_few_iterations_say_what_is_left():
    a = np.diag(np.geomspace(1e-3, 1.0, 50))
    found = newton_decrement(a, gradient=np.ones(50), maxiter=3)
    assert found.message.startswith("3 iterations left")


def test_a_gradient_of_zero_has_none():
    assert newton_decrement(np.eye(3), gradient=np.zeros(3)).value == 0


# The error of the quadratic model ----------------------------------------------------------------


@pytest.mark.parametrize("step", [(1.0, 1.0), (1.0, -0.3), (0.0, 1.0)])
def test_the_error_of_the_cubic_falls_with_slope_three(step):
    operator, x = cubic()
    before = x.numpy().tobytes()
    found = quadratic_model_error(operator, np.array(step))
    assert found.slope(2.0**-9, 2.0**-7) == pytest.approx(3, abs=0.01)
    np.testing.assert_array_equal(found.scales, 2.0 ** -np.arange(10))
    u, v = (1 + found.scales * part for part in step)
    np.testing.assert_allclose(found.losses, 2 * u**3 * v**3)
    model = 2 + found.scales * found.derivative + found.scales**2 / 2 * found.curvature
    np.testing.assert_allclose(found.errors, found.losses - model, atol=1e-14)
    assert found.derivative == pytest.approx(6 * sum(step))
    assert found.curvature == pytest.approx(np.array(step) @ [[12, 18], [18, 12]] @ step)
    first = np.polyfit(np.log(found.scales[7:]), np.log(np.abs(found.first_order_errors[7:])), 1)[0]
    assert first == pytest.approx(2, abs=0.02)
    assert x.numpy().tobytes() == before


def test_slopes_between_neighbours():
    found = quadratic_model_error(cubic()[0], np.ones(2))
    assert found.slopes.shape == (9,)
    assert found.slopes[-1] == pytest.approx(3, abs=0.01)


def test_a_quadratic_has_no_error_and_no_slope():
    x = tf.Variable([1.0, 2.0], dtype=tf.float64)
    operator = HessianOperator.from_function(lambda x: 2 * x[0] ** 2 + x[0] * x[1], x)
    found = quadratic_model_error(operator, np.ones(2), scales=[1.0, 2.0])
    np.testing.assert_array_equal(found.errors, 0)
    with pytest.raises(ValueError, match="a slope needs two scales"):
        found.slope()
    assert np.isnan(found.slopes).all()


@pytest.mark.parametrize("name", ["mlp", "batch norm", "regularized"])
def test_the_error_of_a_network_falls_with_slope_three_and_every_bit_comes_back(name):
    case = CASES[name] if name in CASES else CASES["mlp"]
    model = compiled(case, "float64")
    operator = HessianOperator(model, None, split(case.data(), case.splits))
    before = [v.numpy() for v in model.variables]
    passes = operator.num_passes
    step = np.random.default_rng(0).normal(size=operator.shape[0])
    found = quadratic_model_error(operator, step, scales=2.0 ** -np.arange(7, 10))
    assert operator.num_passes == passes + 5
    assert found.slope() == pytest.approx(3, abs=0.1)
    for now, then in zip(model.variables, before, strict=True):
        assert now.numpy().tobytes() == then.tobytes()


def test_another_matrix_has_slope_two():
    found = quadratic_model_error(
        small(kind=GaussNewtonOperator), np.ones(31), scales=2.0 ** -np.arange(8, 12)
    )
    assert found.slope() == pytest.approx(2, abs=0.1)


def test_weights_come_back_after_an_exception():
    model = batch_norm("float32")
    operator = HessianOperator(model, SPARSE, split(classification()))
    before = [v.numpy() for v in model.variables]
    calls = []

    def loss():
        calls.append(model.variables[0].numpy())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    operator.loss = loss
    with pytest.raises(KeyboardInterrupt):
        quadratic_model_error(operator, np.ones(operator.shape[0]))
    assert relative_error(calls[2], calls[0]) > 0.1
    for now, then in zip(model.variables, before, strict=True):
        assert now.numpy().tobytes() == then.tobytes()


@pytest.mark.parametrize(
    ("step", "scales", "message"),
    [
        (np.zeros(2), None, "the step is zero"),
        (np.ones(3), None, "shape"),
        (np.array([1.0, np.nan]), None, "NaN"),
        (np.ones(2), [1.0, 0.0], "none of them zero"),
        (np.ones(2), [np.inf], "finite"),
        (np.ones(2), [], "finite"),
        (np.ones(2), [[1.0]], "finite"),
    ],
)
def test_steps_and_scales_that_make_no_sense_are_errors(step, scales, message):
    with pytest.raises(ValueError, match=message):
        quadratic_model_error(cubic()[0], step, scales=scales)


def test_an_operator_without_weights_is_an_error():
    with pytest.raises(TypeError, match="must be a CurvatureOperator"):
        quadratic_model_error(LinearOperator((2, 2), matvec=lambda v: v), np.ones(2))
