import itertools
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import NUM_EXAMPLES, SPLIT, classification, mlp, relative_error, split, truth, vectors

from spectral_density.curvature import HessianOperator, data
from spectral_density.engines.tensorflow import batches

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = classification()
LIST = split((X, Y))


class Indexed(keras.utils.PyDataset):
    def __len__(self):
        return len(LIST)

    def __getitem__(self, index):
        return LIST[index]


class Endless(Indexed):
    @property
    def num_batches(self):
        return None


def legacy_sequence():
    tf_keras = pytest.importorskip("tf_keras")

    class Sequence(tf_keras.utils.Sequence):
        def __len__(self):
            return len(LIST)

        def __getitem__(self, index):
            if index >= len(LIST):
                raise IndexError(index)
            return LIST[index]

    return Sequence()


class Iterable:
    def __iter__(self):
        return iter(LIST)


def from_generator():
    signature = (tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(lambda: iter(LIST), output_signature=signature)


DATASETS = {
    "list": lambda: LIST,
    "tuple of batches": lambda: tuple(LIST),
    "lists as batches": lambda: [list(batch) for batch in LIST],
    "tensors": lambda: [tuple(tf.constant(part) for part in batch) for batch in LIST],
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(5),
    "tf.data of unknown length": from_generator,
    "PyDataset": lambda: Indexed(),
    "tf_keras Sequence": legacy_sequence,
    "callable": lambda: lambda: iter(LIST),
    "generator function": lambda: lambda: (batch for batch in LIST),
    "iterable": Iterable,
    "an empty batch among them": lambda: [*LIST, (X[:0], Y[:0])],
    "weights that are None": lambda: [(*batch, None) for batch in LIST],
}


@pytest.mark.parametrize("memory_share", [0.25, 0.0])
@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_dataset_gives_the_same_matrix(kind, memory_share):
    hessian = HessianOperator(mlp(), SPARSE, DATASETS[kind](), memory_share=memory_share)
    assert len(hessian.batches) == 3
    assert hessian.batches.num_examples == NUM_EXAMPLES
    assert hessian.batches.kept is (memory_share > 0)
    v = vectors(hessian.shape[0], 1)[:, 0]
    for _ in range(2):
        assert relative_error(hessian @ v, truth("mlp").hessian @ v) <= 1e-5


def Batches(dataset, **options):
    return data.Batches(dataset, batches, **options)


def mean_of_squares(model, batch):
    return tf.reduce_mean(tf.square(model(batch["x"])))


def test_dict_batches_are_counted_by_the_dimension_they_share():
    cut = [{"x": x, "id": y, "rate": np.float32(0.1)} for x, y in LIST]
    whole = HessianOperator(mlp(), mean_of_squares, [{"x": X}])
    ragged = HessianOperator(mlp(), mean_of_squares, cut)
    v = vectors(whole.shape[0], 1)[:, 0]
    assert ragged.batches.num_examples == NUM_EXAMPLES
    assert relative_error(ragged @ v, whole @ v) <= 1e-6


def test_batch_weight_says_how_much_a_batch_counts():
    cut = [{"x": x, "table": np.ones((2, 2))} for x, _ in LIST]
    with pytest.raises(ValueError, match="batch_weight"):
        HessianOperator(mlp(), mean_of_squares, cut)
    whole = HessianOperator(mlp(), mean_of_squares, [{"x": X}])
    weighted = HessianOperator(
        mlp(), mean_of_squares, cut, batch_weight=lambda batch: 2 * tf.shape(batch["x"])[0]
    )
    v = vectors(whole.shape[0], 1)[:, 0]
    assert relative_error(weighted @ v, whole @ v) <= 1e-6
    assert weighted.loss() == pytest.approx(whole.loss(), rel=1e-6)


def test_a_batch_of_weight_zero_counts_for_nothing():
    rated = [(x, y, np.float32(i)) for i, (x, y) in enumerate(LIST)]

    def loss_fn(model, batch):
        return tf.reduce_mean(tf.square(model(batch[0])))

    hessian = HessianOperator(mlp(), loss_fn, rated[:2], batch_weight=lambda batch: batch[2])
    alone = HessianOperator(mlp(), loss_fn, LIST[1:2])
    assert hessian.loss() == pytest.approx(alone.loss(), rel=1e-6)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_batch_weights_are_finite_and_not_negative(weight):
    with pytest.raises(ValueError, match="batch_weight must be finite"):
        Batches(LIST, batch_weight=lambda batch: weight)


def test_ragged_tensors_stay_ragged():
    words = tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]])

    def loss_fn(model, batch):
        return tf.reduce_mean(tf.square(model(batch[0].to_tensor(shape=(None, 3)))))

    ragged = HessianOperator(mlp(), loss_fn, [(words,)])
    padded = HessianOperator(
        mlp(),
        lambda model, batch: tf.reduce_mean(tf.square(model(batch[0]))),
        [(words.to_tensor(),)],
    )
    assert ragged.batches.num_examples == 3
    assert ragged.loss() == pytest.approx(padded.loss(), rel=1e-6)


