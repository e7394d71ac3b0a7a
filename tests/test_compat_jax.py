"""The names of the original's directory `jax/`, and `approximate_hessian` where JAX computes."""

import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import dense_symmetric, orthogonality_error, semicircle_with_outliers

import spectral_density as sd

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 5)).astype(np.float32)
Y = RANDOM.normal(size=(30, 2)).astype(np.float32)
SIZES = (13, 9, 8)


def params():
    return {"layer": {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(2)}}


def predict(params, x):
    return x @ params["layer"]["kernel"] + params["layer"]["bias"]


def squares(params, batch):
    x, y = batch
    return ((predict(params, x) - y) ** 2).sum()


def mean_squares(params, batch):
    return squares(params, batch) / len(batch[0])


def example_squares(params, batch):
    x, y = batch
    return ((predict(params, x) - y) ** 2).sum(axis=1)


def quartic(params, batch):
    return ((batch[0] @ params["layer"]["kernel"]) ** 4).sum() / 12


def batches():
    start = 0
    for size in SIZES:
        yield X[start : start + size], Y[start : start + size]
        start += size


def gram(x):
    """Return the Hessian of the sum of squares of a linear layer: bias first, as JAX sorts."""
    x = np.asarray(x, np.float64)
    jacobian = np.hstack([np.kron(np.ones((len(x), 1)), np.eye(2)), np.kron(x, np.eye(2))])
    return 2 * jacobian.T @ jacobian


def relative_error(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def recurrence(matrix, start, order):
    """Return T of Lanczos's three-term recurrence with full orthogonalization, in NumPy."""
    rows, alpha, beta = [start / np.linalg.norm(start)], [], []
    for _ in range(order):
        w = matrix @ rows[-1]
        alpha.append(rows[-1] @ w)
        for row in [*rows, *rows]:
            w = w - (row @ w) * row
        beta.append(np.linalg.norm(w))
        rows.append(w / beta[-1])
    return np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1), np.array(rows[:-1])


# lanczos_alg


def test_lanczos_alg_gives_the_recurrence_from_the_start_vector_of_its_key():
    matrix = dense_symmetric(semicircle_with_outliers(60), seed=1)
    key = jax.random.PRNGKey(3)
    tridiag, vecs = sd.lanczos_alg(lambda v: jnp.asarray(matrix) @ v, 60, 12, key)
    start = np.asarray(jax.random.normal(key, (60,)), np.float64)
    expected, rows = recurrence(matrix, start, 12)
    np.testing.assert_allclose(tridiag, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(vecs, rows, atol=1e-4)


def test_lanczos_alg_at_full_order_is_the_matrix_with_vectors_as_rows():
    matrix = dense_symmetric(semicircle_with_outliers(40), seed=2)
    tridiag, vecs = sd.lanczos_alg(lambda v: matrix @ v, 40, 40, jax.random.key(0))
    assert (tridiag.shape, vecs.shape) == ((40, 40), (40, 40))
    assert tridiag.dtype == vecs.dtype == np.float64
    assert isinstance(tridiag, np.ndarray)
    assert orthogonality_error(vecs) <= 1e-12
    assert relative_error(vecs.T @ tridiag @ vecs, matrix) <= 1e-5


def test_lanczos_alg_calls_the_product_with_vectors_of_jax():
    seen = []

    def product(v):
        seen.append(v)
        return 2 * v

    sd.lanczos_alg(product, 7, 3, jax.random.key(0))
    assert len(seen) == 3
    assert all(isinstance(v, jax.Array) and v.shape == (7,) for v in seen)


def test_the_keys_of_lanczos_alg_are_different_draws():
    first, again, other = (
        sd.lanczos_alg(lambda v: jnp.arange(9.0) * v, 9, 4, jax.random.key(seed))[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_lanczos_alg_refuses_a_product_of_another_shape_and_too_many_steps():
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(4, 1\)"):
        sd.lanczos_alg(lambda v: v[:, None], 4, 2, jax.random.key(0))
    with pytest.raises(ValueError, match="order"):
        sd.lanczos_alg(lambda v: v, 4, 5, jax.random.key(0))


# hvp


def test_hvp_is_the_product_on_one_batch_as_a_pytree():
    v = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), params())
    found = sd.hvp(squares, params(), (X, Y), v)
    assert jax.tree.structure(found) == jax.tree.structure(v)
    expected = gram(X) @ np.full(12, 0.5)
    np.testing.assert_allclose(found["layer"]["bias"], expected[:2], rtol=1e-5)
    np.testing.assert_allclose(found["layer"]["kernel"], expected[2:].reshape(5, 2), rtol=1e-5)


def test_hvp_runs_within_transformations():
    v = jax.tree.map(jnp.ones_like, params())
    alone = sd.hvp(quartic, params(), (X, Y), v)
    jitted = jax.jit(lambda params, v: sd.hvp(quartic, params, (X, Y), v))(params(), v)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), v)
    mapped = jax.vmap(lambda v: sd.hvp(quartic, params(), (X, Y), v))(stacked)
    # H = sum_i (w'x_i)^2 x_i x_i' for each of two columns, at w = 1 with v = 1.
    sums = X.astype(np.float64).sum(axis=1)
    expected = np.repeat((X.T @ sums**3)[:, np.newaxis], 2, axis=1)
    for found in (alone, jitted, jax.tree.map(lambda leaf: leaf[1] / 2, mapped)):
        np.testing.assert_allclose(found["layer"]["kernel"], expected, rtol=1e-4)
        np.testing.assert_allclose(found["layer"]["bias"], 0)


