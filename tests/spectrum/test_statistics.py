"""Counts, effective rank, tail exponent and distance, against exact spectra of trained networks."""

from functools import cache

import numpy as np
import pytest
from cases import diagonal_operator, distinct_eigenvalues, log_uniform_bulk
from scipy.stats import wasserstein_distance
from spectrum.network_spectra import NAMES, effective_rank, network_spectrum, tail_exponent

import spectral_density as sd
from spectral_density import estimate_spectrum
from spectral_density.spectrum.statistics import SpectrumStatistic


@cache
def spectra_of(name, count, order, num_draws):
    operator = diagonal_operator(network_spectrum(name))
    return [
        estimate_spectrum(operator, order, num_draws, seed=seed, check=False, progress=False)
        for seed in range(count)
    ]


# What is estimated, and its value from the eigenvalues at the resolution eps of the run.
STATISTICS = {
    "above eps": (lambda s, eps: s.count_above(eps), lambda e, eps: np.sum(e > eps)),
    "below -eps": (lambda s, eps: s.count_below(-eps), lambda e, eps: np.sum(e <= -eps)),
    "within eps": (
        lambda s, eps: s.count_between(-eps, eps),
        lambda e, eps: np.sum((e > -eps) & (e <= eps)),
    ),
    "above 3 eps": (lambda s, eps: s.count_above(3 * eps), lambda e, eps: np.sum(e > 3 * eps)),
    "effective rank": (lambda s, eps: s.effective_rank, lambda e, eps: effective_rank(e)),
    "tail exponent": (lambda s, eps: s.tail_exponent, tail_exponent),
}


def covered(name, statistic, spectra):
    """Share of spectra whose limits hold the truth, and of those that claim to be exact."""
    eigenvalues = network_spectrum(name)
    estimate, exactly = STATISTICS[statistic]
    within, exact = [], []
    for spectrum in spectra:
        found = estimate(spectrum, spectrum.resolution)
        true = exactly(eigenvalues, spectrum.resolution)
        rounding = 1e-7 * true
        assert found.resolved
        within.append(found.lower - rounding <= true <= found.upper + rounding)
        exact.append(found.standard_error == 0)
    return np.mean(within), np.mean(exact)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("name", NAMES)
def test_the_limits_hold_the_truth_for_most_of_a_few_seeds(name, statistic):
    # Of 12 draws of probability 95 %, 9 or more but for one in 500.
    within, exact = covered(name, statistic, spectra_of(name, 12, 90, 2))
    assert within == 1 if exact == 1 else within >= 9 / 12


@pytest.mark.exhaustive
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("name", NAMES)
def test_the_limits_hold_the_truth_for_95_percent_of_200_seeds(name, statistic):
    within, exact = covered(name, statistic, spectra_of(name, 200, 90, 10))
    print(f"{name}, {statistic}: {within:.3f} within, {exact:.2f} exact")
    # Where all on one side are known there is no band: the number is the true one.
    assert within >= 0.92
    assert within <= 0.98 or exact > 0.9


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_within_the_cluster_at_zero_the_limits_are_bounds(name):
    below = np.sum(network_spectrum(name) <= 0)
    found = [spectrum.count_below(0.0) for spectrum in spectra_of(name, 200, 90, 10)]
    assert not any(one.resolved for one in found)
    assert np.mean([one.lower <= below <= one.upper for one in found]) >= 0.95


def test_within_a_cluster_a_count_says_that_it_is_not_resolved():
    eigenvalues = network_spectrum("tanh_classifier")
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues), 40, 2)
    found = spectrum.count_below(0.0)
    assert not found.resolved
    assert found.lower <= np.sum(eigenvalues <= 0) <= found.upper
    assert str(found).endswith("(not resolved)")


def test_the_standard_error_is_the_spread_over_seeds():
    spectra = spectra_of("autoencoder", 12, 90, 2)
    for statistic in ("above eps", "effective rank"):
        found = [STATISTICS[statistic][0](s, s.resolution) for s in spectra]
        spread = np.std([one.value for one in found], ddof=1)
        stated = np.mean([one.standard_error for one in found])
        # The sample of 12 is within these factors with a probability of 99.8 %.
        assert 0.4 * stated < spread < 1.75 * stated


def test_more_draws_narrow_the_limits_with_their_square_root():
    operator = diagonal_operator(network_spectrum("autoencoder"))
    few, many = (estimate_spectrum(operator, 60, draws) for draws in (3, 12))
    ratio = few.count_above(0.02).standard_error / many.count_above(0.02).standard_error
    assert ratio == pytest.approx(2, rel=0.25)


def test_with_all_eigenvalues_known_the_counts_are_exact():
    spectrum = estimate_spectrum(diagonal_operator(np.arange(-3.0, 5.0)), 8, 2)
    assert spectrum.simple.all()
    assert spectrum.count_above(1.5) == SpectrumStatistic(3.0, 0.0, 3.0, 3.0)
    assert spectrum.count_below(-0.5).value == 3
    assert spectrum.count_between(-0.5, 2.5).value == 3
    assert spectrum.count_above(-10).value == 8


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_counts_of_multiple_eigenvalues_are_cut_between_them(count):
    eigenvalues = 5 + distinct_eigenvalues(count)
    found = estimate_spectrum(diagonal_operator(eigenvalues), 40, 20).count_above(5.01)
    true = np.sum(eigenvalues > 5.01)
    assert found.value == pytest.approx(true, abs=3 * found.standard_error)


