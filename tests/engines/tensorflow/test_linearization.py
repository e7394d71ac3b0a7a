"""What the vectors do not touch is computed once, and again when anything it depends on changes."""

import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

import spectral_density as sd
from spectral_density.engines.tensorflow import compiled_products, linearization

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = (5, 5, 3)


def cross_entropy(y, logits):
    """Return the mean in float64, which a Keras loss object would cast to float32."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))


def cross_entropy_of(model, batch):
    return cross_entropy(batch[1], model(batch[0]))


def network(*middle):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype="float64")
    first = keras.layers.Dense(5, activation="tanh", dtype="float64")
    return keras.Sequential([inputs, first, *middle, keras.layers.Dense(3, dtype="float64")])


def batches():
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(size, 4)), rng.integers(0, 3, size)) for size in SIZES]


@pytest.fixture(autouse=True)
def small_batches_too(monkeypatch):
    monkeypatch.setattr(linearization, "MIN_BATCH_BYTES", 0)


class Counted:
    """A loss that counts how often its forward pass is computed, without a side effect in TF."""

    def __init__(self):
        self.count = 0

    def __call__(self, model, batch):
        def look(x):
            self.count += 1
            return x

        x, y = batch
        seen = tf.numpy_function(look, [x], tf.float64, stateful=False)
        seen.set_shape(x.shape)
        return cross_entropy(y, model(seen))


def counted(model=None, **options):
    loss, model = Counted(), model or network()
    hessian = sd.HessianOperator(model, loss, batches(), **options)
    hessian @ np.ones(hessian.shape[0])
    loss.count = 0
    return model, loss, hessian


def dense_truth(model, data):
    """Return the Hessian of the mean over all examples, by TensorFlow's own Jacobian."""
    variables = [variable.value for variable in model.trainable_variables]
    x, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = cross_entropy(y, model(x))
        gradient = tf.concat(
            [tf.reshape(part, [-1]) for part in inner.gradient(value, variables)], axis=0
        )
    blocks = outer.jacobian(gradient, variables, experimental_use_pfor=False)
    return np.concatenate([np.reshape(block, (len(gradient), -1)) for block in blocks], axis=1)


@pytest.mark.parametrize("kind", [sd.HessianOperator, sd.GaussNewtonOperator])
def test_both_parts_give_the_product_of_the_whole(kind):
    model, v = network(), np.random.default_rng(2).normal(size=43)
    cut = kind(model, LOSS, batches())
    found = [cut @ v, cut @ v]
    assert len(cut.sweep.cache) == len(SIZES)
    whole = kind(model, LOSS, batches(), linearize=False)
    for product in found:
        np.testing.assert_allclose(product, whole @ v, rtol=1e-14, atol=1e-15)
    assert whole.sweep.cache is None


def test_the_forward_pass_is_computed_once():
    _, loss, hessian = counted()
    rng = np.random.default_rng(0)
    for _ in range(3):
        hessian @ rng.normal(size=hessian.shape[0])
    assert loss.count == 0


def test_blocks_share_what_single_vectors_left_behind():
    _, loss, hessian = counted()
    block = np.random.default_rng(0).normal(size=(hessian.shape[0], 20))
    together = hessian @ block
    assert loss.count == 0
    alone = np.stack([hessian @ column for column in block.T], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-14)


def test_blocks_wider_than_a_graph_compute_it_once_though_nothing_is_kept():
    _, loss, hessian = counted(memory_share=0)
    hessian.derivatives.width = 1
    hessian @ np.eye(hessian.shape[0], 4)
    assert loss.count == len(SIZES)


def test_what_does_not_fit_is_computed_each_time_with_the_same_bits():
    _, _, hessian = counted()
    _, loss, streamed = counted(memory_share=0)
    v = np.random.default_rng(0).normal(size=hessian.shape[0])
    np.testing.assert_array_equal(streamed @ v, hessian @ v)
    assert loss.count == len(SIZES)


@pytest.mark.parametrize("change", ["assign", "in place", "one number", "of a variable left out"])
def test_changed_weights_are_noticed(change):
    model = network()
    options = {"variables": "dense_1"} if change == "of a variable left out" else {}
    model.layers[1].name = "dense_1"
    _, loss, hessian = counted(model, **options)
    kernel = model.layers[0].kernel.value
    if change == "one number":
        kernel[2, 1].assign(np.nextafter(kernel[2, 1].numpy(), np.inf))
    elif change == "in place":
        kernel.assign_add(0.1 * tf.ones_like(kernel))
    else:
        kernel.assign(0.5 * kernel)
    n = hessian.shape[0]
    v = np.random.default_rng(0).normal(size=n)
    truth = dense_truth(model, batches())[-n:, -n:] @ v
    np.testing.assert_allclose(hessian @ v, truth, rtol=0, atol=1e-14)
    assert loss.count == len(SIZES)
    np.testing.assert_allclose(hessian @ v, truth, rtol=0, atol=1e-14)
    assert loss.count == len(SIZES)


