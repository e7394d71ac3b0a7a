import csv
import logging
import random
from functools import partial

import keras
import matplotlib as mpl
import numpy as np
import pytest
import tensorflow as tf
from models import CASES, compiled

mpl.use("Agg")

import matplotlib.pyplot as plt

from spectral_density import HessianOperator, Spectrum
from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.training import spectrum_probe
from spectral_density.training.callback import SpectrumCallback

LOGGED = ["hessian_eigenvalue_1", "hessian_eigenvalue_min", "hessian_trace"]
KEYS = [*LOGGED, "hessian_eigenvalue_2", "hessian_trace_standard_error"]


def data(count=48, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)).astype("float32"), rng.integers(0, 3, count)


def network(package=keras, seed=0):
    """BatchNorm and dropout: state that a careless look would change."""
    package.utils.set_random_seed(seed)
    layers = package.layers
    model = package.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(5, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.Dense(3),
        ]
    )
    loss = package.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(package.optimizers.Adam(1e-2), loss)
    return model


def probe():
    x, y = data()
    return [(x[:24], y[:24]), (x[24:], y[24:])]


def callback(**options):
    options = {"num_eigenvalues": 2, "order": 8, "num_draws": 2, **options}
    return SpectrumCallback(probe(), **options)


def fit(model, *callbacks, epochs=4, verbose=0, **options):
    return model.fit(
        *data(), batch_size=8, epochs=epochs, verbose=verbose, callbacks=list(callbacks), **options
    )


def dense_eigenvalues(model, dataset):
    dense = HessianOperator(model, None, dataset).to_dense()
    return np.linalg.eigvalsh((dense + dense.T) / 2)


# Numbers -----------------------------------------------------------------------------------------


def test_the_values_are_those_of_the_dense_matrix_in_logs_and_records():
    # Two draws: with other seeds an eigenvalue near zero may keep its random weight.
    model, watched = network(), callback(order=68, seed=1)
    history = fit(model, watched, epochs=2).history
    exact = dense_eigenvalues(model, probe())
    last = watched.records[-1]
    assert last.epoch == 2
    assert last.step == 12
    np.testing.assert_allclose(last.eigenvalues, exact[::-1][:2], rtol=1e-5)
    assert last.smallest == pytest.approx(exact[0], abs=1e-5)
    assert last.trace == pytest.approx(exact.sum(), rel=1e-4)
    assert history["hessian_eigenvalue_1"][-1] == pytest.approx(exact[-1], rel=1e-5)
    assert {key for key in history if key != "loss"} == set(KEYS)
    assert history["hessian_eigenvalue_2"] == [record.eigenvalues[1] for record in watched.records]
    errors = [record.trace_standard_error for record in watched.records]
    assert history["hessian_trace_standard_error"] == errors


def test_eigenvalues_are_within_their_bounds_though_not_converged():
    model, watched = network(), callback(order=4, num_draws=3, num_eigenvalues=3)
    fit(model, watched, epochs=1)
    exact = dense_eigenvalues(model, probe())
    (record,) = watched.records
    distances = np.abs(np.subtract.outer(record.eigenvalues, exact)).min(axis=1)
    assert (distances <= record.bounds).all()
    assert record.bounds.max() > 1e-3
    # Ritz values are never above the eigenvalue of their rank.
    assert (record.eigenvalues <= exact[::-1][:3] + 1e-5).all()


def test_more_eigenvalues_than_parameters_are_nan():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    watched = callback(num_eigenvalues=8, order=8)
    fit(model, watched, epochs=1)
    assert np.isfinite(watched.records[0].eigenvalues).sum() == 6


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        (HessianOperator, "hessian"),
        (GaussNewtonOperator, "gauss_newton"),
        (FisherOperator, "fisher"),
        (partial(FisherOperator, kind="type2"), "curvature"),
    ],
)
def test_any_curvature_matrix_can_be_watched_under_its_name(operator, name):
    watched = callback(operator=operator)
    history = fit(network(), watched, epochs=1).history
    assert f"{name}_trace" in history
    assert callback(operator=operator, name="mine").name == "mine"


