"""docs/errors.md, row by row."""

import builtins
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import mismatches
import numpy as np
import optimizer_errors
import pytest
import tensorflow as tf
from cases import diagonal_operator
from errors_page import rows
from keras import layers
from models import classification, mlp, sequential, split
from scipy.sparse.linalg import LinearOperator

import spectral_density as sd
from spectral_density import HessianOperator, Spectrum, estimate_spectrum, lanczos, top_eigenpairs
from spectral_density.checkpoint import CheckpointError, RunDirectory
from spectral_density.curvature.preflight import PreflightError
from spectral_density.engines.jax.keras_model import refuse_model_parallel
from spectral_density.engines.jax.processes import JaxProcesses
from spectral_density.engines.jax.sharding import devices_of
from spectral_density.engines.tensorflow.replicas import replicas_of

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = classification()
LIST = split((X, Y), (4, 4, 4))
NAMES = {"PreflightError": PreflightError, "CheckpointError": CheckpointError}
NAMES["ConvergenceWarning"] = sd.ConvergenceWarning


def hessian(data=LIST, loss=SPARSE, model=None, **options):
    return HessianOperator(mlp() if model is None else model, loss, data, **options)


def product(operator):
    return operator @ np.ones(operator.shape[0])


def squares(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0])))


def checked(*middle, loss=SPARSE, data=LIST, **options):
    stack = [layers.Dense(4, activation="tanh"), *middle, layers.Dense(3)]
    estimate_spectrum(hessian(data, loss, sequential(*stack), **options), 2, 1)


def shortening():
    passes = []

    def dataset():
        passes.append(None)
        return iter(LIST if len(passes) <= 2 else LIST[:2])

    return dataset


def spoiled(index):
    x = X.copy()
    x[index] = np.nan
    return split((x, Y), (4, 4, 4))


def coupled(model, batch):
    outputs = model(batch[0])
    return tf.reduce_mean(tf.square(outputs - tf.reduce_mean(outputs, axis=0)))


def shuffled():
    dataset = tf.data.Dataset.from_tensor_slices((np.tile(X, (4, 1)), np.tile(Y, 4)))
    return dataset.shuffle(60).batch(20, drop_remainder=True)


def augmented():
    """Batches to which each pass adds noise of its own."""
    numbers = np.random.default_rng(0)
    return lambda: iter([(x + numbers.normal(size=x.shape).astype("float32"), y) for x, y in LIST])


def with_a_root():
    weights = tf.Variable(np.r_[np.zeros(1), np.ones(30)])
    return HessianOperator.from_function(lambda w: tf.reduce_sum(w**1.5), weights)


def with_spoiled_weights():
    model = mlp()
    model.layers[0].bias.assign([np.nan, 0.0, 0.0, 0.0])
    estimate_spectrum(hessian(model=model), 2, 1)


@tf.custom_gradient
def one_sided(x):
    def gradient(upstream):
        return upstream * tf.stack([x[:, 1], x[:, 0] ** 2, x[:, 2]], axis=1)

    return x, gradient


def of(loss, values=(0.5, 2.0), dtype="float32"):
    return HessianOperator.from_function(loss, tf.Variable(values, dtype=dtype))


@tf.custom_gradient
def stopped_square(x):
    return tf.square(x), lambda upstream: 2 * upstream * tf.stop_gradient(x)


@tf.custom_gradient
def cube_of_square(x):
    return tf.square(x), lambda upstream: 3 * upstream * x


@tf.custom_gradient
def square_by_numpy(x):
    return tf.square(x), lambda upstream: upstream * tf.numpy_function(np.add, [x, x], x.dtype)


def by_python(w):
    return tf.reduce_sum(tf.py_function(lambda values: values**3, [w], w.dtype))


def quantized(w):
    return tf.reduce_sum(tf.quantization.fake_quant_with_min_max_vars(w, -1.0, 1.0) ** 2)


def ctc(w):
    logits = tf.reshape(w, (1, 4, 3))
    found = tf.nn.ctc_loss([[1, 2]], logits, [2], [4], logits_time_major=False, blank_index=0)
    return tf.reduce_sum(found)


