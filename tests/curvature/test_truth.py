"""Every gradient against differences of the loss, every Hessian against those of the gradient."""

import numpy as np
import pytest
from engines.tensorflow.against_differences import slope
from models import CASES, compiled, relative_error, split, tf_variables

from spectral_density import HessianOperator

TOLERANCE = 1e-9  # ten times the largest error; no ReLU or maximum changes sides within the steps
STEP = 2e-4  # along a direction whose entries are at most 1 in magnitude


def extrapolated(function, variables, direction):
    """Directional derivative from two central differences, with an error of fourth order."""
    near, far = (slope(function, variables, direction, step) for step in (STEP, 2 * STEP))
    return (4 * near - far) / 3


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_products_are_the_differences_of_loss_and_gradient(name):
    case = CASES[name]
    model = compiled(case, "float64")
    hessian = HessianOperator(model, None, split(case.data(), case.splits))
    variables = tf_variables(model)
    v = np.random.default_rng(5).uniform(-1, 1, hessian.shape[0])
    direction = hessian.parameters.unflatten(v)
    product, gradient = hessian.product_and_gradient(v)
    expected = extrapolated(hessian.loss, variables, direction)
    assert gradient @ v == pytest.approx(expected, rel=TOLERANCE)
    expected = extrapolated(hessian.gradient, variables, direction)
    assert relative_error(product, expected) <= TOLERANCE
