"""Traces, diagonals and norms against dense matrices; their errors against those stated."""

from functools import cache

import numpy as np
import pytest
import scipy.sparse
from cases import dense_symmetric, diagonal_operator, log_uniform_bulk
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.dense import BLOCK_COLUMNS
from spectral_density.linalg.estimates import DiagonalEstimate
from spectral_density.linalg.sampling import ROUNDING_UNITS
from spectral_density.linalg.sketch import RESIDUAL, gaussians
from spectral_density.linalg.traces import diagonal, frobenius_norm, trace

pytestmark = pytest.mark.filterwarnings("error")

SEEDS = 200
TRACE_METHODS = ("hutchinson", "hutch++", "xtrace")
METHODS = [
    *((trace, method) for method in TRACE_METHODS),
    *((frobenius_norm, method) for method in ("hutchinson", "xtrace")),
    *((diagonal, method) for method in ("hutchinson", "diag++")),
]
# The probes' directions are uniform on the sphere, so a diagonal matrix stands for all others.
SPECTRA = {
    "flat": np.linspace(1, 2, 300),
    "indefinite": np.linspace(-1, 1.2, 300),
    "i^-1": 1 / np.arange(1, 301.0),
    "i^-2": 1 / np.arange(1, 301.0) ** 2,
    "2^(-i/8)": 2.0 ** (-np.arange(300) / 8),
    "network": log_uniform_bulk(300),
}


def truth(function, matrix):
    """The exact value: of a dense matrix, or of the diagonal one with these eigenvalues."""
    matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
    return {
        trace: np.trace,
        frobenius_norm: np.linalg.norm,
        diagonal: np.diag,
    }[function](matrix)


def values_of(estimate):
    return estimate.values if isinstance(estimate, DiagonalEstimate) else estimate.value


def errors_of(estimate):
    diagonals = isinstance(estimate, DiagonalEstimate)
    return estimate.standard_errors if diagonals else estimate.standard_error


class Counted(LinearOperator):
    """A matrix whose products are counted, and how many passes over the data they took."""

    def __init__(self, matrix):
        super().__init__(matrix.dtype, matrix.shape)
        self.matrix = matrix
        self.products = 0
        self.widths = []

    def _matmat(self, block):
        self.products += block.shape[1]
        self.widths.append(block.shape[1])
        return self.matrix @ block

    def _matvec(self, vector):
        return self._matmat(vector.reshape(-1, 1))


# The error stated is the error made ---------------------------------------------------------------


@cache
def estimates(function, method, name, num_seeds=SEEDS):
    operator = diagonal_operator(SPECTRA[name])
    return [function(operator, method=method, seed=seed) for seed in range(num_seeds)]


def coverage(found, true):
    return np.mean([lower <= true <= upper for lower, upper in (e.interval() for e in found)])


@pytest.mark.parametrize(("function", "method"), METHODS[:5])
def test_the_interval_holds_the_truth_on_a_flat_spectrum(function, method):
    found = estimates(function, method, "flat")
    assert 0.92 <= coverage(found, truth(function, SPECTRA["flat"])) <= 0.98


@pytest.mark.parametrize(("function", "method"), METHODS[:5])
def test_the_interval_holds_the_truth_on_a_decaying_spectrum(function, method):
    found = estimates(function, method, "i^-2")
    assert coverage(found, truth(function, SPECTRA["i^-2"])) >= 0.88


@pytest.mark.parametrize("name", ["indefinite", "i^-1", "2^(-i/8)", "network"])
def test_the_error_of_xtrace_is_the_one_made_whatever_the_spectrum(name):
    found = estimates(trace, "xtrace", name, 60)
    error = np.array([e.value for e in found]) - SPECTRA[name].sum()
    stated = np.sqrt(np.mean([e.standard_error**2 for e in found]))
    assert 0.7 <= stated / np.sqrt(np.mean(error**2)) <= 1.4
    assert coverage(found, SPECTRA[name].sum()) >= 0.85


