"""Randomized factorizations: exact where they can be, bounds that hold, and clear refusals."""

import numpy as np
import pytest
import scipy.sparse
from cases import (
    dense_symmetric,
    diagonal_operator,
    distinct_eigenvalues,
    log_uniform_bulk,
    orthogonality_error,
    rank_two,
    semicircle_with_outliers,
)
from linalg.decaying import (
    GEOMETRIC,
    NETWORK,
    QUADRATIC,
    SIGNED_LOW_RANK,
    counted,
    magnitudes,
    relative_error,
)
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from spectral_density.linalg.nystrom_approximation import nystrom
from spectral_density.linalg.randomized import randomized_eigh, randomized_svd
from spectral_density.linalg.range_basis import range_finder

pytestmark = pytest.mark.filterwarnings("error")

SPECTRA = {
    "zero": np.zeros(120),
    "identity": np.ones(120),
    "minus_identity": -np.ones(120),
    "rank_two": rank_two(120),
    "plus_minus": np.resize([2.0, -2.0], 120),
    "three_distinct": distinct_eigenvalues(3, 120),
    "twenty_distinct": distinct_eigenvalues(20, 120),
    "semicircle": semicircle_with_outliers(120),
    "sixteen_decades": np.geomspace(1, 1e-16, 120),
}


# Accuracy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_matrix_of_low_rank_is_recovered(depth):
    matrix = dense_symmetric(SIGNED_LOW_RANK)
    svd = randomized_svd(matrix, 5, krylov_depth=depth)
    eigh = randomized_eigh(matrix, 5, krylov_depth=depth)
    np.testing.assert_allclose(svd.singular_values, [7, 5, 3, 1, 0.1], atol=1e-13)
    np.testing.assert_allclose(svd.U * svd.singular_values @ svd.Vt, matrix, atol=1e-13)
    np.testing.assert_allclose(eigh.values, [7, -5, 3, -1, 0.1], atol=1e-13)
    np.testing.assert_allclose(eigh.vectors * eigh.values @ eigh.vectors.T, matrix, atol=1e-13)
    assert range_finder(matrix, 5, krylov_depth=depth).rank == 5
    for result in (svd, eigh, range_finder(matrix, 5)):
        assert result.error_bound <= 1e-12


def test_eigenvalues_of_equal_magnitude_and_both_signs_are_told_apart():
    eigenvalues = np.concatenate([[4.0, -4.0, 3.0, -3.0, -3.0], np.full(95, 1e-3)])
    eigh = randomized_eigh(dense_symmetric(eigenvalues), 5, krylov_depth=3)
    np.testing.assert_allclose(np.sort(eigh.values), np.sort(eigenvalues[:5]), atol=1e-12)
    svd = randomized_svd(dense_symmetric(eigenvalues), 5, krylov_depth=3)
    np.testing.assert_allclose(svd.singular_values, [4, 4, 3, 3, 3], atol=1e-12)
    assert eigh.residuals.max() <= 1e-10 and svd.residual_bounds.max() <= 1e-8


def test_signs_of_a_saddle_are_kept():
    saddle = np.array([[12.0, 18.0], [18.0, 12.0]])
    np.testing.assert_allclose(randomized_eigh(saddle, 2).values, [30, -6], rtol=1e-14)
    np.testing.assert_allclose(randomized_svd(saddle, 2).singular_values, [30, 6], rtol=1e-14)


