"""Block Lanczos: orthonormal, exact where it must be, one product a step, resumed bit by bit."""

import json
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
)
from device_operators import jax_operator, tensorflow_operator
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import CheckpointError
from spectral_density.linalg import gauss_quadrature, lanczos, start_vector
from spectral_density.linalg.lanczos_options import memory_needed
from spectral_density.linalg.start_vectors import start_block

pytestmark = pytest.mark.filterwarnings("error")

SPECTRA = {
    "semicircle": semicircle_with_outliers(300),
    "log_uniform": log_uniform_bulk(300),
    "zero": np.zeros(120),
    "identity": np.ones(120),
    "rank_two": rank_two(120),
    **{f"{s}_distinct": distinct_eigenvalues(s, 120) for s in (1, 2, 3, 5, 20)},
}


def decomposition_error(eigenvalues, result):
    """Largest entry of A V - V T but for the last block, whose norm must be that of the result."""
    v = result.basis[0].astype(np.float64).T
    residual = eigenvalues[:, np.newaxis] * v - v @ result.tridiagonal()
    inside, last = residual[:, : -result.block], residual[:, -result.block :]
    rounding = np.abs(np.linalg.norm(last) - np.linalg.norm(result.residual_norms[0]))
    return max(np.abs(inside).max(initial=0.0), rounding)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("block", [2, 3, 4])
@pytest.mark.parametrize(
    ("products", "basis", "orthogonal", "relative"),
    [
        ("float64", "float64", 1e-14, 1e-14),
        ("float32", "float64", 1e-14, 5e-7),
        ("float64", "float32", 1e-6, 5e-7),
    ],
)
def test_blocks_are_orthonormal_and_decompose_the_matrix(
    name, block, products, basis, orthogonal, relative
):
    eigenvalues = SPECTRA[name].astype(products).astype(np.float64)
    operator = diagonal_operator(eigenvalues, np.dtype(products))
    result = lanczos(operator, 30, block=block, basis_dtype=basis, seed=3)
    assert orthogonality_error(result.basis[0]) <= orthogonal
    assert decomposition_error(eigenvalues, result) <= relative * np.abs(eigenvalues).max()
    beta = result.beta[0]
    assert not np.tril(beta, -1).any() and (np.diagonal(beta, axis1=1, axis2=2) >= 0).all()


