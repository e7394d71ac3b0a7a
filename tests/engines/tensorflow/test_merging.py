"""Batches computed together give the same matrix, and only where that is known to be so."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import spectral_density as sd
from spectral_density.engines.tensorflow import merging

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(autouse=True)
def small_datasets_too(monkeypatch):
    monkeypatch.setattr("spectral_density.curvature.sweep.MIN_EXAMPLES", 0)


def network(*middle, dtype="float64", **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype="float32" if dtype == "mixed_float16" else dtype)
    first = keras.layers.Dense(5, activation="tanh", dtype=dtype, **options)
    last = keras.layers.Dense(3, dtype=dtype)
    return keras.Sequential([inputs, first, *middle, last])


def examples(sizes, *, weighted=False, dtype="float64"):
    rng = np.random.default_rng(1)
    batches = []
    for size in sizes:
        batch = (rng.normal(size=(size, 4)).astype(dtype), rng.integers(0, 3, size))
        batches.append((*batch, rng.uniform(0.1, 2, size)) if weighted else batch)
    return batches


@pytest.mark.parametrize("memory_share", [0.25, 0.0], ids=["kept", "streamed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", [sd.HessianOperator, sd.GaussNewtonOperator])
def test_merged_batches_give_the_matrix_of_the_batches(kind, weighted, memory_share):
    model, data = network(), examples([5, 5, 3], weighted=weighted)
    merged, split = (
        kind(model, LOSS, data, memory_share=memory_share, join_batches=join)
        for join in (True, False)
    )
    assert [len(op.batches.parcels) for op in (merged, split)] == [1, 3]
    assert len(merged.batches) == len(split.batches) == 3
    # On random vectors one wrong entry shows too, without a graph for each of 43 columns.
    block = np.random.default_rng(2).normal(size=(merged.shape[0], 2))
    np.testing.assert_allclose(merged @ block, split @ block, rtol=0, atol=1e-14)
    np.testing.assert_allclose(merged.gradient(), split.gradient(), rtol=0, atol=1e-15)
    np.testing.assert_allclose(merged.loss(), split.loss(), rtol=1e-14)


def sequence_network(*middle, steps=3):
    keras.utils.set_random_seed(0)
    inputs = outputs = keras.Input((steps, 4), dtype="float64")
    for layer in middle:
        attends = isinstance(layer, keras.layers.MultiHeadAttention)
        outputs = layer(outputs, outputs) if attends else layer(outputs)
    if len(outputs.shape) == 3:
        outputs = keras.layers.GlobalAveragePooling1D(dtype="float64")(outputs)
    return keras.Model(inputs, keras.layers.Dense(3, dtype="float64")(outputs))


def sequences(sizes):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(size, 3, 4)), rng.integers(0, 3, size)) for size in sizes]


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.LSTM(3, dtype="float64"),
        pytest.param(
            keras.layers.GRU(3, return_sequences=True, dtype="float64"),
            marks=pytest.mark.exhaustive,
        ),
        keras.layers.SimpleRNN(3, go_backwards=True, dtype="float64"),
        keras.layers.MultiHeadAttention(2, 3, dtype="float64"),
    ],
    ids=["LSTM", "GRU", "SimpleRNN", "attention"],
)
def test_merged_sequences_give_the_matrix_of_the_batches(layer):
    model, data = sequence_network(layer), sequences([5, 5, 3])
    v = np.random.default_rng(2).normal(size=sum(w.numpy().size for w in model.trainable_weights))
    merged = sd.HessianOperator(model, LOSS, data)
    split = sd.HessianOperator(model, LOSS, data, join_batches=False)
    assert [len(op.batches.parcels) for op in (merged, split)] == [1, 3]
    np.testing.assert_allclose(merged @ v, split @ v, rtol=0, atol=1e-14)


def test_loops_keep_their_batches():
    # How much a step holds is not to be seen from outside of a loop.
    recurrent = keras.layers.LSTM(3, dtype="float64")
    hessian = sd.HessianOperator(sequence_network(recurrent, steps=None), LOSS, sequences([5, 5]))
    assert len(hessian.batches.parcels) == 2


def test_one_graph_serves_ragged_batches():
    hessian = sd.HessianOperator(network(), LOSS, examples([5, 5, 3]))
    for _ in range(3):
        hessian @ np.ones(hessian.shape[0])
    assert hessian.num_traces == 1


@pytest.mark.parametrize("memory_share", [0.25, 0.0], ids=["kept", "streamed"])
def test_the_batches_of_the_user_are_still_to_be_had(memory_share):
    data = examples([5, 5, 3])
    hessian = sd.HessianOperator(network(), LOSS, data, memory_share=memory_share)
    for given, kept in zip(data, hessian.batches, strict=True):
        for before, after in zip(given, kept, strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_parcel_holds_no_more_than_its_share(monkeypatch):
    monkeypatch.setattr(merging, "MAX_BYTES", 8 * 1000)
    hessian = sd.HessianOperator(network(), LOSS, examples([5] * 40))
    parcels = hessian.batches.parcels
    assert 1 < len(parcels) < 40
    assert [number for parcel in parcels for number in parcel] == list(range(40))


class Centred(keras.layers.Layer):
    """Couples the examples of a batch."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0)