# Relative errors of the ten largest values at rank 20: some three times the worst of five seeds.
@pytest.mark.parametrize(
    ("eigenvalues", "limits"),
    [
        (NETWORK, (0.4, 4e-3, 3e-5)),
        (GEOMETRIC, (5e-6, 1e-14, 1e-14)),
        (QUADRATIC, (0.1, 5e-5, 3e-9)),
    ],
    ids=["network", "geometric", "quadratic"],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_deeper_krylov_space_is_more_accurate(eigenvalues, limits, dtype):
    operator = diagonal_operator(eigenvalues, dtype)
    floor = 0 if dtype is np.float64 else 1e-6
    for depth, limit in enumerate(limits, 1):
        for seed in range(3):
            options = {"krylov_depth": depth, "seed": seed}
            svd = randomized_svd(operator, 20, **options)
            eigh = randomized_eigh(operator, 20, **options)
            assert relative_error(svd.singular_values, eigenvalues, 10) <= limit + floor
            assert relative_error(eigh.values, eigenvalues, 10) <= 2 * limit + floor


def median_error(eigenvalues, **options):
    results = [
        randomized_svd(diagonal_operator(eigenvalues), seed=seed, **options) for seed in range(5)
    ]
    return np.median([relative_error(r.singular_values, eigenvalues, 10) for r in results])


@pytest.mark.parametrize("eigenvalues", [NETWORK, QUADRATIC], ids=["network", "quadratic"])
def test_each_power_divides_the_error_by_thirty(eigenvalues):
    errors = [median_error(eigenvalues, rank=20, krylov_depth=depth) for depth in (1, 2, 3)]
    assert errors[1] <= errors[0] / 30 and errors[2] <= errors[1] / 30


def test_a_deeper_space_beats_as_many_products_with_more_test_vectors():
    deep = median_error(NETWORK, rank=20, krylov_depth=3)  # 4 * 30 products
    wide = median_error(NETWORK, rank=20, oversampling=40)  # 2 * 60 products
    assert deep <= wide / 1000


def test_the_whole_space_beats_the_last_power_alone():
    # Subspace iteration with as many products: the range of A^3 W alone.
    krylov, power = [], []
    for seed in range(5):
        tests = np.random.default_rng(seed).standard_normal((len(NETWORK), 30))
        q = np.linalg.qr(NETWORK[:, np.newaxis] * tests)[0]
        for _ in range(2):
            q = np.linalg.qr(NETWORK[:, np.newaxis] * q)[0]
        last = np.linalg.svd(NETWORK[:, np.newaxis] * q, compute_uv=False)
        power.append(relative_error(last, NETWORK, 15))
        whole = randomized_svd(diagonal_operator(NETWORK), 20, krylov_depth=3, seed=seed)
        krylov.append(relative_error(whole.singular_values, NETWORK, 15))
    assert np.median(krylov) <= np.median(power) / 2


def test_singular_values_are_bracketed():
    true = magnitudes(NETWORK, 20)
    for seed in range(8):
        for depth in (1, 2):
            svd = randomized_svd(diagonal_operator(NETWORK), 20, krylov_depth=depth, seed=seed)
            assert (svd.singular_values <= true * (1 + 1e-14)).all()
            assert (svd.upper_bounds >= true).all()


# Error figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bounds_of_the_svd_hold_and_are_near(depth, dtype):
    eigenvalues = log_uniform_bulk(150)
    looseness = []
    for seed in range(5):
        operator = diagonal_operator(eigenvalues, dtype)
        svd = randomized_svd(operator, 20, krylov_depth=depth, seed=seed)
        exact = np.float64(operator @ np.eye(150, dtype=dtype))
        v = svd.Vt.T
        residuals = np.linalg.norm(exact @ v - svd.U * svd.singular_values, axis=0)
        assert (residuals <= svd.residual_bounds).all()
        error = np.linalg.norm(exact - svd.U * svd.singular_values @ svd.Vt, 2)
        assert error <= svd.error_bound
        looseness.append(svd.error_bound / error)
        other_side = np.linalg.norm(exact @ svd.U - v * svd.singular_values, axis=0)
        assert other_side.max() <= (1e-13 if dtype is np.float64 else 1e-5) * 50
    assert max(looseness) <= 15


@pytest.mark.parametrize("depth", [1, 3])
def test_residuals_of_eigenpairs_are_true_and_their_bound_holds(depth):
    eigenvalues = log_uniform_bulk(150)
    looseness = []
    for seed in range(5):
        eigh = randomized_eigh(diagonal_operator(eigenvalues), 20, krylov_depth=depth, seed=seed)
        true = eigenvalues[:, np.newaxis] * eigh.vectors - eigh.vectors * eigh.values
        np.testing.assert_allclose(eigh.residuals, np.linalg.norm(true, axis=0), atol=1e-12)
        approximation = eigh.vectors * eigh.values @ eigh.vectors.T
        error = np.linalg.norm(np.diag(eigenvalues) - approximation, 2)
        assert error <= eigh.error_bound
        looseness.append(eigh.error_bound / error)
        nearest = np.abs(eigenvalues[:, np.newaxis] - eigh.values).min(axis=0)
        assert (nearest <= eigh.residuals + 1e-13).all()
    assert max(looseness) <= 15


def test_without_probes_there_are_no_bounds_and_no_products_for_them():
    operator, widths = counted(dense_symmetric(semicircle_with_outliers(100)))
    svd = randomized_svd(operator, 5, num_probes=0)
    eigh = randomized_eigh(operator, 5, num_probes=0)
    assert widths == [15, 15, 15, 15]
    assert svd.error_bound == eigh.error_bound == np.inf
    assert np.isinf(svd.residual_bounds).all() and np.isinf(svd.upper_bounds).all()
    assert np.isfinite(eigh.residuals).all()
    probed = randomized_svd(operator, 5)
    np.testing.assert_allclose(probed.singular_values, svd.singular_values, rtol=1e-12)
    assert randomized_svd(operator, 95, num_probes=0).error_bound < np.inf  # the basis is full


# Economy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("factorize", [randomized_svd, randomized_eigh])
def test_products_with_the_basis_are_used_again(factorize, depth):
    operator, widths = counted(dense_symmetric(semicircle_with_outliers(200)))
    result = factorize(operator, 8, oversampling=4, krylov_depth=depth, num_probes=3)
    assert widths == [15, *[12] * (depth - 1), 15]
    assert result.num_products == sum(widths) == (depth + 1) * 12 + 2 * 3
    assert result.num_passes == len(widths)


def test_a_general_matrix_takes_two_passes_a_power():
    operator, widths = counted(np.random.default_rng(0).standard_normal((90, 60)))
    svd = randomized_svd(operator, 8, oversampling=4, krylov_depth=2, num_probes=3)
    assert widths == [15, 12, 12, 15] == [15, 12, 12, svd.num_products - 39]


# Robustness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("depth", [1, 2, 5, 12])
def test_factors_are_orthonormal_and_finite_whatever_the_spectrum(name, dtype, depth):
    eigenvalues = SPECTRA[name].astype(dtype).astype(float)
    operator = diagonal_operator(eigenvalues, dtype)
    norm = np.abs(eigenvalues).max()
    eps = np.finfo(dtype).eps
    svd = randomized_svd(operator, 12, oversampling=4, krylov_depth=depth)
    eigh = randomized_eigh(operator, 12, oversampling=4, krylov_depth=depth)
    found = range_finder(operator, 12, oversampling=4, krylov_depth=depth)
    for rows in (svd.U.T, svd.Vt, eigh.vectors.T):
        assert orthogonality_error(rows) <= 1e-13
    assert found.rank == 0 if name == "zero" else orthogonality_error(found.basis.T) <= 1e-13
    for figures in (svd.singular_values, svd.residual_bounds, eigh.values, eigh.residuals):
        assert figures.shape == (12,) and np.isfinite(figures).all()
    true = magnitudes(eigenvalues, 12)
    # Values are Rayleigh quotients, which exceed the norm as far as vectors exceed the length 1.
    above = (10 * eps + max(map(orthogonality_error, (svd.U.T, svd.Vt, eigh.vectors.T)))) * norm
    assert (svd.singular_values <= true + above).all()
    assert (np.abs(eigh.values) <= true + above).all()
    assert (np.diff(svd.singular_values) <= 0).all()
    assert (np.diff(np.abs(eigh.values)) <= 0).all()
    residuals = eigenvalues[:, np.newaxis] * eigh.vectors - eigh.vectors * eigh.values
    np.testing.assert_allclose(
        eigh.residuals, np.linalg.norm(residuals, axis=0), atol=20 * eps * max(norm, 1e-300)
    )


@pytest.mark.parametrize("matrix", [dense_symmetric, np.diag, diagonal_operator])
def test_a_rank_lower_than_asked_for_leaves_exact_zeros(matrix):
    for eigenvalues, true in ((rank_two(60), [5.0, 3.0]), (np.zeros(60), [])):
        operator = matrix(eigenvalues)
        svd = randomized_svd(operator, 6, krylov_depth=2)
        eigh = randomized_eigh(operator, 6, krylov_depth=2)
        psd = nystrom(operator, 6)
        found = range_finder(operator, 6, krylov_depth=2)
        assert found.rank == len(true)
        for values in (svd.singular_values, eigh.values, psd.values):
            np.testing.assert_allclose(values[: len(true)], true, rtol=1e-14)
            np.testing.assert_array_equal(values[len(true) :], 0.0)
        for rows in (svd.U.T, svd.Vt, eigh.vectors.T, psd.vectors.T):
            assert orthogonality_error(rows) <= 1e-13
        assert svd.residual_bounds.max() <= 1e-13 and eigh.residuals.max() <= 1e-13


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_the_smallest_matrices_are_exact(size, depth):
    for eigenvalues in (np.array([-3.0, 2.0, 0.5])[:size], np.zeros(size), np.ones(size)):
        matrix = dense_symmetric(eigenvalues)
        for rank in range(1, size + 1):
            svd = randomized_svd(matrix, rank, krylov_depth=depth)
            eigh = randomized_eigh(matrix, rank, krylov_depth=depth)
            np.testing.assert_allclose(
                svd.singular_values, magnitudes(eigenvalues, rank), atol=1e-14
            )
            np.testing.assert_allclose(eigh.values, eigenvalues[:rank], atol=1e-14)
            psd = nystrom(matrix @ matrix, rank)
            np.testing.assert_allclose(psd.values, eigenvalues[:rank] ** 2, atol=1e-14)
            assert range_finder(matrix, rank, krylov_depth=depth).error_bound <= 1e-13


@pytest.mark.parametrize("rank", [30, 47, 50])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_space_as_large_as_the_matrix_is_exact(rank, depth):
    eigenvalues = semicircle_with_outliers(50) - 1
    matrix = dense_symmetric(eigenvalues)
    svd = randomized_svd(matrix, rank, oversampling=20, krylov_depth=depth)
    eigh = randomized_eigh(matrix, rank, oversampling=20, krylov_depth=depth)
    np.testing.assert_allclose(svd.singular_values, magnitudes(eigenvalues, rank), atol=1e-13)
    np.testing.assert_allclose(np.abs(eigh.values), magnitudes(eigenvalues, rank), atol=1e-13)
    full = range_finder(matrix, 50, krylov_depth=depth)
    assert full.rank == 50 and full.error_bound == 0


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1e8, 1e100])
def test_a_scaled_matrix_has_scaled_factors(scale):
    eigenvalues = semicircle_with_outliers(100)
    matrix = dense_symmetric(eigenvalues)
    options = {"krylov_depth": 2, "seed": 3}
    one, other = (randomized_svd(c * matrix, 12, **options) for c in (1, scale))
    np.testing.assert_allclose(other.singular_values / scale, one.singular_values, rtol=1e-12)
    np.testing.assert_allclose(other.residual_bounds / scale, one.residual_bounds, rtol=1e-3)
    np.testing.assert_allclose(other.error_bound / scale, one.error_bound, rtol=1e-8)
    one, other = (randomized_eigh(c * matrix, 12, **options) for c in (1, scale))
    np.testing.assert_allclose(other.values / scale, one.values, rtol=1e-12)
    np.testing.assert_allclose(other.error_bound / scale, one.error_bound, rtol=1e-8)
    one, other = (nystrom(c * (matrix @ matrix), 12) for c in (1, scale))
    np.testing.assert_allclose(other.values / scale, one.values, rtol=1e-10)
    np.testing.assert_allclose(other.shift / scale, one.shift, rtol=1e-10)
    one, other = (range_finder(c * matrix, tolerance=c * 4.0) for c in (1, scale))
    assert one.rank == other.rank and other.converged
    assert randomized_svd(scale * np.diag(rank_two(50)), 4).singular_values[2] == 0


