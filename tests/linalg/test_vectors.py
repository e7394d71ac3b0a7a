"""Algorithms on vectors of JAX and TensorFlow, against NumPy's float64 and known spectra."""

import pickle
from functools import partial

import numpy as np
import pytest
from cases import (
    dense_symmetric,
    diagonal_operator,
    distinct_eigenvalues,
    log_uniform_bulk,
    orthogonality_error,
    rank_two,
    semicircle_with_outliers,
    spread,
)
from device_operators import jax_operator, tensorflow_operator

import spectral_density as sd
from spectral_density.checkpoint import CheckpointError
from spectral_density.linalg import (
    ConvergenceWarning,
    EigenState,
    gauss_quadrature,
    lanczos,
    power_iteration,
    start_vector,
    top_eigenpairs,
)
from spectral_density.linalg.vectors import HostBases, HostVectors, Rows, vectors_of

ENGINES = {
    "jax": jax_operator,
    "tensorflow float32": partial(tensorflow_operator, dtype="float32"),
    "tensorflow float64": tensorflow_operator,
}
every_engine = pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
float32_engines = pytest.mark.parametrize(
    "make", [make for name, make in ENGINES.items() if "64" not in name]
)


def rounding(operator):
    return float(np.finfo(operator.vectors.dtype).eps)


def orthogonality(operator):
    return 1e-6 if operator.vectors.dtype == np.float32 else 1e-14


# Lanczos


@every_engine
@pytest.mark.parametrize("case", [semicircle_with_outliers, log_uniform_bulk])
def test_lanczos_has_the_coefficients_and_basis_of_float64(make, case):
    operator = make(case())
    found = lanczos(operator, 40)
    expected = lanczos(diagonal_operator(operator.entries), 40)
    eps, size = rounding(operator), spread(operator.entries)
    np.testing.assert_allclose(found.alpha, expected.alpha, atol=10 * eps * size)
    np.testing.assert_allclose(found.beta, expected.beta, atol=10 * eps * size)
    assert operator.num_products == 40
    assert found.alpha.dtype == np.float64
    assert found.basis.dtype == operator.vectors.dtype
    assert orthogonality_error(found.basis[0]) <= orthogonality(operator)
    v = found.basis[0].T.astype(np.float64)
    rest = operator.entries[:, np.newaxis] * v - v @ found.tridiagonal()
    np.testing.assert_allclose(rest[:, :-1], 0, atol=10 * eps * size)
    np.testing.assert_allclose(np.linalg.norm(rest[:, -1]), found.residual_norms[0], rtol=1e-5)


@every_engine
@pytest.mark.parametrize("case", [log_uniform_bulk, partial(distinct_eigenvalues, 7)])
def test_full_order_recovers_the_spectrum_and_an_orthonormal_basis(make, case):
    operator = make(dense_symmetric(case(n=60)))
    found = lanczos(operator, 60)
    expected = np.linalg.eigvalsh(operator.entries)
    eps = rounding(operator)
    values = np.linalg.eigvalsh(found.tridiagonal())
    np.testing.assert_allclose(values, expected, atol=20 * eps * spread(expected))
    assert orthogonality_error(found.basis[0]) <= orthogonality(operator)


@every_engine
def test_the_basis_of_long_vectors_is_orthonormal(make):
    operator = make(log_uniform_bulk(400_000))
    found = lanczos(operator, 25)
    limit = 1e-6 if operator.vectors.dtype == np.float32 else 1e-13
    assert orthogonality_error(found.basis[0]) <= limit


@every_engine
def test_start_vectors_are_those_of_numpy(make):
    operator = make(log_uniform_bulk(300))
    found = lanczos(operator, 3, num_draws=2, seed=5, first_draw=4)
    for draw in range(2):
        expected = start_vector(300, 5, 4 + draw).astype(operator.vectors.dtype)
        np.testing.assert_array_equal(found.basis[draw, 0], expected)
    given = np.linspace(1, 2, 300)
    first = lanczos(operator, 3, start=given).basis[0, 0]
    np.testing.assert_allclose(first, given / np.linalg.norm(given), rtol=4 * rounding(operator))


