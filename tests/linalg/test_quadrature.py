"""The quadrature against known spectra: figures of accuracy, bounds, and known weights."""

from functools import cache

import numpy as np
import pytest
from cases import (
    diagonal_operator,
    distinct_eigenvalues,
    ks_distance,
    log_uniform_bulk,
    midpoint_ks_distance,
    rank_two,
    semicircle_with_outliers,
    spread,
)
from numpy.polynomial import chebyshev
from scipy.stats import wasserstein_distance

from spectral_density.linalg import (
    WEIGHT_FLOOR,
    Quadrature,
    deflated_weights,
    gauss_quadrature,
    lanczos,
    quadrature_bounds,
    ritz_overlaps,
    ritz_residuals,
    simple_candidates,
    simple_nodes,
    start_vector,
)

pytestmark = pytest.mark.filterwarnings("error")


class Estimate:
    """Nodes, weights and deflated weights of a diagonal matrix, as an estimator makes them."""

    def __init__(self, eigenvalues, order, num_draws, seed=0, products=np.float64, **options):
        self.eigenvalues = np.sort(eigenvalues)
        n = len(eigenvalues)
        operator = diagonal_operator(eigenvalues, products)
        t = lanczos(operator, order, num_draws=num_draws, seed=seed, **options)
        self.quadratures = [gauss_quadrature(*ab) for ab in zip(t.alpha, t.beta, strict=True)]
        self.residual_norms = t.residual_norms
        self.nodes = np.array([q.nodes for q in self.quadratures])
        self.weights = np.array([q.weights for q in self.quadratures])
        self.simple = np.zeros_like(self.weights, dtype=bool)
        if t.basis is not None:
            first = self.quadratures[0]
            candidates = simple_candidates(first, t.residual_norms[0])
            starts = (start_vector(n, seed, draw) for draw in range(num_draws))
            overlaps = ritz_overlaps(t.basis[0], first, candidates, starts)
            self.simple = simple_nodes(self.quadratures, t.residual_norms, overlaps, candidates, n)
        self.deflated = deflated_weights(self.weights, self.simple, n)

    def wasserstein(self, weights=None):
        weights = self.weights if weights is None else weights
        distance = wasserstein_distance(self.nodes.ravel(), self.eigenvalues, weights.ravel())
        return distance / spread(self.eigenvalues)


@cache
def ten_seeds(case):
    make = {"A": lambda seed: semicircle_with_outliers(), "B": lambda s: log_uniform_bulk(seed=s)}
    return [Estimate(make[case](seed), 80, 10, seed) for seed in range(10)]


# Accuracy.


def test_the_semicircle_is_met_to_its_figures():
    runs = ten_seeds("A")
    assert np.median([r.wasserstein() for r in runs]) <= 2e-3
    assert np.median([ks_distance(r.nodes, r.weights, r.eigenvalues) for r in runs]) <= 0.025
    midpoint = [midpoint_ks_distance(r.nodes, r.weights, r.eigenvalues) for r in runs]
    assert np.median(midpoint) <= 0.015


def test_the_network_like_spectrum_is_met_to_its_figures():
    runs = ten_seeds("B")
    assert np.median([r.wasserstein() for r in runs]) <= 8e-4
    assert np.median([r.wasserstein(r.deflated) for r in runs]) <= 4e-5


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("make", [semicircle_with_outliers, log_uniform_bulk])
@pytest.mark.parametrize(("products", "limit"), [(np.float64, 1e-11), (np.float32, 5e-5)])
def test_chebyshev_moments_are_those_of_the_start_vector(reorthogonalize, make, products, limit):
    eigenvalues = make()
    run = Estimate(eigenvalues, 60, 1, products=products, reorthogonalize=reorthogonalize)
    low, high = eigenvalues.min(), eigenvalues.max()

    def moments(points, weights):
        scaled = (2 * points - low - high) / (high - low)
        return chebyshev.chebvander(scaled, 2 * 60 - 1).T @ weights

    exact = moments(eigenvalues, start_vector(len(eigenvalues)) ** 2)
    assert np.abs(moments(run.nodes[0], run.weights[0]) - exact).max() <= limit


