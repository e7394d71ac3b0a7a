"""Which batches may be computed together: those whose examples are strangers to each other.

Small batches waste a product on dispatch and on matrix products of few rows. Where the loss is a
sum over examples whatever the batch they are in, several batches are computed as one. What counts
is certain knowledge: only layers and losses of Keras itself that are known to treat each example
alone; everything else keeps the batches it was given.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spectral_density.engines.keras_shared.attributes import is_of_keras
from spectral_density.engines.tensorflow.keras_internals import (
    LayerCall,
    attention_axes,
    inbound_calls,
    operations_of,
)
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.objectives import Objective

# Tensors of one forward pass of batches computed together. A product holds several times as many.
MAX_BYTES = 2**24

# The same where layers compute step by step, each with a small part of it.
MAX_RECURRENT_BYTES = 2**27

# A dataset of fewer examples is as quick in the batches that it comes in.
MIN_EXAMPLES = 256

_MODELS = "Sequential Functional Model"
_LAYERS = """
    InputLayer Dense EinsumDense Embedding Flatten Reshape Permute RepeatVector Rescaling
    Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose
    DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D
    MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    Cropping1D Cropping2D Cropping3D
    Activation ReLU LeakyReLU ELU PReLU Softmax
    LSTM GRU SimpleRNN MultiHeadAttention
    Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout
    GaussianNoise GaussianDropout BatchNormalization LayerNormalization GroupNormalization
    Add Subtract Multiply Average Maximum Minimum Concatenate
"""
# Layers that take one number for each example, shape (n,).
_OF_SCALARS = "InputLayer Embedding Reshape Flatten Rescaling"
# Operations on Keras tensors.
_ELEMENTWISE = """
    Add Subtract Multiply Divide TrueDivide Maximum Minimum Negative Absolute Square Sqrt Exp Log
    Sin Cos Tanh Sigmoid Softplus Softsign Silu Gelu Elu Selu Relu Relu6 LeakyRelu
"""
_LOSSES = """
    BinaryCrossentropy CategoricalCrossentropy SparseCategoricalCrossentropy
    BinaryFocalCrossentropy CategoricalFocalCrossentropy
    MeanSquaredError MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredLogarithmicError
    Huber LogCosh KLDivergence Poisson Hinge SquaredHinge CategoricalHinge
    binary_crossentropy categorical_crossentropy sparse_categorical_crossentropy
    mean_squared_error mean_absolute_error huber log_cosh kl_divergence poisson hinge squared_hinge
"""
_WITH_BODIES = """
    While StatelessWhile If StatelessIf Case StatelessCase PartitionedCall StatefulPartitionedCall