def per_example(y_true, y_pred):
    return tf.reduce_mean(
        (y_pred - tf.one_hot(tf.cast(y_true, tf.int32), 3, dtype=y_pred.dtype)) ** 2, axis=-1
    )


@pytest.mark.parametrize(
    ("model", "loss", "options"),
    [
        (network(Centred(dtype="float64")), LOSS, {}),
        (network(keras.layers.Lambda(lambda x: x, dtype="float64")), LOSS, {}),
        (network(activity_regularizer="l2"), LOSS, {}),
        (network(keras.layers.Activation(lambda x: x, dtype="float64")), LOSS, {}),
        (network(keras.layers.Softmax(axis=0, dtype="float64")), LOSS, {}),
        (network(), per_example, {}),
        (network(), lambda model, batch: tf.reduce_mean(model(batch[0]) ** 2), {}),
        (network(), LOSS, {"training": True}),
        (network(), LOSS, {"batch_weight": lambda batch: 1.0}),
        (network(dtype="mixed_float16"), LOSS, {}),
    ],
    ids=[
        "coupling layer", "lambda", "added loss", "own activation", "first axis", "own loss",
        "function", "training", "batch weight", "half precision",
    ],
)  # fmt: skip
def test_batches_that_may_be_coupled_stay_as_they_are(model, loss, options):
    assert len(sd.HessianOperator(model, loss, examples([5, 5, 3]), **options).batches.parcels) == 3


