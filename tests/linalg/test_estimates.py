"""Estimates: confidence intervals and what they print."""

import numpy as np
import pytest
from scipy.stats import t as student

from spectral_density.linalg.estimates import DiagonalEstimate, Estimate, QuadratureEstimate
from spectral_density.linalg.traces import diagonal

pytestmark = pytest.mark.filterwarnings("error")


def test_the_interval_is_students():
    estimate = Estimate(12.3, 0.4, 90, degrees_of_freedom=4)
    half = 0.4 * student.ppf(0.95, 4)
    assert estimate.interval(0.9) == pytest.approx((12.3 - half, 12.3 + half))
    assert Estimate(1.0, 0.5, 9).interval() == pytest.approx((0.0200, 1.9800), abs=1e-4)
    for level in (0, 1, 1.5, np.nan):
        with pytest.raises(ValueError, match="level"):
            estimate.interval(level)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(12.3456, 0.4321, 90), "12.35 +- 0.43 (90 products)"),
        (Estimate(-1234.5, 78.0, 1), "-1234 +- 78 (1 product)"),
        (Estimate(1.5e-9, 2e-11, 9, True), "(1.500 +- 0.020)e-09 (9 products)"),
        (Estimate(0.0, 1e9, 9, False), "(0.0 +- 1.0)e+09 (9 products, tolerance not met)"),
        (Estimate(3.0, 0.0, 1234), "3 +- 0 (1,234 products)"),
        (Estimate(3.0, 2e-15, 3), "3 +- 2.0e-15 (3 products)"),
    ],
)
def test_an_estimate_is_written_to_its_error(estimate, text):
    assert str(estimate) == text


def test_representations_say_what_there_is():
    assert repr(Estimate(1.0, 0.5, 9)) == (
        "Estimate(value=1.0, standard_error=0.5, num_products=9, converged=None, "
        "degrees_of_freedom=inf)"
    )
    found = diagonal(np.eye(3), tolerance=0.1)
    assert "array" not in repr(found)
    assert str(found).startswith("diagonal of 3 entries, relative error")


def test_a_multiple_of_an_estimate_has_multiples_of_all_its_errors():
    estimate = QuadratureEstimate(3.0, 0.5, 10, quadrature_error=0.1, order=5, num_draws=2)
    assert estimate.scaled(2.0) == QuadratureEstimate(
        6.0, 1.0, 10, quadrature_error=0.2, order=5, num_draws=2
    )
    assert Estimate(3.0, 0.5, 10).scaled(2.0) == Estimate(6.0, 1.0, 10)
    diagonal_estimate = DiagonalEstimate(np.ones(2), np.full(2, 0.5), 10).scaled(4.0)
    np.testing.assert_array_equal(diagonal_estimate.values, [4.0, 4.0])
    np.testing.assert_array_equal(diagonal_estimate.standard_errors, [2.0, 2.0])
