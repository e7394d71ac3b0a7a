"""What a tolerance promises, what bounds a run to it, and what the estimates of error are worth."""

from functools import cache

import numpy as np
import pytest
from cases import (
    dense_symmetric,
    diagonal_operator,
    distinct_eigenvalues,
    log_uniform_bulk,
    rank_two,
    semicircle_with_outliers,
    spread,
)
from scipy.sparse.linalg import LinearOperator
from scipy.stats import wasserstein_distance

from spectral_density import Spectrum, estimate_spectrum
from spectral_density.spectrum.accuracy import Ending, draws_error, order_error, products_error

CASES = {
    "semicircle and outliers": (lambda: semicircle_with_outliers(1000), 1e-2),
    "semicircle and outliers, roughly": (lambda: semicircle_with_outliers(1000), 5e-2),
    "few of a semicircle": (lambda: semicircle_with_outliers(300), 1e-2),
    "network-like": (lambda: log_uniform_bulk(1000), 2e-3),
    "few network-like": (lambda: log_uniform_bulk(300), 5e-3),
    "evenly spaced": (lambda: np.linspace(-1, 1, 50), 5e-2),
    "twenty distinct": (lambda: distinct_eigenvalues(20), 5e-2),
    "two distinct": (lambda: distinct_eigenvalues(2), 5e-2),
    "rank two": (rank_two, 1e-2),
    "one alone": (lambda: np.concatenate([[1.0], np.zeros(99)]), 1e-2),
    "a single value": (lambda: np.ones(50), 1e-3),
}
SEEDS = 50


def counting(eigenvalues):
    """A diagonal matrix that counts its products."""
    counted = []

    def matmat(block):
        block = block.reshape(len(eigenvalues), -1)
        counted.extend([1] * block.shape[1])
        return eigenvalues[:, None] * block

    operator = LinearOperator(
        (len(eigenvalues),) * 2,
        matvec=lambda v: matmat(v)[:, 0],
        matmat=matmat,
        dtype=np.float64,
    )
    return operator, counted


def true_error(spectrum, eigenvalues):
    """Wasserstein-1 distance to the eigenvalues, as a share of their range."""
    distance = wasserstein_distance(
        spectrum.nodes.ravel(), eigenvalues, spectrum.deflated_weights.ravel()
    )
    return distance / (spread(eigenvalues) or 1.0)


@cache
def to_tolerance(case):
    make, tolerance = CASES[case]
    eigenvalues = make()
    operator = diagonal_operator(eigenvalues)
    return (
        eigenvalues,
        tolerance,
        [
            estimate_spectrum(operator, tolerance=tolerance, max_products=5000, seed=seed)
            for seed in range(SEEDS)
        ],
    )


# What a tolerance promises


@pytest.mark.parametrize("case", CASES)
def test_the_true_error_is_within_the_tolerance_for_nearly_all_seeds(case):
    eigenvalues, tolerance, spectra = to_tolerance(case)
    assert {spectrum.ended_by for spectrum in spectra} == {Ending.TOLERANCE}
    assert all(spectrum.accuracy.total <= tolerance for spectrum in spectra)
    errors = np.array([true_error(spectrum, eigenvalues) for spectrum in spectra])
    assert np.mean(errors <= tolerance) >= 0.98


@pytest.mark.parametrize("case", ["semicircle and outliers", "few of a semicircle"])
def test_no_more_is_done_than_the_tolerance_is_worth(case):
    eigenvalues, tolerance, spectra = to_tolerance(case)
    errors = [true_error(spectrum, eigenvalues) for spectrum in spectra]
    assert np.median(errors) >= tolerance / 20
    assert np.median([s.order * s.num_draws for s in spectra]) <= 300


def test_without_reorthogonalization_the_promise_is_the_same():
    eigenvalues = semicircle_with_outliers(500)
    operator = diagonal_operator(eigenvalues)
    errors = []
    for seed in range(20):
        spectrum = estimate_spectrum(
            operator, tolerance=1e-2, max_products=3000, seed=seed, reorthogonalize="none"
        )
        assert spectrum.ended_by is Ending.TOLERANCE
        errors.append(true_error(spectrum, eigenvalues))
    assert np.mean(np.array(errors) <= 1e-2) >= 0.95