@pytest.mark.parametrize("name", ["zero", "rank_two", "3_distinct", "20_distinct", "log_uniform"])
def test_blocks_of_full_order_recover_the_exact_matrix(name):
    matrix = dense_symmetric(SPECTRA[name][:60])
    for block in (2, 3, 4):
        result = lanczos(matrix, 60 // block, block=block)
        v = result.basis[0].T
        error = np.abs(v @ result.tridiagonal() @ v.T - matrix).max()
        assert error <= 1e-13 * max(np.abs(matrix).max(), 1e-300)


def test_the_quadrature_of_a_block_is_exact_up_to_degree_2m_minus_1():
    eigenvalues = np.sort(np.random.default_rng(0).uniform(-1, 1, 200))
    for block, order in ((2, 5), (4, 3)):
        result = lanczos(diagonal_operator(eigenvalues), order, block=block)
        rule = gauss_quadrature(result.alpha[0], result.beta[0])
        starts = result.basis[0, :block]
        for degree in range(2 * order + 1):
            # Chebyshev polynomials are bounded, so that errors are relative to 1.
            values = np.cos(degree * np.arccos(eigenvalues))
            each = np.sum(starts**2 * values, axis=1)
            found = rule.vector_weights @ np.cos(degree * np.arccos(np.clip(rule.nodes, -1, 1)))
            exact = degree < 2 * order
            assert (np.abs(found - each).max() <= 1e-13) == exact
            assert (
                not exact
                or abs(rule.weights @ np.cos(degree * np.arccos(rule.nodes)) - each.mean()) <= 1e-13
            )


def test_the_start_vectors_of_a_block_are_those_of_draws_made_orthonormal():
    rows = start_block(50, 7, 3, 2)
    expected = np.linalg.qr(np.stack([start_vector(50, 7, 6), start_vector(50, 7, 7)]).T)[0].T
    np.testing.assert_allclose(rows, expected * np.sign(expected @ rows.T).diagonal()[:, None])
    result = lanczos(diagonal_operator(np.arange(50.0)), 3, block=2, seed=7, first_draw=3)
    np.testing.assert_array_equal(result.basis[0, :2], rows)


def test_given_start_vectors_are_made_orthonormal_and_dependent_ones_refused():
    start = np.random.default_rng(0).normal(size=(40, 4))
    result = lanczos(diagonal_operator(np.arange(40.0)), 3, block=2, num_draws=2, start=start)
    for draw, columns in enumerate((start[:, :2], start[:, 2:])):
        q = result.basis[draw, :2].T
        np.testing.assert_allclose(q @ (q.T @ columns), columns, atol=1e-13)
    start[:, 3] = 2 * start[:, 2]
    with pytest.raises(ValueError, match=r"linearly independent.*column 3, .*e-1"):
        lanczos(diagonal_operator(np.arange(40.0)), 3, block=2, num_draws=2, start=start)


def test_blocks_in_lockstep_share_one_product_a_step_and_do_not_depend_on_it():
    shapes = []
    values = semicircle_with_outliers(100)

    def matmat(vectors):
        shapes.append(vectors.shape)
        return vectors * values[:, np.newaxis]

    operator = LinearOperator((100, 100), matvec=None, matmat=matmat, dtype=float)
    together = lanczos(operator, 5, block=2, num_draws=3)
    assert shapes == [(100, 6)] * 5
    shapes.clear()
    apart = lanczos(operator, 5, block=2, num_draws=3, draws_at_once=1)
    assert shapes == [(100, 2)] * 15
    np.testing.assert_array_equal(apart.alpha, together.alpha)
    np.testing.assert_array_equal(apart.basis, together.basis)
    later = lanczos(operator, 5, block=2, first_draw=2)
    np.testing.assert_array_equal(later.beta, together.beta[2:])


def test_copies_of_an_eigenvalue_are_found_up_to_the_size_of_the_block():
    values = np.concatenate([np.linspace(-1, 1, 290), [4.0] * 5, [3.0] * 2])
    for block in (2, 3):
        rule = gauss_quadrature(
            *(a[0] for a in coefficients_of(lanczos(diagonal_operator(values), 25, block=block)))
        )
        carrying = rule.nodes[rule.weights > 1e-12]
        assert np.sum(np.abs(carrying - 4) <= 1e-12) == block
        assert np.sum(np.abs(carrying - 3) <= 1e-12) == 2


def coefficients_of(result):
    return result.alpha, result.beta


@pytest.mark.parametrize("block", [2, 3])
def test_a_block_that_loses_rank_goes_on_with_new_directions_of_no_weight(block):
    # The Krylov space of three distinct eigenvalues ends after three steps.
    values = distinct_eigenvalues(3, 60)
    result = lanczos(diagonal_operator(values), 8, block=block)
    assert (np.diagonal(result.beta[0, 2]) == 0).all()
    assert orthogonality_error(result.basis[0]) <= 1e-14
    rule = gauss_quadrature(result.alpha[0], result.beta[0])
    carrying = rule.weights > 1e-12
    assert carrying.sum() == 3 * block
    assert (
        np.abs(rule.nodes[carrying][:, np.newaxis] - np.unique(values)).min(axis=1).max() <= 1e-13
    )
    # One direction alone is lost: the start block has one eigenvector of the matrix.
    start = np.random.default_rng(0).normal(size=(60, block))
    start[:, 0] = np.eye(60)[0]
    start[0, 1:] = 0.0
    values = np.linspace(-1, 1, 60)
    result = lanczos(diagonal_operator(values), 60 // block, block=block, start=start)
    assert not result.beta[0, 0, 0].any() and result.beta[0, 0, 1:, 1:].any()
    assert orthogonality_error(result.basis[0]) <= 1e-14
    np.testing.assert_allclose(np.linalg.eigvalsh(result.tridiagonal()), values, atol=1e-13)


@pytest.mark.parametrize("products", [np.float64, np.float32])
def test_without_reorthogonalization_moments_are_as_good_and_two_blocks_are_held(products):
    values = semicircle_with_outliers(300)
    full, none = (
        lanczos(diagonal_operator(values, products), 40, block=3, reorthogonalize=how, seed=2)
        for how in ("full", "none")
    )
    assert none.basis is None
    limit = 1e-11 if products == np.float64 else 5e-5
    starts = start_block(300, 2, 0, 3)
    for result in (full, none):
        rule = gauss_quadrature(result.alpha[0], result.beta[0])
        for degree in range(0, 80, 7):
            scaled = (rule.nodes - 4.5) / 5.5, (values - 4.5) / 5.5
            found, exact = (np.cos(degree * np.arccos(np.clip(x, -1, 1))) for x in scaled)
            assert abs(rule.weights @ found - np.mean(starts**2 @ exact)) <= limit


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("block", [2, 4])
def test_no_symmetric_matrix_is_called_not_symmetric_and_a_skew_one_is(block, reorthogonalize):
    for seed, values in enumerate(SPECTRA.values()):
        scaled = 10.0 ** (seed - 4) * values[:60]
        matrix = dense_symmetric(scaled, seed).astype(np.float32 if seed % 2 else np.float64)
        options = {"block": block, "reorthogonalize": reorthogonalize, "seed": seed}
        lanczos(matrix, 60 // block, **options)
        skew = np.random.default_rng(seed).normal(size=matrix.shape)
        skew *= 0.2 * (np.abs(scaled).max() or 1.0) / np.linalg.norm(skew - skew.T, 2)
        with pytest.raises(ValueError, match="not symmetric"):
            lanczos(matrix + skew - skew.T, 6, **options)


OPTIONS = {
    "one block": {"block": 2},
    "three blocks": {"block": 3, "num_draws": 3, "draws_at_once": 2},
    "float32 basis": {"block": 2, "num_draws": 2, "basis_dtype": "float32"},
    "no reorthogonalization": {"block": 2, "num_draws": 2, "reorthogonalize": "none"},
    "no basis kept": {"block": 2, "num_draws": 2, "draws_at_once": 1, "keep_basis": False},
    "on disk": {"block": 2, "basis": "disk"},
}


class Stop(Exception):
    pass


def same(found, expected):
    for name in ("alpha", "beta", "residual_norms"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    if expected.basis is None:
        assert found.basis is None
    else:
        np.testing.assert_array_equal(found.basis, expected.basis)


def repeating(a):
    """Return an operator whose products have the same bits in blocks of any width."""

    def matmat(block):
        block = block.reshape(len(a), -1)
        return np.stack([(a * column).sum(axis=1) for column in block.T], axis=1)

    return LinearOperator(
        a.shape, matvec=lambda v: matmat(v)[:, 0], matmat=matmat, dtype=np.float64
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("stop", [1, 2, 6, 9, 10])
@pytest.mark.parametrize("values", ["log_uniform", "3_distinct"])
def test_a_stopped_run_of_blocks_ends_as_if_undisturbed(tmp_path, options, stop, values):
    a = repeating(dense_symmetric(SPECTRA[values][:60]))

    def callback(seen):
        if seen.step == stop:
            raise Stop

    expected = lanczos(a, 10, **options)
    with pytest.raises(Stop):
        lanczos(a, 10, checkpoint=tmp_path, callback=callback, **options)
    same(lanczos(a, 10, checkpoint=tmp_path, **options), expected)
    # And more steps and draws from the finished run.
    more = {**options, "num_draws": options.get("num_draws", 1) + 2}
    if options.get("draws_at_once") != 2:
        more["draws_at_once"] = 1
    same(lanczos(a, 14, checkpoint=tmp_path, **more), lanczos(a, 14, **more))


def test_a_run_of_blocks_until_a_step_is_a_run_of_so_many_steps(tmp_path):
    a = repeating(dense_symmetric(SPECTRA["log_uniform"][:60]))
    shapes = []

    def until(step):
        shapes.append((step.alpha.shape, step.beta.shape, step.residual_norms.shape))
        return step.step == 7

    for options in OPTIONS.values():
        same(lanczos(a, 15, until=until, **options), lanczos(a, 7, **options))
    assert shapes[6] == ((1, 7, 2, 2), (1, 6, 2, 2), (1, 2, 2))


def test_a_checkpoint_of_blocks_is_not_one_of_single_vectors(tmp_path):
    a = dense_symmetric(SPECTRA["log_uniform"][:60])
    lanczos(a, 4, checkpoint=tmp_path / "single")
    lanczos(a, 4, block=2, checkpoint=tmp_path / "block")
    with pytest.raises(CheckpointError, match="block is 2 and was not given"):
        lanczos(a, 4, block=2, checkpoint=tmp_path / "single")
    with pytest.raises(CheckpointError, match="block is 3 and was 2"):
        lanczos(a, 4, block=3, checkpoint=tmp_path / "block")


def test_an_operator_known_by_its_products_alone_resumes_blocks(tmp_path):
    matrix = dense_symmetric(SPECTRA["log_uniform"][:60])
    operator = LinearOperator((60, 60), matvec=lambda v: matrix @ v, dtype=float)
    other = LinearOperator((60, 60), matvec=lambda v: 1.1 * (matrix @ v), dtype=float)
    lanczos(operator, 5, block=2, checkpoint=tmp_path)
    same(lanczos(operator, 9, block=2, checkpoint=tmp_path), lanczos(operator, 9, block=2))
    with pytest.raises(CheckpointError, match="of another operator"):
        lanczos(other, 9, block=2, checkpoint=tmp_path)


def test_one_vector_in_a_block_is_the_method_of_single_vectors():
    # Of release 1: the same draws, now and with block=1.
    operator = diagonal_operator(semicircle_with_outliers(300))
    alpha = [0.17514992690919406, 6.123190963822307, 3.70739321355156]
    alpha += [4.5185257628877205, 5.573737486591177, 4.159250214711397]
    beta = [1.2166657484678558, 3.4837155369345854, 2.793337794239212]
    beta += [2.163357439275809, 3.4895031776335386]
    for options in ({}, {"block": 1}):
        result = lanczos(operator, 6, seed=4, **options)
        # To the bit on the machine that made them; sums of BLAS are grouped otherwise elsewhere.
        np.testing.assert_allclose(result.alpha[0], alpha, rtol=1e-13)
        np.testing.assert_allclose(result.beta[0], beta, rtol=1e-13)
        np.testing.assert_allclose(result.residual_norms, 2.5333034793680294, rtol=1e-13)


def test_the_memory_of_a_block_is_foreseen():
    n, order = 10_000, 40
    assert memory_needed(n, order, block=3) == {"basis": 3 * 8 * order * n, "block": 3 * 24 * n}
    none = memory_needed(n, order, block=3, reorthogonalize="none")
    assert none == {"basis": 6 * 8 * n, "block": 3 * 24 * n}
    operator = LinearOperator((10**9, 10**9), matvec=lambda v: v, dtype=float)
    with pytest.raises(MemoryError, match=r"basis 1,3\d\d\.\d GiB"):
        lanczos(operator, 90, block=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 0}, ValueError, "block must be at least 1, got 0"),
        ({"block": 2.5}, TypeError, "block must be an integer, got 2.5"),
        ({"block": 11}, ValueError, "block is 11.*n = 10.*block <= 10"),
        ({"block": 3, "order": 4}, ValueError, r"order is 4 with blocks of 3.*order <= 3"),
        ({"block": 2, "start": np.ones(10)}, ValueError, r"shape \(10, 2\), got \(10,\)"),
        ({"block": 2, "start": np.ones((10, 2))}, ValueError, "linearly independent"),
    ],
)
def test_bad_blocks_are_named(options, error, message):
    with pytest.raises(error, match=message):
        lanczos(np.diag(np.arange(10.0)), **{"order": 2, **options})


def test_the_result_of_blocks_names_them_and_the_bar_counts_their_products(capsys):
    result = lanczos(diagonal_operator(np.arange(90.0)), 3, num_draws=2, block=2, progress=True)
    assert repr(result) == (
        "Tridiagonalization(n=90, order=3, 2 draws of 2 vectors, float64 basis)"
    )
    assert result.basis.shape == (2, 6, 90) and result.tridiagonal(1).shape == (6, 6)
    assert "12/12" in capsys.readouterr().err


def test_a_product_of_a_block_that_is_not_finite_names_step_and_draw():
    calls = []

    def matmat(v):
        calls.append(1)
        result = v * np.arange(20.0)[:, np.newaxis]
        result[0, 3] = np.nan if len(calls) == 3 else 0.0
        return result

    operator = LinearOperator((20, 20), matvec=None, matmat=matmat, dtype=float)
    with pytest.raises(FloatingPointError, match="step 3 of draw 1"):
        lanczos(operator, 4, num_draws=2, block=2)


ENGINES = {
    "jax": jax_operator,
    "tensorflow float32": partial(tensorflow_operator, dtype="float32"),
    "tensorflow float64": tensorflow_operator,
}


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(
    ("name", "reorthogonalize"), [("rank_two", "full"), ("log_uniform", "none")]
)
def test_blocks_stay_on_the_device_and_are_as_good_as_those_of_numpy(
    make, name, reorthogonalize, tmp_path
):
    operator = make(SPECTRA[name])
    options = {"block": 2, "num_draws": 2, "reorthogonalize": reorthogonalize}
    found = lanczos(operator, 12, **options)
    assert operator.num_products == 12 * 4
    expected = lanczos(diagonal_operator(operator.entries), 12, **options)
    single = operator.vectors.dtype == np.float32
    for draw in range(2):
        rules = [gauss_quadrature(r.alpha[draw], r.beta[draw]) for r in (found, expected)]
        moments = [[r.weights @ r.nodes**k for k in range(1, 4)] for r in rules]
        np.testing.assert_allclose(*moments, rtol=1e-5 if single else 1e-12)
    if reorthogonalize == "full":
        assert orthogonality_error(found.basis[1]) <= (1e-6 if single else 1e-14)
    lanczos(operator, 5, checkpoint=tmp_path, **options)
    same(lanczos(operator, 12, checkpoint=tmp_path, **options), found)


def test_a_checkpoint_of_single_vectors_says_nothing_of_blocks(tmp_path):
    # So that those of before there were blocks are read.
    lanczos(np.diag(np.arange(9.0)), 3, checkpoint=tmp_path)
    assert "block" not in json.loads((tmp_path / "problem.json").read_text())["problem"]


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("power", [-990, -560, 560, 1000])
def test_t_has_the_scale_of_a_matrix_whose_squares_over_or_underflow(block, power):
    values = np.linspace(0.5, 1, 60)
    plain, scaled = (
        lanczos(np.diag(np.ldexp(values, shift)), 10, block=block) for shift in (0, power)
    )
    for name in ("alpha", "beta", "residual_norms"):
        found = np.ldexp(getattr(scaled, name), -power)
        np.testing.assert_allclose(found, getattr(plain, name), rtol=1e-9, atol=1e-14)
