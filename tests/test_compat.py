import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import dense_symmetric, orthogonality_error, semicircle_with_outliers
from models import split

import spectral_density as density_lib
import spectral_density as lanczos_algorithm
from spectral_density import HessianOperator, approximate_hessian

NUM_SAMPLES, NUM_FEATURES = 50, 16
PER_EXAMPLE = "one loss per example"


def regression(dtype="float32", seed=0):
    """The toy of the original notebook: a linear model, x and y."""
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.normal(size=(NUM_SAMPLES, NUM_FEATURES)), dtype)
    y = tf.constant(rng.normal(size=NUM_SAMPLES), dtype)
    model = keras.Sequential(
        [
            keras.Input((NUM_FEATURES,), dtype=dtype),
            keras.layers.Dense(1, use_bias=False, dtype=dtype),
        ]
    )
    return model, x, y


def mse(model, batch):
    """The loss of the original notebook: labels (n,), predictions (n, 1), hence n losses."""
    x, y = batch
    return keras.losses.mean_squared_error(y, model(x))


def mean_loss(model, batch):
    x, y = batch
    return tf.reduce_mean(tf.square(y - model(x)[:, 0]))


def sum_loss(model, batch):
    x, y = batch
    return tf.reduce_sum(tf.square(y - model(x)[:, 0]))


def gram(x):
    x = np.asarray(x, np.float64)
    return x.T @ x


def relative_error(v, t, exact):
    found = v.numpy() @ t.numpy() @ v.numpy().T
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


# The original notebook


def test_the_toy_of_the_original_notebook_is_two_x_transposed_x():
    model, x, y = regression()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(NUM_SAMPLES)
    with pytest.warns(UserWarning, match=PER_EXAMPLE):
        v, t = lanczos_algorithm.approximate_hessian(
            model, mse, data, order=NUM_FEATURES, random_seed=1
        )
    assert relative_error(v, t, 2 * gram(x)) <= 1e-5
    density, grids = density_lib.tridiag_to_density([t.numpy()], grid_len=1000, sigma_squared=1e-3)
    assert density.shape == grids.shape == (1000,)
    assert np.sum(density) * (grids[1] - grids[0]) == pytest.approx(1.0)


def test_the_same_in_float64_is_exact_to_rounding():
    model, x, y = regression("float64")

    def losses(model, batch):
        x, y = batch
        return tf.square(y - model(x)[:, 0])

    with pytest.warns(UserWarning, match=PER_EXAMPLE):
        v, t = approximate_hessian(model, losses, [(x, y)], NUM_FEATURES)
    assert relative_error(v, t, 2 * gram(x)) <= 1e-12


def test_positional_arguments_are_those_of_the_original():
    model, x, y = regression()
    v, t = approximate_hessian(model, sum_loss, [(x, y)], NUM_FEATURES, "SUM", 3, False)
    assert relative_error(v, t, 2 * gram(x)) <= 1e-5
    _, other = approximate_hessian(model, sum_loss, [(x, y)], NUM_FEATURES, "SUM", 4, True)
    assert not np.allclose(t, other)


def test_the_warning_states_the_shape_what_was_done_and_the_remedy():
    model, x, y = regression()
    with pytest.warns(UserWarning) as record:
        approximate_hessian(model, mse, [(x, y)], 2)
    (warning,) = record
    text = str(warning.message)
    for part in (f"({NUM_SAMPLES},)", 'reduce_op="SUM"', "summed", "mean or sum"):
        assert part in text
    assert warning.filename == __file__


def test_a_scalar_loss_is_not_warned_about():
    model, x, y = regression()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        approximate_hessian(model, mean_loss, [(x, y)], 2)
        approximate_hessian(model, "mse", [(x, y)], 2)


# Reductions and batches


@pytest.mark.parametrize("sizes", [(50,), (20, 20, 10), (49, 1), (1, 49), (7, 30, 13)])
def test_the_mean_is_that_of_the_data_whatever_the_batching(sizes):
    model, x, y = regression()
    v, t = approximate_hessian(model, mean_loss, split((x, y), sizes), NUM_FEATURES)
    assert relative_error(v, t, 2 * gram(x) / NUM_SAMPLES) <= 1e-5


@pytest.mark.parametrize("sizes", [(50,), (20, 20, 10), (49, 1), (1, 49)])
@pytest.mark.parametrize("reduce_op", ["MEAN", "SUM"])
def test_losses_per_example_are_summed_whatever_the_batching(sizes, reduce_op):
    model, x, y = regression()
    with pytest.warns(UserWarning, match=PER_EXAMPLE):
        v, t = approximate_hessian(
            model, mse, split((x, y), sizes), NUM_FEATURES, reduce_op=reduce_op
        )
    assert relative_error(v, t, 2 * gram(x)) <= 1e-5