def test_bytes_of_a_pass():
    assert Batches(LIST).nbytes == X.nbytes + Y.nbytes


def used_up_callable():
    once = iter(LIST)
    return lambda: once


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (lambda: [], ValueError, "empty"),
        (lambda: [(X[:0], Y[:0])], ValueError, "empty"),
        (lambda: tf.data.Dataset.from_tensors((X, Y)).take(0), ValueError, "empty"),
        (lambda: tf.data.Dataset.from_tensors((X, Y)).repeat(), ValueError, "infinite"),
        (Endless, ValueError, "infinite"),
        (lambda: lambda: itertools.repeat((X, Y)), ValueError, "infinite"),
        (lambda: (batch for batch in LIST), ValueError, "used up"),
        (lambda: iter(LIST), ValueError, "used up"),
        (lambda: tf.data.Dataset.from_tensors((X, Y)).as_numpy_iterator(), ValueError, "used up"),
        (used_up_callable, ValueError, "used up"),
        (lambda: (X, Y), TypeError, r"\[\(x, y\)\]"),
        (lambda: X, TypeError, r"\[batch\]"),
        (lambda: {"x": X}, TypeError, r"\[batch\]"),
        (lambda: 3, TypeError, "int"),
        (lambda: None, TypeError, "NoneType"),
        (lambda: [(np.float32(1), np.float32(2))], ValueError, "all scalars"),
    ],
)
def test_what_is_no_dataset(monkeypatch, dataset, error, message):
    monkeypatch.setattr(data, "MAX_BATCHES", 20)
    with pytest.raises(error, match=message):
        Batches(dataset())


@pytest.mark.parametrize(("times", "message"), [(2, "more than 3 batches"), (0, "gave 0 batches")])
def test_a_streamed_dataset_must_stay_the_same(times, message):
    passes = []

    def dataset():
        passes.append(None)
        return iter(LIST if len(passes) <= 2 else LIST * times)

    hessian = HessianOperator(mlp(), SPARSE, dataset, memory_share=0)
    with pytest.raises(ValueError, match=message):
        hessian @ np.ones(hessian.shape[0])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_memory_share_is_a_share(share):
    with pytest.raises(ValueError, match="memory_share"):
        Batches(LIST, memory_share=share)


def test_batches_beyond_the_share_of_memory_stream(monkeypatch):
    class Memory:
        available = 4 * LIST[0][0].nbytes

    monkeypatch.setattr(data.psutil, "virtual_memory", Memory)
    assert not Batches(LIST, memory_share=0.5).kept
    assert len(list(Batches(LIST, memory_share=0.5))) == len(SPLIT)


# Streams -----------------------------------------------------------------------------------------


def test_a_pipeline_works_ahead_of_the_products():
    made = []

    def make(number):
        made.append(int(number))
        return np.full((2, 3), number, np.float32)

    def load(number):
        return tf.ensure_shape(tf.numpy_function(make, [number], tf.float32), (2, 3))

    stream = Batches(tf.data.Dataset.range(12).map(load), memory_share=0)
    made.clear()
    passing = iter(stream)
    next(passing)
    deadline = time.monotonic() + 10
    while len(made) <= batches.PREFETCH and time.monotonic() < deadline:
        time.sleep(0.01)
    assert batches.PREFETCH < len(made) < 12


def test_data_far_larger_than_there_is_room_for_is_never_held(monkeypatch):
    class Memory:
        available = 4 * 1024

    monkeypatch.setattr(data.psutil, "virtual_memory", Memory)
    seen = []
    alive = []

    def visit(batch, weight):
        seen.append(weakref.ref(batch[0]))
        alive.append(sum(tensor() is not None for tensor in seen))

    large = tf.data.Dataset.from_tensor_slices(np.zeros((128, 8), np.float32)).batch(2)
    large = large.map(lambda x: (x, x))
    assert not Batches(large, memory_share=0.5, visit=visit).kept
    assert len(alive) == 64
    assert max(alive) <= 2


def test_the_order_of_a_stream_is_that_of_the_pipeline():
    dataset = tf.data.Dataset.range(50).map(lambda i: (i, 2 * i), num_parallel_calls=4).batch(7)
    stream = Batches(dataset, memory_share=0)
    for _ in range(3):
        found = np.concatenate([batch[0] for batch in stream])
        np.testing.assert_array_equal(found, np.arange(50))