def contrast(w):
    return tf.reduce_sum(tf.image.adjust_contrast(tf.reshape(w, (2, 1, 1)), 2.0) ** 2)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


class OwnFunction(keras.Sequential):
    def make_train_function(self, force=False):
        return super().make_train_function(force)


class OwnLoss(keras.Sequential):
    def compute_loss(self, *args, **options):
        return super().compute_loss(*args, **options)


class CalledLoss(keras.losses.MeanSquaredError):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return 2 * super().__call__(y_true, y_pred, sample_weight)


class Length(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return keras.ops.sqrt(keras.ops.sum(weights**2))


class Clipped(layers.Dense):
    def call(self, inputs):
        self.kernel.assign(keras.ops.clip(self.kernel, -1.0, 1.0))
        return super().call(inputs)


def compiled(kind=keras.Sequential):
    model = kind([keras.Input(X.shape[1:]), layers.Dense(3)])
    model.compile("sgd", SPARSE)
    return model


def penalized():
    penalty = {"kernel_initializer": "zeros", "kernel_regularizer": Length()}
    return keras.Sequential([keras.Input(X.shape[1:]), layers.Dense(3, **penalty)])


def neither(features, number):
    return features + number


def of_two_outputs():
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    hessian([(X, (Y, Y))], [SPARSE, SPARSE], model, class_weight={0: 2.0})


def weighted_fit():
    model = sd.training.SecondOrderModel(compiled())
    model.compile(sd.training.NewtonCG(hessian_data=LIST), SPARSE)
    model.fit(X, Y, class_weight={0: 2.0}, epochs=0, verbose=0)


def inserting():
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, 0.0, -1, -2)

    def loss(w):
        table.insert([3], [1.0])
        return tf.reduce_sum(w**2)

    return of(loss)


def watched(path, loss=None):
    options = {"num_eigenvalues": 1, "order": 2, "num_draws": 1, "csv_path": path}
    compiled().fit(X, Y, verbose=0, callbacks=[sd.SpectrumCallback(LIST, loss, **options)])


def resumed_with_another_loss(path):
    lanczos(of(lambda w: tf.reduce_sum(w**3)), 1, checkpoint=path, check=False)
    lanczos(of(lambda w: tf.reduce_sum(2 * w**3)), 1, checkpoint=path, check=False)


def resumed_in_another_order(path):
    model = compiled()
    for data, order in ((LIST, 1), (LIST[::-1], 2)):
        lanczos(hessian(data, model=model), order, checkpoint=path, check=False)


def resumed(path, matrix=None, **options):
    lanczos(np.diag(np.arange(9.0)), 4, checkpoint=path)
    lanczos(np.diag(np.arange(9.0)) if matrix is None else matrix, 4, checkpoint=path, **options)


def damaged(path):
    lanczos(np.diag(np.arange(9.0)), 4, checkpoint=path)
    file = path / "draws-0-1" / "vectors.bin"
    content = bytearray(file.read_bytes())
    content[50] ^= 0xFF
    file.write_bytes(content)
    lanczos(np.diag(np.arange(9.0)), 5, checkpoint=path)


def in_use(path):
    with RunDirectory(path, {}):
        lanczos(np.diag(np.arange(9.0)), 4, checkpoint=path)


def something_else(path):
    (path / "thesis.tex").write_text("x")
    lanczos(np.diag(np.arange(9.0)), 4, checkpoint=path)


def no_spectrum(path):
    (path / "run.npz").write_text("x")
    Spectrum.load(path / "run.npz")


def too_large():
    n = 10**11
    operator = LinearOperator((n, n), matvec=lambda v: v, dtype=float)
    estimate_spectrum(operator, 90, 1)


PARAMS = {"w": jnp.ones((X.shape[1], 1))}


def jax_squares(params, batch):
    return jnp.mean((batch[0] @ params["w"]) ** 2)


def of_jax(params=PARAMS, loss=jax_squares, data=((X, Y),)):
    return HessianOperator(params, loss, list(data))


def mirrored():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        return hessian(model=mlp())


def unbalanced(**options):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    hessian(strategy.experimental_distribute_dataset(dataset), **options)


