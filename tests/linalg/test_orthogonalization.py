"""Orthogonalization: orthonormal to rounding, the same span, and no direction of rounding."""

import numpy as np
import pytest
from cases import orthogonality_error

from spectral_density.linalg.orthogonalization import (
    cholesky_qr,
    combine,
    orthogonalize,
    orthonormal_extension,
    orthonormalize,
    project,
    project_out,
    project_out_rows,
    qr,
    rank_revealing_extension,
)

N = 20_000  # more than one piece of a float32 sum


def orthonormal_columns(n, k, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-15), (np.float32, 1e-6)])
@pytest.mark.parametrize("share", [0.1, 1 - 1e-12])
def test_what_is_removed_from_a_vector_is_its_part_along_the_rows(dtype, limit, share):
    rows = np.ascontiguousarray(orthonormal_columns(N, 5).T).astype(dtype)
    coefficients = np.array([3.0, -1.0, 0.5, 0.0, 2.0])
    across = project_out(np.random.default_rng(1).standard_normal(N), rows.T.astype(float))
    across *= (1 - share) / np.linalg.norm(across)
    w = coefficients @ rows + across
    removed = orthogonalize(w, rows)
    np.testing.assert_allclose(removed, coefficients, atol=10 * limit)
    assert np.abs(rows @ w).max() <= limit * max(np.linalg.norm(w), 1e-3)


def test_projection_on_float32_rows_is_summed_in_float64():
    rows = np.ones((1, 2**20), np.float32)
    assert project(rows, np.full(2**20, 0.1))[0] == pytest.approx(0.1 * 2**20, rel=1e-5)


def test_rows_that_are_nearly_orthonormal_become_so_to_the_last_digit():
    rows = orthonormal_columns(300, 8).T + 1e-9
    orthonormalize(rows)
    assert orthogonality_error(rows) <= 1e-15


def test_columns_and_rows_are_projected_alike():
    basis, block = orthonormal_columns(50, 4), orthonormal_columns(50, 3, seed=1)
    columns = project_out(block, basis)
    np.testing.assert_allclose(project_out_rows(block.T, basis.T).T, columns, atol=1e-15)
    assert np.abs(basis.T @ columns).max() <= 1e-15


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_an_extension_is_orthonormal_however_near_to_the_basis_the_block_lies(size):
    basis, other = orthonormal_columns(100, 6), orthonormal_columns(100, 3, seed=1)
    extension = orthonormal_extension(basis[:, :3] + size * other, basis)
    assert orthogonality_error(np.hstack([basis, extension]).T) <= 1e-14
    outside = project_out(other, basis)
    along = outside - extension @ (extension.T @ outside)
    assert np.linalg.norm(along) <= 1e-14 / size


def test_an_extension_by_rank_leaves_out_what_is_rounding():
    basis, other = orthonormal_columns(100, 6), orthonormal_columns(100, 2, seed=1)
    block = np.hstack([other, other @ [[1.0], [2.0]], basis[:, :1], np.zeros((100, 1))])
    extension = rank_revealing_extension(block, basis, 1e-10, 9)
    assert extension.shape == (100, 2)
    assert orthogonality_error(np.hstack([basis, extension]).T) <= 1e-14
    assert rank_revealing_extension(block, basis, 1e-10, 1).shape == (100, 1)
    assert rank_revealing_extension(basis, basis, 1e-10, 9).shape == (100, 0)


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-13), (np.float32, 1e-5)])
@pytest.mark.parametrize("angle", [1.0, 0.1, 1e-5, 0.0])
def test_the_cholesky_factor_orthonormalizes_and_gives_way_to_qr(dtype, limit, angle):
    q = orthonormal_columns(200, 3) * [1.0, 1e3, 1e-3]
    block = q.copy()
    block[:, 2] = (1 - angle) * q[:, 1] + angle * q[:, 2]
    result = cholesky_qr(block.astype(dtype))
    assert result.dtype == dtype
    assert orthogonality_error(result.T) <= limit


def test_qr_is_economic():
    q, r = qr(np.arange(12.0).reshape(6, 2))
    assert q.shape == (6, 2)
    np.testing.assert_allclose(q @ r, np.arange(12.0).reshape(6, 2), atol=1e-14)


def test_combinations_keep_the_dtype_and_lie_column_by_column():
    block = np.asfortranarray(np.eye(4, 3, dtype=np.float32))
    result = combine(block, np.arange(6.0).reshape(3, 2))
    assert result.dtype == np.float32 and result.flags.f_contiguous
    np.testing.assert_array_equal(result[:3], np.arange(6.0).reshape(3, 2))