@every_engine
def test_draws_in_lockstep_are_those_made_one_by_one(make):
    operator = make(semicircle_with_outliers(300))
    together = lanczos(operator, 20, num_draws=5)
    for options in ({"draws_at_once": 1}, {"draws_at_once": 2, "keep_basis": False}):
        other = lanczos(operator, 20, num_draws=5, **options)
        atol = 100 * rounding(operator)
        np.testing.assert_allclose(other.alpha, together.alpha, atol=atol)
        assert (other.basis is None) == ("keep_basis" in options)


@every_engine
def test_without_reorthogonalization_the_first_steps_are_the_same(make):
    operator = make(semicircle_with_outliers(1000))
    short = lanczos(operator, 8, reorthogonalize="none")
    assert short.basis is None
    atol = 100 * rounding(operator)
    np.testing.assert_allclose(short.alpha, lanczos(operator, 8).alpha, atol=atol)
    long = lanczos(operator, 60, reorthogonalize="none")
    rule = gauss_quadrature(long.alpha[0], long.beta[0])
    expected = operator.entries**2 @ start_vector(1000) ** 2
    np.testing.assert_allclose(rule.nodes**2 @ rule.weights, expected, rtol=1e-5)


@every_engine
@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_basis_on_the_host_has_the_bits_of_numpy(make, where):
    operator = make(log_uniform_bulk(300))
    found = lanczos(operator, 15, num_draws=2, basis=where)
    expected = lanczos(diagonal_operator(operator.entries), 15, num_draws=2)
    assert found.basis.dtype == np.float64
    np.testing.assert_array_equal(found.basis, expected.basis)
    np.testing.assert_array_equal(found.alpha, expected.alpha)


@every_engine
def test_until_ends_a_run_and_its_basis(make):
    operator = make(log_uniform_bulk(300))
    found = lanczos(operator, 30, until=lambda step: step.step == 7)
    assert found.basis.shape == (1, 7, 300)
    np.testing.assert_array_equal(found.alpha, lanczos(operator, 7).alpha)


def stop_after(step):
    def callback(record):
        if record.step == step:
            raise KeyboardInterrupt

    return callback