def test_products_in_float32_keep_the_promise():
    eigenvalues = semicircle_with_outliers(500)
    operator = diagonal_operator(eigenvalues, np.float32)
    spectra = [estimate_spectrum(operator, tolerance=1e-2, seed=seed) for seed in range(20)]
    assert all(true_error(spectrum, eigenvalues) <= 1e-2 for spectrum in spectra)


def test_a_smaller_tolerance_takes_more_products():
    operator = diagonal_operator(semicircle_with_outliers(500))
    counts = []
    for tolerance in (0.1, 0.02, 0.005):
        spectrum = estimate_spectrum(operator, tolerance=tolerance, max_products=10_000)
        assert spectrum.ended_by is Ending.TOLERANCE
        counts.append(spectrum.order * spectrum.num_draws)
    assert counts[0] < counts[1] < counts[2]


# What bounds it


@pytest.mark.parametrize("max_products", [1, 2, 3, 7, 20, 41, 100])
@pytest.mark.parametrize("draws_at_once", [None, 1, 3])
def test_the_budget_is_never_exceeded_by_a_product(max_products, draws_at_once):
    operator, counted = counting(semicircle_with_outliers(300))
    spectrum = estimate_spectrum(
        operator, tolerance=1e-5, max_products=max_products, draws_at_once=draws_at_once
    )
    assert len(counted) == spectrum.order * spectrum.num_draws <= max_products
    assert len(counted) > max_products - max(spectrum.order, spectrum.num_draws)
    assert spectrum.ended_by is Ending.BUDGET


@pytest.mark.exhaustive
def test_the_default_budget_is_the_cost_without_a_tolerance():
    operator, counted = counting(semicircle_with_outliers(1000))
    assert estimate_spectrum(operator, tolerance=1e-6).ended_by is Ending.BUDGET
    assert 700 < len(counted) <= 900
    counted.clear()
    estimate_spectrum(operator, 30, 4, tolerance=1e-6)
    assert len(counted) == 120


def test_the_steps_asked_for_are_the_most():
    operator, counted = counting(semicircle_with_outliers(2000))
    spectrum = estimate_spectrum(operator, 20, tolerance=5e-3, max_products=2000)
    assert spectrum.ended_by is Ending.ORDER
    assert spectrum.order == 20
    assert spectrum.accuracy.draws <= 2.5e-3
    assert "raise order" in spectrum.ended_by.message
    assert len(counted) < 2000


def test_the_draws_asked_for_are_the_most():
    operator = diagonal_operator(semicircle_with_outliers(300))
    spectrum = estimate_spectrum(operator, num_draws=3, tolerance=5e-3, max_products=2000)
    assert spectrum.ended_by is Ending.DRAWS
    assert spectrum.num_draws == 3
    assert spectrum.accuracy.order <= 2.5e-3 < spectrum.accuracy.draws
    assert "raise num_draws" in spectrum.ended_by.message


def test_one_draw_is_made_where_one_is_allowed():
    operator = diagonal_operator(semicircle_with_outliers(300))
    spectrum = estimate_spectrum(operator, num_draws=1, tolerance=1e-3)
    assert (spectrum.num_draws, spectrum.ended_by) == (1, Ending.DRAWS)


def test_the_exact_spectrum_meets_any_tolerance():
    eigenvalues = np.linspace(-1, 4, 30)
    spectrum = estimate_spectrum(dense_symmetric(eigenvalues), tolerance=1e-9)
    assert spectrum.ended_by is Ending.TOLERANCE
    assert (spectrum.order, spectrum.num_draws) == (30, 2)
    assert spectrum.accuracy.total == 0.0
    assert true_error(spectrum, eigenvalues) <= 1e-12