def test_the_operator_may_return_its_argument_or_its_own_buffer():
    identity = LinearOperator((40, 40), matvec=lambda v: v, matmat=lambda v: v, dtype=float)
    buffers = {}

    def reuse(block):
        buffer = buffers.setdefault(block.shape, np.empty(block.shape))
        buffer[:] = NETWORK[:, np.newaxis] * block
        return buffer

    size = len(NETWORK)
    reusing = LinearOperator((size, size), matvec=None, matmat=reuse, dtype=float)
    assert orthogonality_error(randomized_svd(identity, 5, krylov_depth=2).Vt) <= 1e-13
    assert orthogonality_error(randomized_eigh(identity, 5, krylov_depth=2).vectors.T) <= 1e-13
    for factorize in (randomized_svd, randomized_eigh):
        first = factorize(reusing, 5, num_probes=15, oversampling=10, krylov_depth=3)
        second = factorize(diagonal_operator(NETWORK), 5, num_probes=15, krylov_depth=3)
        assert first.error_bound == pytest.approx(second.error_bound, rel=1e-10)


# Operators of every kind -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(80, 50), (50, 80), (60, 60), (1, 7), (7, 1)])
def test_a_matrix_that_is_not_symmetric_has_its_singular_values_found(shape):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal(shape) * 0.6 ** np.arange(shape[1])
    u, true, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = min(10, *shape)
    for operator in (matrix, scipy.sparse.csr_array(matrix)):
        for depth, limit in ((1, 0.1), (3, 1e-10)):
            svd = randomized_svd(operator, rank, krylov_depth=depth)
            np.testing.assert_allclose(svd.singular_values, true[:rank], rtol=limit)
            error = np.linalg.norm(matrix - svd.U * svd.singular_values @ svd.Vt, 2)
            assert error <= svd.error_bound + 1e-13
            assert orthogonality_error(svd.U.T) <= 1e-13
            assert orthogonality_error(svd.Vt) <= 1e-13
    truncated = (u * np.where(np.arange(len(true)) < 3, true, 0)) @ vt
    low = randomized_svd(truncated, rank, krylov_depth=2)
    np.testing.assert_allclose(low.singular_values[:3], true[:rank][:3], rtol=1e-12)
    np.testing.assert_array_equal(low.singular_values[3:], 0.0)
    assert orthogonality_error(low.Vt) <= 1e-13
    found = range_finder(matrix, tolerance=1e-3)
    rest = matrix - found.basis @ (found.basis.T @ matrix)
    assert found.converged and np.linalg.norm(rest, 2) <= 1e-3