def test_hvp_passes_the_batch_on_as_it_is():
    def loss(params, batch):
        assert batch["power"] == 2
        return (batch["x"] * params ** batch["power"]).sum()

    found = sd.hvp(loss, jnp.ones(3), {"x": jnp.arange(3.0), "power": 2}, jnp.ones(3))
    np.testing.assert_allclose(found, 2 * np.arange(3.0))


def test_hvp_refuses_what_is_no_scalar_and_a_vector_of_another_form():
    with pytest.raises(ValueError, match=r"scalar, got shape \(30,\)"):
        sd.hvp(example_squares, params(), (X, Y), params())
    with pytest.raises(ValueError, match="v must have the structure of params"):
        sd.hvp(squares, params(), (X, Y), params()["layer"])
    with pytest.raises(ValueError, match=r"expected \(2,\), got \(5,\)"):
        v = {"layer": {"kernel": jnp.ones((5, 2)), "bias": jnp.zeros(5)}}
        sd.hvp(squares, params(), (X, Y), v)
    with pytest.raises(ValueError, match=r"step \(int32\)"):
        sd.hvp(lambda p, batch: p["w"], {"w": 1.0, "step": jnp.int32(1)}, None, None)


# get_hvp_fn


def test_get_hvp_fn_divides_the_sum_by_the_number_of_batches():
    hvp_fn, unravel, num_params = sd.get_hvp_fn(mean_squares, params(), batches)
    v = RANDOM.normal(size=12)
    ends = np.cumsum([0, *SIZES])
    parts = [gram(X[a:b]) / (b - a) for a, b in pairwise(ends)]
    found = hvp_fn(params(), jnp.asarray(v))
    assert num_params == 12
    assert found.dtype == np.float64
    assert relative_error(found, sum(parts) @ v / 3) <= 1e-5
    tree = unravel(v)
    assert jax.tree.structure(tree) == jax.tree.structure(params())
    np.testing.assert_allclose(tree["layer"]["kernel"], v[2:].reshape(5, 2), rtol=1e-6)


def test_the_function_computes_at_the_parameters_that_it_is_given():
    hvp_fn, unravel, _ = sd.get_hvp_fn(quartic, params(), lambda: [(X, Y)])
    at_ones = hvp_fn(params(), np.ones(12))
    at_twos = hvp_fn(jax.tree.map(lambda leaf: np.asarray(2 * leaf), params()), np.ones(12))
    np.testing.assert_allclose(at_twos, 4 * at_ones, rtol=1e-5)
    np.testing.assert_array_equal(hvp_fn(params(), np.ones(12)), at_ones)
    # As within a transformation of JAX, where the original's may be used too.
    np.testing.assert_allclose(jax.jit(unravel)(jnp.ones(12))["layer"]["bias"], 1)


