from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cases import (
    dense_symmetric,
    diagonal_operator,
    distinct_eigenvalues,
    ks_distance,
    log_uniform_bulk,
    semicircle_with_outliers,
    spread,
)
from scipy.integrate import trapezoid
from scipy.stats import wasserstein_distance

from spectral_density import Density, Spectrum, estimate_spectrum

CASES = {"A": semicircle_with_outliers, "B": log_uniform_bulk}
ARRAYS = ("alpha", "beta", "residual_norms", "simple", "nodes", "weights", "deflated_weights")


@cache
def estimated(case, order=40, num_draws=4, seed=0):
    return estimate_spectrum(diagonal_operator(CASES[case]()), order, num_draws, seed=seed)


def smoothed(eigenvalues, grid, sigma):
    """The density that the band is for: all eigenvalues under the same kernel."""
    kernel = np.exp(-0.5 * ((grid[:, np.newaxis] - eigenvalues) / sigma) ** 2)
    return kernel.mean(axis=1) / (sigma * np.sqrt(2 * np.pi))


def covered(density, truth):
    slack = 1e-12 * truth.max()
    return (density.lower - slack <= truth) & (truth <= density.upper + slack)


def assert_same_picture(found, expected, scale, shift):
    np.testing.assert_allclose(found.sigma, scale * expected.sigma, rtol=1e-9)
    span = scale * np.ptp(expected.grid)
    np.testing.assert_allclose(found.grid, scale * expected.grid + shift, atol=1e-10 * span, rtol=0)
    for name in ("values", "lower", "upper"):
        values = scale * getattr(found, name)
        wanted = getattr(expected, name)
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-7 * expected.values.max())
    assert found.lost_mass == pytest.approx(expected.lost_mass, abs=1e-9)