def test_a_square_operator_that_turns_out_not_to_be_symmetric_is_refused():
    matrix = np.random.default_rng(0).standard_normal((60, 60))
    operator = aslinearoperator(matrix)
    with pytest.raises(ValueError, match=r"not symmetric.*symmetric=False"):
        randomized_svd(operator, 5)
    svd = randomized_svd(operator, 5, symmetric=False, krylov_depth=6)
    true = np.linalg.svd(matrix, compute_uv=False)[:5]
    np.testing.assert_allclose(svd.singular_values, true, rtol=1e-6)
    with pytest.warns(RuntimeWarning, match="not symmetric"):
        randomized_eigh(operator, 5)


def test_an_operator_without_adjoint_is_named():
    operator = LinearOperator((6, 4), matvec=lambda v: np.ones(6), dtype=float)
    with pytest.raises(ValueError, match=r"\(6, 4\) has no adjoint.*rmatvec"):
        randomized_svd(operator, 2)


def test_arrays_that_are_symmetric_but_for_rounding_take_the_shorter_way():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 50)))[0]
    matrix = (q * np.geomspace(1, 1e-3, 50)) @ q.T
    assert not np.array_equal(matrix, matrix.T)
    for operator in (matrix, matrix.astype(np.float32), scipy.sparse.csc_matrix(matrix)):
        assert randomized_svd(operator, 5, krylov_depth=2, num_probes=0).num_passes == 3
    assert randomized_svd(np.eye(20, dtype=np.uint8), 5, num_probes=0).num_passes == 2


