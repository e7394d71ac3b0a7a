import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers
from models import CASES, compiled, relative_error

from spectral_density import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    SpectrumCallback,
    approximate_hessian,
)
from spectral_density.engines.tensorflow.refusals import (
    gradients_explained,
    refuse_without_derivatives,
)
from spectral_density.training import NewtonCG, SecondOrderModel

X = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
Y = np.random.default_rng(2).normal(size=(6, 1)).astype(np.float32)
DATA = [(X, Y)]
NUMBERS = np.random.default_rng(3)
IMAGE = (1, 4, 4, 2)
LABELS = np.array([[1, 2]], np.int32)


def squares(function, shape, dtype=np.float64):
    """Return the Hessian of the sum of squares of a function at a point between 0.1 and 0.9."""
    point = NUMBERS.uniform(0.1, 0.9, size=shape).astype(dtype)
    return HessianOperator.from_function(
        lambda v: tf.reduce_sum(function(v) ** 2), tf.Variable(point)
    )


def differences(operator, step=1e-5):
    """Return the product with ones from central differences of the gradient."""
    (variable,) = operator.parameters.variables
    before = variable.numpy()
    gradients = []
    for sign in (1, -1):
        variable.assign(before + sign * step)
        gradients.append(operator.gradient())
    variable.assign(before)
    return (gradients[0] - gradients[1]) / (2 * step)


# Python functions --------------------------------------------------------------------------------

PYTHON = {
    "py_function": lambda v: tf.py_function(lambda t: t**3, [v], v.dtype),
    "numpy_function": lambda v: tf.numpy_function(np.sin, [v], v.dtype),
    "stateless": lambda v: tf.numpy_function(np.sin, [v], v.dtype, stateful=False),
    "in a loop": lambda v: tf.while_loop(
        lambda i, x: i < 2,
        lambda i, x: (i + 1, tf.ensure_shape(tf.py_function(tf.sin, [x], x.dtype), x.shape)),
        [0, v],
    )[1],
    "gradient of its own": lambda v: tf.cond(
        v[0] > 0, lambda: tf.py_function(tf.tanh, [v], v.dtype), lambda: v
    ),
}


@pytest.mark.parametrize("way", PYTHON)
def test_python_functions_are_refused(way):
    name = "numpy_function" if way in ("numpy_function", "stateless") else "py_function"
    with pytest.raises(ValueError, match=f"PyFunc.*{name}.*TensorFlow operations"):
        squares(PYTHON[way], (2,))


@pytest.mark.parametrize(
    "function",
    [
        lambda v: v * tf.numpy_function(lambda: np.ones(2), [], v.dtype),
        lambda v: tf.gather(v, tf.numpy_function(lambda t: np.argsort(t), [v], tf.int64)),
        lambda v: v * tf.stop_gradient(tf.py_function(tf.ones_like, [v], v.dtype)),
    ],
)
def test_python_functions_that_make_data_stay(function):
    operator = squares(function, (2,))
    np.testing.assert_allclose(operator.to_dense(), 2 * np.eye(2), atol=1e-12)


# Straight-through estimators ---------------------------------------------------------------------

STRAIGHT_THROUGH = {
    "FakeQuantWithMinMaxVars": lambda v: tf.quantization.fake_quant_with_min_max_vars(v, -1, 1),
    "FakeQuantWithMinMaxArgs": tf.quantization.fake_quant_with_min_max_args,
    "FakeQuantWithMinMaxVarsPerChannel": lambda v: (
        tf.quantization.fake_quant_with_min_max_vars_per_channel(v, [-1.0] * 3, [1.0] * 3)
    ),
    "QuantizeAndDequantizeV4": lambda v: tf.quantization.quantize_and_dequantize_v2(v, -1, 1),
    "QuantizeAndDequantizeV3": lambda v: tf.raw_ops.QuantizeAndDequantizeV3(
        input=v, input_min=-1.0, input_max=1.0, num_bits=8
    ),
    "IdentityN": lambda v: tf.grad_pass_through(tf.round)(v),
}


@pytest.mark.parametrize("operation", STRAIGHT_THROUGH)
def test_straight_through_estimators_are_refused(operation):
    with pytest.raises(ValueError, match=rf"{operation} .*straight-through"):
        squares(STRAIGHT_THROUGH[operation], (3,), np.float32)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantized_layers_are_refused_by_name(mode):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(1, name="head")])
    model.quantize(mode)
    with pytest.raises(ValueError, match=r"Dense 'head'.*straight-through"):
        HessianOperator(model, "mse", DATA)


