"""Eigenpairs: the right ones, as often as they are there, with residuals that are true."""

import io
import tracemalloc
import warnings
from functools import cache

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
from scipy.sparse.linalg import LinearOperator, eigsh

from spectral_density.linalg import thick_restart
from spectral_density.linalg.eigen import ConvergenceWarning, top_eigenpairs
from spectral_density.linalg.power import power_iteration
from spectral_density.linalg.thick_restart import EigenState

pytestmark = pytest.mark.filterwarnings("error")

WHICH = ("LM", "LA", "SA", "BE")
POLYNOMIAL = np.array([[12.0, 18.0], [18.0, 12.0]])  # Hessian of 2 x^3 y^3 at (1, 1)


def wanted(eigenvalues, k, which):
    """The eigenvalues that are asked for, in the documented order."""
    values = np.sort(eigenvalues)
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")][:k]
    if which == "LA":
        return values[::-1][:k]
    low = k if which == "SA" else k // 2
    return np.concatenate([values[:low], values[len(values) - (k - low) :]])


@cache
def dense(name):
    """The matrix of a spectrum, made once."""
    return dense_symmetric(SPECTRA[name])


def assert_exact(result, matrix, eigenvalues, k, which, limit=1e-12):
    """Compare values, residuals and vectors with what is known; `limit` is relative to ||A||."""
    norm = np.abs(eigenvalues).max()
    expected = wanted(eigenvalues, k, which)
    values = result.values
    if which == "LM":  # of l and -l either is right
        expected, values = np.abs(expected), np.abs(values)
    assert np.abs(values - expected).max() <= limit * norm
    assert result.vectors.shape == (len(eigenvalues), k)
    assert orthogonality_error(result.vectors.T) <= 1e-14
    true = np.linalg.norm(matrix @ result.vectors - result.vectors * result.values, axis=0)
    np.testing.assert_allclose(result.residuals, true, atol=max(limit * norm, 0.0))
    assert result.converged.all()
    assert result.complete
    assert (result.residuals <= result.tolerance * result.norm).all()
    assert result.norm <= norm * (1 + 1e-6)


SPECTRA = {
    "semicircle": semicircle_with_outliers(100),
    "log_uniform": log_uniform_bulk(100),
    "indefinite": np.concatenate([-np.geomspace(1e-3, 9, 40), np.geomspace(1e-3, 10, 60)]),
    "triple": np.concatenate([[5.0, 5.0, 5.0], np.linspace(-1, 1, 77)]),
    "double_at_the_edge": np.concatenate([[6.0, 5.0, 4.0, 4.0, 3.0], np.linspace(-2, 2, 75)]),
    "plus_and_minus": np.concatenate([np.repeat([3.0, -3.0], 4), np.linspace(-1, 1, 72)]),
    "cluster": np.concatenate([1 + 1e-10 * np.arange(3), np.linspace(-0.5, 0.5, 77)]),
    "identity": np.ones(50),
    "zero": np.zeros(50),
    "rank_two": rank_two(60),
    "three_distinct": distinct_eigenvalues(3, 60),
    "twenty_distinct": distinct_eigenvalues(20, 100),
}


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


def test_the_probability_of_a_miss_is_a_bound(monkeypatch):
    # The first Krylov space has one of two equal eigenvalues, so the second must find the other.
    # That ends as soon as it may, and yet misses less often than it may.
    eigenvalues = np.concatenate([[2.0, 2.0], np.linspace(-1, 1, 98)])
    operator = diagonal_operator(eigenvalues)
    missed = {}
    for probability in (0.5, 1e-4):
        monkeypatch.setattr(thick_restart, "MISS_PROBABILITY", probability)
        results = [top_eigenpairs(operator, 2, "LA", tolerance=1e-4, seed=s) for s in range(30)]
        missed[probability] = np.mean([abs(r.values[1] - 2.0) > 1e-3 for r in results])
    assert missed[1e-4] == 0
    assert missed[0.5] <= 0.5 + 2 * np.sqrt(0.25 / 30)


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


def single_precision(matrix, dtype=np.float32):
    """The operator whose products are computed in float32, whatever dtype it states."""
    matrix = matrix.astype(np.float32)
    return LinearOperator(matrix.shape, matvec=lambda v: matrix @ v.astype(np.float32), dtype=dtype)


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


def bits(result):
    return [result.values, result.vectors, result.residuals, result.converged]


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


