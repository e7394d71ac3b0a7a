import inspect
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, regularizers
from models import flat_gradient, floatx, jacobian_hessian, relative_error, tf_variables

from spectral_density.training import (
    FixedStep,
    LevenbergMarquardt,
    LowRankSaddleFreeNewton,
    NewtonCG,
    NewtonGMRES,
    NewtonMINRES,
    SecondOrderModel,
    TrainingStatus,
    TrustRegion,
)
from spectral_density.training.methods import Direction

N = 60


def small_model(dtype="float32", seed=0, l2=0.0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            layers.Input((5,), dtype=dtype),
            layers.Dense(
                6,
                "tanh",
                dtype=dtype,
                kernel_regularizer=regularizers.L2(l2) if l2 else None,
            ),
            layers.Dense(3, dtype=dtype),
        ]
    )


class Counting(layers.Layer):
    """Passes its inputs on, and counts how often it is called: once for each trace of a graph."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, x):
        self.calls.append(x.shape)
        return x


def counted_model():
    model = small_model()
    counting = Counting()
    return keras.Sequential([*model.layers, counting]), counting


def data(n=N, dtype="float32"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 5)).astype(dtype)
    return x, (x[:, :3].argmax(1)).astype("int32")


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def saddle_free(**options):
    return LowRankSaddleFreeNewton(**({"rank": 8, "oversampling": 0} | options))


def trainer(method=None, model=None, **options):
    wrapped = SecondOrderModel(model or small_model(), **options)
    wrapped.compile(method or saddle_free(), loss=cross_entropy(), metrics=["accuracy"])
    return wrapped


def run_once(wrapped, x, y, **options):
    return wrapped.fit(
        x, y, **({"batch_size": 20, "shuffle": False, "verbose": 0} | options)
    ).history


METHODS = {
    "saddle-free": saddle_free,
    "saddle-free, lanczos": lambda: saddle_free(factorization="lanczos", globalization="armijo"),
    "saddle-free, adaptive": lambda: saddle_free(
        range_finder="adaptive", rank=16, globalization="armijo"
    ),
    "saddle-free, trust region": lambda: saddle_free(globalization="trust_region", refresh=5),
    "cg": NewtonCG,
    "cg, hessian": lambda: NewtonCG(curvature="hessian"),
    "cg, armijo": lambda: NewtonCG(globalization="armijo"),
    "minres": NewtonMINRES,
    "gmres": NewtonGMRES,
    "gmres, spectral": lambda: NewtonGMRES(globalization="spectral", damping=0.1),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_under_keras_fit(name):
    x, y = data()
    wrapped = trainer(METHODS[name]())
    before = wrapped.evaluate(x, y, verbose=0)[0]
    history = run_once(wrapped, x, y, epochs=15, batch_size=N, validation_data=(x, y))
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(history["loss"]) == 15
    assert history["val_loss"][-1] < 0.9 * before
    assert wrapped.last_step.number == 15
    assert wrapped.last_step.data_passes >= 15
    # The first step built the graphs, and nothing after the second did.
    assert wrapped.problem.num_traces <= 3


def test_fit_has_the_signature_of_keras():
    assert inspect.signature(SecondOrderModel.fit) == inspect.signature(keras.Model.fit)


def test_training_reaches_a_minimum_of_the_full_batch():
    x, y = data()
    wrapped = trainer(NewtonCG(max_iterations=50, max_forcing=1e-3), l2=1e-2)
    run_once(wrapped, x, y, epochs=60, batch_size=N)
    assert wrapped.last_step.gradient_norm < 1e-3


# One cost: loss, gradient and curvature ----------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_gradient_and_curvature_are_those_of_the_same_objective(weighted):
    with floatx("float64"):
        model = small_model("float64", l2=0.03)
        x, y = data(dtype="float64")
        weights = np.linspace(0.2, 2.0, N) if weighted else None
        wrapped = SecondOrderModel(model, l2=0.02)
        wrapped.compile(saddle_free(globalization=FixedStep()), loss=cross_entropy())
        run_once(wrapped, x, y, sample_weight=weights, batch_size=N)
        variables = tf_variables(model)
        problem = wrapped.problem

        def objective():
            loss = cross_entropy()(y, model(x), sample_weight=weights)
            squares = tf.add_n([tf.reduce_sum(tf.square(v)) for v in variables])
            return loss + tf.add_n(model.losses) + 0.02 * squares

        loss, gradient = problem.loss_and_gradient()
        assert loss == pytest.approx(float(objective()), rel=1e-12)
        assert problem.loss() == pytest.approx(float(objective()), rel=1e-12)
        np.testing.assert_allclose(gradient, flat_gradient(objective, variables), atol=1e-12)
        dense = problem.curvature() @ np.eye(problem.weights.size)
        exact = jacobian_hessian(objective, variables)
        assert relative_error(dense, exact) < 1e-12
        # Four parts of equal size, with the regularization in each.
        parts = [part @ np.eye(problem.weights.size) for part in problem.parts()]
        if not weighted:
            assert relative_error(np.mean(parts, axis=0), exact) < 1e-12
        # And the loss that Keras reports is this one.
        evaluated = wrapped.evaluate(x, y, sample_weight=weights, batch_size=N, verbose=0)
        assert evaluated == pytest.approx(loss, rel=1e-6)


def test_batches_of_every_form_have_their_own_loss_and_gradient():
    def batch(rows, length, labels="int64", weighted=False):
        rng = np.random.default_rng(rows + length)
        x = rng.normal(size=(rows, length, 2))
        weights = tf.constant(rng.uniform(size=rows)) if weighted else None
        return tf.constant(x), tf.constant(rng.integers(0, 3, rows), labels), weights

    with floatx("float64"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [layers.Input((None, 2)), layers.GlobalAveragePooling1D(), layers.Dense(3), Counting()]
        )
        wrapped = trainer(saddle_free(rank=2, refresh=1, hessian_batch_size=12), model)
        calls = model.layers[-1].calls
        variables = tf_variables(model)
        first = batch(10, 5)
        wrapped.train_on_batch(*first[:2])
        problem = wrapped.problem
        # A variable of the metrics is made in the first trace; the second length opens an axis.
        for x, y, weights in (
            first,
            batch(7, 8),
            batch(10, 6),
            batch(9, 6, "int32"),
            batch(10, 6, weighted=True),
            batch(4, 7, weighted=True),
            batch(11, 9),
        ):

            def objective(x=x, y=y, weights=weights):
                return cross_entropy()(y, model(x), sample_weight=weights)

            problem.set_batch((x, y, weights))
            before = len(calls)
            loss, gradient = problem.loss_and_gradient()
            num_traced = len(calls) - before
            assert loss == pytest.approx(float(objective()), rel=1e-6)
            truth = flat_gradient(objective, variables)
            np.testing.assert_allclose(gradient, truth, rtol=1e-5, atol=1e-7)
            curvature = problem.curvature()
            assert np.isfinite(curvature @ np.ones(curvature.shape[0])).all()
        assert num_traced == 0


@pytest.mark.exhaustive
def test_fit_goes_on_with_batches_of_another_form():
    x, y = data()
    wrapped = trainer(saddle_free(refresh=1))
    run_once(wrapped, x, y)
    run_once(wrapped, x, y, sample_weight=np.linspace(0.5, 1.5, N), batch_size=12)
    history = run_once(wrapped, x, y[:, np.newaxis], epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert wrapped.last_step.status is TrainingStatus.ACCEPTED


def test_class_weights_are_sample_weights():
    x, y = data()
    by_class, by_sample = trainer(), trainer()
    run_once(by_class, x, y, class_weight={0: 1.0, 1: 3.0, 2: 0.5})
    run_once(by_sample, x, y, sample_weight=np.array([1.0, 3.0, 0.5], "float32")[y])
    for ours, theirs in zip(by_class.get_weights(), by_sample.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_class_weights_that_do_not_reach_the_matrix_are_warned_of():
    x, y = data()
    wrapped = trainer(saddle_free(hessian_data=[(x[:20], y[:20])]))
    with pytest.warns(UserWarning, match="not those of hessian_data"):
        run_once(wrapped, x, y, class_weight={0: 1.0, 1: 3.0})


def test_what_the_loss_writes_keeps_its_bits():
    """Another network's statistics and a counter, through gradients, products and line searches."""
    keras.utils.set_random_seed(0)
    other = keras.Sequential([layers.Input((3,)), layers.BatchNormalization()])
    counter = tf.Variable(0)

    def loss(y_true, y_pred):
        counter.assign_add(1)
        return keras.ops.mean((other(y_pred, training=True) - y_true) ** 2, axis=-1)

    x, _ = data()
    before = [np.asarray(v) for v in other.variables]
    wrapped = SecondOrderModel(small_model())
    wrapped.compile(saddle_free(globalization="armijo"), loss=loss, metrics=["mae"])
    # BatchNormalization couples the examples, so that the batch is the whole data.
    history = run_once(wrapped, x, np.zeros((N, 3), "float32"), batch_size=N, epochs=2)
    assert history["mae"][0] > 0
    for old, new in zip(before, other.variables, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    assert int(counter) == 0


def test_a_trainable_weight_that_the_forward_pass_writes_is_refused():
    class Clipped(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, x):
            self.scale.assign(keras.ops.clip(self.scale, 0.0, 0.5))
            return x * self.scale

    model = keras.Sequential([layers.Input((5,)), Clipped(), layers.Dense(3)])
    wrapped = trainer(model=model)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"scale.*Clipped"):
        run_once(wrapped, *data())
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_several_outputs_with_their_losses_and_weights():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    hidden = layers.Dense(6, "tanh")(inputs)
    model = keras.Model(
        inputs, {"a": layers.Dense(2, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)}
    )
    wrapped = SecondOrderModel(model)
    wrapped.compile(NewtonCG(), loss={"a": "mse", "b": "mae"}, loss_weights={"a": 2.0, "b": 0.5})
    x, _ = data()
    y = {"a": x[:, :2], "b": x[:, 2:3]}
    history = run_once(wrapped, x, y, epochs=4)
    assert {"loss", "a_loss", "b_loss"} <= set(history)
    assert history["loss"][-1] < history["loss"][0]
    loss, _ = wrapped.problem.loss_and_gradient()
    batch = slice(N - 20, N)
    a, b = (wrapped.model(x[batch])[key] for key in ("a", "b"))
    true = 2 * np.mean((a - y["a"][batch]) ** 2) + 0.5 * np.mean(np.abs(b - y["b"][batch]))
    assert loss == pytest.approx(true, rel=1e-5)