# Gradients without a derivative ------------------------------------------------------------------

SECOND = {
    "ResizeBilinear": (lambda v: tf.image.resize(v, (6, 6)), IMAGE),
    "ResizeBicubic": (lambda v: tf.image.resize(v, (6, 6), "bicubic"), IMAGE),
    "ResizeNearestNeighbor": (lambda v: tf.image.resize(v, (6, 6), "nearest"), IMAGE),
    "Softsign": (tf.nn.softsign, (3,)),
    "MaxPoolWithArgmax": (lambda v: tf.nn.max_pool_with_argmax(v, 2, 2, "VALID")[0], IMAGE),
    "SparseSegmentMean": (lambda v: tf.sparse.segment_mean(v, [0, 1], [0, 0]), (3, 2)),
    "SparseSegmentSum": (lambda v: tf.sparse.segment_sum(v, [0, 1], [0, 0]), (3, 2)),
    "Igamma": (lambda v: tf.math.igamma(v, tf.ones_like(v)), (3,)),
    "HSVToRGB": (tf.image.hsv_to_rgb, (1, 2, 2, 3)),
    "MatrixLogarithm": (
        lambda v: tf.math.real(
            tf.linalg.logm(tf.cast(v + 2.0 * tf.eye(2, dtype=v.dtype), tf.complex128))
        ),
        (2, 2),
    ),
    "SparseSlice": (
        lambda v: tf.sparse.slice(tf.SparseTensor([[0], [1]], v, [3]), [0], [2]).values,
        (2,),
    ),
    "LinSpace": (lambda v: tf.raw_ops.LinSpace(start=v[0], stop=v[1], num=4), (2,)),
}


@pytest.mark.parametrize("operation", SECOND)
def test_the_second_derivative_is_right_or_refused(operation):
    function, shape = SECOND[operation]
    try:
        operator = squares(tf.function(function) if operation == "Softsign" else function, shape)
    except ValueError as refusal:
        assert operation in str(refusal)
        assert "second derivative" in str(refusal)
        return
    product = operator @ np.ones(operator.shape[0])
    # Images are resized in float32, and linearly: the gradient has no curvature, whatever the step.
    step, tolerance = (0.5, 1e-5) if operator.product_dtype == np.float32 else (1e-5, 1e-6)
    assert relative_error(product, differences(operator, step)) < tolerance


def test_single_precision_operations_are_refused_by_name():
    for name, function in {
        "LRN": tf.nn.local_response_normalization,
        "CropAndResize": lambda v: tf.image.crop_and_resize(v, [[0.0, 0, 0.5, 0.5]], [0], (3, 3)),
        "AdjustContrast": lambda v: tf.image.adjust_contrast(v, 0.7),
    }.items():
        try:
            squares(function, (1, 4, 4, 3), np.float32)
        except ValueError as refusal:
            assert name in str(refusal)


def softsigned(*stack, name="squash"):
    squash = layers.Dense(2, activation="softsign", name=name)
    return keras.Sequential([keras.Input((3,)), *stack, squash, layers.Dense(1, name="head")])


def mean_square(model, batch):
    return tf.reduce_mean((model(batch[0]) - batch[1]) ** 2)


def test_what_comes_before_the_chosen_layer_may_be_anything():
    HessianOperator(softsigned(), "mse", DATA, variables="head")
    HessianOperator(softsigned(), mean_square, DATA, variables="head").to_dense()


# CTC ---------------------------------------------------------------------------------------------


def ctc_model(loss):
    model = keras.Sequential([keras.Input((4, 3)), layers.Dense(4, name="letters")])
    x = NUMBERS.normal(size=(2, 4, 3)).astype(np.float32)
    return HessianOperator(model, loss, [(x, np.array([[1, 2], [2, 1]]))])


def ctc(function):
    point = NUMBERS.normal(size=(1, 4, 3)).astype(np.float32)
    return HessianOperator.from_function(lambda w: tf.reduce_sum(function(w)), tf.Variable(point))


