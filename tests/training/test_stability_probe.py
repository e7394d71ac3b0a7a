"""What `SpectrumCallback` records of the stability of a training."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import spectral_density as sd

RNG = np.random.default_rng(0)
N = 4
X = RNG.normal(size=(16, N)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5], [3.0]])
HESSIAN = 2 * X.T.astype(np.float64) @ X / 16  # of the mean squared error


def network(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((N,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse", **options)
    return model


def callback(**options):
    return sd.SpectrumCallback([(X, Y)], num_eigenvalues=1, order=N, num_draws=1, **options)


def fit(model, *callbacks, batch_size=16, epochs=3, **options):
    return model.fit(
        X, Y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=list(callbacks), **options
    ).history


class Everything(keras.callbacks.Callback):
    """Weights after every step, and P from the state of Adam by its formula."""

    def __init__(self):
        super().__init__()
        self.weights, self.diagonals = [], []

    def _take(self):
        model = self.model
        self.weights.append(np.asarray(model.trainable_variables[0].value).ravel())
        state = {v.path.rsplit("_", 1)[-1]: np.asarray(v.value) for v in model.optimizer.variables}
        optimizer, t = model.optimizer, int(np.asarray(model.optimizer.iterations.value))
        if "velocity" in state and t:
            corrected = np.sqrt(state["velocity"].ravel() / (1 - optimizer.beta_2**t))
            scale = optimizer.epsilon / np.sqrt(1 - optimizer.beta_2**t)
            self.diagonals.append((1 - optimizer.beta_1**t) * (corrected + scale))

    def on_train_begin(self, logs=None):
        self._take()

    def on_train_batch_end(self, batch, logs=None):
        self._take()


def test_the_ratio_is_that_of_the_dense_matrix_at_each_measurement(tmp_path):
    watched = callback(preconditioned=True, csv_path=tmp_path / "run.csv", density=True)
    everything = Everything()
    history = fit(network(keras.optimizers.Adam(0.01)), everything, watched)
    assert len(watched.records) == 3
    for record, diagonal in zip(watched.records, everything.diagonals, strict=True):
        dense = HESSIAN / np.sqrt(np.outer(diagonal, diagonal))
        largest = np.linalg.eigvalsh(dense)[-1]
        assert record.eigenvalues[0] == pytest.approx(largest, rel=1e-4)
        assert record.threshold == pytest.approx(3800, rel=1e-6)
        assert record.ratio == pytest.approx(largest / 3800, rel=1e-4)
        assert f"{record.ratio:.3g} of the threshold 3800" in str(record)
    name = "preconditioned_hessian"
    assert watched.name == name
    np.testing.assert_allclose(history[f"{name}_ratio"], [r.ratio for r in watched.records])
    np.testing.assert_allclose(history[f"{name}_threshold"], 3800, rtol=1e-6)
    assert "hessian_eigenvalue_1" not in history
    with (tmp_path / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in rows] == [r.ratio for r in watched.records]


def test_the_threshold_is_that_of_the_next_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.05])
    watched = callback(preconditioned=True, every_steps=1, at_start=True)
    fit(network(keras.optimizers.SGD(schedule)), watched)
    # A boundary belongs to what is before it: steps 0 and 1 are made with 0.1.
    assert [r.threshold for r in watched.records] == pytest.approx([20, 20, 40, 40])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf_keras is TensorFlow's")
def test_under_tf_keras_the_rates_are_those_of_the_schedule():
    tf_keras = pytest.importorskip("tf_keras")
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.05, 0.005])
    model = tf_keras.Sequential([tf_keras.Input((N,)), tf_keras.layers.Dense(1, use_bias=False)])
    model.compile(tf_keras.optimizers.SGD(schedule), "mse")
    watched = callback(preconditioned=True, critical_sharpness=True, every_steps=1)
    fit(model, watched, batch_size=4, epochs=1)
    # A boundary belongs to what is before it: steps 0 to 2 are made with 0.05.
    thresholds = [record.threshold for record in watched.records]
    assert thresholds == pytest.approx([40, 40, 400, 400])
    rates = [record.critical.learning_rate for record in watched.records]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.005])


def test_the_critical_sharpness_is_the_closed_form_of_the_step_just_made():
    for options in ({}, {"every_steps": 2, "batch_size": 4}):
        size = options.pop("batch_size", 16)
        watched, everything = callback(critical_sharpness=True, **options), Everything()
        history = fit(
            network(keras.optimizers.Adam(0.02)), everything, watched, batch_size=size, epochs=2
        )
        assert len(watched.records) == (2 if size == 16 else 4)
        for record in watched.records:
            before, after = everything.weights[record.step - 1 : record.step + 1]
            step = (after - before).astype(np.float64)
            gradient = 2 * X.T @ (X @ before - Y.ravel()) / 16
            sharpness = -(step @ HESSIAN @ step) / (0.02 * gradient @ step)
            assert record.critical_sharpness == pytest.approx(sharpness, rel=2e-2)
            assert record.critical.data == "16 examples in 1 batch"
            assert "critical sharpness" in str(record)
        assert history["hessian_critical_sharpness"][-1] == watched.records[-1].critical_sharpness


def test_nothing_of_it_is_recorded_where_it_is_not_asked_for():
    watched = callback()
    history = fit(network("sgd"), watched, epochs=1)
    (record,) = watched.records
    assert record.threshold is None
    assert record.critical is None
    assert np.isnan([record.ratio, record.critical_sharpness]).all()
    assert not [name for name in history if "ratio" in name or "critical" in name]


def test_the_training_is_what_it_is_without_the_callback():
    plain = network(keras.optimizers.Adam(0.05))
    fit(plain, batch_size=4)
    watched = callback(preconditioned=True, critical_sharpness=True, every_steps=1)
    other = network(keras.optimizers.Adam(0.05))  # the seed is set again
    fit(other, watched, batch_size=4)
    assert len(watched.records) == 12
    for mine, true in zip(
        [*other.variables, *other.optimizer.variables],
        [*plain.variables, *plain.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(mine.value), np.asarray(true.value))


def of_lengths(*lengths, batch=4):
    """A dataset whose epochs have so many steps, which it does not say beforehand."""
    left = list(lengths)
    if keras.backend.backend() == "jax":  # Keras looks at the first batch beforehand
        left.insert(0, lengths[0])

    def batches():
        for number in range(left.pop(0)):
            start = number * batch % 16
            yield X[start : start + batch], Y[start : start + batch]

    kinds = [tf.TensorSpec((None, width), tf.float32) for width in (N, 1)]
    return tf.data.Dataset.from_generator(batches, output_signature=tuple(kinds))


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_of_an_unknown_number_of_steps_only_the_last_step_has_a_critical_sharpness():
    watched, everything = callback(critical_sharpness=True), Everything()
    model = network(keras.optimizers.SGD(0.02))
    callbacks = [everything, watched]
    model.fit(of_lengths(3, 3, 6, 2), epochs=4, verbose=0, shuffle=False, callbacks=callbacks)
    first, second, longer, shorter = (record.critical for record in watched.records)
    assert first is None
    assert shorter is None
    assert second.status is sd.CrossingStatus.CROSSING
    before, after = everything.weights[5:7]
    step = (after - before).astype(np.float64)
    gradient = 2 * X.T @ (X @ before - Y.ravel()) / 16
    sharpness = -(step @ HESSIAN @ step) / (0.02 * gradient @ step)
    assert second.value == pytest.approx(sharpness, rel=2e-2)
    assert longer.status is sd.CrossingStatus.UNKNOWN_STEP  # two since the weights were kept
    assert "more than one was made" in str(longer)
    assert np.isnan(watched.records[2].critical_sharpness)
    # Another `fit` is another number of steps.
    model.fit(of_lengths(5), epochs=1, verbose=0, shuffle=False, callbacks=[watched])
    assert watched.records[-1].critical is None


def test_a_warm_up_from_zero_has_no_number_and_no_warning():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 0.04)
    for momentum in (0.0, 0.9):
        watched = callback(preconditioned=True, critical_sharpness=True, every_steps=1)
        model = network(keras.optimizers.SGD(schedule, momentum=momentum))
        fit(model, watched)  # warnings are errors
        first, second, _ = watched.records
        assert first.critical.status is sd.CrossingStatus.ZERO_STEP
        assert np.isnan(first.critical_sharpness)
        assert np.isfinite(second.critical_sharpness)
        assert first.critical.data == "16 examples in 1 batch"
        assert "learning rate, is zero" in str(first.critical)
        assert "critical sharpness nan" in str(first)


@pytest.mark.parametrize(
    ("optimizer", "options", "error", "message"),
    [
        (lambda: keras.optimizers.Adam(0.1, clipnorm=1.0), {}, ValueError, "clipnorm=1.0"),
        (lambda: keras.optimizers.Lion(0.1), {}, ValueError, "step of Lion"),
        (lambda: keras.optimizers.Adam(0.1), {"at_start": True}, ValueError, "at_start=False"),
    ],
)
def test_what_cannot_be_measured_is_raised_before_the_first_step(
    optimizer, options, error, message
):
    model = network(optimizer())
    before = np.asarray(model.trainable_variables[0].value).copy()
    with pytest.raises(error, match=message):
        fit(model, callback(preconditioned=True, **options))
    np.testing.assert_array_equal(np.asarray(model.trainable_variables[0].value), before)


@pytest.mark.parametrize(
    "together",
    [
        4,
        pytest.param(
            "auto",
            marks=pytest.mark.skipif(
                keras.backend.backend() == "jax", reason="Keras itself cannot count by it there"
            ),
        ),
    ],
)
def test_steps_made_together_have_no_critical_sharpness(together):
    model = network("sgd", steps_per_execution=together)
    with pytest.raises(ValueError, match=f"makes {together} together"):
        fit(model, callback(critical_sharpness=True), batch_size=4)


def test_several_learning_rates_have_no_critical_sharpness():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    model = network(keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD(0.1)))
    with pytest.raises(ValueError, match="a learning rate for each of its optimizers"):
        fit(model, callback(critical_sharpness=True))


def test_of_an_optimizer_without_p_there_is_a_critical_sharpness():
    lion = network(keras.optimizers.Lion(0.01))
    watched = callback(critical_sharpness=True)
    fit(lion, watched, epochs=1)
    assert np.isfinite(watched.records[0].critical_sharpness)


def test_a_training_that_diverges_ends_as_it_would_without_a_warning():
    watched = callback(preconditioned=True, critical_sharpness=True, every_steps=10)
    fit(network(keras.optimizers.SGD(1e3, momentum=0.9)), watched, epochs=60)
    assert np.isnan(watched.records[-1].critical_sharpness)
    model = network(keras.optimizers.Adam(0.1))
    model.trainable_variables[0].assign(np.full((N, 1), np.nan))
    watched = callback(preconditioned=True, critical_sharpness=True)
    fit(model, watched, epochs=1)
    assert np.isnan(watched.records[-1].ratio)


def test_a_copy_of_the_weights_is_foreseen(monkeypatch):
    monkeypatch.setattr("spectral_density.linalg.memory.free_memory", lambda: 10)
    watched = callback(critical_sharpness=True)
    with pytest.warns(UserWarning, match="a copy of the weights"):
        fit(network("sgd"), watched, epochs=1)
    assert np.isnan(watched.records[0].critical_sharpness)
