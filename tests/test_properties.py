"""Random shapes, dtypes, orders and batch splits: the right answer or a documented error."""

import warnings
from itertools import pairwise

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from cases import orthogonality_error
from models import NUM_EXAMPLES, classification, mlp, relative_error, truth, vectors
from scipy.sparse.linalg import aslinearoperator

from spectral_density import (
    ConvergenceWarning,
    HessianOperator,
    estimate_spectrum,
    lanczos,
    top_eigenpairs,
)
from spectral_density.linalg import start_vector
from spectral_density.linalg.start_vectors import start_block
from spectral_density.spectrum.accuracy import Ending

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

MOST = 9  # rows of the matrices
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def few(max_examples):
    """The same examples at every run, as many as are quick."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


# Matrices ----------------------------------------------------------------------------------------

EIGENVALUES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "positive": lambda rng, n: rng.exponential(size=n),
    "few distinct": lambda rng, n: rng.integers(-1, 2, n).astype(float),
    "one outlier": lambda rng, n: np.append(np.zeros(n - 1), 5.0),
    "zero": lambda rng, n: np.zeros(n),
    "equal": lambda rng, n: np.full(n, -2.0),
    "decades": lambda rng, n: 10.0 ** rng.uniform(-8, 2, n),
}
FORMS = {
    "array": lambda a: a,
    "fortran": np.asfortranarray,
    "sparse": scipy.sparse.csr_array,
    "operator": aslinearoperator,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}
PRECISION = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-2}


@st.composite
def matrices(draw):
    """A symmetric matrix as float64, the same in another form, and the rounding of products."""
    n = draw(st.integers(1, MOST))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    eigenvalues = EIGENVALUES[draw(st.sampled_from(sorted(EIGENVALUES)))](rng, n)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    a = (q * eigenvalues) @ q.T
    a = (a + a.T) / 2 * draw(st.sampled_from([1.0, 1e-9, 1e9]))
    dtype = draw(st.sampled_from(["float64", "float32"]))
    a = a.astype(dtype)
    form = FORMS[draw(st.sampled_from(sorted(FORMS)))]
    return a.astype(np.float64), form(a), PRECISION[dtype] * (np.abs(a).max() or 1.0) * n


def nodes_of(alpha, beta):
    return np.linalg.eigvalsh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))


@few(60)
@given(
    matrix=matrices(),
    order=st.integers(-1, MOST + 1),
    num_draws=st.integers(0, 4),
    draws_at_once=st.none() | st.integers(0, 5),
    reorthogonalize=st.sampled_from(["full", "none", "some"]),
    basis_dtype=st.sampled_from(["float64", "float32", "int32"]),
    basis=st.sampled_from(["memory", "disk"]),
    seed=st.integers(-1, 9),
)
def test_lanczos_is_right_or_says_what_is_wrong(
    matrix, order, num_draws, draws_at_once, reorthogonalize, basis_dtype, basis, seed
):
    a, operator, rounding = matrix
    n = len(a)
    options = {
        "num_draws": num_draws,
        "draws_at_once": draws_at_once,
        "reorthogonalize": reorthogonalize,
        "basis_dtype": basis_dtype,
        "basis": basis,
        "seed": seed,
    }
    bad = (
        not 1 <= order <= n
        or num_draws < 1
        or draws_at_once == 0
        or reorthogonalize == "some"
        or basis_dtype == "int32"
        or seed < 0
    )
    if bad:
        names = "order|num_draws|draws_at_once|reorthogonalize|basis_dtype|seed"
        with pytest.raises(ValueError, match=rf"{names} "):
            lanczos(operator, order, **options)
        return
    found = lanczos(operator, order, **options)
    assert found.alpha.shape == (num_draws, order)
    assert found.beta.shape == (num_draws, order - 1)
    assert (found.beta >= 0).all()
    coarse = 1e-6 if basis_dtype == "float32" else 1e-13
    slack = rounding + 20 * coarse * abs(a).max() * n
    for draw in range(num_draws):
        v = start_vector(n, seed, draw)
        assert abs(found.alpha[draw, 0] - v @ a @ v) <= slack
        assert abs(found.tridiagonal(draw)).max() <= abs(np.linalg.eigvalsh(a)).max() + slack
        if found.basis is None:
            continue
        rows = np.asarray(found.basis[draw], np.float64)
        assert orthogonality_error(rows) <= coarse
        projected = rows @ a @ rows.T
        assert abs(projected - found.tridiagonal(draw)).max() <= slack
        if order == n:
            assert abs(rows.T @ found.tridiagonal(draw) @ rows - a).max() <= slack


@few(60)
@given(
    matrix=matrices(),
    order=st.none() | st.integers(0, MOST + 1),
    num_draws=st.none() | st.integers(0, 5),
    tolerance=st.none() | st.sampled_from([-1.0, 0.0, 1e-6, 0.01, 0.1, 0.5, 10.0]),
    max_products=st.none() | st.integers(0, 60),
    draws_at_once=st.none() | st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_a_spectrum_is_right_or_says_what_is_wrong(
    matrix, order, num_draws, tolerance, max_products, draws_at_once, seed
):
    a, operator, rounding = matrix
    n = len(a)
    options = {"tolerance": tolerance, "max_products": max_products, "seed": seed}
    options["draws_at_once"] = draws_at_once
    bad = (
        (order is not None and not 1 <= order <= n)
        or num_draws == 0
        or (tolerance is not None and tolerance <= 0)
        # A budget alone decides the steps and the draws.
        or (tolerance is None and max_products is not None and (order or num_draws) is not None)
        or max_products == 0
    )
    if bad:
        with pytest.raises(ValueError, match=r"order|num_draws|tolerance|max_products"):
            estimate_spectrum(operator, order, num_draws, **options)
        return
    spectrum = estimate_spectrum(operator, order, num_draws, **options)
    exact = np.linalg.eigvalsh(a)
    assert spectrum.order <= (min(90, n) if order is None else order)
    vectors = spectrum.num_draws * spectrum.block
    if tolerance is None and max_products is not None:
        assert spectrum.order * vectors <= max_products
        assert spectrum.choice
    elif tolerance is None:
        assert spectrum.order == (order or n)
        if num_draws is None:
            assert min(2, n) <= vectors <= 10
            assert spectrum.choice
        else:
            assert (spectrum.num_draws, spectrum.block) == (num_draws, 1)
        assert spectrum.ended_by is Ending.PLAN
    else:
        budget = (order or n) * (num_draws or 10) if max_products is None else max_products
        assert spectrum.order * spectrum.num_draws <= budget
        assert spectrum.num_draws <= (num_draws or budget)
        met = spectrum.accuracy.total <= tolerance
        assert (spectrum.ended_by is Ending.TOLERANCE) == met
    np.testing.assert_allclose(spectrum.weights.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(spectrum.deflated_weights.sum(axis=1), 1.0, rtol=1e-9)
    ends = spectrum.extreme_eigenvalues
    assert exact[0] - rounding <= ends.smallest <= ends.largest <= exact[-1] + rounding
    draws, block = range(spectrum.num_draws), spectrum.block
    if block == 1:
        starts = [start_vector(n, seed, draw) for draw in draws]
    else:
        starts = [v for draw in draws for v in start_block(n, seed, draw, block)]
    forms = [v @ a @ v for v in starts]
    assert abs(spectrum.moment(1, deflate=False) - np.mean(forms)) <= rounding
    density = spectrum.density()
    assert np.isfinite([density.values, density.lower, density.upper]).all()
    assert density.lost_mass == pytest.approx(0.0, abs=1e-3)
    assert "array(" not in str(spectrum)


def wanted(exact, k, which):
    order = {
        "LM": np.argsort(-np.abs(exact), kind="stable")[:k],
        "LA": np.argsort(-exact, kind="stable")[:k],
        "SA": np.argsort(exact, kind="stable")[:k],
        "BE": np.r_[np.arange(k // 2), np.arange(len(exact) - (k + 1) // 2, len(exact))],
    }[which]
    return np.sort(np.abs(exact[order])) if which == "LM" else np.sort(exact[order])


@few(60)
@given(
    matrix=matrices(),
    k=st.integers(0, MOST + 1),
    which=st.sampled_from(["LM", "LA", "SA", "BE", "XX"]),
    block_size=st.none() | st.integers(0, 4),
    seed=st.integers(0, 9),
)
def test_eigenpairs_are_right_or_say_what_is_wrong(matrix, k, which, block_size, seed):
    a, operator, rounding = matrix
    n = len(a)
    options = {"block_size": block_size, "seed": seed}
    if not 1 <= k <= n or which == "XX" or block_size == 0 or (block_size or 0) > n:
        with pytest.raises(ValueError, match=r"k must be|which must be|block_size must be"):
            top_eigenpairs(operator, k, which, **options)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = top_eigenpairs(operator, k, which, **options)
    assert {warning.category for warning in caught} <= {ConvergenceWarning}
    assert bool(caught) == (not (found.complete and found.converged.all()))
    assert orthogonality_error(found.vectors.T) <= 1e-12
    residuals = np.linalg.norm(a @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(residuals, found.residuals, atol=rounding)
    if not caught:
        values = np.abs(found.values) if which == "LM" else found.values
        slack = rounding + found.tolerance * found.norm
        np.testing.assert_allclose(
            np.sort(values), wanted(np.linalg.eigvalsh(a), k, which), atol=slack
        )


NO_MATRICES = {
    "not square": (lambda a: np.vstack([a, a[:1]]), ValueError, "square"),
    "complex": (lambda a: a * 1j, TypeError, "real"),
    "NaN": (lambda a: np.where(np.eye(len(a)) > 0, np.nan, a), FloatingPointError, "not finite"),
    "infinite": (lambda a: a + np.inf, FloatingPointError, "not finite"),
    "text": (lambda a: a.astype(str), (TypeError, ValueError), None),
    "a vector": (lambda a: a[0], ValueError, "square"),
    "nothing": (lambda a: None, TypeError, "LinearOperator"),
}


@few(30)
@pytest.mark.parametrize("kind", NO_MATRICES)
@given(matrix=matrices())
def test_what_is_no_symmetric_matrix_is_named_by_every_driver(kind, matrix):
    make, error, message = NO_MATRICES[kind]
    operator = make(matrix[0])
    for run in (lanczos, estimate_spectrum, top_eigenpairs):
        with pytest.raises(error, match=message), np.errstate(invalid="ignore"):
            run(operator, 1)


# Curvature ---------------------------------------------------------------------------------------


@st.composite
def cuts(draw):
    """Sizes of batches that sum to the number of examples, some of them empty perhaps."""
    ends = draw(st.lists(st.integers(0, NUM_EXAMPLES), max_size=4))
    return np.diff([0, *sorted(ends), NUM_EXAMPLES]).tolist()


CONTAINERS = {
    "list": lambda batches: batches,
    "tensors": lambda batches: [tuple(map(tf.constant, batch)) for batch in batches],
    "callable": lambda batches: lambda: iter(batches),
    "lists": lambda batches: [list(batch) for batch in batches],
}


@few(15)
@given(
    sizes=cuts(),
    container=st.sampled_from(sorted(CONTAINERS)),
    label_dtype=st.sampled_from(["int32", "int64", "uint8", "float32"]),
    dtype=st.sampled_from(["float64", "float32"]),
    memory_share=st.sampled_from([0.0, 0.25]),
    width=st.integers(0, 3),
)
@example([NUM_EXAMPLES], "list", "int64", "float32", 0.25, 1)
@example([0, 1, 0, NUM_EXAMPLES - 1, 0], "callable", "int64", "float32", 0.0, 2)
def test_products_are_those_of_the_whole_data_however_it_is_cut(
    sizes, container, label_dtype, dtype, memory_share, width
):
    x, y = classification()
    ends = np.cumsum([0, *sizes])
    batches = [(x[a:b].astype(dtype), y[a:b].astype(label_dtype)) for a, b in pairwise(ends)]
    hessian = HessianOperator(
        mlp(), SPARSE, CONTAINERS[container](batches), memory_share=memory_share
    )
    assert hessian.batches.num_examples == NUM_EXAMPLES
    v = vectors(hessian.shape[0], width)
    product = hessian @ v
    assert product.shape == v.shape
    if width:
        assert relative_error(product, truth("mlp").hessian @ v) <= 1e-5


@pytest.fixture(scope="module")
def network():
    return HessianOperator(mlp(), SPARSE, [classification()])


VECTOR_DTYPES = ["float64", "float32", "float16", "int64", "complex128", "bool"]


@few(60)
@given(
    rows=st.integers(29, 33),
    columns=st.none() | st.integers(0, 3),
    dtype=st.sampled_from(VECTOR_DTYPES),
    spoiled=st.sampled_from([None, None, np.nan, np.inf]),
    fortran=st.booleans(),
)
def test_a_product_takes_what_fits_and_refuses_all_else(
    network, rows, columns, dtype, spoiled, fortran
):
    shape = (rows,) if columns is None else (rows, columns)
    v = (3 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    if fortran:
        v = np.asfortranarray(v)
    if spoiled is not None and v.size and np.dtype(dtype).kind in "fc":
        v.flat[0] = spoiled
    if rows != network.shape[0] or dtype == "complex128" or not np.isfinite(v).all():
        with pytest.raises(ValueError, match=r"shape|complex|NaN|dimension"):
            network @ v
        return
    before = v.copy()
    product = network @ v
    assert product.dtype == np.float64
    assert product.shape == shape
    np.testing.assert_array_equal(v, before)
    expected = truth("mlp").hessian @ v.astype(np.float64)
    if v.any():
        assert relative_error(product, expected) <= 1e-5


@few(12)
@given(order=st.integers(0, 33), num_draws=st.integers(1, 3), seed=st.integers(0, 9))
@example(31, 1, 0)
def test_the_spectrum_of_a_network_is_right_or_says_what_is_wrong(network, order, num_draws, seed):
    if not 1 <= order <= 31:
        with pytest.raises(ValueError, match="order"):
            estimate_spectrum(network, order, num_draws, seed=seed)
        return
    spectrum = estimate_spectrum(network, order, num_draws, seed=seed)
    exact = np.linalg.eigvalsh(truth("mlp").hessian)
    slack = 1e-5 * np.abs(exact).max()
    ends = spectrum.extreme_eigenvalues
    assert exact[0] - slack <= ends.smallest <= ends.largest <= exact[-1] + slack
    forms = [
        v @ truth("mlp").hessian @ v for v in (start_vector(31, seed, d) for d in range(num_draws))
    ]
    assert spectrum.moment(1, deflate=False) == pytest.approx(np.mean(forms), abs=slack)