@pytest.mark.parametrize("make", [semicircle_with_outliers, log_uniform_bulk])
@pytest.mark.parametrize(("products", "limit"), [(np.float64, 1e-13), (np.float32, 5e-7)])
def test_the_largest_ritz_values_are_eigenvalues(make, products, limit):
    run = Estimate(make(), 60, 1, products=products)
    error = np.abs(run.nodes[0, -10:] - run.eigenvalues[-10:])
    assert error.max() <= limit * spread(run.eigenvalues)


@pytest.mark.parametrize("order", [10, 40, 80])
@pytest.mark.parametrize("make", [semicircle_with_outliers, log_uniform_bulk])
def test_some_eigenvalue_is_within_the_residual_of_every_node(make, order):
    run = Estimate(make(), order, 1)
    residuals = ritz_residuals(run.quadratures[0], run.residual_norms[0])
    nearest = np.abs(run.nodes[0][:, np.newaxis] - run.eigenvalues).min(axis=1)
    assert (nearest <= residuals + 1e-13 * spread(run.eigenvalues)).all()


FEW = {
    "zero": np.zeros(200),
    "identity": np.ones(200),
    "rank_two": rank_two(),
    **{f"{s}_distinct": distinct_eigenvalues(s) for s in (1, 2, 3, 5, 20)},
}


@pytest.mark.parametrize("order", [1, 2, 30, 60])
@pytest.mark.parametrize("name", FEW)
def test_nodes_that_carry_weight_are_eigenvalues_where_these_are_few(name, order):
    eigenvalues = FEW[name]
    distinct = np.unique(eigenvalues)
    run = Estimate(eigenvalues, order, 2)
    assert np.isfinite(run.nodes).all() and np.isfinite(run.weights).all()
    np.testing.assert_allclose(run.weights.sum(axis=1), 1.0, rtol=1e-13)
    if order < len(distinct):
        return
    for draw in range(2):
        nodes, weights = run.nodes[draw], run.weights[draw]
        distance = np.abs(nodes[:, np.newaxis] - distinct)
        carrying = weights > WEIGHT_FLOOR
        # Past the last distinct eigenvalue a further one at a distance d of an eigenvalue has the
        # weight (c / d)^2, where c is what rounding leaves of the coupling, at most eps ||A||.
        rounding = np.finfo(np.float64).eps / np.sqrt(weights[carrying])
        limit = (1e-13 + rounding) * np.abs(distinct).max()
        assert (distance[carrying].min(axis=1) <= limit).all()
        # All but a part in 10^10 of the weight is on eigenvalues to 1e-13.
        exact = distance.min(axis=1) <= 1e-13 * np.abs(distinct).max()
        assert weights[~exact].sum() <= 1e-10
        # Copies of a multiple eigenvalue may share its weight; together they have all of it.
        nearest = distance.argmin(axis=1)
        found = [weights[nearest == k].sum() for k in range(len(distinct))]
        shares = [np.sum(start_vector(200, 0, draw)[eigenvalues == v] ** 2) for v in distinct]
        np.testing.assert_allclose(found, shares, atol=1e-12)


def test_the_picture_moves_and_scales_with_the_matrix():
    eigenvalues = log_uniform_bulk()
    plain = Estimate(eigenvalues, 60, 3)
    for c, shift in [(1e-8, 0.0), (1e8, 0.0), (-1.0, 0.0), (1.0, 5.0)]:
        moved = Estimate(c * eigenvalues + shift, 60, 3)
        for weights in ("weights", "deflated"):
            distance = wasserstein_distance(
                ((moved.nodes - shift) / c).ravel(),
                plain.nodes.ravel(),
                getattr(moved, weights).ravel(),
                getattr(plain, weights).ravel(),
            )
            assert distance <= 1e-9 * spread(eigenvalues)


@pytest.mark.parametrize("make", [semicircle_with_outliers, log_uniform_bulk])
def test_float32_products_give_the_float64_picture(make):
    double = Estimate(make(), 60, 3)
    single = Estimate(make(), 60, 3, products=np.float32)
    assert abs(single.wasserstein() - double.wasserstein()) <= 1e-7


# The rule itself.


