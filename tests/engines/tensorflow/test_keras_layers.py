"""Keras's layers, activations and losses one by one, against differences of the gradient."""

import inspect
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from engines.tensorflow.against_differences import judge
from models import default_dtype, tf_variables

from spectral_density import HessianOperator

TOLERANCE = 1e-7
SHAPES = {1: (6,), 2: (4, 2), 3: (4, 4, 1), 4: (2, 2, 2, 2)}  # of one example, by its rank

# How each layer is made from its module, by the rank of its input. A layer of several inputs gets
# its input and the square of it.
LAYERS = {
    1: {
        "Activation": lambda K: K.layers.Activation("tanh"),
        "ActivityRegularization": lambda K: K.layers.ActivityRegularization(0.1, 0.2),
        "BatchNormalization": lambda K: K.layers.BatchNormalization(),
        "Dense": lambda K: K.layers.Dense(3, activation="sigmoid"),
        "ELU": lambda K: K.layers.ELU(),
        "GroupNormalization": lambda K: K.layers.GroupNormalization(2),
        "LayerNormalization": lambda K: K.layers.LayerNormalization(),
        "LeakyReLU": lambda K: K.layers.LeakyReLU(),
        "PReLU": lambda K: K.layers.PReLU(),
        "RMSNormalization": lambda K: K.layers.RMSNormalization(),
        "ReLU": lambda K: K.layers.ReLU(),
        "Softmax": lambda K: K.layers.Softmax(),
        "SpectralNormalization": lambda K: K.layers.SpectralNormalization(K.layers.Dense(3)),
        "ThresholdedReLU": lambda K: K.layers.ThresholdedReLU(0.1),
        "UnitNormalization": lambda K: K.layers.UnitNormalization(),
    },
    2: {
        "AdditiveAttention": lambda K: K.layers.AdditiveAttention(),
        "Attention": lambda K: K.layers.Attention(use_scale=True),
        "AveragePooling1D": lambda K: K.layers.AveragePooling1D(2),
        "AdaptiveAveragePooling1D": lambda K: K.layers.AdaptiveAveragePooling1D(2),
        "AdaptiveMaxPooling1D": lambda K: K.layers.AdaptiveMaxPooling1D(2),
        "Bidirectional": lambda K: K.layers.Bidirectional(K.layers.LSTM(2)),
        "Conv1D": lambda K: K.layers.Conv1D(2, 2, activation="tanh"),
        "Conv1DTranspose": lambda K: K.layers.Conv1DTranspose(2, 2, activation="tanh"),
        "DepthwiseConv1D": lambda K: K.layers.DepthwiseConv1D(2),
        "EinsumDense": lambda K: K.layers.EinsumDense("abc,cd->abd", (4, 3), activation="tanh"),
        "GRU": lambda K: K.layers.GRU(2),
        "GlobalAveragePooling1D": lambda K: K.layers.GlobalAveragePooling1D(),
        "GlobalMaxPooling1D": lambda K: K.layers.GlobalMaxPooling1D(),
        "GroupQueryAttention": lambda K: K.layers.GroupQueryAttention(2, 2, 1),
        "LSTM": lambda K: K.layers.LSTM(2, return_sequences=True),
        "LocallyConnected1D": lambda K: K.layers.LocallyConnected1D(2, 2),
        "MaxPooling1D": lambda K: K.layers.MaxPooling1D(2),
        "MultiHeadAttention": lambda K: K.layers.MultiHeadAttention(2, 2),
        "RNN": lambda K: K.layers.RNN(K.layers.LSTMCell(2)),
        "GRUCell": lambda K: K.layers.RNN(K.layers.GRUCell(2)),
        "SimpleRNNCell": lambda K: K.layers.RNN(K.layers.SimpleRNNCell(2)),
        "StackedRNNCells": lambda K: K.layers.RNN(
            K.layers.StackedRNNCells([K.layers.GRUCell(2), K.layers.SimpleRNNCell(2)])
        ),
        "SeparableConv1D": lambda K: K.layers.SeparableConv1D(2, 2),
        "SimpleRNN": lambda K: K.layers.SimpleRNN(2),
        "TimeDistributed": lambda K: K.layers.TimeDistributed(K.layers.Dense(2, "tanh")),
        "UpSampling1D": lambda K: K.layers.UpSampling1D(2),
        "Add": lambda K: K.layers.Add(),
        "Average": lambda K: K.layers.Average(),
        "Concatenate": lambda K: K.layers.Concatenate(),
        "Dot": lambda K: K.layers.Dot(2),
        "Maximum": lambda K: K.layers.Maximum(),
        "Minimum": lambda K: K.layers.Minimum(),
        "Multiply": lambda K: K.layers.Multiply(),
        "Subtract": lambda K: K.layers.Subtract(),
    },
    3: {
        "AveragePooling2D": lambda K: K.layers.AveragePooling2D(2),
        "AdaptiveAveragePooling2D": lambda K: K.layers.AdaptiveAveragePooling2D(3),
        "AdaptiveMaxPooling2D": lambda K: K.layers.AdaptiveMaxPooling2D(3),
        "Conv2D": lambda K: K.layers.Conv2D(2, 2, activation="tanh"),
        "Conv2DTranspose": lambda K: K.layers.Conv2DTranspose(2, 2, activation="tanh"),
        "ConvLSTM1D": lambda K: K.layers.ConvLSTM1D(1, 2),
        "DepthwiseConv2D": lambda K: K.layers.DepthwiseConv2D(2),
        "GlobalAveragePooling2D": lambda K: K.layers.GlobalAveragePooling2D(),
        "GlobalMaxPooling2D": lambda K: K.layers.GlobalMaxPooling2D(),
        "LocallyConnected2D": lambda K: K.layers.LocallyConnected2D(2, 2),
        "MaxPooling2D": lambda K: K.layers.MaxPooling2D(2),
        "Resizing": lambda K: K.layers.Resizing(3, 5),
        "SeparableConv2D": lambda K: K.layers.SeparableConv2D(2, 2),
        "UpSampling2D": lambda K: K.layers.UpSampling2D(2),
    },
    4: {
        "AveragePooling3D": lambda K: K.layers.AveragePooling3D(2, dtype="float32"),
        "Conv3D": lambda K: K.layers.Conv3D(2, 2, activation="tanh"),
        "Conv3DTranspose": lambda K: K.layers.Conv3DTranspose(2, 2, activation="tanh"),
        "ConvLSTM2D": lambda K: K.layers.ConvLSTM2D(1, 2),
        "ConvLSTM3D": lambda K: K.layers.ConvLSTM3D(1, 2),
        "GlobalAveragePooling3D": lambda K: K.layers.GlobalAveragePooling3D(),
        "GlobalMaxPooling3D": lambda K: K.layers.GlobalMaxPooling3D(),
        "MaxPooling3D": lambda K: K.layers.MaxPooling3D(2, dtype="float32"),
        "UpSampling3D": lambda K: K.layers.UpSampling3D(2),
    },
}
VARIANTS = {
    "LayerNormalization:rms": (1, lambda K: K.layers.LayerNormalization(center=False)),
    "MaxPooling1D:same": (2, lambda K: K.layers.MaxPooling1D(3, 1, "same")),
    "MaxPooling2D:same": (3, lambda K: K.layers.MaxPooling2D(3, 1, "same")),
    "Conv2D:dilated": (3, lambda K: K.layers.Conv2D(2, 2, dilation_rate=2)),
    "UpSampling2D:bilinear": (3, lambda K: K.layers.UpSampling2D(2, interpolation="bilinear")),
    "UpSampling2D:bicubic": (3, lambda K: K.layers.UpSampling2D(2, interpolation="bicubic")),
    "Dense:softsign": (1, lambda K: K.layers.Dense(3, activation="softsign")),
    "LSTM:unrolled": (2, lambda K: K.layers.LSTM(2, unroll=True)),
    "GRU:reset before": (2, lambda K: K.layers.GRU(2, reset_after=False)),
}
CASES = {
    **{name: (rank, make) for rank, made in LAYERS.items() for name, make in made.items()},
    **VARIANTS,
}
# These compute in float32, TensorFlow having no other kernel for them.
SINGLE = {
    *("AveragePooling3D", "MaxPooling3D", "Resizing"),
    *("UpSampling2D:bilinear", "UpSampling2D:bicubic"),
}
SEVERAL_INPUTS = {
    *("AdditiveAttention", "Attention", "GroupQueryAttention", "MultiHeadAttention", "Add"),
    *("Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract"),
}
SEPARATE_ARGUMENTS = {"GroupQueryAttention", "MultiHeadAttention"}
# Of one or the other Keras only.
ONLY_TF_KERAS = {"LocallyConnected1D", "LocallyConnected2D", "ThresholdedReLU"}