def along_the_batch(of, dtype="float64"):
    """A functional model with something between two layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype=dtype)
    hidden = of(keras.layers.Dense(3, activation="tanh", dtype=dtype)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, dtype=dtype)(hidden))


COUPLED = {
    "softmax": lambda h: keras.ops.softmax(h, axis=0),
    "mean": lambda h: h - keras.ops.mean(h, 0),
    "centred": lambda h: keras.ops.subtract(h, keras.ops.mean(h, axis=0, keepdims=True)),
    "sorted": lambda h: keras.ops.sort(h, axis=0),
    "matrix of the batch": lambda h: keras.ops.matmul(h @ keras.ops.transpose(h), h),
    "axis -2 of a matrix": keras.layers.Softmax(axis=-2, dtype="float64"),
    "normalized": lambda h: keras.ops.normalize(h, axis=0),
    "unit norm": keras.layers.UnitNormalization(axis=0, dtype="float64"),
    "batch statistics": lambda h: keras.layers.BatchNormalization(dtype="float64")(
        h, training=True
    ),
    "own activation": keras.layers.Activation(keras.ops.flip, dtype="float64"),
    "nested": lambda h: along_the_batch(lambda g: g - keras.ops.mean(g, 0))(
        keras.layers.Dense(4, dtype="float64")(h)
    ),
    "replaced method": lambda h: replaced(keras.layers.ReLU(dtype="float64"))(h),
}


def replaced(layer):
    layer.call = lambda x: x - tf.reduce_mean(x, axis=0)
    return layer


@pytest.mark.parametrize("kind", COUPLED)
def test_operations_that_may_couple_examples_keep_the_batches(kind):
    model = along_the_batch(COUPLED[kind])
    hessian = sd.HessianOperator(model, LOSS, examples([5, 5, 3]), variables=model.layers[-1])
    assert len(hessian.batches.parcels) == 3


@pytest.mark.parametrize("operation", [lambda h: 5 * keras.ops.softmax(h, axis=0)])
def test_the_matrix_of_coupled_batches_is_the_mean_of_theirs(operation):
    model, data = along_the_batch(operation), examples([5, 5, 5])
    v = np.random.default_rng(2).normal(size=27)
    each = [sd.HessianOperator(model, LOSS, [batch]) @ v for batch in data]
    product = sd.HessianOperator(model, LOSS, data) @ v
    np.testing.assert_allclose(product, np.mean(each, axis=0), rtol=0, atol=1e-12)


def test_layers_alone_are_still_merged():
    def block(h):
        scaled = keras.layers.LayerNormalization(dtype="float64")(h)
        return keras.layers.Add(dtype="float64")([h, keras.layers.ReLU(dtype="float64")(scaled)])

    hessian = sd.HessianOperator(along_the_batch(block), LOSS, examples([5, 5, 3]))
    assert len(hessian.batches.parcels) == 1


def test_so_are_residuals_written_as_sums():
    def block(h):
        return h + 0.5 * keras.ops.gelu(keras.layers.Dense(3, dtype="float64")(h)) * h

    model, data = along_the_batch(block), examples([5, 5, 5])
    hessian = sd.HessianOperator(model, LOSS, data)
    assert len(hessian.batches.parcels) == 1
    v = np.random.default_rng(2).normal(size=hessian.shape[0])
    each = [sd.HessianOperator(model, LOSS, [batch]) @ v for batch in data]
    np.testing.assert_allclose(hessian @ v, np.mean(each, axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("equation", "apart"),
    [("abc,cd->abd", True), ("...x,xy->...y", True), ("ab,ac->bc", False), ("ab,bc->ca", False)],
)
def test_an_einsum_that_mixes_examples_keeps_the_batches(equation, apart):
    # Keras makes no such layer yet: the kernel would have as many rows as the batch.
    assert merging._keeps_first_letter(equation) is apart


def test_batches_of_other_forms_stay_apart():
    model = keras.Sequential(
        [keras.Input((None, 4)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(3)]
    )
    rng = np.random.default_rng(0)
    data = [
        (rng.normal(size=(5, length, 4)).astype("f4"), np.arange(5) % 3) for length in (2, 2, 6, 6)
    ]
    hessian = sd.HessianOperator(model, LOSS, data)
    assert [list(parcel) for parcel in hessian.batches.parcels] == [[0, 1], [2, 3]]


def test_what_is_computed_at_once_is_limited_for_each_form(monkeypatch):
    model = keras.Sequential(
        [keras.Input((None, 4)), keras.layers.Conv1D(5, 1), keras.layers.GlobalAveragePooling1D()]
    )
    rng = np.random.default_rng(0)

    def made(lengths):
        return [(rng.normal(size=(5, n, 4)).astype("f4"), np.arange(5) % 3) for n in lengths]

    monkeypatch.setattr(merging, "MAX_BYTES", 40_000)
    short, long = [2] * 4, [60] * 4
    for lengths in (short + long, long + short):
        hessian = sd.HessianOperator(model, LOSS, made(lengths))
        sizes = [len(parcel) for parcel in hessian.batches.parcels]
        assert sorted(sizes) == [1, 1, 1, 1, 4]
    # Sequences of another length, of which nothing is known, keep their batches.
    assert len(hessian.with_dataset(made([61] * 4)).batches.parcels) == 4
    assert len(hessian.with_dataset(made(short)).batches.parcels) == 1


@pytest.mark.parametrize("loss", ["mse", "huber", "binary_crossentropy"])
def test_one_loss_for_a_whole_batch_is_not_cut_otherwise(loss):
    # Of outputs (n,) Keras's losses are a mean over the batch, times the weight of each example.
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, "sigmoid"), keras.layers.Reshape(())]
    )
    model.compile("sgd", loss)
    rng = np.random.default_rng(0)
    x, y, weights = (
        rng.normal(size=(15, 4)).astype("f4"),
        rng.uniform(size=15),
        rng.uniform(size=15),
    )
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(5)
    hessian = sd.HessianOperator(model, None, data)
    assert hessian.loss() == pytest.approx(model.evaluate(data, verbose=0), rel=1e-5)


def test_a_product_that_is_not_finite_names_the_one_batch():
    data = examples([5, 5, 3])
    data[1][0][2, 0] = np.nan
    hessian = sd.HessianOperator(network(), LOSS, data)
    with pytest.raises(FloatingPointError, match="batch 1 of 3"):
        hessian @ np.ones(hessian.shape[0])


def test_a_stream_that_grows_says_so():
    data = examples([5, 5])
    hessian = sd.HessianOperator(network(), LOSS, lambda: iter(data), memory_share=0)
    assert len(hessian.batches.parcels) == 1
    data.append(data[0])
    with pytest.raises(ValueError, match="more than 2 batches"):
        hessian @ np.ones(hessian.shape[0])
    del data[1:]
    with pytest.raises(ValueError, match="gave 1 batches"):
        hessian @ np.ones(hessian.shape[0])


# Other data for the same matrix ------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda model, data: sd.HessianOperator(model, LOSS, data),
        lambda model, data: sd.GaussNewtonOperator(model, LOSS, data),
        lambda model, data: sd.FisherOperator(model, LOSS, data, kind="monte_carlo"),
        lambda model, data: sd.FisherOperator(model, LOSS, data, kind="empirical"),
    ],
    ids=["hessian", "ggn", "monte_carlo", "empirical"],
)
def test_with_dataset_is_a_new_operator_without_new_graphs(make):
    model = network()
    first, second = examples([6, 6]), examples([6, 4], weighted=False)[:1] * 2
    operator = make(model, first)
    v = np.linspace(-1, 1, operator.shape[0])
    before = operator @ v
    other = operator.with_dataset(second)
    assert other is not operator
    np.testing.assert_array_equal(other @ v, make(model, second) @ v)
    assert operator.num_traces == other.num_traces == 1
    np.testing.assert_array_equal(operator @ v, before)
    assert (operator.num_passes, other.num_passes) == (2, 1)


def test_with_dataset_weighs_the_new_data_by_itself():
    model = network()
    hessian = sd.HessianOperator(model, LOSS, examples([6], weighted=True))
    data = examples([3, 7], weighted=True)
    block = np.random.default_rng(2).normal(size=(hessian.shape[0], 2))
    np.testing.assert_allclose(
        hessian.with_dataset(data) @ block,
        sd.HessianOperator(model, LOSS, data) @ block,
        rtol=0,
        atol=1e-15,
    )


def test_with_dataset_refuses_an_empty_one():
    hessian = sd.HessianOperator(network(), LOSS, examples([6]))
    with pytest.raises(ValueError, match="empty"):
        hessian.with_dataset([])


def test_a_parcel_weighs_what_its_batches_weigh():
    # Losses that are known to be sums need no such weight, and whatever does shall find it.
    merged = sd.HessianOperator(network(), LOSS, examples([5, 5, 3]))
    assert [float(at.weight) for at in merged.sweep.inputs()] == [13.0]
    assert merged.batches.num_examples == 13.0