@pytest.mark.parametrize("method", ["hutchinson", "diag++"])
@pytest.mark.parametrize("name", ["flat", "i^-2"])
def test_the_intervals_of_a_diagonal_hold_95_percent_of_it(method, name):
    matrix = dense_symmetric(SPECTRA[name][:200])
    intervals = [diagonal(matrix, method=method, seed=seed).interval() for seed in range(20)]
    inside = [(low <= np.diag(matrix)) & (np.diag(matrix) <= high) for low, high in intervals]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_hutch_plus_plus_and_xtrace_err_50_times_less_than_hutchinson():
    eigenvalues = 1 / np.arange(1, 1001.0) ** 2
    operator = diagonal_operator(eigenvalues)

    def error(method):
        found = [trace(operator, method=method, seed=seed).value for seed in range(30)]
        return np.sqrt(np.mean((np.array(found) - eigenvalues.sum()) ** 2))

    hutchinson, *others = map(error, TRACE_METHODS)
    expected = np.sqrt(2 / 90 * (np.sum(eigenvalues**2) - eigenvalues.sum() ** 2 / 1000))
    assert 0.7 <= hutchinson / expected <= 1.3
    assert max(others) <= hutchinson / 50


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_the_error_does_not_depend_on_the_eigenvectors(method):
    eigenvalues = SPECTRA["i^-2"][:200]
    matrices = dense_symmetric(eigenvalues), np.diag(eigenvalues)
    dense, plain = (
        np.std([trace(matrix, method=method, seed=seed).value for seed in range(60)])
        for matrix in matrices
    )
    assert 0.7 <= dense / plain <= 1.4


@pytest.mark.parametrize(("function", "method"), [METHODS[4], METHODS[6]])
def test_the_sketch_pays_for_norms_and_diagonals_too(function, method):
    matrix = dense_symmetric(SPECTRA["i^-2"])
    true = truth(function, matrix)
    plain, better = (
        np.mean(
            [np.linalg.norm(values_of(function(matrix, method=m, seed=s)) - true) for s in range(5)]
        )
        for m in ("hutchinson", method)
    )
    assert better <= plain / 50


# Exact where it can be ----------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "method"), METHODS)
@pytest.mark.parametrize("size", [1, 2, 17, 40])
def test_as_many_products_as_rows_are_exact(function, method, size):
    operator = Counted(dense_symmetric(np.linspace(-1, 3, size)))
    found = function(operator, method=method, num_products=40)
    np.testing.assert_allclose(values_of(found), truth(function, operator.matrix), atol=1e-13)
    assert found.num_products == operator.products == size
    assert np.all(errors_of(found) <= 1e-12)
    assert found.converged is None


@pytest.mark.parametrize(("function", "method"), METHODS)
@pytest.mark.parametrize(
    "eigenvalues",
    {
        "zero": np.zeros(200),
        "identity": np.ones(200),
        "minus identity": -np.ones(200),
        "rank one": np.eye(200)[0],
        "rank 20": np.concatenate([np.linspace(-5, 9, 20), np.zeros(180)]),
    }.values(),
    ids=["zero", "identity", "minus identity", "rank one", "rank 20"],
)
@pytest.mark.parametrize("dense", [False, True])
def test_what_a_sketch_holds_whole_is_exact_and_nothing_is_divided_by_zero(
    function, method, eigenvalues, dense
):
    flat = np.ptp(eigenvalues) == 0
    exact = method != "hutchinson" if not flat else method != "diag++" or not eigenvalues.any()
    matrix = dense_symmetric(eigenvalues) if dense else np.diag(eigenvalues)
    operator = matrix if dense else diagonal_operator(eigenvalues)
    true = truth(function, matrix)
    for seed in range(5):
        found = function(operator, method=method, seed=seed)
        assert np.all(np.isfinite(values_of(found)))
        assert np.all(np.isfinite(errors_of(found)))
        if exact:
            np.testing.assert_allclose(values_of(found), true, atol=1e-12)
            assert np.all(errors_of(found) <= 1e-11)
    if not eigenvalues.any():
        assert np.all(errors_of(found) == 0)