def of_two_strategies():
    model = tf.Module()
    for name in ("a", "b"):
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            setattr(model, name, tf.Variable([1.0]))
    hessian(loss=lambda model, batch: tf.reduce_sum(model.a * model.b), model=model)


def mirrored_elsewhere():
    class Values(tf.distribute.DistributedValues):
        distribute_strategy = tf.distribute.OneDeviceStrategy("CPU:0")  # there is no TPU here

    replicas_of([Values()])


def trainer_in_a_scope():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        sd.training.SecondOrderModel(mlp())


def with_patch(function, **options):
    with pytest.MonkeyPatch.context() as patch:
        function(patch, **options)


def beside_a_worker(patch, failed=0):
    """Multiply while there should be a second worker, which adds nothing but that it failed."""
    operator = mirrored()
    replicas = operator.sweep.replicas
    extended = replicas.strategy.extended
    add = extended.reduce_to
    replicas.num_workers = 2

    def added(*arguments):
        (total,) = replicas.strategy.experimental_local_results(add(*arguments))
        total = total.numpy()
        total[-3] = failed  # the first of the three notes of the last worker
        return tf.constant(total)

    patch.setattr(extended, "reduce_to", added)
    product(operator)


def without_an_answer(patch, error):
    """Multiply where TensorFlow reports an error of the workers' connection."""
    operator = mirrored()

    def reduce_to(*arguments, **options):
        raise error(None, None, "the connection was reset")

    patch.setattr(operator.sweep.replicas.strategy.extended, "reduce_to", reduce_to)
    product(operator)


def under_model_parallel(patch):
    found = object.__new__(keras.distribution.ModelParallel)
    patch.setattr(keras.distribution, "distribution", lambda: found)
    refuse_model_parallel()


def part_alone():
    """An array as it is on one of several devices that each have a part of it."""
    sharding = SimpleNamespace(is_fully_replicated=False)
    return SimpleNamespace(committed=True, sharding=sharding)


def in_two_processes(patch):
    patch.setattr(JaxProcesses, "gather", lambda self, thing: [thing, "another"])
    JaxProcesses().agree("one", "vectors")


