"""Samples that grow: by a factor to the tolerance or the limit, or to the exact result."""

import pytest

from spectral_density.linalg.estimates import Estimate
from spectral_density.linalg.sampling import Plan, grow_sample, planned


def grown(plan, size, *, error=lambda sample: 1.0, hopeless=None):
    """The result, and the sizes of the samples that were taken on the way."""
    samples = []
    options = {} if hopeless is None else {"hopeless": hopeless}
    result = grow_sample(
        plan,
        size,
        extend=samples.append,
        estimate=lambda: Estimate(1.0, error(samples[-1]), samples[-1] * plan.cost),
        exact=lambda used: Estimate(1.0, 0.0, used + size),
        **options,
    )
    return result, samples


def test_without_a_tolerance_there_is_one_sample():
    result, samples = grown(Plan(10, None, 10), 1000)
    assert samples == [10]
    assert result.converged is None


def test_a_sample_grows_by_half_until_its_limit():
    result, samples = grown(Plan(10, 1e-3, 40), 1000)
    assert samples == [10, 15, 23, 35, 40]
    assert result.converged is False


def test_a_sample_grows_until_the_tolerance_is_met():
    result, samples = grown(Plan(10, 0.1, 1000), 10_000, error=lambda sample: 1 / sample)
    assert samples == [10, 15, 23]
    assert result.converged is True


@pytest.mark.parametrize("cost", [1, 10])
def test_all_columns_are_multiplied_where_a_sample_would_take_as_many_products(cost):
    plan = Plan(10, 1e-3, 1000, cost=cost)
    result, samples = grown(plan, 20 * cost)
    assert samples == [10, 15]
    assert result.num_products == 15 * cost + 20 * cost
    assert result.converged is True
    limited = Plan(10, 1e-3, 1000, cost=cost, exact_rows=20 * cost - 1)
    assert grown(limited, 20 * cost)[0].converged is False


def test_a_larger_sample_that_would_not_help_is_not_taken():
    _, samples = grown(Plan(10, 1e-3, 1000), 10_000, hopeless=lambda result: True)
    assert samples == [10]


def test_an_estimator_that_takes_no_more_products_ends():
    count = []
    result = grow_sample(
        Plan(10, 1e-3, 1000),
        10_000,
        extend=count.append,
        estimate=lambda: Estimate(1.0, 1.0, 10),
        exact=lambda used: pytest.fail("exact"),
    )
    assert result.converged is False
    assert len(count) == 2


def test_a_plan_has_a_limit_of_its_own():
    assert planned(10, 2, None, None) == Plan(10, None, 10)
    assert planned(10, 2, 0.1, None) == Plan(10, 0.1, 100)
    assert planned(10, 2, 0.1, 5) == Plan(5, 0.1, 5)
    with pytest.raises(ValueError, match="give a tolerance"):
        planned(10, 2, None, 5)