# The examples of the matrix ----------------------------------------------------------------------


def test_the_matrix_has_as_many_examples_as_asked_for_and_is_traced_once():
    x, y = data(50)
    for wanted, expected in ((None, 20), (8, 8), (36, 36)):
        method = saddle_free(refresh=1, hessian_batch_size=wanted)
        model, counting = counted_model()
        wrapped = trainer(method, model)
        traces = []
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda b, logs, w=wrapped, t=traces, c=counting.calls: t.append(
                (w.problem.num_traces, len(c))
            )
        )
        # The last batch of an epoch has ten rows.
        run_once(wrapped, x, y, epochs=3, callbacks=[callback])
        assert wrapped.problem.operator.batches.num_examples == expected
        assert traces[1] == traces[-1]


def test_the_matrix_is_made_of_the_last_examples_the_newest_first():
    x, y = data(50)
    wrapped = trainer(saddle_free(refresh=1, hessian_batch_size=25))
    run_once(wrapped, x, y)
    # Batches of 20, 20 and 10: the last one is filled up with those before it.
    (batch,) = wrapped.problem.operator.batches
    np.testing.assert_array_equal(batch[0], np.concatenate([x[40:], x[20:35]]))
    wrapped = trainer(saddle_free(refresh=1, hessian_batch_size=7))
    run_once(wrapped, x, y, batch_size=25)
    (batch,) = wrapped.problem.operator.batches
    np.testing.assert_array_equal(batch[0], x[25:32])
    np.testing.assert_array_equal(batch[1], y[25:32])


