import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from curvature.preflight.problems import (
    SIZES,
    SPARSE,
    contrastive,
    examples,
    noise_added,
    squared_error,
)
from models import affine, classification, mlp, normals, regression, split

from spectral_density import estimate_spectrum
from spectral_density.curvature import FisherOperator, HessianOperator
from spectral_density.curvature.preflight import preflight
from spectral_density.curvature.preflight.data import Comparison, Contents, Difference, judge


class Counting:
    """A callable dataset whose passes get shorter (or longer) from the `after`-th on."""

    def __init__(self, step, after):
        self.passes, self.step, self.after = itertools.count(), step, after

    def __call__(self):
        number = next(self.passes)
        sizes = (3,) * (3 + (self.step if number >= self.after else 0))
        return iter(split(classification(), sizes))


# The survey takes two passes, one of them to see that there is a second; kept data, one more.
@pytest.mark.parametrize("step", [-1, 1])
@pytest.mark.parametrize(
    ("memory_share", "after", "verdict"),
    [(0, 2, "unsound"), (0, 3, "unsound"), (0.25, 2, "doubtful")],
)
def test_an_unstable_count_is_found(step, memory_share, after, verdict):
    operator = HessianOperator(mlp(), SPARSE, Counting(step, after), memory_share=memory_share)
    report = preflight(operator)
    assert report.verdict == verdict, report
    found = "more than 3" if step > 0 else "2"
    assert f"gave {found} batches on this pass and 3 before" in report["data"].message


def test_text_ragged_and_missing_labels_are_compared():
    words = tf.constant([["a"], ["b"], ["c"], ["d"]])
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0], [], [4.0]])
    model = affine()

    def loss(model, batch):
        text, rows, missing, x = batch
        assert missing is None
        scale = tf.cast(tf.strings.length(text), tf.float32)
        return tf.reduce_mean(tf.square(model(x) * scale) + tf.reduce_sum(rows, 1)[:, None])

    report = preflight(HessianOperator(model, loss, [(words, ragged, None, normals(4, 3))]))
    assert report.verdict == "sound", report


# Pipelines ---------------------------------------------------------------------------------------


def free_order(dataset):
    options = tf.data.Options()
    options.deterministic = False
    return dataset.with_options(options)


def twice(x, y):
    return 2 * x, y