def test_one_node_has_all_the_weight():
    rule = gauss_quadrature(np.array([2.0]), np.array([]))
    np.testing.assert_array_equal(rule.nodes, [2.0])
    np.testing.assert_array_equal(rule.weights, [1.0])
    np.testing.assert_array_equal(rule.last, [1.0])


def test_the_chebyshev_rule_comes_out():
    m = 200  # weights 1/m at cos((2j - 1) pi / 2m)
    beta = np.full(m - 1, 0.5)
    beta[0] = np.sqrt(0.5)
    rule = gauss_quadrature(np.zeros(m), beta)
    nodes = -np.cos((2 * np.arange(1, m + 1) - 1) * np.pi / (2 * m))
    np.testing.assert_allclose(rule.nodes, nodes, atol=1e-14)
    np.testing.assert_allclose(rule.weights, 1 / m, rtol=1e-11)


@pytest.mark.parametrize("scale", [1e-300, 1e-8, 1e8, 1e300])
def test_weights_do_not_depend_on_the_scale(scale):
    rng = np.random.default_rng(0)
    alpha, beta = rng.standard_normal(30), rng.uniform(0, 1, 29)
    beta[[5, 6, 20]] = 0, 1e-14, 1e-9
    plain, scaled = gauss_quadrature(alpha, beta), gauss_quadrature(scale * alpha, scale * beta)
    np.testing.assert_allclose(scaled.nodes / scale, plain.nodes, atol=1e-13)
    np.testing.assert_allclose(scaled.weights, plain.weights, atol=1e-13)


def test_a_block_after_a_zero_beta_has_no_weight():
    rule = gauss_quadrature(np.array([1.0, 2.0, 1.0, 2.0]), np.array([0.5, 0.0, 0.5]))
    assert np.sort(rule.weights)[:2].max() <= 1e-30
    np.testing.assert_allclose(rule.weights.sum(), 1.0)


@pytest.mark.parametrize(
    ("alpha", "beta", "message"),
    [
        ([], [], "shape"),
        ([1.0, 2.0], [1.0, 2.0], r"\(2,\) and \(2,\)"),
        ([[1.0]], [], "shape"),
        ([1.0, np.nan], [1.0], "finite"),
        ([1.0, 2.0], [np.inf], "finite"),
    ],
)
def test_bad_coefficients_are_named(alpha, beta, message):
    with pytest.raises(ValueError, match=message):
        gauss_quadrature(alpha, beta)


@pytest.mark.parametrize("make", [semicircle_with_outliers, log_uniform_bulk])
@pytest.mark.parametrize("order", [1, 10, 60])
def test_the_error_of_one_draw_is_within_its_bounds(make, order):
    run = Estimate(make(), order, 1)
    lam = run.eigenvalues
    squares = diagonal_weights(make(), lam)
    interval = (lam.min(), lam.max())
    ks, wasserstein = quadrature_bounds(run.quadratures[0], interval)
    distance = wasserstein_distance(run.nodes[0], lam, run.weights[0], squares)
    assert distance <= wasserstein + 1e-12
    everywhere = np.union1d(lam, run.nodes[0])
    gap = weighted_cdf(lam, squares, everywhere) - weighted_cdf(
        run.nodes[0], run.weights[0], everywhere
    )
    # A converged node and its eigenvalue differ by rounding, and so may the side it is on.
    assert np.abs(gap).max() <= ks + 1e-12
    assert quadrature_bounds(run.quadratures[0]).wasserstein <= wasserstein


def diagonal_weights(eigenvalues, order):
    """Squared start vector entries, in the order of the sorted eigenvalues."""
    return (start_vector(len(eigenvalues)) ** 2)[np.argsort(eigenvalues)]


def weighted_cdf(points, masses, where):
    cumulative = np.concatenate([[0.0], np.cumsum(masses)])
    return cumulative[np.searchsorted(points, where, "right")]


def test_an_interval_that_does_not_hold_the_nodes_is_an_error():
    rule = gauss_quadrature(np.array([0.0, 1.0]), np.array([0.5]))
    with pytest.raises(ValueError, match="interval"):
        quadrature_bounds(rule, (0.5, 2.0))


# Known weights.


