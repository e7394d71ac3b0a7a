"""Dense matrices from products with blocks of the identity."""

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg import dense
from spectral_density.linalg.dense import BLOCK_COLUMNS, blocks, dense_matrix


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (40, 5), (33, 33), (0, 0)])
def test_a_dense_matrix_is_the_operators_in_blocks_of_columns(shape):
    matrix, widths = np.arange(float(np.prod(shape))).reshape(shape), []

    def multiply(block):
        widths.append(block.shape[1])
        return matrix @ block

    operator = LinearOperator(shape, matvec=multiply, matmat=multiply, dtype=float)
    np.testing.assert_array_equal(dense_matrix(operator), matrix)
    assert sum(widths) == shape[1]
    assert max(widths, default=0) <= BLOCK_COLUMNS


def test_blocks_cover_a_range_and_take_no_more_memory_than_they_may(monkeypatch):
    assert list(blocks(3, 40, 100)) == [range(3, 19), range(19, 35), range(35, 40)]
    monkeypatch.setattr(dense, "BLOCK_BYTES", 800)
    assert list(blocks(0, 2, 100)) == [range(1), range(1, 2)]
    assert list(blocks(0, 2, 10**9)) == [range(1), range(1, 2)]
