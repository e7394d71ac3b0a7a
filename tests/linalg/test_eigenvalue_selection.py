"""Which eigenvalues are wanted, in which order, and beyond which edges none may be left."""

import numpy as np
import pytest
from linalg.eigenproblems import WHICH, wanted

from spectral_density.linalg.eigenvalue_selection import (
    log_distances,
    nearest_to_ends,
    result_order,
    wanted_edges,
    wanted_indices,
)

VALUES = np.array([3.0, -7.0, 0.5, 5.0, -1.0, 4.0])


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("k", range(1, 7))
def test_the_wanted_values_are_those_of_a_sorted_list(which, k):
    chosen = VALUES[wanted_indices(VALUES, which, k, np.zeros(6))]
    ordered = chosen[result_order(chosen, which)]
    np.testing.assert_array_equal(ordered, wanted(VALUES, k, which))


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("k", range(1, 7))
def test_any_value_beyond_the_edges_would_be_wanted(which, k):
    chosen = wanted(VALUES, k, which)
    lower, upper = wanted_edges(chosen, which, 0.25)
    for edge, outwards in ((lower, -1), (upper, 1)):
        if not np.isfinite(edge):
            continue
        for value, taken in ((edge + 0.1 * outwards, True), (edge - 0.3 * outwards, False)):
            values = np.append(chosen, value)
            indices = wanted_indices(values, which, k, np.zeros(k + 1))
            assert (k in indices) == taken


def test_a_bonus_decides_between_equal_values():
    values = np.array([1.0, 1.0, 1.0, 2.0])
    for which, other in (("LM", 3), ("LA", 3), ("SA", 0)):
        chosen = wanted_indices(values, which, 2, np.array([0.0, 0.1, 0.0, 0.0]))
        np.testing.assert_array_equal(chosen, sorted([1, other]))


def test_the_nearest_to_the_ends_come_first():
    values = np.array([-9.0, -2.0, 0.0, 3.0, 8.0])
    np.testing.assert_array_equal(nearest_to_ends(values, "LA"), [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(nearest_to_ends(values, "SA"), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(nearest_to_ends(values, "LM"), [0, 4, 3, 1, 2])
    np.testing.assert_array_equal(nearest_to_ends(values, "BE"), [4, 0, 3, 1, 2])


def test_distances_to_an_edge_at_infinity_count_for_nothing():
    assert log_distances(np.inf, VALUES) == 0.0
    assert log_distances(6.0, np.array([5.0, 4.0])) == pytest.approx(np.log(2))
    assert np.isfinite(log_distances(5.0, VALUES))
