"""Eigenpairs: the right ones, as often as they are there, with residuals that are true."""

import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse
from cases import (
    dense_symmetric,
    diagonal_operator,
    log_uniform_bulk,
    orthogonality_error,
    semicircle_with_outliers,
)
from linalg.eigenproblems import SPECTRA, WHICH, assert_exact, bits, dense, single_precision
from scipy.sparse.linalg import LinearOperator, eigsh

from spectral_density.linalg.eigen import ConvergenceWarning, top_eigenpairs
from spectral_density.linalg.power import power_iteration

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", SPECTRA)
def test_every_eigenvalue_is_found_as_often_as_it_is_there(name, which):
    eigenvalues = SPECTRA[name]
    matrix = dense_symmetric(eigenvalues)
    result = top_eigenpairs(matrix, 4, which, max_products=20_000)
    assert_exact(result, matrix, eigenvalues, 4, which)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tiny_matrices_have_all_their_eigenpairs(n, which):
    matrix = np.random.default_rng(n).standard_normal((n, n))
    matrix += matrix.T
    for k in range(1, n + 1):
        result = top_eigenpairs(matrix, k, which)
        assert_exact(result, matrix, np.linalg.eigvalsh(matrix), k, which, 1e-14)


@pytest.mark.parametrize("k", [29, 30, 39, 40])
def test_all_pairs_or_nearly_all_are_those_of_the_dense_decomposition(k):
    matrix = dense_symmetric(np.random.default_rng(5).standard_normal(40))
    result = top_eigenpairs(matrix, k, "LA")
    assert_exact(result, matrix, np.linalg.eigvalsh(matrix), k, "LA", 1e-13)


def test_the_order_is_the_documented_one():
    matrix = np.diag([-6.0, -4.0, 1.0, 3.0, 5.0])
    expected = {"LM": [-6, 5, -4], "LA": [5, 3, 1], "SA": [-6, -4, 1], "BE": [-6, 3, 5]}
    for which, values in expected.items():
        np.testing.assert_allclose(top_eigenpairs(matrix, 3, which).values, values, rtol=1e-14)


@pytest.mark.parametrize("which", WHICH)
def test_values_are_those_of_arpack(which):
    matrix = scipy.sparse.random(400, 400, 0.02, random_state=1, format="csr")
    matrix = matrix + matrix.T
    # SciPy counts the odd one of both ends to the high end too.
    expected = np.sort(eigsh(matrix, 5, which=which, return_eigenvectors=False))
    for form in (matrix, matrix.toarray(), scipy.sparse.linalg.aslinearoperator(matrix)):
        result = top_eigenpairs(form, 5, which)
        np.testing.assert_allclose(np.sort(result.values), expected, rtol=1e-12)


def test_gaps_of_a_thousandth_between_the_last_wanted_and_the_next_are_resolved():
    eigenvalues = np.concatenate([[1.0, 0.999, 0.998, 0.9979], np.linspace(-1, 0.5, 146)])
    matrix = dense_symmetric(eigenvalues)
    for k in (1, 2, 3):
        result = top_eigenpairs(matrix, k, "LA")
        assert_exact(result, matrix, eigenvalues, k, "LA")


def test_a_start_that_cannot_see_the_largest_eigenvalue_does_not_hide_it():
    eigenvalues = np.concatenate([np.linspace(-1, 1, 97), [2.0, 3.0, 4.0]])
    blind = np.ones(100)
    blind[-1] = 0.0
    for which in ("LM", "LA", "BE"):
        result = top_eigenpairs(np.diag(eigenvalues), 2, which, start=blind)
        assert_exact(result, np.diag(eigenvalues), eigenvalues, 2, which)


def test_a_start_that_is_an_eigenvector_finds_the_others():
    start = np.eye(100)[50]
    eigenvalues = np.linspace(-1, 1, 100)
    result = top_eigenpairs(np.diag(eigenvalues), 3, "LA", start=start)
    assert_exact(result, np.diag(eigenvalues), eigenvalues, 3, "LA")