def test_hutchinson_recovers_a_diagonal_matrix():
    entries = np.random.default_rng(0).standard_normal(300)
    found = diagonal(scipy.sparse.diags_array(entries), method="hutchinson")
    np.testing.assert_allclose(found.values, entries, rtol=1e-12)
    assert found.relative_error <= 1e-13


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_a_scale_of_the_operator_is_one_of_the_result(function, method):
    eigenvalues = SPECTRA["network"][::2]
    one = function(diagonal_operator(eigenvalues), method=method)
    for scale in (1e-100, 1e-8, 1e8, 1e100):
        scaled = function(diagonal_operator(scale * eigenvalues), method=method)
        np.testing.assert_allclose(values_of(scaled) / scale, values_of(one), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(errors_of(scaled) / scale, errors_of(one), rtol=1e-4)


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_products_in_float32_show_in_the_error_and_not_beyond_it(function, method):
    eigenvalues = 4.0 ** -np.arange(200.0)
    matrix = dense_symmetric(eigenvalues).astype(np.float32)
    operator = LinearOperator(
        matrix.shape,
        matvec=lambda v: matrix @ v.astype(np.float32),
        matmat=lambda b: matrix @ b.astype(np.float32),
        dtype=np.float32,
    )
    true = truth(function, matrix.astype(np.float64))
    for seed in range(3):
        found = function(operator, method=method, seed=seed)
        error = np.linalg.norm(values_of(found) - true)
        stated = np.linalg.norm(errors_of(found))
        assert error <= 4 * stated
        if method != "hutchinson":
            assert 1e-8 <= stated / np.linalg.norm(true) <= 1e-4


# Growing samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_a_sample_goes_on_until_the_tolerance_is_met(function, method):
    eigenvalues = np.linspace(1, 2, 600)
    operator = Counted(np.diag(eigenvalues))
    tolerance = 0.03 if function is not diagonal else 0.5
    if (function, method) == (diagonal, "hutchinson"):
        operator = Counted(dense_symmetric(eigenvalues))
        tolerance = 0.1
    found = function(
        operator, method=method, num_products=10, tolerance=tolerance, max_products=590
    )
    assert found.converged is True
    assert found.relative_error <= tolerance
    assert 10 <= found.num_products == operator.products <= 590
    true = truth(function, operator.matrix)
    assert np.linalg.norm(values_of(found) - true) <= 2 * tolerance * np.linalg.norm(true)


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_a_sample_ends_when_its_products_are_used_up(function, method):
    operator = Counted(dense_symmetric(np.linspace(-1, 1.01, 300)))
    found = function(operator, method=method, num_products=20, tolerance=1e-6, max_products=71)
    assert found.converged is False
    assert 70 <= found.num_products == operator.products <= 71
    assert "tolerance not met" in str(found)
    assert max(operator.widths) <= BLOCK_COLUMNS


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_a_sample_that_grew_is_the_one_drawn_at_once(function, method):
    matrix = dense_symmetric(SPECTRA["i^-2"][:150])
    # 20, 30, 45, 60: each a sample that the one before is part of, in thirds as in halves.
    grown = function(matrix, method=method, num_products=20, tolerance=1e-12, max_products=60)
    once = function(matrix, method=method, num_products=60)
    assert grown.num_products == once.num_products == 60
    np.testing.assert_allclose(values_of(grown), values_of(once), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(errors_of(grown), errors_of(once), rtol=1e-6)


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_a_sample_that_would_pass_the_size_gives_way_to_the_identity(function, method):
    operator = Counted(dense_symmetric(np.linspace(-1, 1.5, 60)))
    found = function(operator, method=method, num_products=20, tolerance=1e-9, max_products=200)
    assert found.converged is True
    assert found.num_products == operator.products <= 120
    np.testing.assert_allclose(values_of(found), truth(function, operator.matrix), atol=1e-12)


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_stopping_at_the_tolerance_keeps_its_promise(method):
    eigenvalues = np.linspace(0, 1, 400) ** 4
    operator = diagonal_operator(eigenvalues)
    found = [
        trace(operator, method=method, num_products=20, tolerance=0.15, seed=seed, max_products=399)
        for seed in range(100)
    ]
    within = [abs(e.value / eigenvalues.sum() - 1) <= 0.15 for e in found if e.converged]
    assert len(within) >= 95
    assert np.mean(within) >= 0.92


# The same draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_the_seed_alone_decides_and_global_random_state_stays(function, method):
    operator = diagonal_operator(SPECTRA["network"])
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = function(operator, method=method, num_products=30, seed=4)
    second = function(operator, method=method, num_products=30, seed=4)
    other = function(operator, method=method, num_products=30, seed=5)
    np.testing.assert_array_equal(values_of(first), values_of(second))
    assert np.any(values_of(first) != values_of(other))
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_the_width_of_blocks_does_not_matter(function, method, monkeypatch):
    matrix = dense_symmetric(SPECTRA["i^-1"][:200])
    wide = function(matrix, method=method, num_products=50)
    monkeypatch.setattr("spectral_density.linalg.dense.BLOCK_COLUMNS", 3)
    narrow = function(matrix, method=method, num_products=50)
    np.testing.assert_allclose(values_of(narrow), values_of(wide), rtol=1e-10)
    np.testing.assert_allclose(errors_of(narrow), errors_of(wide), rtol=1e-8)


def test_arrays_sparse_matrices_and_operators_give_the_same():
    matrix = np.diag(SPECTRA["i^-1"][:200])
    found = {
        trace(form, num_products=30).value
        for form in (matrix, scipy.sparse.csr_array(matrix), Counted(matrix))
    }
    assert np.ptp(list(found)) <= 1e-13


def test_an_operator_that_returns_its_argument_is_left_alone():
    same = LinearOperator((50, 50), matvec=lambda v: v, matmat=lambda b: b, dtype=float)
    for function, method in METHODS[:-1]:
        found = function(same, method=method, num_products=20)
        true = truth(function, np.eye(50))
        np.testing.assert_allclose(values_of(found), true, rtol=1e-12)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [trace, frobenius_norm, diagonal])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "magic"}, ValueError, "method must be one of"),
        ({"method": None}, ValueError, "method must be one of"),
        ({"num_products": 1}, ValueError, "num_products must be at least"),
        ({"num_products": 9.0}, TypeError, "num_products must be an integer"),
        ({"num_products": True}, TypeError, "num_products must be an integer"),
        ({"tolerance": 0}, ValueError, "tolerance must be greater than 0"),
        ({"tolerance": -0.1}, ValueError, "tolerance must be greater than 0"),
        ({"tolerance": np.nan}, ValueError, "tolerance must be finite"),
        ({"tolerance": "1"}, TypeError, "tolerance must be a real number"),
        ({"max_products": 100}, ValueError, "give a tolerance"),
        ({"tolerance": 0.1, "max_products": 1}, ValueError, "max_products must be at least"),
        ({"tolerance": 0.1, "max_products": 1e3}, TypeError, "max_products must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ],
)
def test_bad_options_are_errors_at_once(function, options, error, match):
    operator = Counted(np.eye(200))
    with pytest.raises(error, match=match):
        function(operator, **options)
    assert operator.products == 0