@pytest.mark.parametrize("case", ["A", "B"])
def test_simple_outliers_are_found_and_given_their_known_weight(case):
    for run in ten_seeds(case):
        assert run.simple[:, -10:].all()
        np.testing.assert_array_equal(run.deflated[:, -10:], 1 / 2000)
        np.testing.assert_allclose(run.deflated.sum(axis=1), 1.0, rtol=1e-13)


@pytest.mark.parametrize("options", [{"products": np.float32}, {"basis_dtype": "float32"}])
def test_simple_outliers_are_found_in_float32(options):
    for seed in range(3):
        assert Estimate(log_uniform_bulk(seed=seed), 80, 10, seed, **options).simple[:, -10:].all()


def test_every_node_called_simple_is_one_eigenvalue():
    for run in ten_seeds("B"):
        marked = run.nodes[run.simple].reshape(10, -1)
        distance = np.abs(run.eigenvalues - marked[..., np.newaxis])
        nearest, second = np.sort(distance, axis=-1)[..., :2].transpose(2, 0, 1)
        assert nearest.max() <= 1e-6 * spread(run.eigenvalues)
        assert (second > 100 * nearest).all()


@pytest.mark.parametrize("products", [np.float64, np.float32])
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-7])
def test_double_and_close_outliers_are_never_deflated(gap, products):
    eigenvalues = semicircle_with_outliers(200)
    eigenvalues[-6] = eigenvalues[-5] - gap * spread(eigenvalues)
    for seed in range(40):
        run = Estimate(eigenvalues, 50, 3, seed, products)
        near = np.abs(run.nodes - eigenvalues[-5]) < 1e-3
        assert near.any(axis=1).all()
        assert not (run.simple & near).any()
        assert ((run.simple & (run.nodes > 1.5)).sum(axis=1) == 8).all()


def test_a_pair_that_is_told_apart_is_deflated():
    eigenvalues = semicircle_with_outliers(200)
    eigenvalues[-6] = eigenvalues[-5] - 1e-3 * spread(eigenvalues)
    run = Estimate(eigenvalues, 50, 3)
    assert ((run.simple & (run.nodes > 1.5)).sum(axis=1) == 10).all()


@pytest.mark.parametrize("name", FEW)
def test_multiple_eigenvalues_are_not_simple(name):
    run = Estimate(FEW[name], 30, 4)
    expected = 2 if name == "rank_two" else 0
    assert (run.simple.sum(axis=1) == expected).all()


def test_one_draw_cannot_tell_a_simple_eigenvalue():
    run = Estimate(semicircle_with_outliers(200), 60, 1)
    assert not run.simple.any()
    np.testing.assert_array_equal(run.deflated, run.weights)


def test_at_full_order_every_weight_is_known():
    run = Estimate(np.arange(8.0), 8, 3)
    assert run.simple.all()
    np.testing.assert_allclose(run.deflated, 1 / 8, rtol=1e-14)
    assert run.wasserstein(run.deflated) <= 1e-14


def test_other_weights_are_rescaled_to_the_rest():
    weights = np.array([0.2, 0.3, 0.5])
    simple = np.array([False, False, True])
    np.testing.assert_allclose(deflated_weights(weights, simple, 10), [0.36, 0.54, 0.1])
    both = deflated_weights(np.stack([weights] * 2), np.stack([simple, ~simple & False]), 10)
    np.testing.assert_allclose(both, [[0.36, 0.54, 0.1], weights])


def test_overlaps_are_those_of_the_ritz_vectors():
    operator = diagonal_operator(semicircle_with_outliers(200))
    t = lanczos(operator, 20, num_draws=3, seed=4)
    rule = gauss_quadrature(t.alpha[0], t.beta[0])
    starts = [start_vector(200, 4, draw) for draw in range(3)]
    mask = np.arange(20) >= 18
    overlaps = ritz_overlaps(t.basis[0], rule, mask, iter(starts))
    vectors = t.basis[0].T @ rule.vectors[:, mask]
    np.testing.assert_allclose(overlaps, (np.array(starts) @ vectors) ** 2, atol=1e-14)
    np.testing.assert_allclose(overlaps[0], rule.weights[mask], atol=1e-14)
    without = Quadrature(rule.nodes, rule.weights, rule.last)
    with pytest.raises(ValueError, match="gauss_quadrature"):
        ritz_overlaps(t.basis[0], without, mask, starts)