# NUMERICS.md section 4, figure 6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("scale", "shift"), [(1e-8, 0.0), (1e8, 0.0), (1.0, 3.0), (1.0, -40.0), (1e-8, 1e-8)]
)
def test_the_density_moves_and_scales_with_the_matrix(case, scale, shift):
    eigenvalues = CASES[case]()
    moved = estimate_spectrum(diagonal_operator(scale * eigenvalues + shift), 40, 4)
    assert_same_picture(moved.density(), estimated(case).density(), scale, shift)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("sigma_factor", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("case", CASES)
def test_the_density_integrates_to_one_without_being_normalized(case, sigma_factor, scale):
    spectrum = estimate_spectrum(diagonal_operator(scale * CASES[case]()), 40, 4)
    density = spectrum.density(sigma=sigma_factor * spectrum.default_sigma)
    integral = trapezoid(density.values, density.grid)
    assert integral == pytest.approx(1.0, abs=1e-3)
    assert density.lost_mass == pytest.approx(1 - integral, abs=1e-12)


def test_the_smoothed_density_adds_sigma_squared_to_the_second_moment():
    spectrum = estimated("A")
    density = spectrum.density(sigma=0.3)
    second = trapezoid(density.grid**2 * density.values, density.grid)
    assert second == pytest.approx(spectrum.moment(2) + 0.3**2, rel=1e-3)


# NUMERICS.md section 4, figure 8


@cache
def two_hundred_seeds():
    eigenvalues = semicircle_with_outliers(500)
    operator = diagonal_operator(eigenvalues)
    return eigenvalues, [estimate_spectrum(operator, 40, 10, seed=seed) for seed in range(200)]


@pytest.mark.slow
@pytest.mark.parametrize("sigma_factor", [1.0, 3.0])
@pytest.mark.parametrize("deflate", [True, False])
def test_the_band_covers_the_bulk_as_often_as_it_says(deflate, sigma_factor):
    eigenvalues, spectra = two_hundred_seeds()
    grid = np.linspace(-1, 1, 101)
    sigma = sigma_factor * spread(eigenvalues) / (39 * np.sqrt(8 * np.log(3)))
    truth = smoothed(eigenvalues, grid, sigma)
    hits = [covered(s.density(grid, sigma, deflate=deflate), truth) for s in spectra]
    assert 0.92 <= np.mean(hits) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("deflate", [True, False])
def test_the_band_covers_every_outlier(deflate):
    eigenvalues, spectra = two_hundred_seeds()
    outliers = eigenvalues[-10:]
    sigma = spread(eigenvalues) / (39 * np.sqrt(8 * np.log(3)))
    truth = smoothed(eigenvalues, outliers, sigma)
    hits = [covered(s.density(outliers, sigma, deflate=deflate), truth) for s in spectra]
    assert np.min(np.mean(hits, axis=0)) >= 0.9
    if not deflate:
        assert 0.92 <= np.mean(hits) <= 0.97


@pytest.mark.slow
def test_the_band_covers_the_gaps_between_the_outliers():
    eigenvalues, spectra = two_hundred_seeds()
    gaps = np.linspace(1.3, 10.5, 93)
    sigma = spread(eigenvalues) / (39 * np.sqrt(8 * np.log(3)))
    truth = smoothed(eigenvalues, gaps, sigma)
    hits = [covered(s.density(gaps, sigma, deflate=False), truth) for s in spectra]
    assert np.min(np.mean(hits, axis=0)) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("num_draws", [1, 2])
def test_one_draw_or_two_have_a_band_too(num_draws):
    eigenvalues = semicircle_with_outliers(500)
    operator = diagonal_operator(eigenvalues)
    bulk, outliers = np.linspace(-1, 1, 101), eigenvalues[-10:]
    sigma = spread(eigenvalues) / (39 * np.sqrt(8 * np.log(3)))
    spectra = [estimate_spectrum(operator, 40, num_draws, seed=seed) for seed in range(200)]
    for points in (bulk, outliers):
        truth = smoothed(eigenvalues, points, sigma)
        hits = [covered(s.density(points, sigma, deflate=False), truth) for s in spectra]
        assert 0.92 <= np.mean(hits) <= 0.97


def test_a_weight_drawn_next_to_nothing_is_within_its_band():
    spectrum = Spectrum([[1.0, 2.0]], [[1e-9]], [0.0], 100)
    density = spectrum.density()
    assert np.all(density.lower <= density.values)
    assert np.all(density.values <= density.upper)


@pytest.mark.parametrize("num_draws", [1, 2, 10])
@pytest.mark.parametrize("deflate", [True, False])
def test_the_density_is_within_its_band_everywhere(num_draws, deflate):
    density = estimated("B", num_draws=num_draws).density(deflate=deflate)
    assert np.all(np.isfinite(density.upper))
    assert np.all(density.lower >= 0)
    rounding = 1e-12 * density.values.max()
    assert np.all(density.lower <= density.values + rounding)
    assert np.all(density.values <= density.upper + rounding)


def test_more_draws_narrow_the_band():
    grid = np.linspace(-0.5, 0.5, 11)
    widths = []
    for num_draws in (5, 20):
        density = estimated("A", num_draws=num_draws).density(grid, 0.2)
        widths.append(np.mean(density.upper - density.lower))
    assert 1.6 < widths[0] / widths[1] < 4.0


# NUMERICS.md section 4, figure 1, through `Spectrum`


def step_distances(spectrum, eigenvalues, weights):
    w1 = wasserstein_distance(spectrum.nodes.ravel(), eigenvalues, weights.ravel())
    return w1 / spread(eigenvalues), ks_distance(spectrum.nodes, weights, eigenvalues)


def cdf_distance(spectrum, eigenvalues, **options):
    n = len(eigenvalues)
    cdf = spectrum.cdf(np.sort(eigenvalues), **options)
    return max(np.abs(cdf - np.arange(k, n + k) / n).max() for k in (0, 1))


def test_the_semicircle_is_met_to_its_figures():
    eigenvalues = semicircle_with_outliers()
    spectra = [estimated("A", 80, 10, seed) for seed in range(10)]
    plain = [step_distances(s, eigenvalues, s.weights) for s in spectra]
    deflated = [step_distances(s, eigenvalues, s.deflated_weights) for s in spectra]
    assert np.all(np.median(plain, axis=0) <= [2e-3, 0.025])
    assert np.all(np.median(deflated, axis=0) <= [1e-3, 0.025])
    assert np.median([cdf_distance(s, eigenvalues, deflate=False) for s in spectra]) <= 0.015
    assert np.median([cdf_distance(s, eigenvalues) for s in spectra]) <= 0.015


def test_the_network_like_spectrum_is_met_to_its_figures():
    eigenvalues = log_uniform_bulk()
    spectra = [estimated("B", 80, 10, seed) for seed in range(10)]
    plain = [step_distances(s, eigenvalues, s.weights)[0] for s in spectra]
    deflated = [step_distances(s, eigenvalues, s.deflated_weights)[0] for s in spectra]
    assert np.median(plain) <= 8e-4
    assert np.median(deflated) <= 4e-5


# Numbers


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("num_draws", [1, 10])
def test_moments_are_within_their_standard_errors(case, deflate, num_draws):
    eigenvalues = CASES[case]()
    for power in (1, 2, 3):
        deviations = []
        for seed in range(10):
            spectrum = estimated(case, 40, num_draws, seed)
            estimate = spectrum.moment(power, deflate=deflate)
            error = spectrum.moment_standard_error(power, deflate=deflate)
            deviations.append((estimate - np.mean(eigenvalues**power)) / error)
        # A ratio beyond 6 is a factor too few somewhere; one that never nears 1 is one too many.
        assert np.median(np.abs(deviations)) < 2.5
        assert np.max(np.abs(deviations)) > 0.2


@pytest.mark.parametrize("num_draws", [1, 2, 3])
def test_few_draws_state_an_error_that_their_spread_does_not_tell(num_draws):
    values = semicircle_with_outliers(600)
    spectra = [
        estimate_spectrum(diagonal_operator(values), 20, num_draws, seed=seed) for seed in range(60)
    ]
    off = [(one.trace - values.sum()) / one.trace_standard_error for one in spectra]
    assert 0.75 <= np.sqrt(np.mean(np.square(off))) <= 1.3


def test_trace_and_its_error_are_n_times_those_of_the_mean():
    spectrum = estimated("A", num_draws=10)
    true = semicircle_with_outliers().sum()
    assert spectrum.trace == pytest.approx(2000 * spectrum.moment(1))
    assert spectrum.trace_standard_error == pytest.approx(2000 * spectrum.moment_standard_error(1))
    assert abs(spectrum.trace - true) <= 4 * spectrum.trace_standard_error
    assert spectrum.trace_standard_error < 0.2 * true


def test_known_weights_make_the_trace_more_certain():
    spectrum = estimated("B", num_draws=10)
    plain = spectrum.moment_standard_error(1, deflate=False)
    assert spectrum.moment_standard_error(1) < plain / 5


@pytest.mark.parametrize("num_draws", [1, 4])
def test_the_zeroth_moment_is_one_and_known(num_draws):
    spectrum = estimated("A", num_draws=num_draws)
    assert spectrum.moment(0) == pytest.approx(1.0, rel=1e-12)
    assert spectrum.moment_standard_error(0) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("power", [-1, 0.5])
def test_a_power_that_is_no_natural_number_is_an_error(power):
    with pytest.raises(ValueError, match="power must be an integer >= 0"):
        estimated("A").moment(power)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", [5, 15, 40])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_eigenvalue_is_within_the_bound_of_each_extreme(case, order, dtype):
    eigenvalues = CASES[case]()
    ends = estimate_spectrum(diagonal_operator(eigenvalues, dtype), order, 3).extreme_eigenvalues
    for found, bound in [
        (ends.smallest, ends.smallest_bound),
        (ends.largest, ends.largest_bound),
    ]:
        assert bound > 0
        assert np.abs(eigenvalues - found).min() <= bound
    assert ends.largest == pytest.approx(eigenvalues.max(), abs=1.0 if order == 5 else 1e-5)


def test_the_bound_of_a_converged_extreme_is_small():
    assert estimated("A").extreme_eigenvalues.largest_bound < 1e-8


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_nodes_without_weight_are_not_reported(count):
    eigenvalues = 5 + distinct_eigenvalues(count)
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues), 40, 3)
    ends = spectrum.extreme_eigenvalues
    assert ends.smallest == pytest.approx(eigenvalues.min(), abs=1e-12)
    assert ends.largest == pytest.approx(eigenvalues.max(), abs=1e-12)
    assert spectrum.negative_mass_bounds == (0, 0)
    grid = spectrum.density().grid
    sigma = spectrum.default_sigma
    assert grid[0] == pytest.approx(eigenvalues.min() - 4 * sigma, abs=1e-9)
    assert grid[-1] == pytest.approx(eigenvalues.max() + 4 * sigma, abs=1e-9)