PIPELINES = {
    "parallel map": (lambda d: d.map(twice, num_parallel_calls=2).batch(12), "sound", ""),
    "parallel map on, then kept order": (
        lambda d: d.batch(12).map(twice, num_parallel_calls=2).prefetch(2),
        "sound",
        "",
    ),
    "options in any order": (
        lambda d: free_order(d.batch(12)),
        "sound",
        r"options\(\)\.deterministic = False\): results differ by rounding then|in another order",
    ),
    "shuffle": (
        lambda d: d.shuffle(48).batch(12),
        "sound",
        "the same examples in another order; results differ by rounding",
    ),
    "shuffle of a fixed order": (
        lambda d: d.shuffle(48, seed=3, reshuffle_each_iteration=False).batch(12),
        "sound",
        "",
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_streamed_pipeline_repeats_or_it_is_said_why_not(name):
    pipeline, verdict, says = PIPELINES[name]
    operator = HessianOperator(mlp(), SPARSE, pipeline(examples()), memory_share=0)
    report = preflight(operator)
    assert report.verdict == verdict, report
    assert re.search(says, report["data"].message)
    v = np.random.default_rng(0).normal(size=operator.shape[0])
    if says:
        np.testing.assert_allclose(operator @ v, operator @ v, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(operator @ v, operator @ v)


# Examples in another order -----------------------------------------------------------------------

REORDERED = "the same examples in another order; results differ by rounding"


def weighted_examples():
    x, y = classification()
    return np.tile(x, (4, 1)), np.tile(y, 4), np.linspace(0.1, 2.0, 4 * len(y), dtype="float32")


class Reordered(keras.utils.PyDataset):
    """Its examples come in another order whenever an epoch ends, and here at every pass."""

    def __init__(self):
        super().__init__()
        self.arrays = weighted_examples()
        self.random = np.random.default_rng(0)

    def __len__(self):
        return 5  # the last one is short

    def __getitem__(self, index):
        if index == 0:
            self.on_epoch_end()
        return tuple(array[12 * index : 12 * index + 12] for array in self.arrays)

    def on_epoch_end(self):
        order = self.random.permutation(len(self.arrays[0]))
        self.arrays = tuple(array[order] for array in self.arrays)


def reordered_by_a_callable():
    dataset = Reordered()
    return lambda: iter([dataset[i] for i in range(len(dataset))])


def interleaved():
    """Two files at once, handed over as they are ready; shuffled, so that the order does differ."""
    tf.random.set_seed(None)  # a seed that another test set would fix the shuffles of the files
    files = tf.data.Dataset.range(2)
    return files.interleave(
        lambda i: examples().shard(2, i).shuffle(60),
        num_parallel_calls=2,
        deterministic=False,
    ).batch(10)


ORDERS = {
    "weights, in a pipeline": lambda: (
        tf.data.Dataset.from_tensor_slices(weighted_examples()).shuffle(60).batch(7).prefetch(2)
    ),
    "batches shuffled": lambda: examples().batch(7).shuffle(10),
    "a PyDataset": Reordered,
    "a callable": reordered_by_a_callable,
    "interleaved in any order": interleaved,
}


@pytest.mark.parametrize(
    ("name", "memory_share"), [*zip(ORDERS, itertools.cycle([0, 0.25]), strict=False)]
)
def test_examples_in_another_order_are_the_same_data(name, memory_share):
    dataset = ORDERS[name]()
    one = HessianOperator(mlp("float64"), SPARSE, dataset, memory_share=memory_share)
    two = one.with_dataset(dataset)
    report = one.check()  # warns of nothing
    assert report.verdict == "sound", report
    assert REORDERED in report["data"].message
    v = normals(one.shape[0])
    np.testing.assert_allclose(one @ v, two @ v, rtol=1e-9, atol=1e-12)


def test_labels_reordered_among_the_inputs_are_other_data():
    x, y = regression()
    order = np.random.default_rng(0)

    def batches():
        labels = y[order.permutation(len(y))]
        return iter(split((x, labels), SIZES))

    report = preflight(HessianOperator(affine(), "mse", batches))
    assert report["data"].status == "doubtful"
    assert "3 of 3 batches are others" in report["data"].message


def shuffled_regression(memory_share=0.25, batch=6, **options):
    dataset = tf.data.Dataset.from_tensor_slices(regression()).shuffle(60).batch(batch)
    return {"dataset": dataset, "memory_share": memory_share, **options}


def monte_carlo():
    dataset = examples().shuffle(60).batch(20)
    return FisherOperator(mlp(), SPARSE, dataset, kind="monte_carlo", num_samples=2, seed=3)


def of_a_fixed_batch_size():
    def loss(model, batch):
        return tf.reduce_mean(tf.reshape(model(batch[0]), [6]) ** 2)

    dataset = tf.data.Dataset.from_tensor_slices(regression()).take(12).shuffle(60).batch(6)
    return HessianOperator(affine(), loss, dataset)


DEPENDING_ON_THE_ORDER = {
    "labels drawn by place": (monte_carlo, "Monte Carlo .* drawn by the places of examples"),
    "whether it is a sum is not known": (of_a_fixed_batch_size, "it is not known whether"),
    "weights that do not add up": (
        lambda: HessianOperator(
            affine(), squared_error, **shuffled_regression(batch_weight=lambda batch: 1.0)
        ),
        "batch_weight",
    ),
}


@pytest.mark.parametrize("name", DEPENDING_ON_THE_ORDER)
def test_another_order_stays_a_doubt_where_places_count(name):
    make, says = DEPENDING_ON_THE_ORDER[name]
    report = preflight(make())
    assert report.verdict == "doubtful", report
    message = report["data"].message
    assert re.search(
        f"the same examples come in another order.*{says}.*next operator is another", message
    )
    assert "reshuffle_each_iteration=False" in message
    assert len(message.split()) <= 45  # a sentence and a way out


def test_a_loss_that_couples_examples_depends_on_their_order():
    operator = HessianOperator(mlp(), contrastive, examples().shuffle(60).batch(20))
    report = preflight(operator)
    assert report["data"].status == "doubtful"
    assert "depends on its batch" in report["data"].message
    whole_batches = HessianOperator(mlp(), contrastive, examples().batch(20).shuffle(9))
    assert preflight(whole_batches)["data"].status == "passed"


def compared(**changes):
    """A stream of the same examples in another order, with one thing changed."""
    difference = Difference(2, "", Contents(1, 5), Contents(2, 5))
    fields = {
        "num_batches": 3,
        "difference": difference,
        "kept": False,
        "stages": (),
        "coupling": "",
        "numbered": False,
        "repeats": True,
        "figure": 1e-7,
        "rounding": 1e-5,
        "limit": 1e-3,
    }
    return judge(Comparison(**fields | changes))


def test_the_product_of_a_reordered_stream_has_the_last_word():
    assert compared().status == "passed"
    # A sum that cancels has more rounding than the products it is made of.
    assert compared(figure=1e-4).status == "passed"
    found = compared(figure=0.2)
    assert found.status == "failed"
    assert "the loss depends on it" in found.message
    assert "the product changes by 0.2" in found.message


def test_a_stream_that_changes_is_excused_only_where_nothing_can_be_told():
    others = Difference(2, "", Contents(1, 5), Contents(2, 6))
    assert compared(difference=others, figure=0.2).status == "failed"
    assert compared(difference=others, figure=0.2, repeats=False).status == "doubtful"
    assert compared(difference=others, kept=True, figure=None).status == "doubtful"
    shorter = others._replace(stopped="the dataset gave 2 batches on this pass and 3 before.")
    assert compared(difference=shorter, figure=0.0).status == "failed"


def test_a_doubt_about_a_dataset_is_told_once_for_all_operators_over_it():
    dataset = examples().batch(12).map(noise_added)
    first, second = (HessianOperator(mlp(), SPARSE, dataset) for _ in range(2))
    with pytest.warns(UserWarning, match="batches are others when iterated afresh") as caught:
        first.check()
        estimate_spectrum(first, 2, 1, progress=False)
        assert second.check().verdict == "doubtful"
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="another matrix"):
        HessianOperator(mlp(), SPARSE, examples().batch(12).map(noise_added)).check()
