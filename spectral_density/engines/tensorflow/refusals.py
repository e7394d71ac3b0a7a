"""Operations without a second derivative, refused before any number is computed.

The `ValueError` names the operation, its layer and a remedy. TensorFlow itself takes the derivative
of some operations for zero without a warning, raises internal errors for others, and gives
quantized models the gradient of another function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.graph_walk import CALLS, Node, differentiated
from spectral_density.engines.tensorflow.keras_internals import (
    Derivative,
    derivative_of,
    gradient_type,
    is_custom_gradient_of_ctc,
    is_straight_through,
    raised_in_gradient_function,
    unchanged_by_autograph,
)
from spectral_density.engines.tensorflow.scopes import place_of

# The gradient operations of operations, each with the inputs that it is the gradient for, None for
# any. Where the registry has no derivative of a gradient operation, or one of zero, the operation
# has no second derivative.
_GRADIENTS: dict[str, tuple[tuple[str, tuple[int, ...] | None], ...]] = {
    "BatchNormWithGlobalNormalization": (("BatchNormWithGlobalNormalizationGrad", None),),
    "BlockLSTM": (("BlockLSTMGrad", None),),
    "BlockLSTMV2": (("BlockLSTMGradV2", None),),
    "CropAndResize": (("CropAndResizeGradImage", (0,)), ("CropAndResizeGradBoxes", (1,))),
    "CudnnRNN": (("CudnnRNNBackprop", None),),
    "CudnnRNNV2": (("CudnnRNNBackpropV2", None),),
    "CudnnRNNV3": (("CudnnRNNBackpropV3", None),),
    "Dilation2D": (("Dilation2DBackpropInput", (0,)), ("Dilation2DBackpropFilter", (1,))),
    "FractionalAvgPool": (("FractionalAvgPoolGrad", None),),
    "FractionalMaxPool": (("FractionalMaxPoolGrad", None),),
    "Igamma": (("IgammaGradA", (0,)),),
    "Igammac": (("IgammaGradA", (0,)),),
    "LRN": (("LRNGrad", None),),
    "MaxPoolV2": (("MaxPoolGradV2", None),),
    "MaxPoolWithArgmax": (("MaxPoolGradWithArgmax", None),),
    "RaggedTensorToVariant": (("RaggedTensorToVariantGradient", None),),
    "RandomGamma": (("RandomGammaGrad", (1,)),),
    "ResizeBicubic": (("ResizeBicubicGrad", None),),
    "ResizeBilinear": (("ResizeBilinearGrad", None),),
    "ResizeNearestNeighbor": (("ResizeNearestNeighborGrad", None),),
    "ScaleAndTranslate": (("ScaleAndTranslateGrad", None),),
    "Softsign": (("SoftsignGrad", None),),
    "SparseAdd": (("SparseAddGrad", None),),
    "SparseFillEmptyRows": (("SparseFillEmptyRowsGrad", None),),
    "SparseMatrixSoftmax": (("SparseMatrixSoftmaxGrad", None),),
    "SparseSlice": (("SparseSliceGrad", None),),
    "StatelessRandomGammaV2": (("RandomGammaGrad", (2,)),),
    "StatelessRandomGammaV3": (("RandomGammaGrad", (4,)),),
}
_SPARSE_SEGMENTS = ("SparseSegmentSum", "SparseSegmentMean", "SparseSegmentSqrtN")

_PYTHON = {
    "EagerPyFunc": "tf.py_function",
    "PyFunc": "tf.numpy_function",
    "PyFuncStateless": "tf.numpy_function",
}
_CTC = ("CTCLoss", "CTCLossV2")
_QUANTIZED = ("FakeQuantWithMinMax", "QuantizeAndDequantize")

# Operations whose registered gradient always raises an error, and one whose gradient raises it
# unless `fast` is set.
_PREVENTED = frozenset({"PreventGradient", "SparseDenseCwiseAdd"})
_PREVENTED |= {"SparseSparseMaximum", "SparseSparseMinimum"}
_LEAST_SQUARES = "MatrixSolveLs"

# Errors that TensorFlow raises in a reverse pass: for unregistered or disabled gradients, and for
# functions that support one derivative only.
_RAW = (LookupError, NotImplementedError, tf.errors.NotFoundError, tf.errors.UnimplementedError)

_ANOTHER = "choose variables that come after it with variables=, or replace it"


@tf.autograph.experimental.do_not_convert
def refuse_without_derivatives(
    sources: Iterable[Any], targets: Iterable[tf.Tensor], layers: Iterable[Any], order: int
) -> None:
    """Raise if an operation of the graph being traced lacks a derivative that will be taken.

    Args:
        sources: variables, or tensors of the graph, that derivatives are with respect to.
        targets: tensors of the graph that are differentiated.
        layers: of the model, to name them.
        order: how many derivatives are still to be taken: 2 of a loss, 1 of a gradient.

    Raises:
        ValueError: naming the operation, its layer and a remedy.
    """
    if tf.executing_eagerly():
        return
    graph = tf.compat.v1.get_default_graph()
    for node, text in reasons_to_refuse(differentiated(graph, sources, targets), order):
        text = text.format(operation=_named(node, layers))
        raise unchanged_by_autograph(ValueError(text))


def reasons_to_refuse(nodes: Sequence[Node], order: int) -> Iterator[tuple[Node, str]]:
    """Yield the operations that lack a derivative that will be taken, most specific reason first.

    Args:
        nodes: operations on the paths of the derivative.
        order: how many derivatives are still to be taken.

    Yields:
        The operation and the reason, a text with the placeholder `{operation}`.
    """
    for reason in (_ctc, _python_function, _quantization, _first_derivative, _second_derivative):
        if reason is _second_derivative and order < 2:
            continue
        for node in nodes:
            text = reason(node)
            if text is not None:
                yield node, text


@contextmanager
def gradients_explained() -> Iterator[None]:
    """Replace internal errors of TensorFlow's reverse pass by one that states the cause.

    Raises:
        ValueError: in place of a `LookupError` and the like.
    """
    try:
        yield
    except (*_RAW, TypeError, ValueError) as error:
        if not isinstance(error, _RAW) and not raised_in_gradient_function(error):
            raise
        detail = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        raise unchanged_by_autograph(
            ValueError(
                "an operation between the variables and the loss has no second derivative in "
                f"TensorFlow ({type(error).__name__}: {detail}). Write it in other TensorFlow "
                f"operations, {_ANOTHER.removesuffix(', or replace it')}."
            )
        ) from error


# Reasons to refuse an operation: a text with the placeholder {operation}, or None ----------------


def _ctc(node: Node) -> str | None:
    operation = node.operation
    if operation.type not in _CTC and not is_custom_gradient_of_ctc(operation):
        return None
    return (
        "the CTC loss has no second derivative in TensorFlow: {operation} computes its gradient "
        "together with its value, and that gradient has no derivative. Hessian, Gauss-Newton and "
        "Fisher matrices of it cannot be computed; take those of another loss at the same outputs."
    )


def _python_function(node: Node) -> str | None:
    name = _PYTHON.get(node.operation.type)
    if name is None:
        return None
    return (
        f"{{operation}} is a Python function ({name}) between the variables and the loss: "
        "TensorFlow does not see what it computes and takes its second derivative for zero. Write "
        "it in TensorFlow operations; one that only prepares data, independent of the variables, "
        "may stay."
    )


def _quantization(node: Node) -> str | None:
    operation = node.operation
    if not operation.type.startswith(_QUANTIZED) and not is_straight_through(operation):
        return None
    return (
        "{operation} is a straight-through estimator: it rounds, and its gradient is that of a "
        "function that does not, so that the gradient of the gradient is no curvature of either. "
        "Take the matrix of the model before it was quantized, or of variables that come after it "
        "(variables=)."
    )


def _first_derivative(node: Node) -> str | None:
    operation = node.operation
    raises = operation.type == _LEAST_SQUARES and not operation.get_attr("fast")
    if operation.type in _PREVENTED or raises:
        derivative = Derivative.MISSING
    elif operation.type in CALLS:
        return None
    else:
        derivative = derivative_of(gradient_type(operation))
    if derivative is Derivative.REGISTERED:
        return None
    problem = (
        "has no derivative in TensorFlow"
        if derivative is Derivative.MISSING
        else "counts as not differentiable in TensorFlow, which takes its derivative for zero"
    )
    return (
        f"{{operation}} {problem}, and lies between the variables and the loss (or the gradient of "
        f"the loss): there is no second derivative. Write it in other operations, {_ANOTHER}."
    )


def _second_derivative(node: Node) -> str | None:
    for gradient, inputs in _gradients_of(node.operation):
        if inputs is not None and not set(inputs) & set(node.inputs):
            continue
        derivative = derivative_of(gradient)
        if derivative is Derivative.REGISTERED:
            continue
        problem = "is unknown" if derivative is Derivative.MISSING else "is taken for zero"
        return (
            "{operation} has no second derivative in TensorFlow: the derivative of its gradient, "
            f"{gradient}, {problem}. Write it in other operations, {_ANOTHER}."
        )
    return None


def _gradients_of(operation: Any) -> Sequence[tuple[str, tuple[int, ...] | None]]:
    kind = operation.type
    if kind.startswith(_SPARSE_SEGMENTS) and "Grad" not in kind:
        version = "V2" if operation.get_attr("sparse_gradient") else ""
        return ((f"{kind.removesuffix('WithNumSegments')}Grad{version}", None),)
    return _GRADIENTS.get(kind, ())


def _named(node: Node, layers: Iterable[Any]) -> str:
    place = place_of(node.name, layers)
    inside = f" in {place}" if place.startswith("layer") else ""
    return f"the operation {node.operation.type} ({node.name}){inside}"