CTC = {
    "dense": lambda: ctc(
        lambda w: tf.nn.ctc_loss(LABELS, w, [2], [4], logits_time_major=False, blank_index=0)
    ),
    "sparse": lambda: ctc(
        lambda w: tf.nn.ctc_loss(
            tf.sparse.from_dense(LABELS), w, None, [4], logits_time_major=False, blank_index=0
        )
    ),
    "first version": lambda: ctc(
        lambda w: tf.compat.v1.nn.ctc_loss(tf.sparse.from_dense(LABELS), w, [4], time_major=False)
    ),
    "keras.ops": lambda: ctc(lambda w: keras.ops.ctc_loss(LABELS, w, np.array([2]), np.array([4]))),
    "keras.losses": lambda: ctc_model(keras.losses.CTC()),
    "tf_keras": lambda: ctc(
        lambda w: tf_keras.backend.ctc_batch_cost(
            LABELS, tf.nn.softmax(w), np.array([[4]]), np.array([[2]])
        )
    ),
}


@pytest.mark.parametrize("implementation", CTC)
def test_ctc_is_refused_before_anything_runs(implementation):
    for _ in range(6 if implementation == "dense" else 1):
        with pytest.raises(ValueError, match=r"CTC loss has no second derivative"):
            CTC[implementation]()


# Gradients of the user's, found in the first product ---------------------------------------------


def with_gradient(function, gradient):
    @tf.custom_gradient
    def both(x):
        return function(x), lambda upstream: upstream * gradient(x)

    return both


GRADIENTS = {
    "EagerPyFunc": lambda x: tf.py_function(tf.cos, [x], x.dtype),
    "PyFunc": lambda x: tf.numpy_function(np.cos, [x], x.dtype),
    "LinSpace": lambda x: tf.raw_ops.LinSpace(start=x[0], stop=x[1], num=2),
    "TruncateMod": lambda x: tf.truncatemod(x, tf.constant(0.3, x.dtype)),
}


@pytest.mark.parametrize("operation", GRADIENTS)
def test_custom_gradients_without_a_derivative_are_refused_in_the_first_product(operation):
    operator = squares(with_gradient(tf.sin, GRADIENTS[operation]), (2,))
    with pytest.raises(ValueError, match=operation):
        operator @ np.ones(2)


def test_a_custom_gradient_with_a_derivative_is_no_matter():
    operator = squares(with_gradient(tf.sin, tf.cos), (2,))
    assert relative_error(operator @ np.ones(2), differences(operator)) < 1e-8


def test_a_gradient_that_raises_is_explained():
    def unfinished(x):
        @tf.custom_gradient
        def slope(x):
            def none(upstream):
                raise NotImplementedError("one derivative only")

            return tf.cos(x), none

        return slope(x)

    operator = squares(with_gradient(tf.sin, unfinished), (2,))
    with pytest.raises(ValueError, match="one derivative only") as error:
        operator @ np.ones(2)
    assert isinstance(error.value.__cause__, NotImplementedError)


# Every way in ------------------------------------------------------------------------------------


class Python(layers.Layer):
    def call(self, x):
        return tf.ensure_shape(tf.py_function(tf.sin, [x], x.dtype), x.shape)


def python_model():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2), Python(name="python"), layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    return model


def predict(model, batch):
    return model(batch[0])


def examples(outputs, batch):
    return tf.reduce_mean((outputs - batch[1]) ** 2, -1)


def mean(outputs, batch):
    return tf.reduce_mean(examples(outputs, batch))


def spectral_fit(model):
    callback = SpectrumCallback(DATA, num_eigenvalues=1, order=3)
    model.fit(X, Y, callbacks=[callback], verbose=0)


def second_order_fit(model):
    trained = SecondOrderModel(model)
    trained.compile(NewtonCG(), loss="mse")
    trained.fit(X, Y, verbose=0)


