"""The power method: value, residual, and the two ways in which it fails."""

import numpy as np
import pytest
from linalg.eigenproblems import dense, single_precision

from spectral_density.linalg.eigen import ConvergenceWarning, top_eigenpairs
from spectral_density.linalg.power import power_iteration

pytestmark = pytest.mark.filterwarnings("error")


POLYNOMIAL = np.array([[12.0, 18.0], [18.0, 12.0]])  # Hessian of 2 x^3 y^3 at (1, 1)


def test_power_iteration_finds_thirty_for_the_polynomial():
    result = power_iteration(POLYNOMIAL)
    assert result.converged
    assert abs(result.value - 30) <= 1e-12
    assert (
        abs(result.residual - np.linalg.norm(POLYNOMIAL @ result.vector - 30 * result.vector))
        <= 1e-12
    )
    np.testing.assert_allclose(np.abs(result.vector), np.sqrt(0.5), rtol=1e-9)
    assert "PowerIteration(30, residual" in repr(result)
    np.testing.assert_allclose(top_eigenpairs(POLYNOMIAL, 2).values, [30, -6], rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-300, 1e-8, -1.0, 1e8, 1e300])
def test_power_iteration_keeps_sign_and_scale(scale):
    result = power_iteration(scale * np.diag([1.0, 2.0, -5.0, 3.0]))
    assert result.converged
    np.testing.assert_allclose(result.value, -5 * scale, rtol=1e-12)


def test_power_iteration_of_the_zero_matrix_and_of_one_row():
    zero = power_iteration(np.zeros((4, 4)))
    assert (zero.value, zero.residual, zero.converged, zero.num_products) == (0.0, 0.0, True, 1)
    one = power_iteration(np.array([[-3.0]]))
    assert (one.value, one.converged, one.num_products) == (-3.0, True, 1)
    assert power_iteration(np.eye(7)).num_products == 1


def test_power_iteration_says_when_two_signs_keep_it_from_converging():
    with pytest.warns(ConvergenceWarning, match=r"both 4 and -4 are eigenvalues.*top_eigenpairs"):
        result = power_iteration(np.diag([4.0, -4.0, 1.0, 2.0]))
    assert not result.converged
    assert result.num_products < 100
    assert result.residual > 0.1


def test_power_iteration_says_when_products_run_out():
    with pytest.warns(ConvergenceWarning, match="not converged in 20 products.*raise max_products"):
        result = power_iteration(np.diag([1.0, 0.99, 0.5]), max_products=20)
    assert not result.converged
    assert result.num_products == 20
    assert np.abs(result.value - np.array([1.0, 0.99, 0.5])).min() <= result.residual


def test_power_iteration_repeats_and_takes_a_start():
    matrix = dense("triple")
    a, b = power_iteration(matrix, seed=2), power_iteration(matrix, seed=2)
    np.testing.assert_array_equal(a.vector, b.vector)
    assert abs(a.value - 5) <= 1e-12
    given = power_iteration(matrix, start=1e200 * a.vector)
    assert given.num_products <= 2
    single = power_iteration(single_precision(matrix))
    assert single.converged
    assert abs(single.value - 5) <= 1e-5