def test_tensorflow_warns_of_no_retracing_however_many_models_are_trained():
    x, y = data()
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("tensorflow")
    logger.addHandler(handler)
    try:
        for seed in range(7):
            wrapped = trainer(NewtonCG(), small_model(seed=seed))
            run_once(wrapped, x, y)
    finally:
        logger.removeHandler(handler)
    assert [message for message in messages if "retracing" in message] == []


def test_the_second_epoch_traces_nothing():
    x, y = data()
    model, counting = counted_model()
    wrapped = trainer(saddle_free(refresh=1, globalization="armijo"), model)
    run_once(wrapped, x, y)
    before = len(counting.calls)
    run_once(wrapped, x, y, epochs=2)
    assert len(counting.calls) == before


def test_the_logs_of_a_step_are_the_metrics_so_far():
    x, y = data()
    wrapped = trainer(saddle_free(globalization=FixedStep()))
    rows, losses = [], []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rows.append(dict(logs))
            losses.append(wrapped.last_step.loss)

    history = run_once(wrapped, x, y, callbacks=[Keep()])
    np.testing.assert_allclose(
        [row["loss"] for row in rows], np.cumsum(losses) / np.arange(1, 4), rtol=1e-6
    )
    assert rows[-1]["loss"] == history["loss"][0]
    assert rows[-1]["accuracy"] == history["accuracy"][0]