def test_changed_moving_averages_are_noticed():
    normalization = keras.layers.BatchNormalization(dtype="float64")
    model, _, hessian = counted(network(normalization))
    normalization.moving_mean.assign(np.linspace(-1, 1, 5))
    v = np.random.default_rng(0).normal(size=hessian.shape[0])
    truth = dense_truth(model, batches()) @ v
    np.testing.assert_allclose(hessian @ v, truth, rtol=0, atol=1e-14)


def test_a_function_without_data_has_nothing_to_keep():
    w = tf.Variable([0.5, -1.0], dtype=tf.float64)
    hessian = sd.HessianOperator.from_function(lambda v: tf.reduce_sum(v**4), w)
    for _ in range(2):
        np.testing.assert_allclose(hessian @ [1.0, 2.0], 12 * w.numpy() ** 2 * [1, 2], rtol=1e-14)
        w.assign_add([1.0, 1.0])


def test_other_data_are_counted_without_a_forward_pass():
    _, loss, hessian = counted()
    other = hessian.with_dataset(batches()[:1])
    assert loss.count == 0
    other @ np.ones(other.shape[0])
    assert loss.count == 1


@pytest.mark.parametrize("least", [0, 2**40], ids=["cut", "whole"])
def test_graphs_are_looked_for_once_for_each_batch_and_width(least, monkeypatch):
    monkeypatch.setattr(linearization, "MIN_BATCH_BYTES", least)
    hessian = sd.HessianOperator(network(), LOSS, batches())
    asked, kept = [], hessian.sweep.cache.kept

    def counted_kept(*place):
        found = kept(*place)
        asked.extend([place] if found[0] is None else [])
        return found

    monkeypatch.setattr(hessian.sweep.cache, "kept", counted_kept)
    wide = np.random.default_rng(0).normal(size=(hessian.shape[0], compiled_products.MAX_WIDTH + 2))
    first = hessian @ wide
    assert len(asked) == 2 * len(SIZES)
    np.testing.assert_array_equal(hessian @ wide, first)
    np.testing.assert_array_equal(hessian @ wide, first)
    assert len(asked) == 2 * len(SIZES)


def test_other_data_are_not_mixed_up():
    model, first, second = network(), batches(), [(x + 1, y) for x, y in batches()]
    hessian = sd.HessianOperator(model, LOSS, first)
    v = np.random.default_rng(0).normal(size=hessian.shape[0])
    hessian @ v
    other = hessian.with_dataset(second)
    for operator, data in ((other, second), (hessian, first), (other, second)):
        truth = dense_truth(model, data) @ v
        np.testing.assert_allclose(operator @ v, truth, rtol=0, atol=1e-14)
    assert hessian.num_traces == other.num_traces


def noisy(model, batch):
    x, y = batch
    return cross_entropy(y, model(x + tf.random.normal(tf.shape(x), dtype=x.dtype)))


def printing(model, batch):
    x, y = batch
    tf.print("computed", output_stream="file:///dev/null")
    return cross_entropy(y, model(x))


def asserting(model, batch):
    x, y = batch
    tf.debugging.assert_less(tf.reduce_max(x), tf.constant(100.0, tf.float64))
    return cross_entropy(y, model(x))


@pytest.mark.parametrize("loss", [noisy, printing, asserting])
def test_graphs_with_side_effects_are_run_whole(loss):
    hessian = sd.HessianOperator(network(), loss, batches())
    hessian @ np.ones(hessian.shape[0])
    assert not hessian.sweep.cache


def test_noise_is_drawn_anew_for_each_product():
    hessian = sd.HessianOperator(network(), noisy, batches())
    v = np.ones(hessian.shape[0])
    assert np.abs(hessian @ v - hessian @ v).max() > 1e-6


@pytest.mark.parametrize(
    ("room", "limit"),
    [
        ("spectral_density.engines.tensorflow.linearization.MIN_BATCH_BYTES", 10**4),
        ("spectral_density.engines.tensorflow.linearization.MAX_BATCH_BYTES", 100),
        ("spectral_density.engines.tensorflow.compiled_products.MAX_BYTES", 2000),
    ],
    ids=["too little in a batch", "too much in a batch", "too much in all"],
)
def test_outside_of_the_limits_nothing_is_kept(room, limit, monkeypatch):
    monkeypatch.setattr(room, limit)
    _, loss, hessian = counted()
    hessian @ np.ones(hessian.shape[0])
    assert loss.count == len(SIZES)
    assert not hessian.sweep.cache


