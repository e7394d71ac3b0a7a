import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from spectral_density.linalg.dominant_eigenpairs import (
    LowRank,
    adaptive_eigenpairs,
    lanczos_eigenpairs,
    randomized_eigenpairs,
    rayleigh_quotients,
    significant,
    tracked_eigenpairs,
)

N = 200


def matrix(values, seed=0):
    """A symmetric matrix of known eigenvalues, and its eigenvectors."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * values) @ q.T, q


@pytest.fixture(scope="module")
def outliers():
    """Five large eigenvalues of both signs, and a small bulk."""
    values = np.concatenate([[50.0, -30.0, 20.0, 10.0, -5.0], np.linspace(-1e-3, 1e-3, N - 5)])
    return *matrix(values), values


def dense_step(a, gradient, gamma):
    values, vectors = np.linalg.eigh(a)
    return -vectors @ ((vectors.T @ gradient) / (np.abs(values) + gamma))


def test_the_step_is_that_of_the_dense_saddle_free_newton(outliers):
    a, q, values = outliers
    gradient = np.random.default_rng(1).normal(size=N)
    full = LowRank(values, q, 50.0)
    np.testing.assert_allclose(
        full.saddle_free_step(gradient, 0.1), dense_step(a, gradient, 0.1), rtol=1e-9
    )


@pytest.mark.parametrize("how", ["randomized", "lanczos"])
def test_factorizations_find_the_outliers_with_their_signs(how, outliers):
    a, _, values = outliers
    operator = aslinearoperator(a)
    if how == "randomized":
        pairs = randomized_eigenpairs(operator, 5, 10, 0)
    else:
        pairs = lanczos_eigenpairs(operator, np.ones(N), 5, 10, 0)
    np.testing.assert_allclose(pairs.values, values[:5], rtol=1e-6)
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(5), atol=1e-10)
    assert pairs.norm == pytest.approx(50.0)


def test_tracking_follows_a_matrix_that_changes_by_one_product_an_eigenvector(outliers):
    a, _, _ = outliers
    pairs = randomized_eigenpairs(aslinearoperator(a), 5, 10, 0)
    drift = np.diag(np.random.default_rng(2).normal(size=N))
    for step in range(1, 6):
        moved = a + 0.05 * step * drift
        products = []

        def multiply(block, moved=moved, products=products):
            products.append(block.shape[1])
            return moved @ block

        operator = LinearOperator((N, N), matvec=multiply, matmat=multiply, dtype=float)
        pairs = tracked_eigenpairs(operator, pairs.images)
        assert sum(products) == 5
    true = np.linalg.eigvalsh(moved)
    true = true[np.argsort(-np.abs(true))][:5]
    np.testing.assert_allclose(pairs.values, true, rtol=2e-3)


def test_the_adaptive_space_meets_the_condition_of_an_inexact_newton_step(outliers):
    a, _, _ = outliers
    gradient = np.random.default_rng(3).normal(size=N)

    def step_of(tolerance):
        pairs = adaptive_eigenpairs(
            aslinearoperator(a),
            gradient,
            lambda pairs: 0.01 * pairs.norm,
            max_rank=100,
            tolerance=tolerance,
            seed=0,
        )
        return pairs, pairs.saddle_free_step(gradient, 0.5)

    for tolerance in (0.5, 0.1, 1e-3):
        pairs, step = step_of(tolerance)
        image = a @ step
        outside = image - pairs.vectors @ (pairs.vectors.T @ image)
        assert np.linalg.norm(outside) <= tolerance * np.linalg.norm(gradient)
        assert len(pairs.values) < 40
    true = dense_step(a, gradient, 0.5)
    assert np.linalg.norm(step - true) < 1e-2 * np.linalg.norm(true)


def test_a_gradient_within_few_eigenvectors_needs_a_small_space(outliers):
    a, q, _ = outliers
    pairs = adaptive_eigenpairs(
        aslinearoperator(a),
        q[:, 2],
        lambda pairs: 1.0,
        max_rank=100,
        tolerance=1e-6,
        seed=0,
    )
    assert len(pairs.values) == 8  # one block


def test_the_adaptive_space_stops_at_its_largest_rank():
    a, _ = matrix(np.linspace(-1, 1, N))
    pairs = adaptive_eigenpairs(
        aslinearoperator(a), np.ones(N), lambda pairs: 1e-6, max_rank=20, tolerance=1e-9, seed=0
    )
    assert len(pairs.values) == 20
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(20), atol=1e-10)


def test_the_adaptive_space_of_a_small_matrix_is_all_there_is():
    a, _ = matrix(np.array([3.0, -1.0, 0.5]))
    pairs = adaptive_eigenpairs(
        aslinearoperator(a), np.ones(3), lambda pairs: 0.1, max_rank=3, tolerance=1e-9, seed=0
    )
    np.testing.assert_allclose(pairs.values, [3.0, -1.0, 0.5], atol=1e-12)


def test_directions_whose_curvature_changes_sign_between_parts_are_left_out():
    signal, noise = np.array([10.0, -8.0, 0.0, 0.0]), np.array([0.0, 0.0, 9.0, -7.0])
    parts = [aslinearoperator(np.diag(signal + s * noise)) for s in (1.0, -1.0, 0.9, -0.9)]
    pairs = LowRank(np.array([10.0, 9.0, -8.0, -7.0]), np.eye(4)[:, [0, 2, 1, 3]], 10.0)
    np.testing.assert_allclose(rayleigh_quotients(parts, np.eye(4))[0], [10, -8, 9, -7])
    kept = significant(pairs, parts, 1.0)
    np.testing.assert_array_equal(kept.values, [10.0, -8.0])
    assert kept.norm == 10.0
    assert len(significant(pairs, parts, 0.0).values) == 2  # those whose mean is zero go anyway


def test_signal_is_the_mean_of_the_quotients_over_their_sample_standard_deviation():
    # Quotients 3, 1, 3, 1: mean 2, standard deviation 2 / sqrt(3) with n - 1 = 3.
    parts = [aslinearoperator(np.diag([s, 1.0])) for s in (3.0, 1.0, 3.0, 1.0)]
    pairs = LowRank(np.array([2.0, 1.0]), np.eye(2), 2.0)
    ratio = np.sqrt(3.0)
    assert len(significant(pairs, parts, 0.99 * ratio).values) == 2
    np.testing.assert_array_equal(significant(pairs, parts, 1.01 * ratio).values, [1.0])


def test_eigenpairs_come_with_the_largest_magnitude_first():
    a, q = matrix(np.array([1.0, -7.0, 3.0, -2.0, 5.0]))
    images = q[:, [3, 0, 2, 1]] * np.array([2.0, 1.0, 3.0, 7.0])
    for dtype, atol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        pairs = tracked_eigenpairs(aslinearoperator(a), images.astype(dtype))
        np.testing.assert_allclose(pairs.values, [-7.0, 3.0, -2.0, 1.0], rtol=1e-5)
        np.testing.assert_allclose(a @ pairs.vectors, pairs.images, atol=10 * atol)
        np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(4), atol=atol)
        assert pairs.vectors.dtype == pairs.images.dtype == dtype
        assert pairs.norm == pytest.approx(7.0)
    found = lanczos_eigenpairs(aslinearoperator(a), np.ones(5), 3, 2, 0)
    np.testing.assert_allclose(found.values, [-7.0, 5.0, 3.0])


@pytest.mark.parametrize("dependent", [0.0, 1.0, 1.0 - 1e-9])
def test_images_that_depend_on_each_other_still_give_orthonormal_vectors(dependent):
    a, q = matrix(np.linspace(1.0, 2.0, 30))
    images = q[:, :3].copy()
    images[:, 2] = dependent * images[:, 1] + np.sqrt(1 - dependent**2) * 1e-3 * images[:, 2]
    if dependent == 0.0:
        images[:, 2] = 0.0
    pairs = tracked_eigenpairs(aslinearoperator(a), images)
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(3), atol=1e-10)
    assert np.isfinite(pairs.values).all()


def test_rounded_eigenpairs_take_half_the_memory():
    a, _ = matrix(np.linspace(1.0, 30.0, 30))
    pairs = randomized_eigenpairs(aslinearoperator(a), 4, 4, 0)
    rounded = pairs.rounded()
    assert rounded.vectors.dtype == rounded.images.dtype == np.float32
    np.testing.assert_allclose(rounded.vectors, pairs.vectors, atol=1e-6)
    gradient = np.random.default_rng(0).normal(size=30)
    step = rounded.saddle_free_step(gradient, 0.5)
    assert step.dtype == np.float64
    np.testing.assert_allclose(step, pairs.saddle_free_step(gradient, 0.5), rtol=1e-4, atol=1e-5)


def test_images_that_are_not_orthogonal_are_orthonormalized():
    a, q = matrix(np.linspace(1.0, 2.0, 30))
    mixing = np.array([[5.0, 2.0, 1.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.1]])
    pairs = tracked_eigenpairs(aslinearoperator(a), q[:, :3] @ mixing)
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(pairs.values, np.linspace(1.0, 2.0, 30)[2::-1], rtol=1e-12)


def test_the_adaptive_space_is_judged_by_the_saddle_free_step():
    # Damping that cancels the most negative Ritz value: only a step by magnitudes is finite.
    a, _ = matrix(np.linspace(-1.0, 1.0, N))
    pairs = adaptive_eigenpairs(
        aslinearoperator(a),
        np.random.default_rng(4).normal(size=N),
        lambda pairs: -(1 + 1e-9) * pairs.values.min(),
        max_rank=64,
        tolerance=10.0,
        seed=0,
    )
    assert len(pairs.values) == 8