@pytest.mark.parametrize("block_size", [2, 3, 8])
@pytest.mark.parametrize("name", ["semicircle", "triple", "identity", "zero", "rank_two"])
def test_blocks_find_the_same(name, block_size):
    eigenvalues = SPECTRA[name]
    matrix = dense_symmetric(eigenvalues)
    result = top_eigenpairs(matrix, 4, block_size=block_size)
    assert_exact(result, matrix, eigenvalues, 4, "LM")


def test_blocks_take_fewer_passes():
    passes = {}
    for block_size in (1, 4):
        matrix = dense("semicircle")
        shapes = []

        def matmat(block, matrix=matrix, shapes=shapes):
            shapes.append(block.shape)
            return matrix @ block

        operator = LinearOperator(matrix.shape, matvec=matmat, matmat=matmat, dtype=np.float64)
        result = top_eigenpairs(operator, 10, block_size=block_size)
        assert sum(s[1] if len(s) == 2 else 1 for s in shapes) == result.num_products
        passes[block_size] = len(shapes)
    assert passes[4] <= 0.75 * passes[1]


def test_the_least_subspace_still_converges():
    for which in WHICH:
        for k in (1, 2, 5):
            eigenvalues = np.concatenate([[4.0, 4.0, -3.0], np.linspace(-1, 1, 27)])
            matrix = dense_symmetric(eigenvalues)
            result = top_eigenpairs(matrix, k, which, subspace=k + 3, max_products=20_000)
            assert_exact(result, matrix, eigenvalues, k, which)


# Precision and scale


@pytest.mark.parametrize("which", ["LM", "SA"])
@pytest.mark.parametrize("name", ["semicircle", "log_uniform", "triple", "rank_two", "zero"])
def test_float32_products_converge_to_their_own_precision(name, which):
    eigenvalues = SPECTRA[name]
    matrix = dense_symmetric(eigenvalues)
    result = top_eigenpairs(single_precision(matrix), 4, which)
    assert result.tolerance == np.finfo(np.float32).eps ** 0.75
    assert_exact(result, matrix, eigenvalues, 4, which, 1e-6)


@pytest.mark.parametrize("stated", [np.float32, np.float64])
def test_a_tolerance_below_the_products_rounding_ends_soon_and_is_said(stated):
    operator = single_precision(dense("log_uniform"), stated)
    with pytest.warns(ConvergenceWarning, match=r"not accurate enough .* raise tolerance to"):
        result = top_eigenpairs(operator, 3, tolerance=1e-12)
    assert not result.converged.any()
    assert result.num_products < 200
    assert result.residuals.max() <= 1e-6 * result.norm


def test_a_float32_array_whose_products_are_float64_reaches_a_float64_tolerance():
    matrix = dense("log_uniform").astype(np.float32)
    result = top_eigenpairs(matrix, 3, tolerance=1e-12)
    assert result.converged.all()
    assert result.residuals.max() <= 1e-12 * result.norm


@pytest.mark.parametrize("scale", [1e-300, 1e-8, 1e8, 1e300])
def test_the_same_at_every_scale(scale):
    eigenvalues = SPECTRA["semicircle"]
    reference = top_eigenpairs(diagonal_operator(eigenvalues), 5, "BE")
    result = top_eigenpairs(diagonal_operator(scale * eigenvalues), 5, "BE")
    np.testing.assert_allclose(result.values, scale * reference.values, rtol=1e-13)
    np.testing.assert_allclose(result.residuals / scale, reference.residuals, atol=1e-13)
    assert result.num_products == reference.num_products


def test_the_zero_matrix_has_zero_residuals():
    result = top_eigenpairs(np.zeros((40, 40)), 3)
    np.testing.assert_array_equal(result.values, 0.0)
    np.testing.assert_array_equal(result.residuals, 0.0)
    assert result.converged.all()
    assert result.num_products == 7