WAYS = {
    "Keras loss": lambda m: HessianOperator(m, "mse", DATA),
    "compiled loss": lambda m: HessianOperator(m, None, DATA),
    "loss_fn": lambda m: HessianOperator(m, mean_square, DATA),
    "pair": lambda m: HessianOperator(m, (predict, mean), DATA),
    "from_function": lambda m: HessianOperator.from_function(
        lambda v: mean_square(m, DATA[0]), m.trainable_variables
    ),
    "Gauss-Newton": lambda m: GaussNewtonOperator(m, "mse", DATA),
    "Gauss-Newton of a pair": lambda m: GaussNewtonOperator(m, (predict, mean), DATA),
    "type 2": lambda m: FisherOperator(m, "mse", DATA),
    "Monte Carlo": lambda m: FisherOperator(m, "mse", DATA, kind="monte_carlo"),
    "empirical": lambda m: FisherOperator(m, "mse", DATA, kind="empirical"),
    "empirical of a pair": lambda m: FisherOperator(m, (predict, examples), DATA, kind="empirical"),
    "approximate_hessian": lambda m: approximate_hessian(m, mean_square, DATA, 2),
    "callback": spectral_fit,
    "SecondOrderModel": second_order_fit,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_says_the_same(way):
    with pytest.raises(ValueError, match="py_function") as error:
        WAYS[way](python_model())
    assert type(error.value) is ValueError
    # A function of the user's is converted by AutoGraph, which would put its own text before.
    assert str(error.value).startswith("the operation EagerPyFunc")
    if way != "from_function":  # without a model there are no layers
        assert "layer Python 'python'" in str(error.value)


def test_other_data_are_refused_in_the_first_product():
    def sometimes(model, batch):
        outputs = model(batch[0])
        if batch[0].shape[0] > 3:
            outputs = tf.py_function(tf.sin, [outputs], outputs.dtype)
        return tf.reduce_mean((outputs - batch[1]) ** 2)

    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    other = HessianOperator(model, sometimes, [(X[:3], Y[:3])]).with_dataset(DATA)
    with pytest.raises(ValueError, match="py_function"):
        other @ np.ones(4)


def test_a_weight_regularizer_is_looked_into():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(
                1, kernel_regularizer=lambda w: tf.reduce_sum(tf.py_function(tf.sin, [w], w.dtype))
            ),
        ]
    )
    with pytest.raises(ValueError, match="py_function"):
        HessianOperator(model, "mse", DATA)


def test_the_state_of_the_model_is_not_touched_by_a_refusal():
    model = python_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match="py_function"):
        HessianOperator(model, "mse", DATA, training=False)
    for then, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


# Sound models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_no_forward_pass_of_a_sound_model_is_refused(name):
    case = CASES[name]
    model = compiled(case)
    x, *_ = case.data()

    @tf.function(autograph=False)
    def look(x):
        outputs = tf.nest.flatten(model(x, training=False))
        variables = [v.value for v in model.trainable_variables]
        refuse_without_derivatives(variables, outputs, [], order=2)

    look.get_concrete_function(tf.nest.map_structure(tf.convert_to_tensor, x))


def physics(model, batch):
    """The residual of a differential equation: derivatives within the loss, in a loop too."""
    with tf.GradientTape() as tape:
        tape.watch(batch)
        outputs = tf.while_loop(
            lambda i, z: i < 2, lambda i, z: (i + 1, tf.tanh(z)), [0, model(batch)]
        )[1]
    return tf.reduce_mean(tape.gradient(outputs, batch) ** 2)


def test_derivatives_within_the_loss_are_no_matter():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "tanh"), layers.Dense(1)])
    model.build((None, 3))
    operator = HessianOperator(model, physics, [X])
    assert np.isfinite(operator @ np.ones(operator.shape[0])).all()


PLACES = np.array([[0, 1], [1, 0]], np.int64)
WITHOUT_GRADIENTS = {
    "MatrixSolveLs": lambda v: tf.linalg.lstsq(v, tf.ones([3, 1], v.dtype), fast=False),
    "SparseSparseMaximum": lambda v: (
        tf.sparse.maximum(
            tf.sparse.SparseTensor(PLACES, v[0], [2, 2]),
            tf.sparse.SparseTensor(PLACES, v[1], [2, 2]),
        ).values
    ),
    "SparseSparseMinimum": lambda v: (
        tf.sparse.minimum(
            tf.sparse.SparseTensor(PLACES, v[0], [2, 2]),
            tf.sparse.SparseTensor(PLACES, v[1], [2, 2]),
        ).values
    ),
    # Told by TensorFlow's gradient function alone, when it runs.
    "svd gradient is not implemented": lambda v: tf.linalg.svd(
        tf.concat([v, v**2], 0)[:5], full_matrices=True
    )[1],
}


@pytest.mark.parametrize("operation", WITHOUT_GRADIENTS)
def test_an_operation_whose_registered_gradient_raises_is_refused(operation):
    with pytest.raises(ValueError, match=operation) as refused:
        squares(WITHOUT_GRADIENTS[operation], (3, 2)) @ np.ones(6)
    assert "in user code" not in str(refused.value)


def test_errors_of_gradient_functions_are_told_from_those_of_others():
    with pytest.raises(TypeError, match="mine"), gradients_explained():
        raise TypeError("mine")
