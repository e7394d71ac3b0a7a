"""Ends and outliers: what is known of them, and that it is true."""

import numpy as np
import pytest
from cases import diagonal_operator, log_uniform_bulk, semicircle_with_outliers
from spectrum.network_spectra import NAMES, network_spectrum

from spectral_density import Spectrum, estimate_spectrum
from spectral_density.spectrum import ExtremeEigenvalues, Outlier
from spectral_density.spectrum.extremes import rounded_up, to_digits_of

CASES = {
    **{name: lambda name=name: network_spectrum(name) for name in NAMES},
    "semicircle": semicircle_with_outliers,
    "log-uniform": log_uniform_bulk,
    "semidefinite": lambda: np.r_[np.zeros(300), np.geomspace(1e-6, 1, 300)],
}


def with_fewer_steps(spectrum, order):
    """The first steps of a spectrum: its residual norms are the betas that follow."""
    return Spectrum(
        spectrum.alpha[:, :order],
        spectrum.beta[:, : order - 1],
        spectrum.beta[:, order - 1],
        spectrum.size,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_an_end_that_has_converged_is_the_extreme_eigenvalue_to_its_bound(case, shift):
    eigenvalues = CASES[case]() + shift
    converged = np.zeros(2)
    for seed in range(8):
        whole = estimate_spectrum(diagonal_operator(eigenvalues), 80, 2, seed=seed)
        for order in range(2, 80, 3):
            ends = with_fewer_steps(whole, order).extreme_eigenvalues
            # Whatever the bounds, a Ritz value is inside the range.
            rounding = 1e-13 * np.abs(eigenvalues).max()
            assert ends.smallest >= eigenvalues.min() - rounding
            assert ends.largest <= eigenvalues.max() + rounding
            if ends.smallest_converged:
                assert ends.smallest - eigenvalues.min() <= ends.smallest_bound
            if ends.largest_converged:
                assert eigenvalues.max() - ends.largest <= ends.largest_bound
            converged += ends.smallest_converged, ends.largest_converged
    assert converged[1] > 8 * 15


def test_the_ends_say_what_is_known():
    ends = ExtremeEigenvalues(-0.000213, 10.54823, 1.1e-2, 3.2e-6, False, True)
    assert ends.smallest_text == "-0.000213 or below: not converged, more steps"
    assert ends.largest_text == "10.5482 (known to 4e-06)"
    assert str(ends) == f"smallest {ends.smallest_text}; largest {ends.largest_text}"
    other = ExtremeEigenvalues(-1.23456, 0.5, 2e-3, 0.1, True, False)
    assert other.smallest_text == "-1.2346 (known to 0.002)"
    assert other.largest_text == "0.5 or above: not converged, more steps"


@pytest.mark.parametrize(
    ("bound", "text"),
    [(4e-6, "4e-06"), (4.1e-6, "5e-06"), (9.9e-3, "0.01"), (0.0, "0"), (2.0, "2")],
)
def test_a_bound_is_rounded_up(bound, text):
    assert rounded_up(bound) == text


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [(1.2945231, 1e-9, "1.29452"), (1.2945231, 0.02, "1.295"), (123456.78, 30.0, "123457")],
)
def test_a_value_has_no_digits_below_its_bound(value, bound, text):
    assert to_digits_of(value, bound) == text


def test_outliers_are_single_eigenvalues_with_bounds():
    eigenvalues = semicircle_with_outliers()
    found = estimate_spectrum(diagonal_operator(eigenvalues), 80, 3).outliers
    assert isinstance(found[0], Outlier)
    assert [round(one.value, 6) for one in found[:10]] == pytest.approx(
        np.linspace(10, 2, 10), abs=1e-6
    )
    for one in found:
        assert np.abs(eigenvalues - one.value).min() <= one.bound


def test_one_draw_does_not_tell_which_eigenvalues_are_single():
    spectrum = estimate_spectrum(diagonal_operator(semicircle_with_outliers()), 60, 1)
    assert spectrum.outliers == ()
    assert "no single eigenvalue is known: two draws or more" in str(spectrum)