def test_the_mass_below_zero_is_that_of_the_negative_eigenvalues():
    eigenvalues = np.concatenate([np.full(60, -1.0), np.zeros(100), np.full(40, 2.0)])
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues), 20, 50)
    lower, upper = spectrum.negative_mass_bounds
    assert lower == pytest.approx(upper, abs=1e-9)
    assert lower == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("order", [5, 20, 80])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_bounds_of_the_mass_below_zero_admit_what_is_not_resolved(order, dtype):
    eigenvalues = log_uniform_bulk(1000)
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues, dtype), order, 10)
    lower, upper = spectrum.negative_mass_bounds
    assert lower - 0.02 <= np.mean(eigenvalues < 0) <= upper + 0.02
    assert 0 <= lower <= upper <= 1 + 1e-12


@pytest.mark.parametrize(("value", "share"), [(-2.0, 1.0), (0.0, 0.0), (3.0, 0.0)])
def test_one_value_is_wholly_on_one_side_of_zero(value, share):
    spectrum = estimate_spectrum(diagonal_operator(np.full(20, value)), 3, 2)
    assert spectrum.negative_mass_bounds == pytest.approx((share, share), abs=1e-12)


def test_the_cdf_rises_from_zero_to_one_in_the_shape_of_its_argument():
    spectrum = estimated("A")
    assert spectrum.cdf(-5.0) == 0
    assert spectrum.cdf(11.0) == 1
    assert spectrum.cdf(0.0).shape == ()
    assert spectrum.cdf(np.zeros((2, 3))).shape == (2, 3)
    assert np.all(np.diff(spectrum.cdf(np.linspace(-2, 11, 500))) >= 0)