@pytest.mark.parametrize("sizes", [(50,), (20, 20, 10)])
def test_sums_are_added_over_batches(sizes):
    model, x, y = regression()
    v, t = approximate_hessian(model, sum_loss, split((x, y), sizes), NUM_FEATURES, reduce_op="SUM")
    assert relative_error(v, t, 2 * gram(x)) <= 1e-5


def test_a_dataset_whose_last_batch_is_ragged_streams_as_well():
    model, x, y = regression()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    v, t = approximate_hessian(model, mean_loss, data, NUM_FEATURES)
    assert relative_error(v, t, 2 * gram(x) / NUM_SAMPLES) <= 1e-5


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError(), None])
def test_keras_losses_are_means_over_the_data(loss):
    model, x, y = regression()
    model.compile(loss="mse")
    data = split((x, y[:, None]), (30, 20))
    v, t = approximate_hessian(model, loss, data, NUM_FEATURES)
    assert relative_error(v, t, 2 * gram(x) / NUM_SAMPLES) <= 1e-5


def test_keras_losses_can_be_summed():
    model, x, y = regression()
    data = split((x, y[:, None]), (30, 20))
    v, t = approximate_hessian(model, "mse", data, NUM_FEATURES, reduce_op="SUM")
    assert relative_error(v, t, 2 * gram(x)) <= 1e-5


def test_the_weights_of_classes_are_those_of_fit():
    model, x, _ = regression()
    labels = np.arange(NUM_SAMPLES) % 2
    data = split((x, labels[:, None]), (30, 20))
    v, t = approximate_hessian(model, "mse", data, NUM_FEATURES, class_weight={1: 3.0})
    weighted = gram(np.asarray(x) * np.sqrt(np.where(labels == 1, 3.0, 1.0))[:, None])
    assert relative_error(v, t, 2 * weighted / NUM_SAMPLES) <= 1e-5


# What comes back


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 4)).astype("float32"), rng.integers(0, 3, 23)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, loss, split((x, y), (9, 9, 5))


@pytest.mark.parametrize("order", [1, 2, 10, 43])
def test_v_and_t_are_float64_tensors_orthonormal_and_tridiagonal(network, order):
    v, t = approximate_hessian(*network, order)
    for tensor, shape in ((v, (43, order)), (t, (order, order))):
        assert isinstance(tensor, tf.Tensor)
        assert tensor.dtype == tf.float64
        assert tuple(tensor.shape) == shape
    assert orthogonality_error(v.numpy().T) <= 1e-14
    tridiagonal = t.numpy()
    np.testing.assert_array_equal(tridiagonal, tridiagonal.T)
    assert not np.triu(tridiagonal, 2).any()


def test_v_and_t_are_of_use_in_tensorflow(network):
    v, t = approximate_hessian(*network, 43)
    dense = tf.linalg.matmul(tf.linalg.matmul(v, t), v, transpose_b=True)
    exact = HessianOperator(*network).to_dense()
    assert np.linalg.norm(dense - exact) <= 1e-5 * np.linalg.norm(exact)
    assert np.allclose(tf.function(lambda: tf.transpose(v) @ v)(), np.eye(43), atol=1e-13)
    assert float(tf.Variable(v)[0, 0]) == v.numpy()[0, 0]


def test_v_outlives_what_it_was_made_from(network):
    v, t = approximate_hessian(*network, 20)
    before = v.numpy().copy()
    for _ in range(5):
        approximate_hessian(*network, 20, random_seed=7)
    np.testing.assert_array_equal(v.numpy(), before)
    assert np.isfinite(t.numpy()).all()


def test_same_seed_same_bits_and_another_seed_another_start(network):
    (v, t), (v_again, t_again) = (approximate_hessian(*network, 10, random_seed=5) for _ in "ab")
    np.testing.assert_array_equal(v, v_again)
    np.testing.assert_array_equal(t, t_again)
    other, _ = approximate_hessian(*network, 10, random_seed=6)
    assert not np.allclose(v[:, 0], other[:, 0])


def test_variables_select_a_layer(network):
    v, t = approximate_hessian(*network, 18, variables="logits")
    exact = HessianOperator(*network, variables="logits").to_dense()
    assert v.shape == (18, 18)
    assert relative_error(v, t, exact) <= 1e-5


