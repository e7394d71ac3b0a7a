"""Started by test_replicas.py: figures of two logical devices against one, as JSON.

TensorFlow fixes the number of devices when it begins, so this is a process of its own.
"""

import gc
import json
import sys
import threading
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from models import (
    CASES,
    NUM_EXAMPLES,
    batch_norm,
    classification,
    mlp,
    relative_error,
    set_random_weights,
    split,
    vectors,
)

from spectral_density import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    PreflightError,
    approximate_hessian,
    estimate_spectrum,
    top_eigenpairs,
)

NAMES = (
    "cnn",
    "two outputs, weights by name",
    "regularizers and add_loss",
    "mean with sample weights",
    "sum",
    "masked sequence, weights of steps",
)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
PLAIN = split(classification())


def two_devices():
    """Return a strategy of two logical CPUs."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def mean_loss(model, batch):
    return LOSS(batch[1], model(batch[0]))


def sum_loss(model, batch):
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], model(batch[0])))


def counted_loss(model, batch):
    return LOSS(batch[1], model(batch[0])) * len(batch[1])


def coupled_loss(model, batch):
    """A loss that no other cut into batches has."""
    return tf.reduce_sum(model(batch[0])) ** 2


def norms(model, batch):
    """The length of x W for the first kernel W: its curvature is infinite at x = 0."""
    inputs = tf.cast(batch[0], tf.float64)
    squares = tf.reduce_sum(tf.matmul(inputs, model.layers[0].kernel.value) ** 2, axis=-1)
    return tf.reduce_sum(tf.where(squares > 0, tf.sqrt(squares), 0.0))


class Figures:
    """What was found, by name."""

    def __init__(self, strategy):
        self.strategy = strategy
        self.errors = {}
        self.found = {}

    def mirrored(self, build, *arguments):
        with self.strategy.scope():
            return build(*arguments)

    def compare(self, name, one, two, everything=False, scale=1):
        """Hold an operator of two replicas against `scale` times one of a single device.

        Tracing takes the time, so that blocks are computed by one operator only.
        """
        v = vectors(one.shape[0], 3)
        product, gradient = two.product_and_gradient(v[:, 0])
        expected, expected_gradient = (scale * part for part in one.product_and_gradient(v[:, 0]))
        self.errors[name] = [
            relative_error(product, expected),
            relative_error(gradient, expected_gradient),
        ]
        if everything:
            self.errors[name] += [
                relative_error(two @ v, one @ v),
                relative_error(two.gradient(), expected_gradient),
                abs(two.loss() - one.loss()) / abs(one.loss()),
            ]

    def keras_cases(self):
        for name in NAMES:
            case = CASES[name]
            data, dtype = split(case.data(), case.splits), case.dtypes[-1]
            models = case.build(dtype), self.mirrored(case.build, dtype)
            for model in models:
                model.compile(loss=case.loss(), loss_weights=case.loss_weights)
            operators = [HessianOperator(model, None, data) for model in models]
            self.compare(name, *operators, everything=name == "regularizers and add_loss")

    def losses_and_matrices(self):
        models = mlp("float64"), self.mirrored(mlp, "float64")
        one_batch = split(classification(), (13,))
        stream = tf.data.Dataset.from_tensor_slices(classification()).batch(5)

        def case(name, make, one=None, **options):
            self.compare(name, one or make(models[0]), make(models[1]), **options)

        # What is the same matrix on a single device is traced there once.
        h, g = (kind(models[0], LOSS, PLAIN) for kind in (HessianOperator, GaussNewtonOperator))
        case("mean of a function", lambda m: HessianOperator(m, mean_loss, PLAIN), h)
        case(
            "sum of a function",
            lambda m: HessianOperator(m, sum_loss, PLAIN, reduction="sum"),
            h,
            scale=NUM_EXAMPLES,
        )
        case("coupled", lambda m: HessianOperator(m, coupled_loss, PLAIN, reduction="sum"))
        case("one batch", lambda m: HessianOperator(m, LOSS, one_batch), h)
        case("streamed", lambda m: HessianOperator(m, LOSS, stream, memory_share=0), h)
        case("one layer", lambda m: HessianOperator(m, LOSS, PLAIN, variables="hidden"))
        case("ggn", lambda m: GaussNewtonOperator(m, LOSS, PLAIN), g)
        pair = (lambda m, batch: m(batch[0]), lambda outputs, batch: LOSS(batch[1], outputs))
        case("ggn of a pair", lambda m: GaussNewtonOperator(m, pair, PLAIN), g)
        case("type2", lambda m: FisherOperator(m, LOSS, PLAIN, kind="type2", seed=3), g)
        for kind in ("empirical", "monte_carlo"):
            case(kind, lambda m, kind=kind: FisherOperator(m, LOSS, PLAIN, kind=kind, seed=3))
        case("other data", lambda m: HessianOperator(m, LOSS, one_batch).with_dataset(PLAIN), h)
        dealt = self.strategy.experimental_distribute_dataset(stream)
        case("distributed dataset", lambda m: HessianOperator(m, mean_loss, dealt), h)
        case("distributed, fisher", lambda m: FisherOperator(m, LOSS, dealt, seed=3), g)
        with self.strategy.scope():
            case(
                "inside the scope",
                lambda m: HessianOperator(m, counted_loss, PLAIN, reduction="sum"),
                h,
                scale=NUM_EXAMPLES,
            )

    def algorithms(self):
        one, two = (
            HessianOperator(model, LOSS, PLAIN)
            for model in (mlp("float64"), self.mirrored(mlp, "float64"))
        )
        spectra = [estimate_spectrum(each, order=8, num_draws=3) for each in (one, two)]
        again = estimate_spectrum(two, order=8, num_draws=3)
        self.errors["spectrum"] = [relative_error(spectra[1].nodes, spectra[0].nodes)]
        self.found["spectrum repeats"] = bool((again.alpha == spectra[1].alpha).all())
        pairs = [top_eigenpairs(each, 3).values for each in (one, two)]
        self.errors["eigenvalues"] = [relative_error(pairs[1], pairs[0])]
        models = [each.derivatives.objective.model for each in (one, two)]
        of = [approximate_hessian(model, mean_loss, PLAIN, 5)[1] for model in models]
        self.errors["approximate_hessian"] = [relative_error(of[1].numpy(), of[0].numpy())]
        self.errors["dense"] = [relative_error(two.to_dense(), one.to_dense())]
        self.found["fingerprints agree"] = one.fingerprint() == two.fingerprint()
        self.found["repr"] = repr(two)
        before = self.values_everywhere(two)
        report = two.check()
        self.found["verdict"] = report.verdict
        self.found["compared"] = [report[name].status for name in ("derivative", "gradient")]
        self.found["weights are back"] = before == self.values_everywhere(two)
        self.found["cost"] = report.num_products
        shuffled = tf.data.Dataset.from_tensor_slices(classification()).shuffle(13).batch(5)
        self.found["data in another order"] = two.with_dataset(shuffled).check()["data"].message
        cubic = self.mirrored(lambda: tf.Variable([1.0, 1.0], dtype=tf.float64))
        function = HessianOperator.from_function(lambda w: 2 * w[0] ** 3 * w[1] ** 3, cubic)
        self.found["cubic"] = function.to_dense().tolist()

    def values_everywhere(self, operator):
        return [
            component.numpy().tolist()
            for variable in operator.parameters.variables
            for component in self.strategy.experimental_local_results(variable)
        ]

    def state(self):
        """Training mode writes to mirrored variables, on every device."""
        models = batch_norm("float64"), self.mirrored(batch_norm, "float64")
        for model in models:
            model.layers[2].rate = 0.0

        def values(model):
            return [
                component.numpy()
                for variable in model.variables
                for component in self.strategy.experimental_local_results(variable.value)
            ]

        before = values(models[1])
        operators = [HessianOperator(m, LOSS, PLAIN, training=True) for m in models]
        self.compare("training mode", *operators)
        after = values(models[1])
        self.found["state put back"] = all(map(np.array_equal, before, after))

    def where(self):
        """Both devices compute, in threads of their own, and each reads its own variables."""
        devices, threads = set(), set()
        model = self.mirrored(mlp, "float64")
        hessian = HessianOperator(model, LOSS, PLAIN)
        multiply = hessian.matrix.add_on

        def watched(*arguments):
            sums = multiply(*arguments)
            devices.add(sums[0][0].device[-5:])
            threads.add(threading.get_ident())
            return sums

        hessian.matrix.add_on = watched
        hessian @ np.ones(31)
        self.found["devices"] = sorted(devices)
        self.found["threads"] = len(threads)
        # What is assigned to one device alone is read there alone.
        whole = hessian.gradient()
        bias = model.trainable_variables[-1].value
        self.strategy.experimental_local_results(bias)[1].assign([30.0, 0.0, 0.0])
        self.found["own variables"] = bool(np.abs(hessian.gradient() - whole).max() > 1e-3)

    def refusals(self):
        model = self.mirrored(mlp, "float64")
        x, y = PLAIN[1]
        spoiled = [PLAIN[0], (np.full_like(x, np.nan), y), PLAIN[2]]
        with_zeros = [PLAIN[0], PLAIN[1], (np.zeros_like(x), y)]
        dropout = self.mirrored(dropout_model)
        dealt = self.strategy.experimental_distribute_dataset(
            tf.data.Dataset.from_tensor_slices(classification()).batch(5)
        )
        raised = self.found["raised"] = {}
        for name, function in {
            "nan": lambda: HessianOperator(model, LOSS, spoiled) @ np.ones(31),
            "singular": lambda: HessianOperator(model, norms, with_zeros) @ np.ones(31),
            "dropout": lambda: HessianOperator(dropout, LOSS, PLAIN, training=True).check(),
            "plain model": lambda: HessianOperator(mlp(), LOSS, dealt),
            "unused": lambda: (
                HessianOperator(model, lambda m, b: tf.reduce_sum(b[0]), PLAIN) @ np.ones(31)
            ),
            "empty": lambda: HessianOperator(model, LOSS, []),
        }.items():
            try:
                function()
                raised[name] = None
            except (PreflightError, ValueError, ArithmeticError) as error:
                raised[name] = f"{type(error).__name__}: {error}"


def dropout_model():
    return set_random_weights(
        keras.Sequential(
            [keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(3, dtype="float64")]
        )
    )


if __name__ == "__main__":
    # Look for garbage seldom, as in conftest.py: tracing makes millions of objects.
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = Figures(two_devices())
        for part in ("keras_cases", "losses_and_matrices", "algorithms", "state", "where"):
            getattr(figures, part)()
        figures.refusals()
    Path(sys.argv[1]).write_text(json.dumps({"errors": figures.errors, "found": figures.found}))