@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_the_cdf_of_a_multiple_of_the_identity_steps_at_its_value(value, num_draws):
    spectrum = estimate_spectrum(diagonal_operator(np.full(50, value)), 1, num_draws)
    assert spectrum.cdf(value - 0.1) == 0
    assert spectrum.cdf(value + 0.1) == 1


# Spectra of one value


@pytest.mark.parametrize("order", [1, 7])
@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1.0, -2e8, 3e-8])
def test_a_multiple_of_the_identity_is_one_narrow_peak(value, num_draws, order):
    spectrum = estimate_spectrum(diagonal_operator(np.full(50, value)), order, num_draws)
    density = spectrum.density()
    if value:
        assert density.sigma == pytest.approx(1e-3 * abs(value), rel=1e-6)
    assert density.sigma > 0
    peak = density.grid[np.argmax(density.values)]
    assert abs(peak - value) <= density.sigma
    assert abs(density.lost_mass) <= 1e-3
    for name in ("values", "lower", "upper"):
        assert np.all(np.isfinite(getattr(density, name)))
    ends = spectrum.extreme_eigenvalues
    assert (ends.smallest, ends.largest) == pytest.approx((value, value), rel=1e-12)
    assert spectrum.trace == pytest.approx(50 * value, rel=1e-12)
    assert abs(spectrum.log_density().lost_mass) <= 1e-3
    assert "nan" not in str(spectrum)


def test_one_step_gives_one_node_a_draw():
    spectrum = estimate_spectrum(diagonal_operator(semicircle_with_outliers()), 1, 4)
    assert spectrum.nodes.shape == (4, 1)
    assert np.all(spectrum.weights == 1)
    density = spectrum.density()
    assert density.sigma > 0
    assert abs(density.lost_mass) <= 1e-3


def test_a_one_by_one_matrix_has_one_eigenvalue():
    spectrum = estimate_spectrum(np.array([[3.0]]), 1, 2)
    assert spectrum.extreme_eigenvalues.largest == pytest.approx(3.0)
    assert spectrum.trace == pytest.approx(3.0)
    assert "3" in str(spectrum)


# Densities


def test_a_grid_that_is_too_narrow_reports_the_mass_it_loses():
    spectrum = estimated("A", num_draws=10)
    density = spectrum.density(np.linspace(0, 12, 5000), 0.05)
    assert density.lost_mass == pytest.approx(float(spectrum.cdf(0.0)), abs=0.01)
    assert density.lost_mass > 0.4