LEFT_OUT = {
    "its own forward pass fails for some batches": "AdaptiveAveragePooling3D AdaptiveMaxPooling3D",
    "has tests of its own below": "Embedding ReversibleEmbedding LSTMCell",
    "abstract, or what a user makes of it": """
        Input InputLayer InputSpec Lambda Layer Pipeline Wrapper""",
    "moves numbers about": """
        Cropping1D Cropping2D Cropping3D CenterCrop Flatten Identity Masking Permute RepeatVector
        Rescaling Reshape ZeroPadding1D ZeroPadding2D ZeroPadding3D""",
    "nothing at training=False": """
        AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D
        SpatialDropout3D""",
    "prepares data, has no weights that are trained": """
        AugMix AutoContrast CategoryEncoding ContrastLimitedAdaptiveHistogramEqualization CutMix
        Discretization Equalization HashedCrossing Hashing IntegerLookup MaxNumBoundingBoxes
        MelSpectrogram MixUp Normalization RandAugment Solarization STFTSpectrogram StringLookup
        TextVectorization""",
    "another framework's": "FlaxLayer JaxLayer TFSMLayer TorchModuleWrapper",
}


def network(module, name):
    """A dense layer, the layer, and a dense layer, smooth but for the one in the middle."""
    rank, make = CASES[name]
    shape = {"ConvLSTM2D": (2, 3, 3, 1), "ConvLSTM3D": (2, 2, 2, 2, 1)}.get(name, SHAPES[rank])
    inputs = module.Input((3,))
    hidden = module.layers.Dense(int(np.prod(shape)), activation="tanh")(inputs)
    hidden = module.layers.Reshape(shape)(hidden)
    layer = make(module)
    if name in SEPARATE_ARGUMENTS:
        hidden = layer(hidden, hidden)
    else:
        hidden = layer([hidden, hidden * hidden] if name in SEVERAL_INPUTS else hidden)
    outputs = module.layers.Dense(2)(module.layers.Flatten()(hidden))
    return module.Model(inputs, outputs)