SMALL = np.diag(np.arange(5.0))
CASES = {
    "a generator, or any iterator": lambda path: hessian(batch for batch in LIST),
    "an empty list": lambda path: hessian([]),
    "batches that are all empty": lambda path: hessian([(X[:0], Y[:0])]),
    "`dataset.repeat()`": lambda path: hessian(tf.data.Dataset.from_tensors((X, Y)).repeat()),
    "one batch `(x, y)`": lambda path: hessian((X, Y)),
    "one array": lambda path: hessian(X),
    "a number for a dataset": lambda path: hessian(3),
    "tensors of different lengths in a batch": lambda path: hessian(
        [{"x": X, "y": Y[:3]}], lambda model, batch: squares(model, [batch["x"]])
    ),
    "a negative `batch_weight`": lambda path: hessian(batch_weight=lambda batch: -1.0),
    "sample weights that are all 0": lambda path: hessian(
        [(X, Y, np.zeros(len(Y)))],
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    ),
    "a streamed dataset that gets shorter": lambda path: product(
        hessian(shortening(), memory_share=0)
    ),
    "NaN among the data": lambda path: product(hessian(spoiled(5))),
    "a loss of one value for each example": lambda path: hessian(
        loss=lambda model, batch: tf.reduce_sum(model(batch[0]), axis=1)
    ),
    "a loss that does not use the model": lambda path: product(
        hessian(loss=lambda model, batch: tf.reduce_mean(batch[0]))
    ),
    "a loss that is a number": lambda path: hessian(loss=3),
    "no loss, and a model not compiled": lambda path: hessian(loss=None),
    "variables by a name that is not there": lambda path: hessian(variables="nowhere"),
    "a model without any weight": lambda path: hessian(model=keras.Sequential([layers.Dense(3)])),
    '`reduction="average"`': lambda path: hessian(loss=squares, reduction="average"),
    "dropout in training mode": lambda path: checked(
        layers.Dropout(0.5, seed=1, name="drop"), training=True
    ),
    "BatchNorm in training mode": lambda path: checked(
        layers.BatchNormalization(name="norm"), training=True
    ),
    "a mean declared as a sum": lambda path: checked(loss=squares, reduction="sum"),
    "a loss that couples the examples of a batch": lambda path: checked(loss=coupled),
    "shuffled data with `drop_remainder`, streamed": lambda path: checked(
        data=shuffled(), memory_share=0
    ),
    "NaN among the weights": lambda path: with_spoiled_weights(),
    "a gradient that is none (`tf.custom_gradient`)": lambda path: checked(
        loss=lambda model, batch: squares(lambda x: one_sided(model(x)), batch)
    ),
    "logits under a loss of probabilities": lambda path: checked(
        loss=keras.losses.SparseCategoricalCrossentropy()
    ),
    "data augmented at random": lambda path: checked(data=augmented()),
    "curvature that is infinite where the gradient is not": lambda path: product(with_a_root()),
    "a weight regularizer whose derivative is infinite": lambda path: product(
        hessian(model=penalized())
    ),
    "curvature beyond the range of float16": lambda path: product(
        of(lambda w: tf.reduce_sum((3e4 * w) ** 2), (1e-3, 2e-3), "float16")
    ),
    "batches of more than eight shapes": lambda path: hessian(
        [(X[:size], Y[:size]) for size in range(1, 10)]
    ),
    "a function that is neither form of a loss": lambda path: hessian(loss=neither),
    "`tf.py_function` between variables and loss": lambda path: of(by_python),
    "`tf.numpy_function` in a gradient (`tf.custom_gradient`)": lambda path: product(
        of(lambda w: tf.reduce_sum(square_by_numpy(w)))
    ),
    "fake quantization, and layers quantized to int8": lambda path: of(quantized),
    "a CTC loss": lambda path: of(ctc, np.ones(12)),
    "an operation whose gradient has no derivative (`igamma` in its shape)": lambda path: of(
        lambda w: tf.reduce_sum(tf.math.igamma(w, 3.0))
    ),
    "an operation without a gradient (`adjust_contrast`)": lambda path: of(contrast),
    "the compiled loss of a model with a `train_step` of its own": lambda path: hessian(
        loss=None, model=compiled(OwnStep)
    ),
    "the compiled loss of a model with its own `make_train_function`": lambda path: hessian(
        loss=None, model=compiled(OwnFunction)
    ),
    "the compiled loss of a model with a `compute_loss` of its own": lambda path: hessian(
        loss=None, model=compiled(OwnLoss)
    ),
    "a loss class with a `__call__` of its own": lambda path: hessian(loss=CalledLoss()),
    "a model with its own `train_step` in `SecondOrderModel`": lambda path: (
        sd.training.SecondOrderModel(compiled(OwnStep)).compile(sd.training.NewtonCG(), SPARSE)
    ),
    "`class_weight` that is no dict": lambda path: hessian(class_weight=[1.0, 2.0]),
    "a class that is no integer in `class_weight`": lambda path: hessian(class_weight={0.5: 2.0}),
    "a negative `class_weight`": lambda path: hessian(class_weight={0: -1.0}),
    "`class_weight` with `loss_fn(model, batch)`": lambda path: hessian(
        loss=squares, class_weight={0: 2.0}
    ),
    "`class_weight` of a model with two outputs": lambda path: of_two_outputs(),
    "`class_weight` where labels are sequences": lambda path: hessian(
        [(X, np.zeros((len(X), 2, 4)))], class_weight={0: 2.0}
    ),
    "`fit(class_weight=)` of a `SecondOrderModel` with `hessian_data`": lambda path: weighted_fit(),
    "a layer whose call writes a trainable weight": lambda path: hessian(
        model=sequential(Clipped(3))
    ),
    "a loss that inserts into a table": lambda path: inserting(),
    "a derivative that is not that of the gradient (`tf.custom_gradient`)": lambda path: of(
        lambda w: tf.reduce_sum(stopped_square(w))
    ).check(),
    "the gradient of another function (`tf.custom_gradient`)": lambda path: of(
        lambda w: tf.reduce_sum(cube_of_square(w))
    ).check(),
    "gradients that are stopped on purpose (`tf.stop_gradient`)": lambda path: of(
        lambda w: tf.reduce_sum(w**2 * tf.stop_gradient(w) ** 2)
    ).check(),
    "the log-determinant of a singular matrix": lambda path: sd.log_determinant(SMALL, 0.0),
    "a checkpoint of another loss": resumed_with_another_loss,
    "a checkpoint of data that were reordered since": resumed_in_another_order,
    "a loss that is no loss, to `SpectrumCallback`": lambda path: watched(None, loss=3),
    "a `csv_path` that cannot be written, to `SpectrumCallback`": watched,
    "a vector of another length": lambda path: hessian() @ np.ones(7),
    "a complex vector": lambda path: hessian() @ (1j * np.ones(31)),
    "a vector with NaN": lambda path: hessian() @ np.full(31, np.nan),
    "a matrix that is not square": lambda path: lanczos(np.ones((3, 4)), 2),
    "a matrix that is not symmetric": lambda path: lanczos(np.triu(np.ones((5, 5))), 4),
    "a complex matrix": lambda path: top_eigenpairs(1j * np.eye(5)),
    "a matrix with NaN": lambda path: estimate_spectrum(np.full((5, 5), np.nan)),
    "a function for a matrix": lambda path: lanczos(lambda v: v, 2),
    "`order=0`": lambda path: estimate_spectrum(SMALL, 0),
    "`order` above the number of parameters": lambda path: estimate_spectrum(SMALL, 6),
    "`order=2.5`": lambda path: estimate_spectrum(SMALL, 2.5),
    "`num_draws=0`": lambda path: estimate_spectrum(SMALL, 2, 0),
    "`tolerance=0`": lambda path: estimate_spectrum(SMALL, tolerance=0),
    "`tail_exponent_above(0)`": lambda path: estimate_spectrum(SMALL, 3).tail_exponent_above(0),
    "`tail_exponent_above` of more than the largest eigenvalue": lambda path: estimate_spectrum(
        SMALL, 3
    ).tail_exponent_above(1e9),
    "`count_between(1, 0)`": lambda path: estimate_spectrum(SMALL, 3).count_between(1, 0),
    "`max_products` beside `order` without a tolerance": lambda path: estimate_spectrum(
        SMALL, 3, max_products=9
    ),
    "`max_products` below the vectors of a block": lambda path: estimate_spectrum(
        SMALL, tolerance=0.1, block=3, max_products=2
    ),
    "`block=0`": lambda path: estimate_spectrum(SMALL, 2, block=0),
    "`block` above the number of parameters": lambda path: lanczos(SMALL, 1, block=6),
    "`order` times `block` above the number of parameters": lambda path: estimate_spectrum(
        SMALL, 3, block=2
    ),
    "start vectors of a block that are not independent": lambda path: lanczos(
        SMALL, 2, block=2, start=np.ones((5, 2))
    ),
    "`eigenpairs` without reorthogonalization": lambda path: estimate_spectrum(
        SMALL, 2, eigenpairs=1, reorthogonalize="none"
    ),
    '`reorthogonalize="some"`': lambda path: lanczos(SMALL, 2, reorthogonalize="some"),
    '`basis_dtype="float16"`': lambda path: lanczos(SMALL, 2, basis_dtype="float16"),
    "more eigenpairs than there are": lambda path: top_eigenpairs(SMALL, 6),
    '`which="largest"`': lambda path: top_eigenpairs(SMALL, 2, "largest"),
    "`sigma=0` for a density": lambda path: estimate_spectrum(SMALL).density(sigma=0),
    "a grid that does not ascend": lambda path: estimate_spectrum(SMALL).density([1.0, 0.0]),
    "too few products for the eigenpairs": lambda path: top_eigenpairs(
        diagonal_operator(np.arange(99.0)), 3, max_products=9
    ),
    "more than fits into the memory": lambda path: too_large(),
    "a checkpoint of another matrix": lambda path: resumed(path, np.eye(9)),
    "a checkpoint of another seed": lambda path: resumed(path, seed=1),
    "a checkpoint that is damaged": damaged,
    "a checkpoint in use": in_use,
    "a directory of something else": something_else,
    "a spectrum file that is none": no_spectrum,
    "parameters without a floating-point leaf": lambda path: of_jax({"n": jnp.arange(3)}),
    "a training state, with its counters, for parameters": lambda path: of_jax(
        {"step": 0, "params": PARAMS, "opt_state": {"count": jnp.int32(0), "mu": PARAMS}}
    ),
    "a function among the parameters": lambda path: of_jax({**PARAMS, "activation": jnp.tanh}),
    "float64 parameters where JAX has no float64": lambda path: of_jax({**PARAMS, "b": np.ones(3)}),
    "a `matmul_precision` that JAX does not have": lambda path: HessianOperator.from_function(
        lambda params: jnp.sum(params["w"] ** 2), PARAMS, matmul_precision="tf32"
    ),
    "a `matmul_precision` for a model of TensorFlow": lambda path: hessian(
        matmul_precision="tensorfloat32"
    ),
    "a function that returns one loss for each example": lambda path: of_jax(
        loss=lambda params, batch: (batch[0] @ params["w"])[:, 0]
    ),
    "a function that returns its loss and something else": lambda path: of_jax(
        loss=lambda params, batch: (jax_squares(params, batch), {"accuracy": 1.0})
    ),
    "a function that does not use its parameters": lambda path: product(
        of_jax(loss=lambda params, batch: jnp.mean(batch[0]))
    ),
    "a Keras loss, of a pytree": lambda path: of_jax(loss=SPARSE),
    "leaves of different lengths in a batch": lambda path: of_jax(data=[(X, Y[:4])]),
    "text in a batch": lambda path: of_jax(data=[(X, ["a"] * 13)]),
    "NaN in one of several batches": lambda path: product(
        of_jax(data=[(X, Y), (np.full_like(X, np.nan), Y)])
    ),
    "a product of another shape, to `lanczos_alg`": lambda path: sd.lanczos_alg(
        lambda v: v[:3], 5, 2, jax.random.key(0)
    ),
    "a vector of another structure, to `hvp`": lambda path: sd.hvp(
        jax_squares, PARAMS, (X, Y), [PARAMS["w"]]
    ),
    "no batches, to `get_hvp_fn`": lambda path: sd.get_hvp_fn(
        jax_squares, PARAMS, lambda: iter(())
    ),
    "a distributed dataset, and a model of one device": lambda path: unbalanced(),
    "`class_weight` with a distributed dataset": lambda path: unbalanced(class_weight={0: 2.0}),
    "variables of two strategies": lambda path: of_two_strategies(),
    "a model of a TPU": lambda path: mirrored_elsewhere(),
    "`SecondOrderModel` within a strategy's scope": lambda path: trainer_in_a_scope(),
    "a model under `keras.distribution.ModelParallel` (JAX)": lambda path: with_patch(
        under_model_parallel
    ),
    "weights of which a device has a part alone (JAX)": lambda path: devices_of([part_alone()]),
    "processes of `jax.distributed` with other data, weights or vectors": lambda path: with_patch(
        in_two_processes
    ),
    "an error on another worker": lambda path: with_patch(beside_a_worker, failed=1),
    "workers with other seeds, weights or calls": lambda path: with_patch(beside_a_worker),
    "a call that another worker does not make": lambda path: with_patch(
        without_an_answer, error=tf.errors.InvalidArgumentError
    ),
    "a worker that was killed, or its network": lambda path: with_patch(
        without_an_answer, error=tf.errors.UnavailableError
    ),
    "a worker that is there and does not take part": lambda path: with_patch(
        without_an_answer, error=tf.errors.DeadlineExceededError
    ),
}


for cases in (mismatches.CASES, optimizer_errors.CASES):
    CASES |= {what: lambda path, case=case: case() for what, case in cases.items()}


def test_every_row_of_the_page_has_a_case_and_every_case_a_row():
    assert set(rows()) == set(CASES)


@pytest.mark.parametrize("passed", CASES)
def test_the_page_tells_the_truth(passed, tmp_path):
    name, says = rows()[passed]
    kind = NAMES.get(name) or getattr(builtins, name)
    if issubclass(kind, Warning):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            CASES[passed](tmp_path)
        (warning,) = caught
        assert warning.category is kind
        assert says in str(warning.message)
        return
    with pytest.raises(kind) as raised:
        CASES[passed](tmp_path)
    assert type(raised.value) is kind
    assert says in str(raised.value)