@every_engine
@pytest.mark.parametrize(
    "options", [{}, {"num_draws": 3}, {"reorthogonalize": "none"}, {"keep_basis": False}]
)
def test_a_killed_run_goes_on_to_the_bits_of_an_undisturbed_one(make, options, tmp_path):
    operator = make(dense_symmetric(log_uniform_bulk(80)))
    expected = lanczos(operator, 20, **options)
    for step in (4, 13):
        with pytest.raises(KeyboardInterrupt):
            lanczos(operator, 20, checkpoint=tmp_path, callback=stop_after(step), **options)
    before = operator.num_products
    found = lanczos(operator, 20, checkpoint=tmp_path, **options)
    num_draws = options.get("num_draws", 1)
    assert operator.num_products - before == 7 * num_draws + 1
    for name in ("alpha", "beta", "residual_norms"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    if expected.basis is not None:
        np.testing.assert_array_equal(found.basis, expected.basis)


@float32_engines
def test_a_checkpoint_of_another_place_is_refused(make, tmp_path):
    operator = make(log_uniform_bulk(100))
    lanczos(operator, 4, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match='vectors is not given and was "float32 on cpu'):
        lanczos(operator, 6, checkpoint=tmp_path, basis="host", basis_dtype="float32")


@float32_engines
def test_the_scale_of_the_matrix_does_not_matter(make):
    eigenvalues = semicircle_with_outliers(500)
    plain = lanczos(make(eigenvalues), 12)
    for power in (-100, 90):
        scale = 2.0**power
        scaled = lanczos(make(scale * eigenvalues), 12)
        np.testing.assert_allclose(scaled.alpha / scale, plain.alpha, atol=1e-5)
        assert orthogonality_error(scaled.basis[0]) <= 1e-6


@every_engine
def test_a_product_that_is_not_finite_is_an_error(make):
    eigenvalues = log_uniform_bulk(50)
    eigenvalues[7] = np.nan
    with pytest.raises(FloatingPointError, match="not finite at step 1 of draw 1"):
        lanczos(make(eigenvalues), 5, first_draw=1)
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        top_eigenpairs(make(eigenvalues), 1)
    eigenvalues[7] = np.inf
    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        power_iteration(make(eigenvalues))


@every_engine
def test_an_operator_that_is_not_symmetric_is_an_error(make):
    matrix = np.triu(dense_symmetric(log_uniform_bulk(40)))
    with pytest.raises(ValueError, match="not symmetric"):
        lanczos(make(matrix), 10)


@every_engine
def test_memory_is_checked_where_the_vectors_are(make, monkeypatch):
    operator = make(log_uniform_bulk(1000))
    monkeypatch.setattr(type(operator.vectors), "free_bytes", lambda self: 100_000)
    place = operator.vectors.place.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(MemoryError, match=f"are free on {place}. basis='host' keeps it"):
        lanczos(operator, 90)
    with pytest.raises(MemoryError, match=f"basis after a restart .* are free on {place}"):
        top_eigenpairs(operator, 10)
    assert not operator.num_products
    monkeypatch.setattr(type(operator.vectors), "free_bytes", lambda self: None)
    assert lanczos(operator, 3).order == 3
    monkeypatch.undo()
    assert operator.vectors.free_bytes() > 1e6


@float32_engines
def test_a_basis_finer_than_the_vectors_is_refused(make):
    with pytest.raises(ValueError, match=r"basis_dtype is float64, and the vectors on .* float32"):
        lanczos(make(log_uniform_bulk(50)), 3, basis_dtype="float64")


def test_a_basis_may_be_coarser_than_the_vectors():
    operator = tensorflow_operator(log_uniform_bulk(300))
    found = lanczos(operator, 30, basis_dtype="float32")
    assert found.basis.dtype == np.float32
    assert orthogonality_error(found.basis[0]) <= 1e-6


def test_vectors_of_another_length_are_refused():
    operator = jax_operator(log_uniform_bulk(50))
    operator.vectors = jax_operator(log_uniform_bulk(60)).vectors
    with pytest.raises(ValueError, match="has 50 rows, and its vectors 60 entries"):
        lanczos(operator, 3)


def test_other_operators_have_vectors_of_numpy():
    operator = jax_operator(log_uniform_bulk(50))
    assert isinstance(vectors_of(operator + operator), HostVectors)
    assert isinstance(vectors_of(diagonal_operator(np.ones(3))), HostVectors)
    assert lanczos(operator + operator, 3).basis.dtype == np.float64


@every_engine
def test_the_spectrum_is_that_of_numpy(make):
    operator = make(log_uniform_bulk(1000))
    found = sd.estimate_spectrum(operator, 30, 3)
    expected = sd.estimate_spectrum(diagonal_operator(operator.entries), 30, 3)
    np.testing.assert_allclose(found.alpha, expected.alpha, atol=1e-4)
    np.testing.assert_array_equal(found.simple[:, -5:], expected.simple[:, -5:])
    np.testing.assert_allclose(found.nodes[:, [0, -1]], expected.nodes[:, [0, -1]], atol=1e-4)
    coarse = sd.estimate_spectrum(operator, tolerance=0.02)
    assert coarse.accuracy.total <= 0.02


@every_engine
def test_a_result_is_pickled_with_vectors_of_numpy(make):
    found = lanczos(make(log_uniform_bulk(300)), 30, until=lambda step: step.step == 7)
    again = pickle.loads(pickle.dumps(found))
    assert isinstance(again.bases, HostBases)
    np.testing.assert_array_equal(again.basis, found.basis)
    np.testing.assert_array_equal(again.alpha, found.alpha)
    assert repr(again) == repr(found)


# Eigenpairs


@every_engine
@pytest.mark.parametrize("which", ["LM", "BE"])
def test_eigenpairs_are_those_of_the_matrix(make, which):
    operator = make(dense_symmetric(semicircle_with_outliers(200)))
    found = top_eigenpairs(operator, 4, which)
    values = np.linalg.eigvalsh(operator.entries)
    expected = values[{"LM": [-4, -3, -2, -1], "BE": [0, 1, -2, -1]}[which]]
    size = spread(values)
    np.testing.assert_allclose(np.sort(found.values), expected, atol=20 * rounding(operator) * size)
    assert found.converged.all()
    assert found.vectors.dtype == np.float64
    assert orthogonality_error(found.vectors.T) <= orthogonality(operator)
    true = np.linalg.norm(operator.entries @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(true, found.residuals, atol=20 * rounding(operator) * size)


@every_engine
def test_multiple_eigenvalues_come_as_often_as_they_are_there(make):
    operator = make(np.concatenate([np.full(5, 3.0), np.linspace(-1, 1, 300)]))
    found = top_eigenpairs(operator, 6)
    np.testing.assert_allclose(found.values[:5], 3, atol=1e-5)
    assert abs(found.values[5]) <= 1 + 1e-5
    assert found.complete


@every_engine
def test_few_rows_and_all_pairs_of_a_small_matrix(make):
    eigenvalues = log_uniform_bulk(12)
    found = top_eigenpairs(make(dense_symmetric(eigenvalues)), 12, "LA")
    np.testing.assert_allclose(found.values, eigenvalues[::-1], atol=2e-4)


@float32_engines
@pytest.mark.parametrize("block_size", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_eigenpairs_go_on_from_a_checkpoint_and_from_arrays_to_the_same_bits(
    make, block_size, tmp_path
):
    operator = make(dense_symmetric(log_uniform_bulk(150)))
    options = {"which": "BE", "block_size": block_size}
    expected = top_eigenpairs(operator, 5, **options)
    states = []

    def keep(state):
        states.append({name: np.array(value) for name, value in state.arrays().items()})

    with pytest.warns(ConvergenceWarning):
        top_eigenpairs(operator, 5, max_products=60, checkpoint=tmp_path, callback=keep, **options)
    vectors = operator.vectors
    resumed = EigenState.from_arrays(states[-1], vectors=vectors)
    for again in ({"checkpoint": tmp_path}, {"resume": resumed}):
        found = top_eigenpairs(operator, 5, **again, **options)
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.vectors, expected.vectors)
    elsewhere = EigenState.from_arrays(states[-1])
    with pytest.raises(ValueError, match=r"vectors on host in float64.*vectors=operator\.vectors"):
        top_eigenpairs(operator, 5, resume=elsewhere, **options)


@every_engine
def test_the_power_method_finds_the_largest_eigenvalue(make):
    operator = make(log_uniform_bulk(400))
    found = power_iteration(operator)
    assert found.converged
    np.testing.assert_allclose(found.value, 50, rtol=1e-5)
    assert found.vector.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(found.vector), 1, rtol=1e-6)
    with pytest.warns(ConvergenceWarning, match="both 3 and -3 are eigenvalues"):
        power_iteration(make(np.array([3.0, -3.0, 1.0])))
    assert not power_iteration(make(np.zeros(5))).value


# Estimates


METHODS = [
    (sd.trace, "xtrace"),
    (sd.trace, "hutch++"),
    (sd.trace, "hutchinson"),
    (sd.frobenius_norm, "xtrace"),
    (sd.frobenius_norm, "hutchinson"),
]


@every_engine
@pytest.mark.parametrize(("estimate", "method"), METHODS)
@pytest.mark.parametrize("case", [log_uniform_bulk, rank_two])
def test_estimates_are_those_of_numpy(make, estimate, method, case):
    operator = make(case(n=200))
    precise = operator.vectors.dtype == np.float64
    found = estimate(operator, method=method, num_products=40)
    same = diagonal_operator(operator.entries, operator.vectors.dtype)
    expected = estimate(same, method=method, num_products=40)
    assert operator.num_products == found.num_products == expected.num_products
    size = np.abs(operator.entries).sum()
    np.testing.assert_allclose(
        found.value, expected.value, atol=(1e-12 if precise else 1e-6) * size
    )
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-3)