def test_the_same_parameters_are_linearized_once():
    calls = []

    def loss(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return quartic(params, batch)

    hvp_fn, *_ = sd.get_hvp_fn(loss, params(), lambda: [(X, Y)])
    same = params()
    hvp_fn(same, np.ones(12))
    jax.effects_barrier()
    before = len(calls)
    assert before
    for _ in range(3):
        hvp_fn(same, np.ones(12))
    jax.effects_barrier()
    assert len(calls) == before


def test_the_whole_run_of_the_original_gives_the_exact_matrix():
    hvp_fn, _, num_params = sd.get_hvp_fn(squares, params(), lambda: [(X, Y)])
    weights = params()
    tridiag, vecs = sd.lanczos_alg(
        lambda v: hvp_fn(weights, v), num_params, num_params, jax.random.PRNGKey(0)
    )
    assert relative_error(vecs.T @ tridiag @ vecs, gram(X)) <= 1e-5
    density, grids = sd.tridiag_to_density([tridiag], sigma_squared=1e-3, grid_len=500)
    assert np.sum(density) * (grids[1] - grids[0]) == pytest.approx(1.0)


def test_get_hvp_fn_refuses_what_is_no_problem():
    with pytest.raises(ValueError, match="empty"):
        sd.get_hvp_fn(squares, params(), lambda: iter(()))
    with pytest.raises(ValueError, match="scalar"):
        sd.get_hvp_fn(example_squares, params(), batches)
    with pytest.raises(ValueError, match="floating"):
        sd.get_hvp_fn(squares, {"step": 3}, batches)
    hvp_fn, unravel, _ = sd.get_hvp_fn(squares, params(), batches)
    with pytest.raises(ValueError, match="params must have the structure"):
        hvp_fn(params()["layer"], np.ones(12))
    with pytest.raises(ValueError, match=r"shape \(12,\)"):
        hvp_fn(params(), np.ones(11))
    with pytest.raises(ValueError, match=r"shape \(12,\), got \(11,\)"):
        unravel(np.ones(11))


# full_hessian


def test_full_hessian_of_a_polynomial_is_its_closed_form():
    found = sd.full_hessian(lambda x: 2 * x[0] ** 3 * x[1] ** 3, jnp.ones(2))
    np.testing.assert_allclose(found, [[12, 18], [18, 12]], rtol=1e-6)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64


def test_full_hessian_takes_numpy_and_python_leaves():
    found = sd.full_hessian(lambda p: p["a"] ** 2 + p["a"] * p["b"].sum(), {"a": 1.0, "b": X[0]})
    expected = np.zeros((6, 6))
    expected[0] = expected[:, 0] = 1
    expected[0, 0] = 2
    np.testing.assert_allclose(found, expected, atol=1e-6)


# approximate_hessian


@pytest.mark.parametrize(("reduce_op", "loss"), [("SUM", squares), ("MEAN", mean_squares)])
def test_approximate_hessian_of_a_pytree_returns_numpy_arrays(reduce_op, loss):
    v, t = sd.approximate_hessian(params(), loss, batches, 12, reduce_op, 1, check=False)
    assert type(v) is type(t) is np.ndarray
    assert v.dtype == t.dtype == np.float64
    assert (v.shape, t.shape) == ((12, 12), (12, 12))
    exact = gram(X) / (len(X) if reduce_op == "MEAN" else 1)
    assert relative_error(v @ t @ v.T, exact) <= 1e-5


def test_one_loss_per_example_is_summed_with_the_warning():
    with pytest.warns(UserWarning, match="one loss per example") as record:
        v, t = sd.approximate_hessian(params(), example_squares, list(batches()), 12)
    assert "(shape (13,))" in str(record[0].message)
    assert record[0].filename == __file__
    assert relative_error(v @ t @ v.T, gram(X)) <= 1e-5


def test_variables_choose_leaves_of_a_pytree():
    v, t = sd.approximate_hessian(params(), squares, batches, 2, "SUM", variables="layer/bias")
    assert v.shape == (2, 2)
    assert relative_error(v @ t @ v.T, 2 * len(X) * np.eye(2)) <= 1e-5


_KERAS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tf_keras"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import warnings
import keras, numpy as np
import spectral_density as sd
x = np.random.default_rng(0).normal(size=(30, 5)).astype("float32")
y = np.ones(30, "float32")
model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
def losses(model, batch):
    return keras.losses.mean_squared_error(batch[1], model(batch[0]))
def mean(model, batch):
    return keras.ops.mean(losses(model, batch))
exact = 2 * x.astype(float).T @ x.astype(float)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    v, t = sd.approximate_hessian(model, losses, [(x, y)], 5)
print([str(w.message)[:27] for w in caught], type(v).__name__, type(t).__name__, v.dtype)
print(np.linalg.norm(v @ t @ v.T - exact) < 1e-5 * np.linalg.norm(exact))
for loss in (mean, "mse", keras.losses.MeanSquaredError(), keras.losses.mean_squared_error):
    v, t = sd.approximate_hessian(model, loss, [(x, y)], 5)
    print(np.linalg.norm(v @ t @ v.T - exact / 30) < 1e-5 * np.linalg.norm(exact / 30))
"""


@pytest.mark.exhaustive
def test_approximate_hessian_of_a_keras_model_under_jax_needs_no_tensorflow(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    done = subprocess.run(
        [sys.executable, "-c", _KERAS], capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "['loss_fn returned one loss p'] ndarray ndarray float64"
    assert others == ["True"] * 5
