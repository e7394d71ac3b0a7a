"""Range finders: bases to a rank and to a tolerance, with bounds that hold."""

import numpy as np
import pytest
from cases import (
    dense_symmetric,
    diagonal_operator,
    log_uniform_bulk,
    orthogonality_error,
    rank_two,
    semicircle_with_outliers,
)
from linalg.decaying import GEOMETRIC, QUADRATIC, counted

from spectral_density.linalg.range_basis import range_finder

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("eigenvalues", [log_uniform_bulk(200), QUADRATIC[:200], GEOMETRIC[:200]])
def test_the_bound_of_a_range_holds_over_seeds_and_is_not_absurdly_loose(eigenvalues):
    ratios = []
    for seed in range(5):
        for depth in (1, 2):
            operator = diagonal_operator(eigenvalues)
            found = range_finder(operator, 10, krylov_depth=depth, seed=seed)
            rest = (np.eye(len(eigenvalues)) - found.basis @ found.basis.T) * eigenvalues
            ratios.append(found.error_bound / np.linalg.norm(rest, 2))
    assert min(ratios) >= 1
    assert max(ratios) <= 100


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-4, 1e-8])
def test_a_range_to_a_tolerance_meets_it(depth, tolerance):
    eigenvalues = 0.85 ** np.arange(200)
    needed = np.count_nonzero(eigenvalues > tolerance)
    matrix = dense_symmetric(eigenvalues)
    for seed in range(3):
        found = range_finder(matrix, tolerance=tolerance, krylov_depth=depth, seed=seed)
        error = np.linalg.norm(matrix - found.basis @ (found.basis.T @ matrix), 2)
        assert error <= found.error_bound <= tolerance
        assert found.converged
        assert needed <= found.rank <= needed + 60
        assert orthogonality_error(found.basis.T) <= 1e-13


def test_a_tolerance_spends_one_block_on_the_test_alone():
    operator, widths = counted(dense_symmetric(0.5 ** np.arange(100)))
    found = range_finder(operator, tolerance=1e-3, block_size=7)
    assert widths == [7] * found.num_passes
    assert found.rank == 7 * (found.num_passes - 1)
    assert found.num_products == sum(widths)
    assert found.failure_probability == pytest.approx(found.num_passes * 1e-7)


def test_a_search_that_ends_early_says_so():
    matrix = dense_symmetric(0.9 ** np.arange(100))
    capped = range_finder(matrix, tolerance=1e-6, max_rank=25)
    assert not capped.converged and capped.rank == 25
    rest = matrix - capped.basis @ (capped.basis.T @ matrix)
    assert 1e-6 < np.linalg.norm(rest, 2) <= capped.error_bound
    # Nothing but rounding is left long before the tolerance.
    rounded = range_finder(dense_symmetric(rank_two(100)), tolerance=1e-30)
    assert not rounded.converged and rounded.rank == 2 and rounded.error_bound <= 1e-12
    assert "not converged" in repr(rounded)
    assert range_finder(np.zeros((30, 30)), tolerance=1e-3).rank == 0
    everything = range_finder(np.eye(30), tolerance=1e-3)
    assert everything.rank == 30 and everything.converged and everything.error_bound == 0


def test_a_range_of_fixed_rank_needs_no_product_with_its_last_block():
    operator, widths = counted(dense_symmetric(semicircle_with_outliers(200)))
    found = range_finder(operator, 8, oversampling=4, krylov_depth=3)
    assert widths == [22, 12, 12]
    assert found.num_products == 46 and found.num_passes == 3 and found.rank == 36