def test_a_layer_can_be_watched_with_a_loss_of_its_own():
    model = network()
    watched = callback(
        variables=model.layers[0].name, loss=lambda m, b: tf.reduce_sum(m(b[0]) ** 2)
    )
    fit(model, watched, epochs=1)
    assert watched.operator.shape == (35, 35)


def test_weights_that_are_not_finite_are_nan_and_the_training_goes_on(caplog):
    model, watched = network(), callback()
    model.layers[0].kernel.assign(model.layers[0].kernel * np.nan)
    with caplog.at_level(logging.WARNING, logger="spectral_density"):
        history = fit(model, watched, epochs=2).history
    assert len(watched.records) == 2
    assert np.isnan(watched.records[0].eigenvalues).all()
    assert np.isnan(history["hessian_trace"]).all()
    assert "no spectrum at step 6" in caplog.text


# When --------------------------------------------------------------------------------------------


def test_epochs_without_measurement_are_nan_so_that_history_stays_aligned():
    watched = callback(every_epochs=2)
    history = fit(network(), watched, epochs=5).history
    assert [record.epoch for record in watched.records] == [2, 4]
    measured = np.isfinite(history["hessian_eigenvalue_1"])
    np.testing.assert_array_equal(measured, [False, True, False, True, False])


def test_steps_are_counted_across_epochs_and_calls_of_fit():
    model, watched = network(), callback(every_steps=4, at_start=True)
    history = fit(model, watched, epochs=2).history
    assert [record.step for record in watched.records] == [0, 4, 8, 12]
    assert history["hessian_trace"][1] == watched.records[-1].trace
    fit(model, watched, epochs=1)
    assert [record.step for record in watched.records][4:] == [12, 16]


def test_several_steps_at_once_are_counted_as_several():
    model, watched = network(), callback(every_steps=3)
    model.compile(model.optimizer, model.loss, steps_per_execution=2)
    fit(model, watched, epochs=2)
    assert [record.step for record in watched.records] == [4, 6, 10, 12]


def test_a_model_without_weights_is_watched_from_its_first_epoch_on():
    model = keras.Sequential([keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    watched = callback()
    fit(model, watched, epochs=1)
    assert len(watched.records) == 1


def test_a_loss_that_makes_no_sense_is_an_error_before_the_first_step():
    model = network()
    before = [v.numpy() for v in model.trainable_variables]
    with pytest.raises(ValueError, match="scalar"):
        fit(model, callback(loss=lambda m, b: m(b[0])))
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every_epochs": 1, "every_steps": 1}, ValueError, "not both"),
        ({"every_steps": 0}, ValueError, "every_steps must be at least 1"),
        ({"order": 1}, ValueError, "use order >= num_eigenvalues"),
        ({"budget": 0.0}, ValueError, "budget must be greater than 0"),
        ({"budget": 10}, ValueError, "at most 1"),
        ({"verbose": 3}, ValueError, "verbose must be"),
        ({"operator": "hessian"}, TypeError, "operator must be a class"),
    ],
)
def test_options_that_make_no_sense_are_errors_at_once(options, error, message):
    with pytest.raises(error, match=message):
        callback(**options)


# A training is never ended by its observer -------------------------------------------------------


def tiny():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Failing:
    """A curvature matrix whose products fail once a training has begun."""

    def __init__(self, error):
        self.error = error

    def __call__(self, model, loss, dataset, **options):
        operator = HessianOperator(model, loss, dataset, **options)

        def fail(*arguments):
            raise self.error

        operator.sweep.products = fail
        return operator