def test_a_true_eigenvalue_is_within_each_residual():
    eigenvalues = SPECTRA["log_uniform"]
    with pytest.warns(ConvergenceWarning):
        result = top_eigenpairs(diagonal_operator(eigenvalues), 6, "BE", max_products=30)
    assert not result.converged.all()
    distance = np.abs(result.values[:, np.newaxis] - eigenvalues).min(axis=1)
    assert (distance <= result.residuals + 1e-13 * result.norm).all()


# Products


@pytest.mark.parametrize(
    ("case", "which", "k", "limit"),
    [
        (semicircle_with_outliers, "LM", 1, 1.1),
        (semicircle_with_outliers, "LA", 5, 1.1),
        (semicircle_with_outliers, "LM", 10, 1.1),
        (semicircle_with_outliers, "SA", 3, 1.3),
        (log_uniform_bulk, "LM", 5, 1.1),
        (log_uniform_bulk, "LM", 10, 1.1),
        (log_uniform_bulk, "LA", 20, 1.1),
    ],
)
def test_the_first_round_needs_about_as_many_products_as_arpack(case, which, k, limit):
    # ARPACK stops there; what comes after sees that nothing was missed, and measures residuals.
    eigenvalues = case()
    count, first = [0], [0]

    def multiply(v):
        count[0] += 1
        return eigenvalues * np.ravel(v)

    n = len(eigenvalues)
    operator = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    eigsh(operator, k, which=which, tol=1e-12, v0=start)
    arpack = count[0]

    def in_first_round(state):
        if state.rounds == 1:
            first[0] = state.num_products

    result = top_eigenpairs(operator, k, which, start=start, callback=in_first_round)
    assert result.num_products == count[0] - arpack
    assert first[0] <= limit * arpack
    assert result.num_products <= 2 * arpack + k


def test_products_are_counted_and_bounded():
    matrix = dense("double_at_the_edge")
    for k, block_size in ((1, 1), (3, 1), (5, 4), (8, 4)):
        for most in range(2 * k + block_size - 1, 120, 17):
            count = [0]

            def multiply(block, count=count):
                count[0] += 1 if block.ndim == 1 else block.shape[1]
                return matrix @ block

            operator = LinearOperator(
                matrix.shape, matvec=multiply, matmat=multiply, dtype=np.float64
            )
            with warnings.catch_warnings(record=True) as record:
                warnings.simplefilter("always", ConvergenceWarning)
                result = top_eigenpairs(operator, k, max_products=most, block_size=block_size)
            assert count[0] == result.num_products <= most
            assert len(record) == (not (result.complete and result.converged.all()))
            true = np.linalg.norm(matrix @ result.vectors - result.vectors * result.values, axis=0)
            np.testing.assert_allclose(result.residuals, true, atol=1e-13)
            assert orthogonality_error(result.vectors.T) <= 1e-14


def test_too_few_products_give_the_best_so_far_and_say_so():
    operator = diagonal_operator(SPECTRA["semicircle"])
    with pytest.warns(
        ConvergenceWarning, match=r"^\d of 5 .* Raise max_products \(now 26\)"
    ) as record:
        result = top_eigenpairs(operator, 5, max_products=26)
    np.testing.assert_allclose(result.values, [10, 9.1111, 8.2222, 7.3333, 6.4444], rtol=1e-3)
    assert not result.complete
    assert "maybe not complete" in repr(result)
    assert record[0].filename == __file__


def test_the_dropped_verification_is_said_even_if_all_residuals_are_small():
    operator = diagonal_operator(SPECTRA["semicircle"])
    enough = top_eigenpairs(operator, 2).num_products
    with pytest.warns(ConvergenceWarning, match="missed is not known yet"):
        result = top_eigenpairs(operator, 2, max_products=enough - 1)
    assert result.converged.all()
    assert not result.complete