def saved(state):
    """What a file would hold of it."""
    file = io.BytesIO()
    np.savez(file, **state.arrays())
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4},
        {"k": 3, "which": "BE", "block_size": 2},
        {"k": 3, "which": "LA", "tolerance": 1e-17},  # goes through every attempt to improve
        {"k": 4, "which": "SA", "max_products": 60},  # ends before it is done
    ],
)
def test_a_run_resumed_after_any_step_ends_with_the_same_bits(options):
    matrix = dense("triple")
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        whole = top_eigenpairs(matrix, **options, callback=lambda s: files.append(saved(s)))
        for file in files[:: max(1, len(files) // 12)] + files[-3:]:
            # A file of numbers and text: no pickle.
            with np.load(io.BytesIO(file), allow_pickle=False) as arrays:
                state = EigenState.from_arrays(arrays)
            result = top_eigenpairs(matrix, **options, resume=state)
            assert result.num_products == whole.num_products
            for a, b in zip(bits(result), bits(whole), strict=True):
                np.testing.assert_array_equal(a, b)
    assert len(files) > 20


def test_a_run_that_ran_out_of_products_goes_on_to_the_bits_of_one_that_did_not():
    matrix = dense("semicircle")
    whole = top_eigenpairs(matrix, 5)
    files = []
    with pytest.warns(ConvergenceWarning):
        top_eigenpairs(matrix, 5, max_products=20, callback=lambda s: files.append(saved(s)))
    with np.load(io.BytesIO(files[-1])) as arrays:
        result = top_eigenpairs(matrix, 5, resume=EigenState.from_arrays(arrays))
    assert result.num_products == whole.num_products
    np.testing.assert_array_equal(result.vectors, whole.vectors)


def test_the_callback_sees_every_step():
    seen = []
    matrix = dense("semicircle")
    result = top_eigenpairs(
        matrix, 3, callback=lambda s: seen.append((s.steps, s.num_products, s.values, repr(s)))
    )
    assert [s[0] for s in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] + 3 == result.num_products
    np.testing.assert_allclose(seen[-1][2], result.values, rtol=1e-13)
    assert "EigenState(LM, k=3, n=100" in seen[-1][3]


def test_saved_arrays_are_views_that_cannot_be_written():
    states = []
    top_eigenpairs(np.diag(np.arange(9.0)), 2, callback=states.append)
    arrays = states[0].arrays()
    assert np.shares_memory(arrays["basis"], states[0].basis)
    with pytest.raises(ValueError, match="read-only"):
        arrays["basis"][0] = 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"k": 2}, "k"),
        ({"which": "LA"}, "which"),
        ({"seed": 1}, "seed"),
        ({"tolerance": 1e-3}, "tolerance"),
        ({"subspace": 25}, "subspace"),
        ({"block_size": 2}, "block_size"),
    ],
)
def test_a_state_of_another_problem_is_refused_by_name(change, name):
    states = []
    matrix = np.diag(np.arange(30.0))
    top_eigenpairs(matrix, 3, callback=states.append)
    with pytest.raises(ValueError, match=f"another problem: its {name} is"):
        top_eigenpairs(matrix, **{"k": 3, **change}, resume=states[0])
    with pytest.raises(ValueError, match="its size is 30, not 40"):
        top_eigenpairs(np.eye(40), 3, resume=states[0])


def test_arrays_that_are_no_state_are_refused():
    states = []
    top_eigenpairs(np.diag(np.arange(30.0)), 3, callback=states.append)
    arrays = states[0].arrays()
    with pytest.raises(ValueError, match="basis missing"):
        EigenState.from_arrays({k: v for k, v in arrays.items() if k != "basis"})
    with pytest.raises(ValueError, match="must have shapes"):
        EigenState.from_arrays({**arrays, "basis": arrays["basis"][:-1]})
    with pytest.raises(ValueError, match="pass start or resume"):
        top_eigenpairs(np.eye(30), 3, resume=states[0], start=np.ones(30))
    with pytest.raises(TypeError, match="resume must be an EigenState, got dict"):
        top_eigenpairs(np.eye(30), 3, resume=arrays)


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


# Power iteration


def test_power_iteration_finds_thirty_for_the_polynomial():
    result = power_iteration(POLYNOMIAL)
    assert result.converged
    assert abs(result.value - 30) <= 1e-12
    assert (
        abs(result.residual - np.linalg.norm(POLYNOMIAL @ result.vector - 30 * result.vector))
        <= 1e-12
    )
    np.testing.assert_allclose(np.abs(result.vector), np.sqrt(0.5), rtol=1e-9)
    assert "PowerIteration(30, residual" in repr(result)
    np.testing.assert_allclose(top_eigenpairs(POLYNOMIAL, 2).values, [30, -6], rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-300, 1e-8, -1.0, 1e8, 1e300])
def test_power_iteration_keeps_sign_and_scale(scale):
    result = power_iteration(scale * np.diag([1.0, 2.0, -5.0, 3.0]))
    assert result.converged
    np.testing.assert_allclose(result.value, -5 * scale, rtol=1e-12)


def test_power_iteration_of_the_zero_matrix_and_of_one_row():
    zero = power_iteration(np.zeros((4, 4)))
    assert (zero.value, zero.residual, zero.converged, zero.num_products) == (0.0, 0.0, True, 1)
    one = power_iteration(np.array([[-3.0]]))
    assert (one.value, one.converged, one.num_products) == (-3.0, True, 1)
    assert power_iteration(np.eye(7)).num_products == 1


def test_power_iteration_says_when_two_signs_keep_it_from_converging():
    with pytest.warns(ConvergenceWarning, match=r"both 4 and -4 are eigenvalues.*top_eigenpairs"):
        result = power_iteration(np.diag([4.0, -4.0, 1.0, 2.0]))
    assert not result.converged
    assert result.num_products < 100
    assert result.residual > 0.1


def test_power_iteration_says_when_products_run_out():
    with pytest.warns(ConvergenceWarning, match="not converged in 20 products.*raise max_products"):
        result = power_iteration(np.diag([1.0, 0.99, 0.5]), max_products=20)
    assert not result.converged
    assert result.num_products == 20
    assert np.abs(result.value - np.array([1.0, 0.99, 0.5])).min() <= result.residual


def test_power_iteration_repeats_and_takes_a_start():
    matrix = dense("triple")
    a, b = power_iteration(matrix, seed=2), power_iteration(matrix, seed=2)
    np.testing.assert_array_equal(a.vector, b.vector)
    assert abs(a.value - 5) <= 1e-12
    given = power_iteration(matrix, start=1e200 * a.vector)
    assert given.num_products <= 2
    single = power_iteration(single_precision(matrix))
    assert single.converged
    assert abs(single.value - 5) <= 1e-5


def test_a_basis_that_does_not_fit_is_refused_before_the_first_product():
    def product(v):
        raise RuntimeError("multiplied")

    operator = LinearOperator((10**10, 10**10), matvec=product, dtype=float)
    with pytest.raises(MemoryError, match=r"basis 1,5\d\d\.\d GiB"):
        top_eigenpairs(operator, 3)