"""


def examples_are_separate(objective: Objective) -> bool:
    """Tell whether a loss is known to be a sum over examples, however they are cut into batches."""
    if not isinstance(objective, KerasObjective) or objective.training:
        return False
    model = objective.model
    if not isinstance(model, keras.Model) or not _is_one_of(type(model), _MODELS):
        return False
    if not getattr(model, "inputs", None) or any(
        part.shape[0] is not None for part in model.inputs
    ):
        return False
    # Of outputs (n,) Keras's losses are one mean over the batch, that all its weights multiply.
    if any(len(part.shape) < 2 for part in model.outputs):
        return False
    # Functional models hold operations that are no layers (keras.ops, arithmetic), and any of them
    # may go along the axis of the examples.
    operations = operations_of(model)
    if not operations:
        return False
    # A method replaced on the model or a layer itself does whatever it does.
    if any("call" in vars(part) for part in (model, *operations)):
        return False
    separate = all(
        _is_separate(part) if isinstance(part, keras.layers.Layer) else _is_elementwise(part)
        for part in operations
    )
    return separate and all(map(_is_sum, objective.losses()))


def examples_at_once(graph: tf.Graph, num_examples: int, model: Any) -> int:
    """Return how many examples to compute together, from the graph of one forward pass.

    It depends on the model alone, not on the memory that is free: another split has other bits.
    """
    nbytes = bytes_of_tensors(graph)
    if nbytes is None:
        return 0
    recurrent = any(isinstance(layer, keras.layers.RNN) for layer in model.layers)
    room = MAX_RECURRENT_BYTES if recurrent else MAX_BYTES
    return int(room * num_examples // max(nbytes, 1))


def bytes_of_tensors(graph: tf.Graph) -> int | None:
    """Return the bytes of all that a graph computes, None where that is not to be seen."""
    # What goes on within loops and calls of functions is not in sight.
    if any(operation.type in _WITH_BODIES.split() for operation in graph.get_operations()):
        return None
    shapes = [
        (output.dtype.size, output.shape.as_list())
        for operation in graph.get_operations()
        if operation.type not in ("ReadVariableOp", "Const", "Placeholder")
        for output in operation.outputs
        if output.shape.rank
    ]
    if any(None in shape for _, shape in shapes):
        return None
    return sum(size * int(np.prod(shape, dtype=np.int64)) for size, shape in shapes)


def _is_separate(layer: Any) -> bool:
    if not _is_one_of(type(layer), _LAYERS) or layer.activity_regularizer is not None:
        return False
    # Sums of more examples are larger, and half precision has no room for them.
    if layer.compute_dtype not in ("float32", "float64", "int32", "int64"):
        return False
    if getattr(layer, "quantization_mode", None) is not None:
        return False
    if not all(_treats_examples_alone(layer, call) for call in inbound_calls(layer)):
        return False
    activations = [getattr(layer, name, None) for name in ("activation", "recurrent_activation")]
    return all(map(_is_activation, filter(None, activations)))


def _is_elementwise(operation: Any) -> bool:
    """Tell whether an operation takes entry by entry of tensors that all have the examples first.

    Of equal ranks, with a first axis of unknown size each, none is broadcast over the examples.
    """
    kind = type(operation)
    if kind.__name__ not in _ELEMENTWISE.split() or not is_of_keras(kind, "ops"):
        return False
    for call in inbound_calls(operation):
        shapes = [part.shape for part in call.inputs]
        given = keras.tree.flatten((call.args, call.kwargs))
        if not all(isinstance(part, (keras.KerasTensor, int, float, str)) for part in given):
            return False
        if len({len(shape) for shape in shapes}) != 1 or any(
            len(shape) < 2 or shape[0] is not None for shape in shapes
        ):
            return False
    return True


def _treats_examples_alone(layer: Any, call: LayerCall) -> bool:
    """Tell whether a call of a layer goes along no axis of the examples."""
    # In training mode BatchNormalization takes the mean over the batch.
    if call.kwargs.get("training"):
        return False
    ranks = [len(part.shape) for part in call.inputs]
    if ranks and min(ranks) < 2 and type(layer).__name__ not in _OF_SCALARS.split():
        return False
    equation = getattr(layer, "equation", None)
    if equation is not None and not _keeps_first_letter(equation):
        return False
    # An axis of 0 is that of the examples, and so is -2 of a matrix.
    axes = getattr(layer, "axis", -1), attention_axes(layer) or -1
    along = {int(axis) for group in axes for axis in np.ravel(group)}
    return not any(axis == 0 or -axis in ranks for axis in along)


def _keeps_first_letter(equation: str) -> bool:
    """Tell whether the examples of an `EinsumDense` stay the first axis, and stay apart."""
    left, _, result = equation.replace("...", ".").partition("->")
    examples, _, kernel = left.partition(",")
    return examples[:1] == result[:1] and examples[:1] not in kernel


def _is_activation(activation: Any) -> bool:
    """Tell whether an activation is one of `keras.activations`, or a layer known to be separate."""
    if isinstance(activation, keras.layers.Layer):
        return _is_separate(activation)
    return is_of_keras(activation, "activations") and not hasattr(activation, "keywords")


def _is_sum(loss: Any) -> bool:
    named = loss if hasattr(loss, "__name__") else type(loss)
    return (
        named.__name__ in _LOSSES.split() and is_of_keras(named) and getattr(loss, "axis", -1) == -1
    )


def _is_one_of(kind: type, names: str) -> bool:
    return kind.__name__ in names.split() and is_of_keras(kind)
