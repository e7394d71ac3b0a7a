"""Draws in lockstep: the same results in any groups."""

import numpy as np
import pytest
from cases import dense_symmetric, diagonal_operator, semicircle_with_outliers
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import CheckpointError
from spectral_density.linalg import default_draws_at_once, lanczos, threads

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("keep_basis", [True, False])
def test_draws_do_not_depend_on_how_many_run_in_lockstep(keep_basis):
    matrix = dense_symmetric(semicircle_with_outliers(200))
    results = [
        lanczos(matrix, 20, num_draws=5, seed=1, draws_at_once=k, keep_basis=keep_basis)
        for k in (1, 2, 5, None)
    ]
    assert [r.draws_at_once for r in results] == [1, 2, 5, 5]
    for other in results[1:]:
        np.testing.assert_allclose(other.alpha, results[0].alpha, atol=1e-11)
        np.testing.assert_allclose(other.beta, results[0].beta, atol=1e-11)
        if keep_basis:
            np.testing.assert_allclose(other.basis, results[0].basis, atol=1e-9)
        else:
            assert other.basis is None


@pytest.mark.parametrize("threads_from", [0, 10**9])
def test_draws_have_the_same_bits_whether_threads_share_them_or_not(threads_from, monkeypatch):
    operator = diagonal_operator(semicircle_with_outliers(300))
    expected = [lanczos(operator, 30, seed=0, first_draw=i) for i in range(3)]
    monkeypatch.setattr(threads, "THREADS_FROM", threads_from)
    found = lanczos(operator, 30, num_draws=3, seed=0)
    for draw, one in enumerate(expected):
        np.testing.assert_array_equal(found.alpha[draw], one.alpha[0])
        np.testing.assert_array_equal(found.beta[draw], one.beta[0])


def test_draws_in_lockstep_share_one_block_product_a_step():
    shapes = []

    def matmat(block):
        shapes.append(block.shape)
        return block * np.arange(30)[:, np.newaxis]

    operator = LinearOperator((30, 30), matvec=None, matmat=matmat, dtype=float)
    lanczos(operator, 4, num_draws=6, draws_at_once=3)
    assert shapes == [(30, 3)] * 8


def test_the_default_lockstep_follows_from_the_problem_size():
    assert default_draws_at_once(1000, 50) == 16
    assert default_draws_at_once(3_000_000, 30) == 2
    assert default_draws_at_once(6_000_000, 30, basis_dtype="float32") == 2
    assert default_draws_at_once(100_000_000, 90) == 1
    assert default_draws_at_once(3_000_000, 30, reorthogonalize="none") == 16


@pytest.mark.parametrize("basis_dtype", ["float64", "float32"])
@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_an_operator_known_by_its_products_alone_resumes_its_own_checkpoint(
    tmp_path, basis_dtype, reorthogonalize
):
    matrix = dense_symmetric(semicircle_with_outliers(100))
    operator = LinearOperator((100, 100), matvec=lambda v: matrix @ v, dtype=float)
    other = LinearOperator((100, 100), matvec=lambda v: 1.1 * (matrix @ v), dtype=float)
    options = {"num_draws": 2, "basis_dtype": basis_dtype, "reorthogonalize": reorthogonalize}
    expected = lanczos(operator, 9, **options)
    lanczos(operator, 5, checkpoint=tmp_path, **options)
    resumed = lanczos(operator, 9, checkpoint=tmp_path, **options)
    np.testing.assert_array_equal(resumed.alpha, expected.alpha)
    np.testing.assert_array_equal(resumed.beta, expected.beta)
    with pytest.raises(CheckpointError, match="of another operator"):
        lanczos(other, 9, checkpoint=tmp_path, **options)
