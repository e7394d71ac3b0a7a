"""Partial eigendecompositions: their product is the matrix's, and Rayleigh-Ritz is exact inside."""

import numpy as np
import pytest
from cases import dense_symmetric

from spectral_density.linalg import nystrom, randomized_eigh, top_eigenpairs
from spectral_density.linalg.low_rank import (
    PartialEigendecomposition,
    magnitude_order,
    multiply_low_rank,
    rayleigh_ritz,
)

LOW_RANK = np.concatenate([[7.0, 5.0, 3.0], np.zeros(40)])


@pytest.mark.parametrize("compute", [top_eigenpairs, randomized_eigh, nystrom])
def test_every_result_with_eigenpairs_multiplies_as_its_matrix(compute):
    matrix = dense_symmetric(LOW_RANK)
    pairs = compute(matrix, 3)
    assert isinstance(pairs, PartialEigendecomposition)
    assert pairs.rank == 3
    block = np.random.default_rng(0).standard_normal((43, 2))
    np.testing.assert_allclose(pairs.multiply(block), matrix @ block, atol=1e-12)
    np.testing.assert_allclose(pairs.multiply(block[:, 0]), matrix @ block[:, 0], atol=1e-12)


def test_products_are_in_the_precision_of_vectors_and_block():
    vectors = np.eye(4, 2)
    single = vectors.astype(np.float32)
    weights = np.array([1.0, 2.0])
    assert multiply_low_rank(single, weights, np.ones(4, np.float32)).dtype == np.float32
    assert multiply_low_rank(single, weights, np.ones(4)).dtype == np.float64
    np.testing.assert_array_equal(
        multiply_low_rank(vectors, weights / 4, np.arange(4)), [0, 0.5, 0, 0]
    )


def test_ritz_pairs_of_an_invariant_space_are_eigenpairs():
    matrix = dense_symmetric(np.array([1.0, -9.0, 4.0, 0.5, -2.0]))
    rotation = np.linalg.qr(np.arange(9.0).reshape(3, 3) ** 2)[0]
    basis = np.linalg.eigh(matrix)[1][:, [0, 2, 4]] @ rotation
    values, weights = rayleigh_ritz(basis, matrix @ basis)
    np.testing.assert_allclose(values, [-9.0, 4.0, 0.5], rtol=1e-12)
    vectors = basis @ weights
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-12)


def test_equal_magnitudes_keep_their_order():
    np.testing.assert_array_equal(magnitude_order(np.array([1.0, -2.0, 2.0, 0.0])), [1, 2, 0, 3])