def test_without_a_tolerance_the_plan_is_carried_out():
    operator, counted = counting(semicircle_with_outliers(300))
    spectrum = estimate_spectrum(operator, num_draws=10)
    assert (spectrum.order, spectrum.num_draws, len(counted)) == (90, 10, 900)
    assert spectrum.ended_by is Ending.PLAN and not spectrum.choice
    assert estimate_spectrum(np.diag(np.arange(30.0))).order == 30


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": 0.0}, ValueError, "tolerance must be greater than 0"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be greater than 0"),
        ({"tolerance": np.nan}, ValueError, "tolerance must be finite"),
        ({"tolerance": "small"}, TypeError, "tolerance must be a real number"),
        ({"max_products": 100, "order": 3}, ValueError, "pass tolerance= too"),
        ({"tolerance": 0.1, "max_products": 0}, ValueError, "max_products must be at least 1"),
        ({"tolerance": 0.1, "max_products": 2.5}, TypeError, "max_products must be an integer"),
        ({"tolerance": 0.1, "order": 0}, ValueError, "order must be at least 1"),
        ({"tolerance": 0.1, "order": 6}, ValueError, "order is 6"),
        ({"tolerance": 0.1, "num_draws": 0}, ValueError, "num_draws must be at least 1"),
    ],
)
def test_bad_bounds_are_named(options, error, message):
    with pytest.raises(error, match=message):
        estimate_spectrum(np.eye(5), **options)


# Checkpoints


class Stop(Exception):
    pass


def stop_after(count):
    seen = []

    def callback(step):
        seen.append(step)
        if len(seen) == count:
            raise Stop

    return callback


