import numpy as np
import pytest

from spectral_density.linalg.norms import column_norms, euclidean_norm, inner


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e-200, 1e-40, 1.0, 1e200])
def test_norms_neither_overflow_nor_underflow(scale):
    vector = scale * np.array([3.0, -4.0])
    assert euclidean_norm(vector) == pytest.approx(5 * scale, rel=1e-3)
    np.testing.assert_allclose(column_norms(np.stack([vector, vector], axis=1)), 5 * scale)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 5e37])
def test_norms_of_single_precision_neither_overflow_nor_underflow(scale):
    vector = (scale * np.array([3.0, -4.0])).astype(np.float32)
    assert euclidean_norm(vector) == pytest.approx(5 * scale, rel=1e-3)


def test_norms_of_whole_numbers_of_nothing_and_of_nan():
    assert euclidean_norm(np.array([3, 4])) == 5.0
    assert euclidean_norm(np.zeros(0)) == 0.0
    assert np.isnan(euclidean_norm(np.array([np.nan, 1.0])))


def test_an_inner_product_is_that_of_the_vectors():
    assert inner(np.array([1.0, 2.0]), np.array([3.0, -1.0])) == 1.0
