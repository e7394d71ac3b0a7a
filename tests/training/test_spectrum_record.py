"""The numbers of a measurement, against the eigenvalues of the matrices T."""

import numpy as np

from spectral_density.spectrum.spectrum import Spectrum
from spectral_density.training.spectrum_record import numbers_of


def test_eigenvalues_are_the_largest_over_the_draws_with_bounds_that_include_rounding():
    diagonals, off, eps = [[3.0, 1.0, 2.0], [1.0, 2.0, 5.0]], [0.5, 0.25], 2.0**-23
    spectrum = Spectrum(diagonals, [off, off], [0.0, 0.0], size=3, precision=eps)
    matrices = [np.diag(d) + np.diag(off, 1) + np.diag(off, -1) for d in diagonals]
    each = np.array([np.linalg.eigvalsh(matrix)[::-1] for matrix in matrices])
    values, bounds, smallest, smallest_bound, *_ = numbers_of(spectrum, 4)
    np.testing.assert_allclose(values, [*each.max(axis=0), np.nan], rtol=1e-14)
    np.testing.assert_allclose(smallest, each.min(), rtol=1e-14)
    # The residuals are zero, and the rounding of float32 is not.
    for bound in (*bounds[:3], smallest_bound):
        assert eps * each.max() <= bound < 100 * eps * each.max()
    assert np.isnan(bounds[3])
