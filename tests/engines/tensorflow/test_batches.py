import numpy as np
import pytest
import tensorflow as tf

from spectral_density.engines.tensorflow import batches

# What lets passes differ --------------------------------------------------------------------------


def same(x):
    return x


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        (lambda d: d.map(same, num_parallel_calls=2), ()),
        (lambda d: d.shuffle(9, reshuffle_each_iteration=False).cache(), ()),
        (lambda d: d.shuffle(9, seed=1), ("shuffle without reshuffle_each_iteration=False",)),
        (
            lambda d: d.map(same, num_parallel_calls=2, deterministic=False).prefetch(1),
            ("ParallelMap with deterministic=False",),
        ),
        (
            lambda d: tf.data.Dataset.zip((d, d.shuffle(9))),
            ("shuffle without reshuffle_each_iteration=False",),
        ),
    ],
)
def test_what_lets_passes_differ_is_named(stage, named):
    assert batches.unsteady_stages(stage(tf.data.Dataset.range(9)).batch(3)) == named
    assert batches.unsteady_stages([(np.ones(3), np.ones(3))]) == ()


# Hashes of examples ------------------------------------------------------------------------------


def rows_of(kind, order):
    """Three examples with labels and weights, of one kind of inputs, in an order."""
    inputs = {
        "numbers": tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "text": tf.constant([["a"], ["b"], ["ab"]]),
        "ragged": tf.ragged.constant([[1.0, 2.0], [], [3.0]]),
        "by name": {"a": tf.constant([1, 2, 3]), "b": None},
        "half precision": tf.constant([1.0, 2.0, 3.0], tf.bfloat16),
    }[kind]
    batch = (inputs, tf.constant([0, 1, 2]), tf.constant([0.5, 1.0, 2.0]))
    return tf.nest.map_structure(lambda a: None if a is None else tf.gather(a, order), batch)


KINDS = ["numbers", "text", "ragged", "by name", "half precision"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_of_examples_does_not_depend_on_their_order_or_cut(kind):
    whole = batches.examples_hash(rows_of(kind, [0, 1, 2]))
    assert batches.examples_hash(rows_of(kind, [2, 0, 1])) == whole
    parts = [batches.examples_hash(rows_of(kind, part)) for part in ([1], [2, 0])]
    assert sum(parts) % batches.HASHES == whole
    # An example that stands twice is not one that stands once.
    assert batches.examples_hash(rows_of(kind, [0, 0, 2])) != whole
    assert batches.examples_hash(rows_of(kind, [0, 1, 2, 2])) != whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [1, 2])
def test_labels_and_weights_belong_to_their_example(kind, part):
    batch = list(rows_of(kind, [0, 1, 2]))
    whole = batches.examples_hash(tuple(batch))
    batch[part] = tf.gather(batch[part], [1, 0, 2])
    assert batches.examples_hash(tuple(batch)) != whole


def test_signs_and_places_of_numbers_count():
    x = tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.float64)
    found = {
        batches.examples_hash((y,)) for y in (x, -x, x[:, ::-1], x[:1], tf.cast(x, tf.float32))
    }
    assert len(found) == 5


def test_a_batch_without_rows_in_common_is_one_example():
    one, two = tf.constant([1.0, 2.0]), tf.constant([1.0, 2.0, 3.0])
    whole = batches.examples_hash((one, two))
    assert batches.examples_hash((one[::-1], two)) != whole
    assert batches.examples_hash((one, two)) == whole
    assert batches.examples_hash((tf.constant(1.0), two)) != whole
    sparse = tf.sparse.from_dense([[0.0, 1.0], [2.0, 0.0]])
    assert batches.examples_hash((sparse,)) != batches.examples_hash((sparse * 2.0,))