def test_a_density_is_evaluated_at_the_points_given():
    grid = np.array([-1.0, -0.2, 0.0, 0.7, 5.0])
    density = estimated("A").density(grid, 0.3)
    assert isinstance(density, Density)
    np.testing.assert_array_equal(density.grid, grid)
    nodes, weights = estimated("A").nodes, estimated("A").deflated_weights
    kernel = np.exp(-((grid[:, None, None] - nodes) ** 2) / (2 * 0.3**2))
    expected = np.sum(kernel * weights, axis=(1, 2)) / 4 / (0.3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density.values, expected, rtol=1e-12)


@pytest.mark.parametrize("grid", [[1.0, 0.0], [0.0], [[0.0, 1.0]], 3.0, [0.0, 0.0], [0.0, np.nan]])
def test_a_grid_that_does_not_ascend_is_an_error(grid):
    with pytest.raises(ValueError, match="grid must be ascending"):
        estimated("A").density(grid)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_a_kernel_without_width_is_an_error(sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        estimated("A").density(sigma=sigma)
    with pytest.raises(ValueError, match="sigma must be positive"):
        estimated("A").log_density(sigma=sigma)


def test_a_narrow_kernel_on_a_wide_range_keeps_the_grid_within_bounds():
    density = estimated("B").density(sigma=1e-7)
    assert len(density.grid) <= 200_000
    assert np.all(np.isfinite(density.values))


@pytest.mark.parametrize("case", CASES)
def test_the_log_density_integrates_to_one_and_keeps_the_sign(case):
    spectrum = estimated(case, num_draws=10)
    density = spectrum.log_density()
    logs = np.log(density.magnitudes)
    negative, positive = (trapezoid(side, logs) for side in (density.negative, density.positive))
    assert negative + positive == pytest.approx(1.0, abs=1e-3)
    assert density.lost_mass == pytest.approx(1 - negative - positive, abs=1e-9)
    below = np.sum(spectrum.deflated_weights * (spectrum.nodes < 0)) / 10
    assert negative == pytest.approx(below, abs=1e-3)
    # The outliers are positive: nothing is on the negative side at their magnitudes.
    assert np.all(density.negative[density.magnitudes > 5] < 1e-6 * density.positive.max())


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_log_density_moves_with_the_scale_of_the_matrix(scale):
    scaled = estimate_spectrum(diagonal_operator(scale * log_uniform_bulk()), 40, 4).log_density()
    density = estimated("B").log_density()
    np.testing.assert_allclose(scaled.magnitudes, scale * density.magnitudes, rtol=1e-9)
    np.testing.assert_allclose(scaled.positive, density.positive, atol=1e-3)


@pytest.mark.parametrize("num_points", [50, 500])
@pytest.mark.parametrize("sigma", [0.05, 0.25, 2.0])
def test_the_log_density_reports_the_mass_a_coarse_grid_loses(sigma, num_points):
    density = estimated("A").log_density(sigma=sigma, num_points=num_points)
    integral = trapezoid(density.negative + density.positive, np.log(density.magnitudes))
    assert density.lost_mass == pytest.approx(1 - integral, abs=1e-9)


def test_magnitudes_below_the_floor_count_as_the_floor():
    spectrum = estimate_spectrum(diagonal_operator([0.0] * 30 + [1.0] * 10), 5, 3)
    density = spectrum.log_density(floor=1e-3, num_points=2000)
    low = np.abs(np.log(density.magnitudes / 1e-3)) < 1
    mass = trapezoid((density.negative + density.positive)[low], np.log(density.magnitudes[low]))
    assert mass == pytest.approx(float(spectrum.cdf(0.5)), abs=0.2)
    for floor in (0.0, -1.0, 2.0):
        with pytest.raises(ValueError, match="floor must be positive"):
            spectrum.log_density(floor=floor)


# How it is estimated


@pytest.mark.parametrize("draws_at_once", [1, 3, 7, 100])
def test_draws_at_once_do_not_change_the_spectrum(draws_at_once):
    operator = diagonal_operator(semicircle_with_outliers(300))
    expected = estimate_spectrum(operator, 20, 7, seed=3)
    found = estimate_spectrum(operator, 20, 7, seed=3, draws_at_once=draws_at_once)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


def test_same_seed_same_bits_and_another_seed_other_draws():
    operator = diagonal_operator(semicircle_with_outliers(300))
    first, again, other = (estimate_spectrum(operator, 20, 2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.alpha, again.alpha)
    assert not np.array_equal(first.alpha, other.alpha)
    assert (first.seed, other.seed) == (3, 4)


def test_a_simple_outlier_is_deflated_and_a_double_one_is_not():
    eigenvalues = np.concatenate([semicircle_with_outliers(500)[:-10], [3.0, 3.0, 6.0]])
    n = len(eigenvalues)
    # Few enough steps that rounding does not yet bring forth a second copy of the double one.
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues), 22, 8)
    double = np.abs(spectrum.nodes - 3.0) < 1e-6
    single = np.abs(spectrum.nodes - 6.0) < 1e-6
    assert np.all(single.sum(axis=1) == 1)
    assert np.all(double.sum(axis=1) == 1)
    assert np.all(spectrum.simple[single])
    assert not np.any(spectrum.simple[double])
    np.testing.assert_allclose(spectrum.deflated_weights[single], 1 / n, rtol=1e-12)
    assert np.std(spectrum.deflated_weights[double]) > 0.1 / n
    np.testing.assert_allclose(spectrum.deflated_weights.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("options", [{"num_draws": 1}, {"reorthogonalize": "none"}])
def test_without_a_second_draw_or_a_basis_nothing_is_deflated(options):
    operator = diagonal_operator(semicircle_with_outliers(300))
    spectrum = estimate_spectrum(operator, 30, **{"num_draws": 3, **options})
    assert not spectrum.simple.any()
    np.testing.assert_array_equal(spectrum.deflated_weights, spectrum.weights)


def test_without_reorthogonalization_the_density_is_the_same():
    operator = diagonal_operator(semicircle_with_outliers(500))
    full, none = (
        estimate_spectrum(operator, 80, 5, reorthogonalize=how) for how in ("full", "none")
    )
    grid = np.linspace(-2, 11, 300)
    expected = full.density(grid, 0.1, deflate=False).values
    np.testing.assert_allclose(
        none.density(grid, 0.1, deflate=False).values, expected, atol=1e-6 * expected.max()
    )


def test_full_order_and_known_weights_are_the_exact_spectrum():
    eigenvalues = np.linspace(-1, 4, 30)
    spectrum = estimate_spectrum(dense_symmetric(eigenvalues), 30, 3)
    np.testing.assert_allclose(spectrum.nodes, [eigenvalues] * 3, atol=1e-12)
    np.testing.assert_allclose(spectrum.deflated_weights, 1 / 30, rtol=1e-12)
    assert spectrum.trace == pytest.approx(eigenvalues.sum(), rel=1e-12)
    density = spectrum.density()
    truth = smoothed(eigenvalues, density.grid, density.sigma)
    np.testing.assert_allclose(density.values, truth, atol=1e-9)
    np.testing.assert_allclose(density.upper - density.lower, 0.0, atol=1e-9)


def test_the_callback_and_the_bar_see_every_product(capsys):
    steps = []
    estimate_spectrum(
        diagonal_operator(np.arange(30.0)),
        5,
        4,
        draws_at_once=2,
        progress=True,
        callback=lambda step: steps.append((step.step, list(step.draws))),
    )
    assert steps == [(s, d) for d in ([0, 1], [2, 3]) for s in range(1, 6)]
    output = capsys.readouterr()
    assert output.out == ""
    assert "20/20" in output.err


@pytest.mark.parametrize(
    ("operator", "options", "error", "message"),
    [
        (np.eye(5), {"order": 0}, ValueError, "order must be at least 1"),
        (np.eye(5), {"order": 6}, ValueError, "order is 6"),
        (np.eye(5), {"order": 2.5}, TypeError, "order must be an integer"),
        (np.eye(5), {"order": 2, "num_draws": 0}, ValueError, "num_draws must be at least 1"),
        (np.eye(5), {"order": 2, "num_draws": -3}, ValueError, "num_draws must be at least 1"),
        (np.eye(5), {"order": 2, "num_draws": 1.5}, TypeError, "num_draws must be an integer"),
        (np.eye(5), {"order": 2, "draws_at_once": 0}, ValueError, "draws_at_once must be at least"),
        (np.eye(5), {"order": 2, "reorthogonalize": "some"}, ValueError, "reorthogonalize"),
        (np.ones((3, 4)), {"order": 2}, ValueError, "square"),
        (np.full((3, 3), np.nan), {"order": 2}, FloatingPointError, "not finite"),
        (np.eye(3) * 1j, {"order": 2}, TypeError, "real"),
    ],
)
def test_bad_input_is_named_at_once(operator, options, error, message):
    with pytest.raises(error, match=message):
        estimate_spectrum(operator, **options)


# What it prints


def test_it_prints_what_it_is():
    spectrum = estimated("A", num_draws=10)
    text = str(spectrum)
    assert repr(spectrum) == "Spectrum(n=2,000, order=40, num_draws=10)"
    assert "2,000, from 10 draws of 40 steps" in text
    assert "10 single eigenvalues known to" in text
    largest = next(line for line in text.splitlines() if "largest" in line)
    assert float(largest.split()[1]) == pytest.approx(10.0)
    for name in ("operator", "smallest", "trace", "below zero", "near zero", "above zero"):
        assert name in text
    # What is as expected is left out.
    for name in ("ended", "lost mass", "mean square"):
        assert name not in text
    assert len(text) < 1000
    assert "array" not in text


def test_one_draw_is_no_draws():
    assert "from 1 draw of 40 steps" in str(estimated("A", num_draws=1))


# Files


def same(first, second):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)
    for name in ("size", "seed", "description", "precision", "product_error"):
        assert getattr(first, name) == getattr(second, name)
        assert type(getattr(first, name)) is type(getattr(second, name))
    assert str(first) == str(second)
    return True