ERRORS = [
    tf.errors.ResourceExhaustedError(None, None, "no memory on the device"),
    tf.errors.InvalidArgumentError(None, None, "indices out of range"),
    ValueError("refused in the first product"),
    MemoryError("no memory"),
    LookupError("no gradient"),
    Warning("a warning made an error"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_product_leaves_nan_and_one_warning(error, tmp_path):
    path = tmp_path / "a.csv"
    watched = callback(operator=Failing(error), name="hessian", csv_path=path)
    with pytest.warns(UserWarning, match=f"the training goes on: {type(error).__name__}") as found:
        history = fit(tiny(), watched, epochs=2).history
    assert len(found) == 1
    assert len(history["loss"]) == len(history["hessian_trace"]) == 2
    assert np.isnan(history["hessian_trace"]).all()
    assert [record.step for record in watched.records] == [6, 12]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=["interrupt", "exit"])
def test_an_interrupt_ends_the_training(error):
    with pytest.raises(type(error)):
        fit(tiny(), callback(operator=Failing(error), name="hessian"))


def test_a_factory_that_fails_later_is_tried_again():
    calls = []

    def make(model, loss, dataset, **options):
        calls.append(len(dataset))
        if len(calls) == 2:
            raise RuntimeError("not now")
        return HessianOperator(model, loss, dataset, **options)

    # With a budget the first call is a trial on one batch, before the first step.
    watched = callback(operator=make, name="hessian", budget=1.0)
    with pytest.warns(UserWarning, match="RuntimeError: not now"):
        history = fit(tiny(), watched).history
    assert calls[0] == 1
    assert set(calls[1:]) == {2}
    assert np.isnan(history["hessian_trace"][0])
    assert len(history["hessian_trace"]) == 4


def test_a_file_that_cannot_be_written_costs_the_file_alone(tmp_path):
    (tmp_path / "file").touch()
    watched = callback(csv_path=tmp_path / "file" / "a.csv")
    with pytest.warns(UserWarning, match="the training goes on: (NotADirectory|FileExists)Error"):
        history = fit(tiny(), watched, epochs=2).history
    assert np.isfinite(history["hessian_trace"]).all()


def test_a_probe_set_that_changes_leaves_nan():
    x, y = data()
    batches = [(x, y)]
    watched = SpectrumCallback(
        lambda: iter(batches), num_eigenvalues=2, order=4, num_draws=1, operator=streaming
    )

    def spoil(epoch, logs):
        batches.append((x, y))

    with pytest.warns(UserWarning, match="ValueError"):
        history = fit(
            tiny(), keras.callbacks.LambdaCallback(on_epoch_begin=spoil), watched, epochs=2
        ).history
    assert np.isnan(history["curvature_trace"]).all()


def streaming(model, loss, dataset, **options):
    return HessianOperator(model, loss, dataset, memory_share=0.0, **options)


def test_where_warnings_are_errors_the_training_goes_on_too(recwarn):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(
            tiny(), callback(operator=Failing(ValueError("no")), name="hessian"), epochs=1
        ).history
    assert np.isnan(history["hessian_trace"]).all()


@pytest.mark.parametrize("budget", [None, 0.5])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda model, batch: model(batch[0])}, "scalar"),
        ({"loss": ["mse", "mse"]}, "2 entries"),
        ({"variables": "nope"}, "nope"),
        ({"class_weight": {0: -1.0}}, ">= 0"),
    ],
    ids=["no scalar", "two losses", "no layer", "class weight"],
)
def test_what_is_known_before_the_first_step_is_raised_there(options, message, budget):
    model = tiny()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, callback(budget=budget, **options))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("budget", [None, 0.5])