def judged(model, loss, x, y, tolerance=TOLERANCE):
    for variable in tf_variables(model):
        variable.assign(RNG.uniform(0.2, 0.9, variable.shape) * RNG.choice([-1, 1], variable.shape))
    loss = keras.losses.get(loss) if isinstance(model, keras.Model) else tf_keras.losses.get(loss)

    def value():
        outputs = model(x)
        return tf.add_n([tf.reduce_mean(loss(y, outputs)), *model.losses])

    return judge(
        lambda: HessianOperator(model, loss, [(x, y)]), tf_variables(model), value, tolerance
    )


@pytest.fixture
def double():
    with default_dtype("float64"):
        before = tf_keras.backend.floatx()
        tf_keras.backend.set_floatx("float64")
        yield
        tf_keras.backend.set_floatx(before)


RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 2))

# Those that most networks are made of: in every run.
COMMON = {
    *("Dense", "BatchNormalization", "LayerNormalization", "GroupNormalization", "Embedding"),
    *("UnitNormalization", "Conv2D", "MaxPooling2D", "MaxPooling2D:same", "LSTM", "GRU"),
    *("UpSampling2D:bilinear", "MultiHeadAttention", "Dense:softsign", "DepthwiseConv2D"),
}


def tolerance_of(name):
    return 1e-2 if name in SINGLE else TOLERANCE


def cases(names):
    return [
        name if name in COMMON else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in sorted(names)
    ]


@pytest.mark.parametrize("name", cases(set(CASES) - ONLY_TF_KERAS))
def test_a_keras_layer_is_right(name, double):
    verdict, said = judged(network(keras, name), "mse", X, Y, tolerance_of(name))
    assert verdict == "right", said


TF_KERAS_COMMON = {"BatchNormalization", "LayerNormalization", "LSTM"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in TF_KERAS_COMMON else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in sorted(
            {name for name in CASES if hasattr(tf_keras.layers, name.partition(":")[0])}
            - {"SpectralNormalization"}  # cannot wrap a layer here, beside Keras 3
        )
    ],
)
def test_a_tf_keras_layer_is_right(name, double):
    verdict, said = judged(network(tf_keras, name), "mse", X, Y, tolerance_of(name))
    assert verdict == "right", said


@pytest.mark.parametrize("name", ["Embedding", "ReversibleEmbedding"])
def test_an_embedding_is_right(name, double):
    inputs = keras.Input((3,), dtype="int32")
    layer = getattr(keras.layers, name)(5, 2)
    hidden = keras.layers.Dense(2, activation="tanh")(layer(inputs))
    if name == "ReversibleEmbedding":
        hidden = layer(hidden, reverse=True)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(hidden)))
    verdict, said = judged(model, "mse", np.array([[0, 1, 1], [4, 2, 0]]), Y[:2])
    assert verdict == "right", said


def public(module, kind):
    return {n: v for n, v in inspect.getmembers(module, kind) if not n.startswith("_")}


def test_every_layer_of_keras_is_tried_or_left_out_for_a_reason():
    left_out = {name for names in LEFT_OUT.values() for name in names.split()}
    tried = {getattr(keras.layers, n, None) for n in CASES} | {
        getattr(keras.layers, n, None) for n in left_out
    }
    missing = [
        name
        for name, layer in public(keras.layers, inspect.isclass).items()
        if layer not in tried and not name.startswith("Random")
    ]
    assert missing == []