def test_layers_hold_no_symbolic_losses_after_a_step():
    x, y = data()
    wrapped = trainer(NewtonCG(), small_model(l2=0.1))
    run_once(wrapped, x, y)
    assert [float(loss) for loss in wrapped.model.losses]


def test_the_matrix_can_have_data_of_its_own():
    x, y = data()
    other = tf.data.Dataset.from_tensor_slices(data(30)).batch(10)
    wrapped = trainer(saddle_free(refresh=1, hessian_data=other))
    run_once(wrapped, x, y, epochs=2)
    operator = wrapped.problem.operator
    (batch,) = operator.batches
    np.testing.assert_array_equal(batch[0], data(30)[0][20:])  # the sixth of three, again and again
    with pytest.raises(ValueError, match="hessian_data"):
        run_once(trainer(saddle_free(hessian_data=[])), x, y)


def test_data_passes_are_work_over_the_examples_of_an_epoch():
    x, y = data(50)
    wrapped = trainer(saddle_free(globalization=FixedStep(), hessian_batch_size=10))
    run_once(wrapped, x, y)
    # 50 gradients, and one refresh: 16 products of 10 examples each.
    assert wrapped.last_step.num_products == 16
    assert wrapped.last_step.data_passes == pytest.approx(1 + 2 * 16 * 10 / 50)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    wrapped = trainer(saddle_free(globalization=FixedStep(), hessian_batch_size=10))
    wrapped.fit(dataset, epochs=2, verbose=0, shuffle=False)
    assert wrapped.last_step.data_passes == pytest.approx(2 + 2 * 16 * 10 / 50)


def test_data_passes_of_one_fit_stay_when_the_next_has_other_data():
    x, y = data(50)
    wrapped = trainer(saddle_free(globalization=FixedStep(), hessian_batch_size=10))
    run_once(wrapped, x, y, epochs=2)
    before = wrapped.last_step.data_passes
    assert before == pytest.approx(2 + 2 * 16 * 10 / 50)
    products = wrapped.last_step.num_products
    run_once(wrapped, x[:25], y[:25], batch_size=25)
    assert wrapped.last_step.num_products == products
    assert wrapped.last_step.data_passes == pytest.approx(before + 1)


# Keras's callbacks and files ---------------------------------------------------------------------


def test_the_best_validation_is_kept_and_can_be_restored():
    x, y = data()
    wrapped = trainer()
    with pytest.raises(ValueError, match="validation_data"):
        wrapped.restore_best()
    history = run_once(wrapped, x, y, epochs=5, validation_data=(x, y))
    best = wrapped.best
    assert best.monitor == "val_accuracy"
    assert best.value == max(history["val_accuracy"])
    wrapped.set_weights([0 * w for w in wrapped.get_weights()])
    wrapped.restore_best()
    assert wrapped.evaluate(x, y, verbose=0)[1] == pytest.approx(best.value)


# Keras's own, about its own arrays.
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_what_is_saved_is_the_wrapped_model_and_works_on_its_own(tmp_path):
    x, y = data()
    model = small_model()
    wrapped = trainer(model=model)
    whole, weights = tmp_path / "model.keras", tmp_path / "model.weights.h5"
    callbacks = [
        keras.callbacks.ModelCheckpoint(whole),
        keras.callbacks.ModelCheckpoint(weights, save_weights_only=True),
        keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
    ]
    run_once(wrapped, x, y, epochs=2, validation_data=(x, y), callbacks=callbacks)
    np.testing.assert_array_equal(wrapped.predict(x, verbose=0), model.predict(x, verbose=0))
    ours = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(ours, wrapped.evaluate(x, y, verbose=0), rtol=1e-6)
    loaded = keras.models.load_model(whole)
    assert isinstance(loaded, keras.Sequential)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    other = small_model(seed=1)
    other.load_weights(weights)
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_model_that_the_user_compiled_stays_as_it_was():
    model = small_model()
    model.compile("rmsprop", "mse")
    trainer(model=model)
    assert model.loss == "mse"
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)


def test_schedules_set_the_learning_rate():
    x, y = data()
    wrapped = trainer(saddle_free(globalization=FixedStep()))
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)
    history = run_once(wrapped, x, y, epochs=2, callbacks=[schedule])
    np.testing.assert_allclose(history["learning_rate"], [0.15, 0.075])
    assert wrapped.last_step.step_length == 0.075


