"""The comparison of products with central differences, alone."""

import numpy as np
import pytest

from spectral_density.curvature.preflight.derivative import (
    DifferenceAccuracy,
    Pair,
    Quotients,
    judge_product,
    last_wrong_layer,
)

DOUBLE = DifferenceAccuracy("float64")


def quotients(function, start, direction, steps=(1e-5, 4e-5)):
    pairs = [
        Pair(h, function(start + h * direction), function(start - h * direction)) for h in steps
    ]
    return Quotients.of(function(start), pairs, DOUBLE.eps())


def test_the_error_of_a_quotient_is_that_of_a_cubic_and_no_bend_counts_as_rounding():
    """The central difference of w^3 at 0 is h^2, and the derivative 0."""
    slopes = quotients(lambda w: w**3 + w**2, np.zeros(1), np.ones(1), steps=(0.25, 0.5))
    np.testing.assert_allclose(slopes.error, 0.25**2, rtol=1e-14)
    np.testing.assert_allclose(slopes.near, 0.25**2, rtol=1e-14)
    np.testing.assert_array_equal(slopes.rounding, 0.0)


def test_a_small_part_that_is_all_wrong_is_found():
    """Of the norm of the whole it is 1e-3, and all of its layer."""
    rng = np.random.default_rng(0)
    matrix = np.diag([1e3] * 5 + [1.0] * 5)
    u = rng.normal(size=10)
    slopes = quotients(lambda w: matrix @ w + w**3, rng.normal(size=10), u)
    product = slopes.near.copy()
    parts = {"large": slice(0, 5), "small": slice(5, 10)}
    assert judge_product(product, slopes, parts, DOUBLE).status == "passed"
    product[5:] = 0
    found = judge_product(product, slopes, parts, DOUBLE)
    assert (found.status, found.message) == ("failed", "small")
    assert found.figure == pytest.approx(1.0)


def test_quotients_that_do_not_settle_are_not_judged():
    slopes = quotients(lambda w: np.sign(w) * np.abs(w) ** 0.5, np.zeros(4), np.ones(4))
    assert judge_product(np.ones(4), slopes, {"w": slice(None)}, DOUBLE).status == "skipped"


@pytest.mark.parametrize("before", [{0}, {3}, {0, 1, 2}, {0, 2, 5}, {0, 1, 6, 7}, set(range(8))])
def test_the_last_layer_before_what_is_wrong_is_found_by_bisection(before):
    """Layers beside a wrong operation, in another branch of the model, are none of these."""
    names = list("abcdefgh")
    asked = []

    def is_wrong(some):
        asked.append(some)
        return any(names.index(name) in before for name in some)

    assert last_wrong_layer(names, is_wrong) == names[max(before)]
    assert len(asked) <= 3