# Activations -------------------------------------------------------------------------------------

ACTIVATIONS = sorted(
    set(public(keras.activations, callable))
    - {"get", "serialize", "deserialize"}
    # One halves its input, which a dense layer does not know of; the other has a test below.
    - {"glu", "threshold"}
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_right(name, double):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation=name), keras.layers.Dense(2)]
    )
    verdict, said = judged(model, "mse", X, Y)
    assert verdict == "right", said


def test_the_threshold_activation_is_right(double):
    activation = partial(keras.activations.threshold, threshold=0.1, default_value=-0.2)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation=activation), keras.layers.Dense(2)]
    )
    verdict, said = judged(model, "mse", X, Y)
    assert verdict == "right", said


# Losses ------------------------------------------------------------------------------------------

PROBABILITIES = np.array([[0.3, 0.7], [0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
ONE_HOT = np.eye(2)[[0, 1, 1, 0]]
CLASSES = np.array([0, 1, 1, 0])
SIGNS = 2 * ONE_HOT - 1

# Activation of the outputs, and labels.
TARGETS = {
    "BinaryCrossentropy": ("sigmoid", PROBABILITIES),
    "BinaryFocalCrossentropy": ("sigmoid", ONE_HOT),
    "CategoricalCrossentropy": ("softmax", PROBABILITIES),
    "CategoricalFocalCrossentropy": ("softmax", ONE_HOT),
    "CategoricalGeneralizedCrossEntropy": ("softmax", CLASSES),
    "CategoricalHinge": ("linear", ONE_HOT),
    "Circle": ("linear", CLASSES),
    "CosineSimilarity": ("linear", Y),
    "Dice": ("sigmoid", ONE_HOT),
    "Hinge": ("linear", SIGNS),
    "Huber": ("linear", Y),
    "KLDivergence": ("softmax", PROBABILITIES),
    "LogCosh": ("linear", Y),
    "MeanAbsoluteError": ("linear", Y),
    "MeanAbsolutePercentageError": ("linear", Y),
    "MeanSquaredError": ("linear", Y),
    "MeanSquaredLogarithmicError": ("softplus", PROBABILITIES),
    "Poisson": ("softplus", PROBABILITIES),
    "SparseCategoricalCrossentropy": ("softmax", CLASSES),
    "SquaredHinge": ("linear", SIGNS),
    "Tversky": ("sigmoid", ONE_HOT),
}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_loss_is_right(name, double):
    activation, labels = TARGETS[name]
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.Dense(2, activation=activation),
        ]
    )
    verdict, said = judged(model, getattr(keras.losses, name)(), X, labels)
    assert verdict == "right", said


# Losses whose labels depend on the variables as well, by module: names, and whether of logits.
SOFT_LABELS = {
    "keras.losses": keras.losses,
    "tf_keras.losses": tf_keras.losses,
    "keras.ops": keras.ops,
}
CROSS_ENTROPIES = {
    "categorical_crossentropy": (False, True),
    "categorical_focal_crossentropy": (False, True),
    "binary_crossentropy": (False, True),
    "binary_focal_crossentropy": (False, True),
    "kl_divergence": (None,),
    "poisson": (None,),
}


@pytest.mark.parametrize("module", SOFT_LABELS)
def test_cross_entropies_are_right_in_labels_that_depend_on_the_variables(module, double):
    losses = [
        partial(getattr(SOFT_LABELS[module], name), **({} if of is None else {"from_logits": of}))
        for name, logits in CROSS_ENTROPIES.items()
        for of in logits
        if hasattr(SOFT_LABELS[module], name)
    ]
    points = [[tf.Variable(RNG.normal(size=(2, 3))) for _ in range(2)] for _ in losses]
    variables = [variable for point in points for variable in point]

    def value():
        parts = []
        for loss, (y, z) in zip(losses, points, strict=True):
            is_of_logits = loss.keywords.get("from_logits")
            outputs = z + 0.0 if is_of_logits else tf.nn.softmax(z)
            parts.append(tf.reduce_sum(loss(tf.nn.softmax(y), outputs)))
        return tf.add_n(parts)

    verdict, said = judge(
        lambda: HessianOperator.from_function(lambda _: value(), variables),
        variables,
        value,
        TOLERANCE,
    )
    assert verdict == "right", said
    assert len(losses) >= 4


def test_every_loss_of_keras_is_tried_but_the_one_without_second_derivatives():
    tried = {getattr(keras.losses, name) for name in TARGETS}
    classes = public(keras.losses, inspect.isclass)
    assert {n for n, loss in classes.items() if loss not in tried} == {"Loss", "CTC"}