def test_the_model_is_as_it_was(network):
    model = network[0]
    before = [w.copy() for w in model.get_weights()]
    approximate_hessian(*network, 5)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_bar_counts_the_steps_and_is_silent_unless_asked(network, capsys):
    approximate_hessian(*network, 5)
    assert capsys.readouterr() == ("", "")
    approximate_hessian(*network, 5, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 0}, ValueError, "order must be at least 1"),
        ({"order": 44}, ValueError, "order is 44"),
        ({"order": 2.5}, TypeError, "order must be an integer"),
        ({"order": 5, "reduce_op": "mean"}, ValueError, 'must be "MEAN" or "SUM"'),
        ({"order": 5, "reduce_op": None}, ValueError, 'must be "MEAN" or "SUM"'),
        ({"order": 5, "variables": "nowhere"}, ValueError, "nowhere"),
        ({"order": 5, "variables": []}, ValueError, "variables"),
        ({"order": 5, "dataset": []}, ValueError, "empty"),
        ({"order": 5, "dataset": iter([])}, ValueError, "used up|iterator"),
        ({"order": 5, "loss_fn": 3}, TypeError, "loss"),
        ({"order": 5, "loss_fn": lambda model, batch: tf.constant(0.0)}, ValueError, "depend"),
    ],
)
def test_bad_input_is_named_at_once(network, options, error, message):
    arguments = dict(zip(("model", "loss_fn", "dataset"), network, strict=True))
    with pytest.raises(error, match=message):
        approximate_hessian(**{**arguments, **options})


@pytest.mark.parametrize("dataset", [[], iter([]), "generator"])
@pytest.mark.parametrize("loss", [mean_loss, mse])
def test_a_bad_dataset_is_named_with_a_function_too(dataset, loss):
    model, x, y = regression()
    dataset = (pair for pair in [(x, y)]) if dataset == "generator" else dataset
    with pytest.raises(ValueError, match=r"empty|used up"):
        approximate_hessian(model, loss, dataset, 3)


def test_only_an_operator_insists_on_a_scalar_loss():
    model, x, y = regression()
    with pytest.raises(ValueError, match=rf"must return a scalar, got shape \({NUM_SAMPLES},\)"):
        HessianOperator(model, mse, [(x, y)])


# A matrix given as a function


def test_a_matrix_given_as_a_function_is_recovered():
    exact = dense_symmetric(np.linspace(-1, 3, 12))
    matrix = tf.constant(exact, tf.float32)
    seen = []

    def mvp_fn(vector):
        seen.append((tuple(vector.shape), vector.dtype))
        return tf.matmul(matrix, vector)

    v, t = lanczos_algorithm.lanczos_algorithm(mvp_fn, 12, 12, random_seed=2, only_gpu=False)
    assert seen == [((12, 1), tf.float32)] * 12
    assert (v.dtype, t.dtype) == (tf.float64, tf.float64)
    assert orthogonality_error(v.numpy().T) <= 1e-14
    assert relative_error(v, t, exact) <= 1e-6


def test_a_compiled_function_and_few_steps_find_the_largest_eigenvalue():
    eigenvalues = semicircle_with_outliers(200)
    matrix = tf.constant(dense_symmetric(eigenvalues), tf.float32)
    v, t = density_lib.lanczos_algorithm(tf.function(lambda v: matrix @ v), 200, 40)
    assert v.shape == (200, 40)
    assert np.linalg.eigvalsh(t.numpy())[-1] == pytest.approx(10.0, rel=1e-5)


@pytest.mark.parametrize(("order", "message"), [(0, "order must be at least 1"), (7, "order is 7")])
def test_a_bad_order_of_a_function_is_an_error(order, message):
    with pytest.raises(ValueError, match=message):
        density_lib.lanczos_algorithm(lambda v: v, 6, order)


@pytest.mark.parametrize("wrong", [lambda v: v[:, 0], lambda v: v[:-1], lambda v: tf.transpose(v)])
def test_a_function_that_returns_another_shape_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"must return shape \(6, 1\)"):
        density_lib.lanczos_algorithm(wrong, 6, 2)


def test_a_function_that_gives_nan_is_an_error():
    with pytest.raises(FloatingPointError, match="not finite"):
        density_lib.lanczos_algorithm(lambda v: v * np.nan, 6, 2)


# The former module


@pytest.mark.parametrize("name", ["estimate_spectrum", "approximate_hessian", "lanczos_algorithm"])
def test_the_former_module_gives_the_same_functions_and_says_where_they_are(name):
    from spectral_density import approximate

    with pytest.warns(DeprecationWarning, match=rf"has moved: use spectral_density\..*\.{name}"):
        assert getattr(approximate, name) is getattr(density_lib, name)
    with pytest.raises(AttributeError, match="no attribute 'approximate_hessain'"):
        _ = approximate.approximate_hessain