def test_other_ways_to_feed_a_model():
    x, y = data()
    wrapped = SecondOrderModel(small_model())
    wrapped.compile(NewtonCG(), loss=cross_entropy(), metrics=["accuracy"], steps_per_execution=2)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(20).repeat()
    wrapped.fit(dataset, steps_per_epoch=4, epochs=2, verbose=0, shuffle=False)
    assert wrapped.last_step.number == 8
    wrapped.fit(x, y, batch_size=20, validation_split=0.34, verbose=0)
    assert wrapped.last_step.number == 10
    logs = wrapped.train_on_batch(x[:20], y[:20], return_dict=True)
    assert set(logs) == {"loss", "accuracy"}
    assert wrapped.last_step.number == 11


def test_an_autoencoder_has_its_inputs_as_labels():
    x, _ = data()
    wrapped = SecondOrderModel(keras.Sequential([layers.Input((5,)), layers.Dense(5)]))
    wrapped.compile(NewtonCG(max_iterations=20), loss="mse")
    history = run_once(wrapped, x, x, epochs=10)
    # The identity, exactly.
    assert history["loss"][-1] < 1e-3


# Failures: the weights are those of the last accepted step ---------------------------------------


def weights_of(wrapped):
    return [w.tobytes() for w in wrapped.get_weights()]


def test_a_batch_of_nan_moves_nothing_and_the_status_says_so():
    x, y = data()
    wrapped = trainer(NewtonCG())
    run_once(wrapped, x, y)
    before = weights_of(wrapped)
    wrapped.train_on_batch(np.full((20, 5), np.nan, "float32"), y[:20])
    assert wrapped.last_step.status is TrainingStatus.LOSS_NOT_FINITE
    assert weights_of(wrapped) == before
    wrapped.train_on_batch(x[:20], y[:20])
    assert wrapped.last_step.accepted


@pytest.mark.parametrize(
    "globalization", [TrustRegion(accept_above=1e9, shrink_below=1e9, grow_above=1e9)]
)
def test_a_full_rejection_leaves_every_bit_and_shrinks_the_region(globalization):
    x, y = data()
    wrapped = trainer(saddle_free(globalization=globalization))
    before = weights_of(wrapped)
    run_once(wrapped, x, y, batch_size=N, epochs=3)
    assert wrapped.last_step.status is TrainingStatus.REJECTED
    assert weights_of(wrapped) == before
    assert wrapped.last_step.step_length == 0.0


def test_a_direction_that_leads_up_is_refused():
    x, y = data()

    class Upwards(NewtonCG):
        def _direction(self, problem, loss, gradient):
            return Direction(gradient, curvature=1.0)

    wrapped = trainer(Upwards())
    before = weights_of(wrapped)
    run_once(wrapped, x, y)
    assert wrapped.last_step.status is TrainingStatus.NOT_DESCENT
    assert weights_of(wrapped) == before


def test_an_interrupted_fit_leaves_the_weights_of_the_last_accepted_step():
    x, y = data()
    wrapped = trainer(NewtonCG(globalization=LevenbergMarquardt()))
    accepted = []

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            accepted.append(weights_of(wrapped))
            if len(accepted) == 4:
                wrapped.problem.loss = self.interrupt

        def interrupt(self):
            assert weights_of(wrapped) != accepted[-1]  # the trial is under way
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_once(wrapped, x, y, epochs=9, callbacks=[Interrupt()])
    assert weights_of(wrapped) == accepted[-1]
    assert wrapped.last_step.status is TrainingStatus.INTERRUPTED
    assert wrapped.last_step.number == 5


def test_what_cannot_be_trained_is_refused_with_what_to_do():
    wrapped = SecondOrderModel(small_model())
    with pytest.raises(TypeError, match="LowRankSaddleFreeNewton"):
        wrapped.compile("adam", loss="mse")
    with pytest.raises(ValueError, match="loss="):
        wrapped.compile(NewtonCG())
    with pytest.raises(ValueError, match="XLA"):
        wrapped.compile(NewtonCG(), loss="mse", jit_compile=True)
    with pytest.raises(TypeError, match="minimize"):
        SecondOrderModel(lambda x: x)

    class Own(keras.Sequential):
        def compute_loss(self, *args, **options):
            return 0.0

    with pytest.raises(ValueError, match="compute_loss"):
        SecondOrderModel(Own([layers.Input((5,)), layers.Dense(3)])).compile(NewtonCG(), loss="mse")