@pytest.mark.parametrize(("function", "method"), METHODS)
def test_bad_operators_are_errors(function, method):
    with pytest.raises(ValueError, match="square"):
        function(np.ones((3, 4)), method=method)
    with pytest.raises(TypeError, match="real"):
        function(1j * np.eye(3), method=method)
    with pytest.raises(TypeError, match="LinearOperator"):
        function("matrix", method=method)
    for size in (3, 200):
        with pytest.raises(FloatingPointError, match="not finite"):
            function(np.full((size, size), np.nan), method=method)


@pytest.mark.parametrize(
    ("function", "method"), [pair for pair in METHODS if pair[1] != "hutchinson"]
)
def test_a_sketch_refuses_what_is_not_symmetric(function, method):
    matrix = np.random.default_rng(0).standard_normal((200, 200))
    with pytest.raises(ValueError, match="not symmetric"):
        function(matrix, method=method)


def rounding_only(n=300, seed=0):
    """A difference of two float32 matrices that are equal on paper: noise, and not symmetric."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n)).astype(np.float32)
    a = a + a.T

    def matmat(block):
        block = block.astype(np.float32)
        return ((a @ block) - (3 * a) @ (block / 3)).astype(np.float64)

    return LinearOperator((n, n), matvec=matmat, matmat=matmat, dtype=np.float64)


@pytest.mark.parametrize("method", ["xtrace", "hutchinson"])
def test_a_matrix_that_is_nothing_but_rounding_has_a_norm(method):
    assert 0 < frobenius_norm(rounding_only(), method=method, num_products=32).value < 1e-2


def test_a_matrix_that_is_nothing_but_rounding_has_a_trace():
    assert abs(trace(rounding_only(), num_products=32).value) < 1e-2


def test_the_standard_errors_of_the_diagonal_are_those_of_a_line_through_zero():
    a = dense_symmetric(log_uniform_bulk(30))
    found = diagonal(a, method="hutchinson", num_products=5, seed=3)
    probes = gaussians(30, 3, range(5), RESIDUAL)
    images = probes @ a
    squares = (probes**2).sum(axis=0)
    slopes = (probes * images).sum(axis=0) / squares
    variances = ((images - slopes * probes) ** 2).sum(axis=0) / (5 - 1) / squares
    np.testing.assert_allclose(found.values, slopes, rtol=1e-9)
    np.testing.assert_allclose(found.standard_errors, np.sqrt(variances), rtol=1e-9)
    assert found.degrees_of_freedom == 4


def test_rounding_is_all_the_error_there_is_of_a_multiple_of_the_identity():
    operator = diagonal_operator(np.full(400, 2.0), np.float32)
    rounding = ROUNDING_UNITS * np.finfo(np.float32).eps
    options = {"method": "hutchinson", "num_products": 20}
    assert trace(operator, **options).standard_error == pytest.approx(800 * rounding, rel=1e-3)
    assert frobenius_norm(operator, **options).standard_error == pytest.approx(
        40 * rounding, rel=1e-3
    )