def same(found, expected):
    for name in ("alpha", "beta", "residual_norms", "simple"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert found.ended_by is expected.ended_by
    return True


@pytest.mark.parametrize("tolerance", [2e-2, 1e-4])
@pytest.mark.parametrize("draws_at_once", [None, 1])
def test_a_stopped_run_ends_as_if_undisturbed(tmp_path, tolerance, draws_at_once):
    a = dense_symmetric(semicircle_with_outliers(100))
    options = {"tolerance": tolerance, "max_products": 150, "draws_at_once": draws_at_once}
    steps = []
    expected = estimate_spectrum(a, **options, callback=steps.append)
    for count in sorted({1, 9, len(steps) // 2, len(steps)}):
        path = tmp_path / str(count)
        with pytest.raises(Stop):
            estimate_spectrum(a, **options, checkpoint=path, callback=stop_after(count))
        rest = []
        found = estimate_spectrum(a, **options, checkpoint=path, callback=rest.append)
        assert same(found, expected)
        assert len(rest) == len(steps) - count
        # And once more, from the finished run alone.
        assert same(estimate_spectrum(a, **options, checkpoint=path), expected)


def test_a_smaller_tolerance_goes_on_from_a_greater_one(tmp_path):
    a = dense_symmetric(semicircle_with_outliers(200))
    options = {"max_products": 5000, "checkpoint": tmp_path, "draws_at_once": 1}
    rough = estimate_spectrum(a, tolerance=5e-2, **options)
    steps = []
    fine = estimate_spectrum(a, tolerance=1e-2, **options, callback=steps.append)
    assert fine.ended_by is Ending.TOLERANCE
    made = rough.order * rough.num_draws
    assert len(steps) == fine.order * fine.num_draws - made
    steps.clear()
    again = estimate_spectrum(a, tolerance=5e-2, **options, callback=steps.append)
    assert not steps
    assert same(again, rough)


def test_draws_begun_together_count_whole(tmp_path):
    a = dense_symmetric(semicircle_with_outliers(100))
    estimate_spectrum(a, 10, 4, draws_at_once=4, checkpoint=tmp_path)
    spectrum = estimate_spectrum(a, tolerance=2e-2, max_products=1000, checkpoint=tmp_path)
    assert spectrum.ended_by is Ending.TOLERANCE
    assert spectrum.num_draws >= 4
    for options in ({"num_draws": 3}, {"max_products": 3}):
        with pytest.raises(ValueError, match="advances 4 draws together"):
            estimate_spectrum(a, tolerance=2e-2, checkpoint=tmp_path, **options)


# What the estimates are


def test_the_error_of_the_order_is_the_distance_to_half_of_it():
    spectrum = estimate_spectrum(diagonal_operator(semicircle_with_outliers(300)), 21, 3)
    distances = []
    for order in (21, 11):
        nodes, weights = [], []
        for a, b in zip(spectrum.alpha, spectrum.beta, strict=True):
            t = np.diag(a) + np.diag(b, 1) + np.diag(b, -1)
            values, vectors = np.linalg.eigh(t[:order, :order])
            nodes.append(values)
            weights.append(vectors[0] ** 2)
        distances += [np.ravel(nodes), np.ravel(weights)]
    expected = wasserstein_distance(distances[0], distances[2], distances[1], distances[3])
    expected /= np.ptp(distances[0])
    assert spectrum.accuracy.order == pytest.approx(expected, rel=1e-9)
    assert order_error(spectrum.alpha, spectrum.beta, 21) == 0.0
    assert order_error(spectrum.alpha[:, :1], spectrum.beta[:, :0], 300) == 1.0


@pytest.mark.parametrize("num_draws", [1, 4])
def test_the_limit_of_two_values_is_in_closed_form(num_draws):
    n = 10_000
    nodes = np.tile([0.0, 2.0], (num_draws, 1))
    weights = np.full((num_draws, 2), 0.5)
    nothing = np.zeros((num_draws, 2), bool)
    # The error of one share, Gaussian: no more than that for 99 % of seeds.
    expected = 2.576 * np.sqrt(2 * 0.25 / (n + 2) / num_draws)
    found = draws_error(nodes, weights, nothing, n)
    assert found == pytest.approx(expected, rel=0.05)
    # The half that is known has no part in it.
    assert draws_error(nodes, weights, np.tile([True, False], (num_draws, 1)), n) == 0.0


def test_known_eigenvalues_leave_the_error_of_the_others_times_their_mass():
    two = np.array([[0.0, 1.0]])
    alone = draws_error(two, np.full((1, 2), 0.5), np.zeros((1, 2), bool), 40)
    # 20 of 60 eigenvalues are known, and make the range three times as large.
    nodes = np.append(two, np.linspace(2, 3, 20))[np.newaxis]
    weights = np.append(np.full(2, 1 / 3), np.full(20, 1 / 60))[np.newaxis]
    known = np.append(np.zeros(2, bool), np.ones(20, bool))[np.newaxis]
    assert draws_error(nodes, weights, known, 60) == pytest.approx(2 / 3 * alone / 3, rel=1e-12)


def test_half_the_band_of_many_values_is_in_closed_form():
    n = 10_000
    nodes = np.linspace(0, 1, 501)[np.newaxis]
    weights = np.full_like(nodes, 1 / nodes.size)
    # The area under 1.96 standard deviations, as that under sqrt(p (1 - p)) is pi / 8.
    expected = 1.96 * np.sqrt(2 / (n + 2)) * np.pi / 8
    found = draws_error(nodes, weights, np.zeros_like(nodes, bool), n)
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("num_draws", [1, 2, 5])
@pytest.mark.parametrize("share", [1 / 50, 1 / 5, 1 / 2])
def test_the_error_holds_for_what_start_vectors_make_of_two_values(num_draws, share):
    within = share_within(
        np.array([0.0, 1.0]), [round(50 * (1 - share)), round(50 * share)], num_draws
    )
    assert within >= 0.985


@pytest.mark.parametrize("num_values", [2, 3, 8, pytest.param(40, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("place", [np.asarray, np.exp], ids=["evenly spaced", "exponential"])
def test_the_error_holds_for_nearly_all_seeds_however_many_values_there_are(num_values, place):
    values = place(np.linspace(0.0, 10.0, num_values))
    counts = np.bincount(np.arange(200) % num_values)
    assert share_within(values, counts, num_draws=3) >= 0.985


def share_within(values, counts, num_draws):
    """Share of runs in which the distance to values, as often as counts say, is in the error."""
    rng = np.random.default_rng(0)
    n = sum(counts)
    masses = rng.chisquare(counts, (3000, num_draws, len(counts)))
    weights = masses / masses.sum(-1, keepdims=True)
    nodes = np.tile(values, (num_draws, 1))
    nothing = np.zeros(nodes.shape, bool)
    truth = np.cumsum(counts)[:-1] / n
    within = []
    for w in weights:
        missed = np.abs(np.cumsum(w.mean(0))[:-1] - truth) @ np.diff(values) / np.ptp(values)
        within.append(missed <= draws_error(nodes, w, nothing, n))
    return np.mean(within)


def test_the_ending_goes_with_the_file(tmp_path):
    operator = diagonal_operator(semicircle_with_outliers(300))
    spectrum = estimate_spectrum(operator, num_draws=2, tolerance=1e-3)
    assert spectrum.ended_by is Ending.DRAWS
    found = Spectrum.load(spectrum.save(tmp_path / "run"))
    assert found.ended_by is Ending.DRAWS
    assert str(found) == str(spectrum)
    assert Ending.DRAWS.message in str(spectrum)
    assert "on average, by Wasserstein-1 distance" in str(spectrum)


def changed(path, **changes):
    with np.load(path) as file:
        content = {name: file[name] for name in file.files if name != "ended_by"}
    np.savez(path, **content, **changes)


def test_a_file_of_before_there_were_endings_is_of_a_plan(tmp_path):
    path = estimate_spectrum(np.diag(np.arange(9.0)), 5, 2).save(tmp_path / "run.npz")
    changed(path)
    assert Spectrum.load(path).ended_by is Ending.PLAN
    changed(path, ended_by="BOREDOM")
    with pytest.raises(ValueError, match="not a spectrum file"):
        Spectrum.load(path)


# Products at a lower precision


@pytest.mark.parametrize("seed", range(5))
def test_another_matrix_is_no_further_away_than_its_distance_by_norm_allows(seed):
    rng = np.random.default_rng(seed)
    matrix, error = (a + a.T for a in rng.normal(size=(2, 60, 60)))
    error *= 10.0 ** -rng.integers(1, 4)
    share = np.linalg.norm(error) / np.linalg.norm(matrix)
    true, found = (np.linalg.eigvalsh(m) for m in (matrix, matrix + error))
    limit = products_error(true[np.newaxis], np.full((1, 60), 1 / 60), share)
    distance = wasserstein_distance(true, found) / np.ptp(true)
    assert 0 < distance <= limit
    # All eigenvalues moved by as much are as far as that.
    moved = np.full(60, 2.0) + np.linspace(-1e-6, 1e-6, 60)
    limit = products_error(moved[np.newaxis], np.full((1, 60), 1 / 60), 1e-3)
    assert limit == pytest.approx(2e-3 / np.ptp(moved), rel=1e-6)


def stating(eigenvalues, error):
    operator = diagonal_operator(eigenvalues)
    operator.product_error = error
    return operator


def test_a_tolerance_that_products_leave_no_room_for_is_not_met():
    eigenvalues = semicircle_with_outliers(300)
    plain = estimate_spectrum(diagonal_operator(eigenvalues), tolerance=1e-2)
    spectrum = estimate_spectrum(stating(eigenvalues, 0.5), tolerance=1e-2)
    assert spectrum.ended_by is Ending.PRECISION
    assert "matmul_precision" in spectrum.ended_by.message
    assert spectrum.accuracy.order + spectrum.accuracy.draws <= 1e-2 < spectrum.accuracy.total
    assert spectrum.order * spectrum.num_draws <= 4 * plain.order * plain.num_draws
    room = estimate_spectrum(stating(eigenvalues, 1e-2), tolerance=1e-2)
    assert room.ended_by is Ending.TOLERANCE
    assert 0 < room.accuracy.products < room.accuracy.total <= 1e-2


def test_what_products_may_move_across_zero_is_in_the_bounds_of_the_negative_mass():
    eigenvalues = np.concatenate([np.linspace(-1e-3, 1e-3, 40), [1.0, 2.0]])
    sure = estimate_spectrum(diagonal_operator(eigenvalues), order=42, num_draws=1)
    unsure = estimate_spectrum(stating(eigenvalues, 1e-2), order=42, num_draws=1)
    assert sure.negative_mass_bounds[1] - sure.negative_mass_bounds[0] < 1e-6
    lower, upper = unsure.negative_mass_bounds
    assert lower == pytest.approx(0.0, abs=1e-9)
    assert upper == pytest.approx(unsure.cdf(0.5)[()], abs=0.05)