@every_engine
@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_a_sample_that_grows_is_that_of_numpy(make, method):
    operator = make(semicircle_with_outliers(400))
    options = {"method": method, "num_products": 20, "tolerance": 0.1, "max_products": 100}
    found = sd.trace(operator, **options)
    expected = sd.trace(diagonal_operator(operator.entries), **options)
    assert found.num_products == expected.num_products > 45
    np.testing.assert_allclose(found.value, expected.value, atol=1e-4)


@every_engine
def test_a_sketch_of_a_zero_matrix_and_of_one_that_is_not_symmetric(make):
    assert sd.trace(make(np.zeros(200))).value == 0
    with pytest.raises(ValueError, match="not symmetric"):
        sd.trace(make(np.triu(np.ones((200, 200)))))


@every_engine
@pytest.mark.parametrize("method", ["diag++", "hutchinson"])
@pytest.mark.parametrize("options", [{}, {"tolerance": 1e-3, "max_products": 60}])
def test_the_diagonal_is_that_of_numpy(make, method, options):
    operator = make(dense_symmetric(log_uniform_bulk(150)))
    found = sd.diagonal(operator, method=method, num_products=20, **options)
    # An array of NumPy states the precision of its entries.
    same = operator.entries.astype(operator.vectors.dtype)
    expected = sd.diagonal(same, method=method, num_products=20, **options)
    assert operator.num_products == found.num_products == expected.num_products
    atol = 1e-12 if operator.vectors.dtype == np.float64 else 1e-4
    np.testing.assert_allclose(found.values, expected.values, atol=atol)
    np.testing.assert_allclose(found.standard_errors, expected.standard_errors, rtol=1e-3)
    assert found.values.dtype == found.standard_errors.dtype == np.float64
    if method == "diag++":
        truth = np.diag(operator.entries)
        assert np.mean(np.abs(found.values - truth) <= 4 * found.standard_errors) > 0.95