@pytest.mark.parametrize("skew", [1.0, 1e-3])
def test_an_operator_that_is_not_symmetric_is_named(skew):
    matrix = np.random.default_rng(0).standard_normal((50, 50))
    matrix = matrix + matrix.T + skew * (matrix - matrix.T)
    with pytest.warns(ConvergenceWarning, match="The operator is not symmetric"):
        result = top_eigenpairs(matrix, 3)
    assert not result.converged.any()


# Repeating and resuming


def test_the_same_seed_gives_the_same_bits_and_another_the_same_values():
    matrix = dense("semicircle")
    first, again, other = (top_eigenpairs(matrix, 4, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(bits(first), bits(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(other.values, first.values, rtol=1e-13)
    assert np.abs(other.vectors[:, 0] - first.vectors[:, 0]).max() > 0


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    top_eigenpairs(np.eye(5), 2)
    power_iteration(np.eye(5))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_the_result_holds_one_copy_of_the_vectors():
    result = top_eigenpairs(np.diag(np.arange(50.0)), 3, "LA")
    assert result.vectors.base.nbytes == 3 * 50 * 8


def test_no_more_memory_than_the_basis_the_result_and_a_few_vectors():
    n = 20_000
    operator = diagonal_operator(np.concatenate([np.linspace(-1, 1, n - 10), np.arange(2.0, 12)]))
    tracemalloc.start()
    top_eigenpairs(operator, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= (21 + 2 + 8) * 8 * n  # 20 rows and one pending, 2 results, products


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 31}, "k must be at most 30, got 31"),
        ({"which": "SM"}, "which must be one of 'LM', 'LA', 'SA', 'BE', got 'SM'"),
        ({"tolerance": 0.0}, "tolerance must be greater than 0"),
        ({"tolerance": np.nan}, "tolerance must be finite"),
        ({"subspace": 5}, r"subspace must be at least k \+ 2 block_size \+ 1 or n, here 6, got 5"),
        ({"subspace": 31}, "subspace must be at most 30"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"max_products": 5}, "max_products must be at least 6, got 5"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"start": np.ones(29)}, r"start must have shape \(30,\)"),
        ({"start": np.ones((30, 2))}, r"start must have shape \(30,\)"),
        ({"start": np.ones((30, 3)), "block_size": 2}, r"start must have shape \(30, 2\)"),
        ({"start": np.zeros(30)}, "start must not be zero"),
        ({"start": np.full(30, np.inf)}, "start must be finite"),
    ],
)
def test_values_out_of_range_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(np.eye(30), **{"k": 3, **arguments})


@pytest.mark.parametrize("function", [top_eigenpairs, power_iteration])
def test_operators_that_are_none_are_refused(function):
    with pytest.raises(ValueError, match=r"must be square, got shape \(3, 4\)"):
        function(np.ones((3, 4)))
    with pytest.raises(TypeError, match="must be real"):
        function(np.eye(3) * 1j)
    with pytest.raises(TypeError, match="must be a LinearOperator"):
        function("matrix")
    with pytest.raises(TypeError, match="products are complex"):
        function(LinearOperator((3, 3), matvec=lambda v: v * 1j, dtype=np.float64))
    for bad in (np.nan, np.inf):
        with pytest.raises(FloatingPointError, match="not finite at step 1"):
            function(np.diag([1.0, bad, 2.0]))
    with pytest.raises(TypeError, match="start must be real"):
        function(np.eye(3), start=np.ones(3) * 1j)


def test_types_are_refused():
    with pytest.raises(TypeError, match="k must be an integer"):
        top_eigenpairs(np.eye(3), 1.5)
    with pytest.raises(TypeError, match="tolerance must be a real number"):
        top_eigenpairs(np.eye(3), tolerance="small")


def test_a_basis_that_does_not_fit_is_refused_before_the_first_product():
    def product(v):
        raise RuntimeError("multiplied")

    operator = LinearOperator((10**10, 10**10), matvec=product, dtype=float)
    with pytest.raises(MemoryError, match=r"basis 1,5\d\d\.\d GiB"):
        top_eigenpairs(operator, 3)
