"""Start vectors that are given."""

import numpy as np
import pytest
from cases import diagonal_operator

from spectral_density.linalg import lanczos

pytestmark = pytest.mark.filterwarnings("error")


def test_start_vectors_can_be_given():
    operator = diagonal_operator(np.arange(1.0, 7.0))
    starts = np.random.default_rng(0).standard_normal((6, 2)) * [1e-200, 1e200]
    result = lanczos(operator, 4, num_draws=2, start=starts)
    directions = starts / np.abs(starts).max(axis=0)
    directions /= np.linalg.norm(directions, axis=0)
    np.testing.assert_allclose(result.basis[:, 0], directions.T, atol=1e-15)
    single = lanczos(operator, 4, start=starts[:, 1])
    np.testing.assert_allclose(single.alpha[0], result.alpha[1], atol=1e-13)


def test_an_eigenvector_as_start_leaves_the_rest_to_random_vectors():
    eigenvalues = np.arange(1.0, 7.0)
    result = lanczos(diagonal_operator(eigenvalues), 6, start=np.eye(6)[2])
    assert result.alpha[0, 0] == 3.0
    assert result.beta[0, 0] == 0.0
    np.testing.assert_allclose(np.linalg.eigvalsh(result.tridiagonal()), eigenvalues, rtol=1e-14)