@pytest.mark.parametrize("name", ["run.npz", "run", "run.v2"])
def test_what_was_saved_comes_back(tmp_path, name):
    spectrum = estimated("B", num_draws=10)
    path = spectrum.save(tmp_path / name)
    assert path.exists()
    assert path.suffix == ".npz"
    assert same(Spectrum.load(path), spectrum)
    assert same(Spectrum.load(str(path)), spectrum)


def test_what_products_are_off_by_is_saved_and_files_of_before_have_none(tmp_path):
    spectrum = replace(estimated("A"), product_error=3e-3)
    path = spectrum.save(tmp_path / "run.npz")
    assert same(Spectrum.load(path), spectrum)
    assert Spectrum.load(path).product_error == 3e-3
    with np.load(path) as file:
        content = {name: file[name] for name in file.files if name != "product_error"}
    np.savez(path, **content)
    assert same(Spectrum.load(path), estimated("A"))


def test_load_takes_the_name_that_save_was_given(tmp_path):
    spectrum = estimated("A")
    spectrum.save(tmp_path / "run")
    assert same(Spectrum.load(tmp_path / "run"), spectrum)


def test_saving_again_replaces_the_file(tmp_path):
    estimated("A").save(tmp_path / "run.npz")
    path = estimated("B").save(tmp_path / "run.npz")
    assert same(Spectrum.load(path), estimated("B"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


def test_numpy_alone_reads_the_file(tmp_path):
    spectrum = estimated("A")
    path = spectrum.save(tmp_path / "run.npz")
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["nodes"], spectrum.nodes)
        np.testing.assert_array_equal(file["weights"], spectrum.weights)
        assert int(file["size"]) == 2000
        assert str(file["description"]) == spectrum.description


def test_a_file_that_is_damaged_or_foreign_is_named(tmp_path):
    whole = estimated("A").save(tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    for position in range(100, len(whole), 97):
        flipped[position] ^= 0xFF
    contents = {
        "cut": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "empty": b"",
        "text": b"no spectrum at all",
        "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.npz is not a spectrum file"):
            Spectrum.load(path)


def test_arrays_of_something_else_are_named(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    np.save(tmp_path / "array.npy", np.arange(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name in ("other.npz", "array.npy", "objects.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a spectrum file"):
            Spectrum.load(tmp_path / name)


def changed(path, **changes):
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    content.update(changes)
    np.savez(path, **content)


def test_a_file_of_a_newer_format_says_to_upgrade(tmp_path):
    path = estimated("A").save(tmp_path / "run.npz")
    changed(path, format=99)
    with pytest.raises(ValueError, match="newer spectral-density"):
        Spectrum.load(path)


def test_a_newer_format_that_lacks_todays_arrays_says_to_upgrade_too(tmp_path):
    np.savez(tmp_path / "run.npz", format=99, something=np.arange(3))
    with pytest.raises(ValueError, match="newer spectral-density"):
        Spectrum.load(tmp_path / "run.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": np.zeros((4, 3))},
        {"alpha": np.zeros(40)},
        {"size": np.arange(3)},
        {"size": "many"},
        {"format": "new"},
        {"alpha": np.full((4, 40), "x")},
    ],
)
def test_a_file_whose_arrays_do_not_fit_is_named(tmp_path, changes):
    path = estimated("A").save(tmp_path / "run.npz")
    changed(path, **changes)
    with pytest.raises(ValueError, match=r"run\.npz is not a spectrum file"):
        Spectrum.load(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Spectrum.load(tmp_path / "none.npz")


# Made by hand


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": np.zeros((2, 3))}, "beta must have shape"),
        ({"residual_norms": np.zeros(3)}, "residual_norms must have shape"),
        ({"simple": np.zeros((2, 2), bool)}, "simple must have shape"),
        ({"size": 2}, "order must be between 1 and the size 2"),
        ({"alpha": np.zeros(3)}, "alpha must have shape"),
        ({"alpha": np.zeros((0, 3)), "beta": np.zeros((0, 2))}, "alpha must have shape"),
    ],
)
def test_arrays_that_do_not_belong_together_are_an_error(changes, message):
    arrays = {
        "alpha": np.zeros((2, 3)),
        "beta": np.ones((2, 2)),
        "residual_norms": np.zeros(2),
        "size": 5,
    }
    with pytest.raises(ValueError, match=message):
        Spectrum(**{**arrays, **changes})


def test_lists_will_do_for_arrays():
    spectrum = Spectrum([[1.0, 2.0]], [[0.5]], [0.0], 5)
    assert spectrum.moment(1) == pytest.approx(1.0)
    assert not spectrum.simple.any()
    assert spectrum.density().lost_mass == pytest.approx(0.0, abs=1e-3)


def test_the_cumulative_distribution_is_at_the_middle_of_each_step():
    # T = [[2, 1], [1, 2]]: the nodes 1 and 3, with a weight of 1/2 each.
    spectrum = Spectrum([[2.0, 2.0]], [[1.0]], [0.0], size=2)
    np.testing.assert_allclose(spectrum.cdf([1.0, 2.0, 3.0]), [0.25, 0.5, 0.75], rtol=1e-14)
    np.testing.assert_array_equal(spectrum.cdf([0.9, 3.1]), [0.0, 1.0])


# The band as one curve ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_draws", [1, 2, 3, 10])
def test_the_band_has_no_steps_and_no_holes(num_draws):
    spectrum = estimated("B", num_draws=num_draws)
    sigma = spectrum.default_sigma
    grid = np.arange(spectrum.nodes.min() - 2 * sigma, 20 * sigma, sigma / 200)
    density = spectrum.density(grid)
    limits = np.stack([density.lower, density.upper])
    assert np.all(limits > 0)
    # From one point to the next a Gaussian kernel changes by no more than a few percent.
    assert np.abs(np.diff(np.log(limits), axis=1)).max() < 0.1


def test_where_all_but_one_cluster_is_known_nothing_is_random():
    eigenvalues = np.concatenate([np.zeros(100), np.arange(1.0, 11.0)])
    spectrum = estimate_spectrum(diagonal_operator(eigenvalues), 20, 2)
    assert spectrum.simple.sum() == 20
    at_zero = spectrum.density(np.linspace(-0.1, 0.1, 5), 0.1)
    np.testing.assert_allclose(at_zero.lower, at_zero.values, rtol=1e-3)
    np.testing.assert_allclose(at_zero.upper, at_zero.values, rtol=1e-3)
    plain = spectrum.density(np.linspace(-0.1, 0.1, 5), 0.1, deflate=False)
    assert np.all(plain.upper > 1.01 * plain.lower)


def test_the_band_of_two_draws_is_not_that_of_two_numbers():
    operator, grid = diagonal_operator(semicircle_with_outliers(500)), np.linspace(-0.5, 0.5, 11)
    widths = {}
    for num_draws in (2, 8):
        each = [
            estimate_spectrum(operator, 40, num_draws, seed=seed).density(grid, 0.2)
            for seed in range(5)
        ]
        widths[num_draws] = np.median([d.upper - d.lower for d in each])
    # Two numbers alone would make it 2 * 12.7 / 2.36 = 11 times as wide.
    assert 1.5 < widths[2] / widths[8] < 4.0