def test_a_training_step_of_its_own_is_refused_before_it_begins(budget):
    class Own(keras.Sequential):
        def train_step(self, data):
            raise AssertionError("the training has begun")

    model = Own([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Own has a train_step of its own"):
        fit(model, callback(budget=budget))


def test_so_it_is_where_the_model_has_no_weights_yet():
    tf_keras = pytest.importorskip("tf_keras")

    class Own(tf_keras.Sequential):
        def train_step(self, data):
            raise AssertionError("the training has begun")

    model = Own([tf_keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Own has a train_step of its own"):
        fit(model, callback())


# Class weights -----------------------------------------------------------------------------------


def test_class_weights_are_passed_on_to_the_operator():
    x, y = data()
    weights = {0: 1.0, 1: 10.0, 2: 0.5}
    model, watched = tiny(), callback(class_weight=weights, order=21)
    history = fit(model, watched, epochs=1, class_weight=weights).history
    w = np.array([1.0, 10.0, 0.5], "float32")[y]
    exact = dense_eigenvalues(model, [(x, y, w)])
    assert history["hessian_eigenvalue_1"][-1] == pytest.approx(exact[-1], rel=1e-5)


# Compiled once, nothing disturbed ----------------------------------------------------------------


def test_one_product_is_compiled_for_the_whole_training():
    model, watched = network(), callback(every_steps=1, at_start=True, num_draws=4)
    fit(model, watched)
    assert len(watched.records) == 25
    assert watched.operator.num_traces == 1


def test_draws_that_do_not_fit_at_once_still_need_one_product(monkeypatch):
    monkeypatch.setattr(spectrum_probe, "default_draws_at_once", lambda size, order: 4)
    watched = callback(num_draws=6, every_steps=1)
    fit(network(), watched, epochs=1)
    # Twice three draws, eight steps each: four and two would take a second graph.
    assert watched.operator.num_passes == 2 * 8 * len(watched.records) == 96
    assert watched.operator.num_traces == 1


def everything(model):
    optimizer = model.optimizer.variables
    return [np.asarray(v) for v in [*model.variables, *optimizer, *model.non_trainable_variables]]


@pytest.mark.parametrize("training", [False, True])
def test_training_ends_with_the_same_weights_as_without(tmp_path, training):
    plain, watched_model = network(), None
    history = fit(plain)
    random_after = random.getstate(), np.random.get_state()[1].tolist()
    watched_model = network()
    watched = callback(
        every_steps=2,
        at_start=True,
        density=True,
        csv_path=tmp_path / "a.csv",
        tensorboard_dir=tmp_path / "events",
        operator=partial(HessianOperator, training=training),
        name="hessian",
    )
    watched_history = fit(watched_model, watched)
    assert len(watched.records) == 13
    assert history.history["loss"] == watched_history.history["loss"]
    seeds = [v for v in watched_model.variables if "seed" in v.path]
    assert seeds  # of the dropout
    for old, new in zip(everything(plain), everything(watched_model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert random_after == (random.getstate(), np.random.get_state()[1].tolist())
    assert not plt.get_fignums()


def test_measurements_are_the_same_whatever_was_measured_before():
    rare, often = callback(every_epochs=3), callback(every_steps=1)
    fit(network(), rare, epochs=3)
    fit(network(), often, epochs=3)
    np.testing.assert_array_equal(rare.records[-1].eigenvalues, often.records[-1].eigenvalues)
    assert rare.records[-1].trace == often.records[-1].trace


# Where it is written -----------------------------------------------------------------------------


def test_the_csv_has_a_row_for_each_measurement_of_all_fits(tmp_path):
    path = tmp_path / "runs" / "spectrum.csv"
    model, watched = network(), callback(csv_path=path)
    fit(model, watched, epochs=2)
    fit(model, watched, epochs=1)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["6", "12", "18"]
    for row, record in zip(rows, watched.records, strict=True):
        assert float(row["eigenvalue_2"]) == record.eigenvalues[1]
        assert float(row["eigenvalue_2_bound"]) == record.bounds[1]
        assert float(row["trace_standard_error"]) == record.trace_standard_error
    fit(model, callback(csv_path=path), epochs=1)
    assert len(path.read_text().splitlines()) == 2  # another callback starts anew


def test_the_values_are_in_the_csv_logger_of_keras_too(tmp_path):
    path = tmp_path / "log.csv"
    fit(network(), callback(every_epochs=2), keras.callbacks.CSVLogger(path), epochs=2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Few names: what is in the logs is on the line of the progress bar, too.
    assert [key for key in rows[0] if key.startswith("hessian")] == sorted(LOGGED)
    assert rows[0]["hessian_trace"] == "nan"
    assert float(rows[1]["hessian_trace"]) != 0


def events(directory):
    for file in sorted(directory.iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            yield tf.compat.v1.Event.FromString(record.numpy())


def test_event_files_have_the_scalars_and_figures(tmp_path):
    watched = callback(density=True, tensorboard_dir=tmp_path)
    fit(network(), watched, epochs=2)
    values = [(e.step, value) for e in events(tmp_path) for value in e.summary.value]
    scalars = {
        (value.tag, step): float(tf.make_ndarray(value.tensor))
        for step, value in values
        if value.metadata.plugin_data.plugin_name == "scalars"
    }
    assert set(scalars) == {(f"spectrum/{key}", step) for key in KEYS for step in (6, 12)}
    for record in watched.records:
        found = scalars["spectrum/hessian_eigenvalue_1", record.step]
        assert found == pytest.approx(record.eigenvalues[0], rel=1e-6)
    images = [
        (step, tf.make_ndarray(value.tensor))
        for step, value in values
        if value.metadata.plugin_data.plugin_name == "images"
    ]
    assert [step for step, _ in images] == [6, 12]
    width, height, png = images[0][1]
    shape = tf.image.decode_png(png).shape
    assert (int(width), int(height)) == (shape[1], shape[0])


def test_tensorboard_itself_reads_the_event_files(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watched = callback(density=True, tensorboard_dir=tmp_path)
    fit(network(), watched, epochs=2)
    reader = accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    assert set(reader.Tags()["tensors"]) == {
        *(f"spectrum/{key}" for key in KEYS),
        "spectrum/hessian_density",
    }
    traces = [
        float(tf.make_ndarray(e.tensor_proto)) for e in reader.Tensors("spectrum/hessian_trace")
    ]
    np.testing.assert_allclose(traces, [record.trace for record in watched.records], rtol=1e-6)


def test_whole_spectra_are_kept_on_request_only():
    kept, left = callback(density=True), callback()
    fit(network(), kept, left, epochs=1)
    assert isinstance(kept.records[0].spectrum, Spectrum)
    assert left.records[0].spectrum is None
    assert kept.records[0].trace == left.records[0].trace == kept.records[0].spectrum.trace


# Time --------------------------------------------------------------------------------------------


def test_the_share_of_the_time_is_said_at_the_end_unless_fit_is_silent(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="spectral_density"):
        fit(network(), callback(), epochs=1, verbose=2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("SpectrumCallback: 1 measurement took ")
    assert last.endswith("% of the training time")
    assert last in caplog.messages
    fit(network(), callback(), epochs=1)
    assert capsys.readouterr().out == ""
    fit(network(), callback(verbose=2), epochs=1)
    out = capsys.readouterr().out
    assert "step 6: largest eigenvalues" in out


class FakeTime:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("spectral_density.training.time_budget.clock", lambda: self.now)

    def operator(self, survey, graph, product):
        """Return a maker of operators that take this long."""
        clock = self

        class Slow(HessianOperator):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                clock.now += survey
                self.seconds = product
                compiled = []
                multiply = self.sweep.products

                def slowly(*of):
                    clock.now += self.seconds if compiled else graph + self.seconds
                    compiled.append(True)
                    return multiply(*of)

                self.sweep.products = slowly

        return Slow

    def train(self, watched, *, first_step=2.0, step=0.1, epochs=20, steps=50):
        """Call what `fit` calls, and yield after each call."""
        watched.set_model(compiled(CASES["mlp"]))
        watched.set_params({"verbose": 0})
        watched.on_train_begin()
        yield
        for epoch in range(epochs):
            watched.on_epoch_begin(epoch)
            for batch in range(steps):
                watched.on_train_batch_begin(batch)
                self.now += first_step if epoch == batch == 0 else step
                watched.on_train_batch_end(batch)
                yield
            watched.on_epoch_end(epoch, {})
            yield
        watched.on_train_end()
        yield


def small(**options):
    return SpectrumCallback(
        [CASES["mlp"].data()], num_eigenvalues=2, order=8, num_draws=2, **options
    )


@pytest.mark.parametrize("when", [{"every_steps": 1}, {"every_epochs": 1}, {"every_steps": 37}])
@pytest.mark.parametrize("product", [0.01, 0.05, 0.4])
def test_the_budget_holds_at_every_moment_and_is_used(monkeypatch, when, product):
    clock = FakeTime(monkeypatch)
    watched = small(budget=0.1, operator=clock.operator(0.1, 1.0, product), **when)
    for _ in clock.train(watched):
        assert watched.share <= 0.1 + 1e-9
    measurements = len(watched.records)
    assert measurements > 0
    due = {"every_steps": 1000, "every_epochs": 20}.get(next(iter(when)), 0)
    due = 1000 // 37 if when == {"every_steps": 37} else due
    assert measurements + watched.num_skipped == due
    spent = 0.1 + (1.0 + 2 * product) + 8 * product * measurements
    assert watched.seconds == pytest.approx(spent)
    assert watched.share == pytest.approx(spent / (clock.now - 100.0))
    if due == 1000:  # what it may have it takes, but for part of one more
        assert watched.share > 0.1 - 1.3 * 8 * product / (clock.now - 100.0)


def test_a_training_too_short_for_the_budget_is_not_measured(monkeypatch, capsys):
    clock = FakeTime(monkeypatch)
    watched = small(budget=0.1, verbose=1, operator=clock.operator(0.1, 1.0, 0.4))
    for _ in clock.train(watched, epochs=1, steps=10):
        assert watched.share <= 0.1
    assert not watched.records
    assert watched.num_skipped == 1
    assert "0 measurements (1 left out to stay in the budget)" in capsys.readouterr().out


def test_a_slow_measurement_is_paid_back_before_the_next(monkeypatch):
    clock = FakeTime(monkeypatch)
    watched = small(budget=0.1, every_steps=1, operator=clock.operator(0.1, 1.0, 0.05))
    training = clock.train(watched)
    while not watched.records:
        next(training)
    watched.operator.seconds = 0.2
    over = [watched.share > 0.1 for _ in training]
    assert any(over)
    assert not over[-1]


def test_without_a_budget_everything_due_is_measured(monkeypatch):
    clock = FakeTime(monkeypatch)
    watched = small(every_steps=10, operator=clock.operator(0.1, 1.0, 5.0))
    for _ in clock.train(watched, epochs=2):
        pass
    assert len(watched.records) == 10
    assert watched.num_skipped == 0
    assert watched.share > 0.9


def test_a_second_fit_has_books_and_an_operator_of_its_own(monkeypatch):
    clock = FakeTime(monkeypatch)
    watched = small(budget=0.1, operator=clock.operator(0.1, 1.0, 0.05))
    for _ in clock.train(watched):
        pass
    first, count = watched.operator, len(watched.records)
    for _ in clock.train(watched):
        assert watched.share <= 0.1 + 1e-9
    assert watched.operator is not first
    assert len(watched.records) > count


# Keras 2 -----------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_tf_keras_model_is_watched_all_the_same():
    tf_keras = pytest.importorskip("tf_keras")
    plain = network(tf_keras)
    fit(plain, epochs=2)
    model, watched = network(tf_keras), callback()
    history = fit(model, watched, epochs=2).history
    assert set(KEYS) < set(history)
    exact = dense_eigenvalues(model, probe())
    assert watched.records[-1].eigenvalues[0] == pytest.approx(exact[-1], rel=1e-3)
    for old, new in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