def test_counts_add_up_to_the_number_of_eigenvalues():
    spectrum = estimate_spectrum(diagonal_operator(log_uniform_bulk()), 40, 4)
    eps = spectrum.resolution
    parts = spectrum.count_below(-eps), spectrum.count_between(-eps, eps), spectrum.count_above(eps)
    assert sum(part.value for part in parts) == pytest.approx(2000)
    for part in parts:
        assert 0 <= part.lower <= part.value <= part.upper <= 2000


def test_the_interval_of_a_count_must_be_one():
    spectrum = estimate_spectrum(diagonal_operator(np.arange(4.0)), 2, 2)
    with pytest.raises(ValueError, match="low must be at most high, got 1 and 0"):
        spectrum.count_between(1, 0)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_statistics_follow_the_scale_of_the_matrix(scale):
    operator = diagonal_operator(network_spectrum("relu_classifier"))
    scaled = diagonal_operator(scale * network_spectrum("relu_classifier"))
    one, other = (estimate_spectrum(a, 30, 2) for a in (operator, scaled))
    assert other.effective_rank.value == pytest.approx(one.effective_rank.value)
    assert other.effective_rank.standard_error == pytest.approx(one.effective_rank.standard_error)
    assert other.tail_exponent.value == pytest.approx(one.tail_exponent.value)
    assert other.count_above(0.01 * scale).value == pytest.approx(one.count_above(0.01).value)
    assert other.accuracy.distance == pytest.approx(scale * one.accuracy.distance)


def test_the_effective_rank_is_the_number_of_equal_eigenvalues_among_zeros():
    eigenvalues = np.concatenate([np.full(30, 2.0), np.full(20, -2.0), np.zeros(50)])
    found = estimate_spectrum(diagonal_operator(eigenvalues), 5, 40).effective_rank
    assert found.value == pytest.approx(50, abs=4 * found.standard_error)
    assert 0 < found.standard_error < 2
    assert estimate_spectrum(diagonal_operator(np.zeros(9)), 3, 2).effective_rank.value == 0


def test_an_effective_rank_of_which_nothing_is_known_says_so():
    eigenvalues = np.r_[np.zeros(5000), np.geomspace(1e-6, 1e-2, 5000), 1.0, 2.0, 3.0]
    operator = diagonal_operator(eigenvalues)
    few, many = (estimate_spectrum(operator, order, 3, seed=0) for order in (4, 60))
    assert not few.effective_rank.resolved
    assert 0 <= few.effective_rank.lower < few.effective_rank.upper <= len(eigenvalues)
    assert "not resolved" in str(few.effective_rank)
    (line,) = (line for line in str(few).splitlines() if "effective rank" in line)
    assert line.endswith("(effective rank): not resolved, more steps")
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    true = np.exp(-np.sum(shares * np.log(shares)))
    assert many.effective_rank.resolved
    assert many.effective_rank.lower <= true <= many.effective_rank.upper


def test_the_tail_exponent_is_that_of_a_power_law():
    # Quantiles of a density ~ x^-2.5 on [1, inf).
    shares = (np.arange(2000) + 0.5) / 2000
    eigenvalues = np.concatenate([(1 - shares) ** (-1 / 1.5), np.zeros(2000)])
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues), 120, 4)
    found = spectrum.tail_exponent_above(1.0)
    assert found.value == pytest.approx(2.5, abs=0.15)
    found = spectrum.tail_exponent_above(20.0)
    # All above are known, so that nothing is left to err.
    assert found.value == pytest.approx(tail_exponent(eigenvalues, 20.0), rel=1e-9)
    assert found.standard_error == 0


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.inf, np.nan])
def test_a_tail_begins_above_zero(threshold):
    spectrum = estimate_spectrum(diagonal_operator(np.arange(4.0)), 4, 2)
    with pytest.raises(ValueError, match="must be positive and finite"):
        spectrum.tail_exponent_above(threshold)


def test_a_tail_without_eigenvalues_has_no_exponent():
    spectrum = estimate_spectrum(diagonal_operator(-np.arange(4.0)), 4, 2)
    with pytest.raises(ValueError, match=r"no eigenvalue is above 0\.5"):
        spectrum.tail_exponent_above(0.5)


def test_the_distance_of_two_spectra_is_in_units_of_the_eigenvalues():
    first, second = network_spectrum("tanh_classifier"), network_spectrum("relu_classifier")
    one, other = (estimate_spectrum(diagonal_operator(e), 90, 10) for e in (first, second))
    true = wasserstein_distance(first, second)
    assert one.distance(other) == other.distance(one)
    assert abs(one.distance(other) - true) <= one.accuracy.distance + other.accuracy.distance
    assert one.distance(one) == 0
    # A matrix moved by a number is that far away.
    moved = estimate_spectrum(diagonal_operator(first + 3), 90, 10)
    assert one.distance(moved) == pytest.approx(3, rel=1e-4)


def test_the_distance_from_the_truth_is_below_the_accuracy_in_units_of_the_eigenvalues():
    for name in NAMES:
        eigenvalues = network_spectrum(name)
        for s in spectra_of(name, 12, 90, 2):
            weights = s.deflated_weights.ravel()
            error = wasserstein_distance(s.nodes.ravel(), eigenvalues, weights)
            assert error <= s.accuracy.distance
            assert s.accuracy.distance == pytest.approx(s.accuracy.total * np.ptp(eigenvalues))


def test_results_print_the_value_to_two_digits_of_its_error():
    assert str(SpectrumStatistic(83.8375, 3.0146, 77.9, 89.7)) == "83.8 +- 3.0"
    assert "array" not in repr(sd.Spectrum)