def test_what_is_kept_stays_within_its_room_though_later_batches_are_larger(monkeypatch):
    small, large = [(np.ones((n, 4)), np.zeros(n, int)) for n in (2, 50)]
    hessian = sd.HessianOperator(network(), Counted(), [small, *[large] * 6])
    hessian @ np.ones(hessian.shape[0])
    assert len(hessian.sweep.cache) == 7
    room = hessian.sweep.cache.nbytes // 2
    monkeypatch.setattr(compiled_products, "MAX_BYTES", room)
    hessian = hessian.with_dataset([small, *[large] * 6])
    v = np.random.default_rng(0).normal(size=hessian.shape[0])
    found = hessian @ v
    cache = hessian.sweep.cache
    assert 0 < cache.nbytes <= room
    assert 1 < len(cache) < 7
    held = [t for number in range(7) for t in cache.kept(number, 1)[1] or []]
    assert sum(t.dtype.size * t.shape.num_elements() for t in held) == cache.nbytes
    np.testing.assert_array_equal(hessian @ v, found)


def test_an_interrupted_first_product_can_be_made_again(monkeypatch):
    hessian = sd.HessianOperator(network(), cross_entropy_of, batches())
    v = np.ones(hessian.shape[0])

    def interrupted(traced):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compiled_products, "linearize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hessian @ v
    expected = dense_truth(hessian.derivatives.objective.model, batches()) @ v
    np.testing.assert_allclose(hessian @ v, expected, rtol=0, atol=1e-14)
    assert len(hessian.sweep.cache) == len(SIZES)


def test_few_vectors_share_a_graph_where_the_forward_pass_is_large():
    def width(size):
        spec = tf.TensorSpec([size], tf.float32)
        graph = tf.function(lambda x: tf.reduce_sum(tf.sin(x))).get_concrete_function(spec).graph
        return compiled_products.width_of_chunks(graph)

    # Traced, and never computed: a quarter of the bytes that vectors in one graph may take.
    assert width(10) == compiled_products.MAX_WIDTH
    assert width(2**24) == 4
    assert width(2**30) == 1


def test_blocks_are_cut_into_graphs_of_as_many_vectors():
    expected = counted()[2] @ np.eye(43)
    hessian = counted()[2]
    hessian.derivatives.width = 5
    before = hessian.num_passes
    np.testing.assert_allclose(hessian @ np.eye(43), expected, rtol=0, atol=1e-15)
    assert hessian.num_passes == before + 1


def test_threads_may_share_an_operator(monkeypatch):
    linearize = compiled_products.linearize

    def slowly(traced):
        time.sleep(0.2)
        return linearize(traced)

    monkeypatch.setattr(compiled_products, "linearize", slowly)
    hessian = sd.HessianOperator(network(), cross_entropy_of, batches())
    operators = [hessian, hessian, hessian.with_dataset(batches())]
    v = np.ones(hessian.shape[0])
    with ThreadPoolExecutor(len(operators)) as pool:
        found = list(pool.map(lambda operator: operator @ v, operators))
    expected = dense_truth(hessian.derivatives.objective.model, batches()) @ v
    for product in found:
        np.testing.assert_allclose(product, expected, rtol=0, atol=1e-14)


def recurrent(kind, steps=3, **options):
    keras.utils.set_random_seed(0)
    layer = kind(5, dtype="float64", **options)
    inputs = keras.Input((steps, 4), dtype="float64")
    return keras.Sequential([inputs, layer, keras.layers.Dense(3, dtype="float64")])


def sequences():
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(size, 3, 4)), rng.integers(0, 3, size)) for size in SIZES]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_are_written_out_and_put_back(kind):
    model, in_a_loop = (recurrent(getattr(keras.layers, kind), steps) for steps in (3, None))
    operators = [sd.HessianOperator(each, LOSS, sequences()) for each in (model, in_a_loop)]
    v = np.random.default_rng(0).normal(size=operators[0].shape[0])
    first, second = (operator @ v for operator in operators)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-14)
    assert [bool(operator.sweep.cache) for operator in operators] == [True, False]
    assert not model.layers[0].unroll


def test_long_sequences_stay_loops(monkeypatch):
    monkeypatch.setattr("spectral_density.engines.tensorflow.keras_internals.patches._MAX_STEPS", 2)
    hessian = sd.HessianOperator(recurrent(keras.layers.GRU), LOSS, sequences())
    hessian @ np.ones(hessian.shape[0])
    assert not hessian.sweep.cache
