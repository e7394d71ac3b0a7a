"""The Nystrom approximation: its bound, its products, and operators that are not semidefinite."""

import numpy as np
import pytest
from cases import (
    dense_symmetric,
    diagonal_operator,
    distinct_eigenvalues,
    log_uniform_bulk,
    orthogonality_error,
)
from linalg.decaying import GEOMETRIC, NETWORK, QUADRATIC, SIGNED_LOW_RANK, counted, relative_error
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.nystrom_approximation import nystrom
from spectral_density.linalg.randomized import randomized_eigh

pytestmark = pytest.mark.filterwarnings("error")


def test_nystrom_takes_one_pass():
    operator, widths = counted(dense_symmetric(QUADRATIC[:100]))
    result = nystrom(operator, 8, oversampling=4, num_probes=3)
    assert widths == [15] and result.num_products == 15 and result.num_passes == 1


@pytest.mark.parametrize(
    "eigenvalues", [QUADRATIC[:150], np.abs(GEOMETRIC[:150]), np.abs(log_uniform_bulk(150))]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_nystrom_meets_the_bound_of_its_theory(eigenvalues, dtype):
    # Frangella, Tropp, Udell, proposition 2.2: the mean of ||A - A_nys||, l test vectors.
    true = np.sort(eigenvalues)[::-1]
    width = 30
    bound = min(
        (1 + 2 * (width - p) / (p - 1)) * true[width - p]
        + 2 * np.e**2 * width / (p**2 - 1) * true[width - p :].sum()
        for p in range(2, width)
    )
    matrix = np.diag(true)
    errors = []
    for seed in range(6):
        result = nystrom(diagonal_operator(true, dtype), width, oversampling=0, seed=seed)
        approximation = result.vectors * result.values @ result.vectors.T
        gap = np.linalg.eigvalsh(matrix - approximation)
        noise = (1e-13 if dtype is np.float64 else 1e-5) * true[0]
        assert gap[0] >= -noise  # A - A_nys is positive semidefinite
        assert (result.values <= true[:width] + noise).all()
        assert (result.values >= 0).all() and (np.diff(result.values) <= 0).all()
        assert orthogonality_error(result.vectors.T) <= 1e-13
        assert gap[-1] <= result.error_bound
        errors.append(gap[-1])
    assert np.mean(errors) <= bound


def test_nystrom_takes_half_the_products_for_a_few_times_the_error():
    true = np.sort(np.abs(NETWORK))[::-1]
    half = nystrom(diagonal_operator(true), 20, num_probes=0)
    whole = randomized_eigh(diagonal_operator(true), 20, num_probes=0)
    assert half.num_products == whole.num_products / 2
    assert relative_error(half.values, true, 10) <= 5 * relative_error(whole.values, true, 10)


def test_nystrom_recovers_a_matrix_of_low_rank():
    matrix = dense_symmetric(np.abs(SIGNED_LOW_RANK))
    result = nystrom(matrix, 5)
    np.testing.assert_allclose(result.values, [7, 5, 3, 1, 0.1], atol=1e-13)
    np.testing.assert_allclose(
        result.vectors * result.values @ result.vectors.T, matrix, atol=1e-13
    )
    assert 0 < result.shift <= 1e-13


@pytest.mark.parametrize(
    "eigenvalues", [-np.ones(50), np.resize([1.0, -1.0], 50), distinct_eigenvalues(5, 50)]
)
def test_nystrom_refuses_an_indefinite_operator(eigenvalues):
    with pytest.raises(ValueError, match=r"not positive semidefinite: x'Ax = -.*randomized_eigh"):
        nystrom(diagonal_operator(eigenvalues), 20)


def test_negative_eigenvalues_that_nystrom_cannot_see_are_within_its_bound():
    result = nystrom(diagonal_operator(NETWORK[::4]), 20)
    approximation = result.vectors * result.values @ result.vectors.T
    assert np.linalg.norm(np.diag(NETWORK[::4]) - approximation, 2) <= result.error_bound


def test_nystrom_takes_float32_rounding_for_what_it_is():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((400, 30)).astype(np.float32)

    def matmat(block):  # a Gauss-Newton product in float32, said to be float64
        return np.float64(factor @ (factor.T @ block.astype(np.float32)))

    operator = LinearOperator((400, 400), matvec=None, matmat=matmat, dtype=np.float64)
    result = nystrom(operator, 40)
    true = np.linalg.svd(np.float64(factor), compute_uv=False) ** 2
    np.testing.assert_allclose(result.values[:30], true, rtol=1e-4)
    assert (result.values[30:] <= 1e-4 * true[0]).all()


def test_the_shift_is_taken_off_again():
    eigenvalues = np.arange(1.0, 21.0)
    operator = diagonal_operator(eigenvalues)
    # Products that may be rounded as coarsely take a shift that shows, and these are not rounded.
    operator.product_dtype = np.dtype(np.float16)
    found = nystrom(operator, 20)
    eps = np.finfo(np.float16).eps
    assert found.shift == pytest.approx(eps * np.linalg.norm(eigenvalues), rel=1e-10)
    # The test vectors span everything, so that the approximation of A + shift I is that itself.
    np.testing.assert_allclose(found.values, eigenvalues[::-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        (found.vectors * found.values) @ found.vectors.T, np.diag(eigenvalues), rtol=0, atol=1e-9
    )
