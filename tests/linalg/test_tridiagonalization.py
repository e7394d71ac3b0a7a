"""The recurrence: orthonormal, exact at full order, repeatable, and clear about bad input."""

import subprocess
import sys
import tracemalloc

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
    spread,
)
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg import lanczos, product_precision, start_vector

pytestmark = pytest.mark.filterwarnings("error")

SPECTRA = {
    "semicircle": semicircle_with_outliers(),
    "log_uniform": log_uniform_bulk(),
    "zero": np.zeros(400),
    "identity": np.ones(400),
    "rank_two": rank_two(400),
    **{f"{s}_distinct": distinct_eigenvalues(s, 400) for s in (1, 2, 3, 5, 20)},
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("products", [np.float64, np.float32])
@pytest.mark.parametrize(("basis_dtype", "limit"), [("float64", 1e-14), ("float32", 1e-6)])
def test_the_basis_is_orthonormal_whatever_the_spectrum(name, products, basis_dtype, limit):
    operator = diagonal_operator(SPECTRA[name], products)
    result = lanczos(operator, 300, basis_dtype=basis_dtype)
    assert result.basis.dtype == basis_dtype
    assert orthogonality_error(result.basis[0]) <= limit


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_basis_is_orthonormal_whatever_the_scale(scale):
    for name in ("log_uniform", "rank_two", "20_distinct"):
        result = lanczos(diagonal_operator(scale * SPECTRA[name]), 100)
        assert orthogonality_error(result.basis[0]) <= 1e-14


def full_order_error(matrix, operator):
    result = lanczos(operator, len(matrix), seed=3)
    v = result.basis[0].T
    return np.abs(v @ result.tridiagonal() @ v.T - matrix).max()


def test_full_order_recovers_the_exact_matrix():
    matrix = np.random.default_rng(0).standard_normal((60, 60))
    matrix += matrix.T
    norm = np.linalg.norm(matrix, 2)
    assert full_order_error(matrix, matrix) <= 1e-14 * norm
    assert full_order_error(matrix, scipy.sparse.csr_array(matrix)) <= 1e-14 * norm


@pytest.mark.parametrize("name", ["zero", "identity", "rank_two", "3_distinct", "20_distinct"])
def test_full_order_recovers_the_exact_matrix_past_breakdowns(name):
    matrix = dense_symmetric(SPECTRA[name][:60])
    assert full_order_error(matrix, matrix) <= 1e-13 * max(np.abs(SPECTRA[name]).max(), 1e-300)


@pytest.mark.parametrize("name", ["rank_two", "3_distinct", "20_distinct"])
def test_full_order_recovers_the_matrix_of_float32_products(name):
    matrix = dense_symmetric(SPECTRA[name][:60]).astype(np.float32)
    operator = LinearOperator(
        matrix.shape, matvec=lambda v: matrix @ v.astype(np.float32), dtype=np.float32
    )
    assert full_order_error(matrix, operator) <= 1e-6 * np.abs(SPECTRA[name]).max()


def test_one_row_is_its_own_spectrum():
    result = lanczos(np.array([[-3.0]]), 1, num_draws=2)
    np.testing.assert_array_equal(result.alpha, [[-3.0], [-3.0]])
    assert result.beta.shape == (2, 0)
    np.testing.assert_array_equal(result.residual_norms, 0.0)


def test_the_residual_norm_is_that_of_the_decomposition():
    eigenvalues = semicircle_with_outliers(500)
    result = lanczos(diagonal_operator(eigenvalues), 20)
    v = result.basis[0].T
    residual = eigenvalues[:, np.newaxis] * v - v @ result.tridiagonal()
    np.testing.assert_allclose(np.abs(residual[:, :-1]).max(), 0.0, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(residual), result.residual_norms[0], rtol=1e-12)


@pytest.mark.parametrize("products", [np.float64, np.float32])
def test_a_small_honest_beta_is_kept(products):
    # The start vector has next to nothing along the last direction, but something.
    start = np.array([1.0, 1.0, 1e-4])
    result = lanczos(diagonal_operator([1.0, 2.0, 3.0], products), 3, start=start)
    assert 0 < result.beta[0, 1] < 1e-3
    np.testing.assert_allclose(np.linalg.eigvalsh(result.tridiagonal()), [1, 2, 3], atol=1e-6)


def test_a_beta_of_rounding_only_is_zero_in_the_precision_of_the_products():
    class Rounded(LinearOperator):
        """Products good to float32, returned as float64."""

        def __init__(self, product_dtype):
            self.product_dtype = product_dtype
            self.diagonal = np.resize([1.0, 2.0], 50) + 1e-7 * np.arange(50) / 50
            super().__init__(np.float64, (50, 50))

        def _matvec(self, v):
            return self.diagonal * np.ravel(v)

    assert lanczos(Rounded("float64"), 4).beta[0, 1] > 0
    assert lanczos(Rounded("float32"), 4).beta[0, 1] == 0
    assert lanczos(Rounded("bfloat16"), 4).beta[0, 1] == 0


def test_more_draws_can_be_added_later():
    operator = diagonal_operator(rank_two(100))  # past breakdowns, so restarts are covered
    together = lanczos(operator, 10, num_draws=5, seed=7)
    later = lanczos(operator, 10, num_draws=2, seed=7, first_draw=3)
    np.testing.assert_array_equal(later.alpha, together.alpha[3:])
    np.testing.assert_array_equal(later.basis, together.basis[3:])
    np.testing.assert_array_equal(together.basis[4, 0], start_vector(100, seed=7, draw=4))


def test_same_seed_same_bits_and_another_seed_other_draws():
    matrix = dense_symmetric(semicircle_with_outliers(300))
    first, second = (lanczos(matrix, 30, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.alpha, second.alpha)
    np.testing.assert_array_equal(first.beta, second.beta)
    np.testing.assert_array_equal(first.basis, second.basis)
    assert not np.allclose(first.alpha, lanczos(matrix, 30, seed=6).alpha)


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    lanczos(diagonal_operator(np.zeros(50)), 5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_without_reorthogonalization_there_is_no_basis_and_nothing_is_nan(order):
    for eigenvalues in (np.zeros(50), np.ones(50), rank_two(50), semicircle_with_outliers(50)):
        operator = diagonal_operator(eigenvalues)
        result = lanczos(operator, order, num_draws=3, reorthogonalize="none")
        assert result.basis is None
        assert np.isfinite(result.alpha).all() and np.isfinite(result.beta).all()
        full = lanczos(operator, min(order, 2), num_draws=3)
        np.testing.assert_allclose(result.alpha[:, :2], full.alpha, atol=1e-12)


KRYLOV_SPACES_THAT_END = {
    "low rank": lambda rng, n: np.resize([*rng.uniform(1, 5, rng.integers(1, 4)), *np.zeros(n)], n),
    "repeated": lambda rng, n: rng.choice(rng.normal(size=rng.integers(2, 6)), n),
    "zero": lambda rng, n: np.zeros(n),
    "identity": lambda rng, n: np.full(n, rng.choice([-1, 1]) * rng.uniform(0.1, 10)),
    "two clusters": lambda rng, n: rng.choice([1.0, 3.0], n) + 1e-13 * rng.normal(size=n),
}


def products_that_end(kind, seed):
    """Return a random symmetric matrix, dense or diagonal, and an order past its breakdown."""
    rng = np.random.default_rng([1, seed])
    values = 10.0 ** rng.integers(-6, 7) * rng.permutation(KRYLOV_SPACES_THAT_END[kind](rng, 60))
    matrix = dense_symmetric(values) if seed % 2 else np.diag(values)
    return matrix.astype(np.float32 if seed % 4 > 1 else np.float64), (4, 6, 10)[seed % 3]


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("kind", KRYLOV_SPACES_THAT_END)
def test_no_symmetric_matrix_is_called_not_symmetric_where_its_krylov_space_ends(
    kind, reorthogonalize
):
    for seed in range(60):
        matrix, order = products_that_end(kind, seed)
        lanczos(matrix, order, seed=seed, reorthogonalize=reorthogonalize)


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("kind", KRYLOV_SPACES_THAT_END)
def test_a_skew_part_of_a_few_percent_is_seen_where_krylov_spaces_end(kind, reorthogonalize):
    for seed in range(15):
        matrix, order = products_that_end(kind, seed)
        skew = np.random.default_rng([2, seed]).normal(size=matrix.shape)
        skew -= skew.T
        size = 0.2 * (np.linalg.norm(matrix, 2) or 1.0) / np.linalg.norm(skew, 2)
        with pytest.raises(ValueError, match="not symmetric"):
            lanczos(matrix + size * skew, order, seed=seed, reorthogonalize=reorthogonalize)


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_are_orthogonal_without_reorthogonalization_past_a_breakdown(seed):
    seen = []

    def multiply(v):
        seen.append(np.ravel(v).copy())
        return eigenvalues * np.ravel(v)

    eigenvalues = rank_two(60)
    lanczos(
        LinearOperator((60, 60), matvec=multiply, dtype=float),
        12,
        seed=seed,
        reorthogonalize="none",
    )
    for j, v in enumerate(seen):
        assert abs(np.linalg.norm(v) - 1) <= 1e-14
        assert all(abs(v @ other) <= 1e-14 for other in seen[max(0, j - 2) : j])


def test_the_operator_may_return_its_argument_or_its_own_buffer():
    identity = LinearOperator((30, 30), matvec=lambda v: v, matmat=lambda v: v, dtype=float)
    buffer = np.empty(30)

    def reuse(v):
        buffer[:] = np.arange(30) * np.ravel(v)
        return buffer

    reusing = LinearOperator((30, 30), matvec=reuse, dtype=float)
    for operator in (identity, reusing):
        assert orthogonality_error(lanczos(operator, 20).basis[0]) <= 1e-14
        lockstep = lanczos(operator, 20, num_draws=2)
        assert max(orthogonality_error(rows) for rows in lockstep.basis) <= 1e-14


def peak_bytes(size, order, **options):
    operator = diagonal_operator(np.linspace(-1, 1, size))
    tracemalloc.start()
    try:
        result = lanczos(operator, order, **options)
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_the_basis():
    size, order = 20_000, 40
    basis = size * order * 8
    assert peak_bytes(size, order)[0] <= 1.25 * basis
    assert peak_bytes(size, order, basis_dtype="float32")[0] <= 0.65 * basis
    freed, _ = peak_bytes(size, order, num_draws=4, draws_at_once=1, keep_basis=False)
    assert freed <= 1.25 * basis
    assert peak_bytes(size, order, reorthogonalize="none")[0] <= 8 * size * 8


def test_the_callback_sees_every_step_of_every_group():
    seen = []
    operator = diagonal_operator(semicircle_with_outliers(100))
    options = {"num_draws": 3, "first_draw": 2, "draws_at_once": 2}
    result = lanczos(operator, 4, callback=seen.append, **options)
    assert [(s.step, s.order, s.draws) for s in seen] == [
        (step, 4, draws) for draws in (range(2, 4), range(4, 5)) for step in (1, 2, 3, 4)
    ]
    assert seen[2].alpha.shape == (2, 3) and seen[2].beta.shape == (2, 2)
    np.testing.assert_array_equal(seen[3].alpha, result.alpha[:2])
    np.testing.assert_array_equal(seen[3].beta, result.beta[:2])
    np.testing.assert_array_equal(seen[3].residual_norms, result.residual_norms[:2])
    np.testing.assert_array_equal(seen[1].residual_norms, result.beta[:2, 1])
    with pytest.raises(ValueError, match="read-only"):
        seen[0].alpha[0, 0] = 0.0


def test_the_progress_bar_counts_products_and_is_silent_unless_asked(capsys):
    operator = diagonal_operator(np.arange(9.0))
    lanczos(operator, 3, num_draws=2)
    assert capsys.readouterr() == ("", "")
    lanczos(operator, 3, num_draws=2, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "Lanczos" in err and "6/6" in err


def test_the_result_prints_its_shape_and_not_its_arrays():
    text = repr(lanczos(diagonal_operator(np.arange(2000.0)), 3, num_draws=2))
    assert text == "Tridiagonalization(n=2,000, order=3, 2 draws, float64 basis)"


OK = np.diag(np.arange(5.0))


@pytest.mark.parametrize(
    ("operator", "options", "error", "message"),
    [
        (np.ones((3, 4)), {}, ValueError, r"square.*\(3, 4\)"),
        (np.ones(3), {}, ValueError, r"square.*\(3,\)"),
        (OK * 1j, {}, TypeError, "real.*complex"),
        ("matrix", {}, TypeError, "LinearOperator.*str"),
        (OK.astype(object), {}, TypeError, "real.*object"),
        (OK, {"order": 6}, ValueError, "order is 6.*n = 5.*order <= 5"),
        (OK, {"order": 0}, ValueError, "order must be at least 1, got 0"),
        (OK, {"order": 2.5}, TypeError, "order must be an integer, got 2.5"),
        (OK, {"order": True}, TypeError, "order must be an integer"),
        (OK, {"num_draws": 0}, ValueError, "num_draws must be at least 1"),
        (OK, {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (OK, {"seed": None}, TypeError, "seed must be an integer"),
        (OK, {"first_draw": -1}, ValueError, "first_draw must be at least 0"),
        (OK, {"draws_at_once": 0}, ValueError, "draws_at_once must be at least 1"),
        (OK, {"reorthogonalize": "partial"}, ValueError, "'full' or 'none', got 'partial'"),
        (OK, {"basis_dtype": "float16"}, ValueError, "'float64' or 'float32', got 'float16'"),
        (OK, {"basis_dtype": "double64"}, ValueError, "got 'double64'"),
        (OK, {"start": np.ones(4)}, ValueError, r"shape \(5,\).*got \(4,\)"),
        (OK, {"start": np.ones(5), "num_draws": 2}, ValueError, r"\(5, 2\), got \(5,\)"),
        (OK, {"start": np.zeros(5)}, ValueError, "zero"),
        (OK, {"start": np.full(5, np.nan)}, ValueError, "finite"),
        (OK, {"start": np.ones(5) * 1j}, TypeError, "real"),
    ],
)
def test_bad_input_is_named_at_once(operator, options, error, message):
    with pytest.raises(error, match=message):
        lanczos(operator, **{"order": 2, **options})


def test_a_product_that_is_not_finite_names_step_and_draw():
    calls = []

    def product(v):
        calls.append(1)
        return v * (np.nan if len(calls) == 3 else np.arange(5.0))

    operator = LinearOperator((5, 5), matvec=product, dtype=float)
    with pytest.raises(FloatingPointError, match="step 3 of draw 7"):
        lanczos(operator, 4, first_draw=7)


def test_a_complex_product_of_an_operator_that_claims_to_be_real_is_an_error():
    operator = LinearOperator((5, 5), matvec=lambda v: v * 1j, dtype=float)
    with pytest.raises(TypeError, match="complex"):
        lanczos(operator, 2)


def test_linalg_does_not_load_tensorflow():
    code = (
        "import sys, spectral_density.linalg\n"
        "loaded = {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shifted_or_scaled_matrix_has_the_shifted_or_scaled_tridiagonal():
    eigenvalues = semicircle_with_outliers()
    plain = lanczos(diagonal_operator(eigenvalues), 12)
    for c in (1e-8, 1e8):
        scaled = lanczos(diagonal_operator(c * eigenvalues), 12)
        np.testing.assert_allclose(scaled.tridiagonal() / c, plain.tridiagonal(), atol=1e-10)
    shifted = lanczos(diagonal_operator(eigenvalues + 3.0), 12)
    expected = plain.tridiagonal() + 3.0 * np.eye(12)
    np.testing.assert_allclose(shifted.tridiagonal(), expected, atol=1e-10 * spread(eigenvalues))


def test_a_run_that_does_not_fit_is_refused_before_the_first_product(monkeypatch):
    def product(v):
        raise RuntimeError("multiplied")

    operator = LinearOperator((10**9, 10**9), matvec=product, dtype=float)
    message = r"basis 6[67]\d\.\d GiB, block .* are free\. basis_dtype='float32'"
    with pytest.raises(MemoryError, match=message):
        lanczos(operator, 90)


def test_a_basis_on_disk_gives_the_same_numbers():
    a = dense_symmetric(log_uniform_bulk(60))
    in_memory = lanczos(a, 20, num_draws=2)
    on_disk = lanczos(a, 20, num_draws=2, basis="disk")
    np.testing.assert_array_equal(on_disk.alpha, in_memory.alpha)
    np.testing.assert_array_equal(on_disk.basis, in_memory.basis)
    assert isinstance(on_disk.basis, np.memmap)
    with pytest.raises(ValueError, match="'memory' or 'disk'"):
        lanczos(a, 3, basis="tape")


def test_the_precision_of_a_sum_is_that_of_its_coarsest_part():
    coarse, fine = diagonal_operator(np.ones(5), np.float32), diagonal_operator(np.ones(5))
    eps = np.finfo(np.float32).eps
    assert product_precision(fine) == np.finfo(np.float64).eps
    assert product_precision(fine - coarse) == product_precision(2 * (coarse + fine)) == eps


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_an_operator_that_is_not_symmetric_is_refused(reorthogonalize):
    matrix = np.random.default_rng(0).standard_normal((50, 50))
    with pytest.raises(ValueError, match=r"not symmetric.*\(A \+ A'\) / 2"):
        lanczos(matrix, 10, reorthogonalize=reorthogonalize)
    nearly = matrix + matrix.T
    nearly[3, 4] += 20.0
    with pytest.raises(ValueError, match="not symmetric"):
        lanczos(nearly, 20, reorthogonalize=reorthogonalize)


def test_a_matrix_that_is_nothing_but_rounding_is_tridiagonalized():
    a = dense_symmetric(np.linspace(-1, 1, 80)).astype(np.float32)

    def product(v):
        v = np.ravel(v).astype(np.float32)
        return (a @ v - (3 * a) @ (v / 3)).astype(np.float64)

    result = lanczos(LinearOperator((80, 80), matvec=product, dtype=float), 10)
    assert np.abs(result.alpha).max() < 1e-5