# Repeatability, progress, text -------------------------------------------------------------------


@pytest.mark.parametrize("factorize", [randomized_svd, randomized_eigh, nystrom, range_finder])
def test_same_seed_same_bits_and_another_seed_other_draws(factorize):
    matrix = dense_symmetric(np.abs(NETWORK[::5]))
    before = np.random.get_state()[1].copy()
    first, second, other = (factorize(matrix, 10, seed=seed) for seed in (4, 4, 5))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name))
    assert first.error_bound != other.error_bound
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_test_vectors_are_the_same_however_many_are_drawn():
    matrix = dense_symmetric(semicircle_with_outliers(80))
    few = range_finder(matrix, 5, oversampling=0).basis
    many = range_finder(matrix, 9, oversampling=0).basis
    np.testing.assert_allclose(many @ (many.T @ few), few, atol=1e-13)


@pytest.mark.parametrize("factorize", [randomized_svd, randomized_eigh, nystrom, range_finder])
def test_the_progress_bar_counts_products_and_is_silent_unless_asked(factorize, capsys):
    matrix = np.diag(np.arange(1.0, 41.0))
    result = factorize(matrix, 5)
    assert capsys.readouterr() == ("", "")
    factorize(matrix, 5, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and f"{result.num_products}/{result.num_products}" in err


def test_results_print_their_shapes_and_not_their_arrays():
    matrix = np.diag(np.arange(1.0, 41.0))
    assert repr(randomized_svd(matrix, 5)).startswith("RandomizedSVD(shape=(40, 40), rank=5, err")
    assert repr(randomized_eigh(matrix, 5)).startswith("RandomizedEigh(n=40, rank=5, error_bound=")
    assert repr(nystrom(matrix, 5)).startswith("Nystrom(n=40, rank=5, error_bound=")
    assert repr(range_finder(matrix, 5)).startswith("RangeBasis(n=40, rank=15, error_bound=")
    assert repr(range_finder(matrix, 5)).endswith("25 products)")


# Bad input ---------------------------------------------------------------------------------------

OK = np.diag(np.arange(1.0, 6.0))
ALL = (randomized_svd, randomized_eigh, nystrom, range_finder)
SYMMETRIC = (randomized_eigh, nystrom)
KRYLOV = (randomized_svd, randomized_eigh, range_finder)


@pytest.mark.parametrize(
    ("functions", "operator", "options", "error", "message"),
    [
        (SYMMETRIC, np.ones((3, 4)), {}, ValueError, r"square.*\(3, 4\)"),
        (ALL, np.ones(3), {}, ValueError, r"square.*\(3,\)"),
        (ALL, OK * 1j, {}, TypeError, "real.*complex"),
        (ALL[::3], np.ones((3, 4)) * 1j, {}, TypeError, "real.*complex"),
        (ALL, "matrix", {}, TypeError, "LinearOperator.*str"),
        (ALL, OK, {"rank": 6}, ValueError, r"rank is 6.*\(5, 5\).*rank <= 5"),
        (ALL, OK, {"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        (ALL, OK, {"rank": 2.0}, TypeError, "rank must be an integer, got 2.0"),
        (ALL, OK, {"oversampling": -1}, ValueError, "oversampling must be at least 0"),
        (KRYLOV, OK, {"krylov_depth": 0}, ValueError, "krylov_depth must be at least 1"),
        (ALL[:3], OK, {"num_probes": -1}, ValueError, "num_probes must be at least 0"),
        (ALL, OK, {"seed": -1}, ValueError, "seed must be at least 0"),
        (ALL, OK, {"seed": None}, TypeError, "seed must be an integer"),
        (ALL[::3], OK, {"symmetric": "yes"}, TypeError, "symmetric must be True, False or None"),
        (ALL[::3], np.ones((3, 4)), {"symmetric": True}, ValueError, "not symmetric"),
        (ALL[3:], OK, {"rank": None}, ValueError, "either rank or tolerance, got rank=None"),
        (ALL[3:], OK, {"tolerance": 1.0}, ValueError, "either rank or tolerance, got rank=2"),
        (ALL[3:], OK, {"rank": None, "tolerance": 0}, ValueError, "tolerance must be greater"),
        (ALL[3:], OK, {"rank": None, "tolerance": -1.0}, ValueError, "tolerance must be greater"),
        (ALL[3:], OK, {"rank": None, "tolerance": np.nan}, ValueError, "must be finite"),
        (ALL[3:], OK, {"rank": None, "tolerance": "1"}, TypeError, "tolerance must be a real"),
        (ALL[3:], OK, {"block_size": 0}, ValueError, "block_size must be at least 1"),
        (ALL[3:], OK, {"max_rank": 3}, ValueError, "max_rank goes with tolerance"),
        (
            ALL[3:],
            OK,
            {"rank": None, "tolerance": 1.0, "max_rank": 9},
            ValueError,
            "max_rank is 9",
        ),
        (ALL, np.full((5, 5), np.nan), {}, FloatingPointError, "not finite in pass 1"),
        (ALL, np.full((5, 5), np.inf), {}, FloatingPointError, "not finite in pass 1"),
    ],
)
def test_bad_input_is_named_at_once(functions, operator, options, error, message):
    for function in functions:
        with pytest.raises(error, match=message), np.errstate(invalid="ignore"):
            function(operator, **{"rank": 2, **options})


@pytest.mark.parametrize("function", ALL)
def test_a_complex_product_of_an_operator_that_claims_to_be_real_is_an_error(function):
    operator = LinearOperator((5, 5), matvec=lambda v: v * 1j, dtype=float)
    with pytest.raises(TypeError, match="complex"):
        function(operator, 2)


@pytest.mark.parametrize("function", KRYLOV)
def test_a_product_that_is_not_finite_names_the_pass(function):
    passes = []

    def matmat(block):
        passes.append(1)
        return block * (np.nan if len(passes) == 2 else np.arange(30.0)[:, np.newaxis])

    operator = LinearOperator((30, 30), matvec=None, matmat=matmat, dtype=float)
    with pytest.raises(FloatingPointError, match="in pass 2"):
        function(operator, 2, krylov_depth=3)


def test_a_matrix_that_is_nothing_but_rounding_is_no_error():
    n = 200
    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    a = a + a.T

    def matmat(block):
        block = block.astype(np.float32)
        return ((a @ block) - (3 * a) @ (block / 3)).astype(np.float64)

    operator = LinearOperator((n, n), matvec=matmat, matmat=matmat, dtype=np.float64)
    assert randomized_svd(operator, 5).singular_values.max() < 1e-2
    assert np.abs(randomized_eigh(operator, 5).values).max() < 1e-2