# The contract, engine by engine


@every_engine
def test_rows_are_combined_rotated_and_orthogonalized(make):
    n, capacity = 70, 37
    vectors = make(np.ones(n)).vectors
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((n, capacity)))[0].T.astype(vectors.dtype)
    rows: Rows = vectors.rows(capacity)
    for index, row in enumerate(basis):
        rows.write(index, vectors.to_engine(row))
    rows.write(20, vectors.to_engine(basis[20]))
    atol = 20 * float(np.finfo(vectors.dtype).eps)
    close = partial(np.testing.assert_allclose, atol=atol)
    wide = basis.astype(np.float64)
    np.testing.assert_array_equal(rows.to_host(5, 30), basis[30:35])
    v = rng.standard_normal(n).astype(vectors.dtype)
    on_device = vectors.to_engine(v)
    close(rows.project(on_device, 33), wide[:33] @ v)
    weights = rng.standard_normal(9)
    close(vectors.to_host(rows.combine(weights, 14)), weights @ wide[14:23])
    rest, along = rows.orthogonalize(on_device, 33)
    close(along, wide[:33] @ v)
    close(vectors.to_host(rest), v - (wide[:33] @ v) @ wide[:33])
    turn = np.linalg.qr(rng.standard_normal((20, 20)))[0][:, :7]
    rows.rotate(turn, 12)
    wide[12:19] = turn.T @ wide[12:32]
    close(rows.to_host(capacity), wide)


@every_engine
def test_vectors_are_scaled_and_subtracted_with_one_rounding(make):
    vectors = make(np.ones(1000)).vectors
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 1000)).astype(vectors.dtype).astype(np.float64)
    a, b = vectors.to_engine(x), vectors.to_engine(y)
    eps = float(np.finfo(vectors.dtype).eps)
    third = 1 / 3  # no float32 number
    np.testing.assert_allclose(vectors.to_host(vectors.scaled(a, third)), x / 3, rtol=eps)
    found = vectors.to_host(vectors.subtract(a, third, b))
    np.testing.assert_allclose(found, x - y / 3, atol=2 * eps)
    for divisor in (3.0, 2.0**-110, 2.0**110):
        found = vectors.to_host(vectors.divided(vectors.scaled(a, divisor), divisor))
        np.testing.assert_allclose(found, x, rtol=2 * eps)
    np.testing.assert_allclose(vectors.inner(a, b), x @ y, rtol=1e-12)
    np.testing.assert_allclose(vectors.norm(a), np.linalg.norm(x), rtol=1e-12)
    assert vectors.peak([a, b]) == max(abs(x).max(), abs(y).max())
