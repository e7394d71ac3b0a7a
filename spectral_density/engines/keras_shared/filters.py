"""Which axes of a layer's variables number its filters, for Keras 3 and tf_keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.layout import last_axis

_DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
_TRANSPOSED = {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"}


def filter_axes(
    model: Any, variables: Sequence[Any], identity: Callable[[Any], Any] = lambda variable: variable
) -> list[tuple[int, ...]]:
    """Return for each variable the axes that number its filters, () where it has none.

    A filter is all that leads to one output of the layer: what has the same index along these axes.
    An embedding has one for each of its rows. Biases and scales are no filters.

    Args:
        model: a Keras model.
        variables: those of an operator.
        identity: returns what of a variable of Keras is among the variables.
    """
    found = [last_axis(tuple(variable.shape)) for variable in variables]
    where = {id(variable): position for position, variable in enumerate(variables)}
    # Layers come before the layers inside of them, which know their variables better.
    for layer in all_layers(model):
        for variable in layer.trainable_variables:
            position = where.get(id(identity(variable)))
            if position is not None:
                found[position] = _axes(layer, variable)
    return found


def _axes(layer: Any, variable: Any) -> tuple[int, ...]:
    rank = len(variable.shape)
    name = variable.name.rpartition("/")[2].partition(":")[0]
    if rank < 2 or "bias" in name:
        return ()
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    if kinds & _DEPTHWISE or name == "depthwise_kernel":
        return (rank - 2, rank - 1)
    if kinds & _TRANSPOSED:
        return (rank - 2,)
    if "Embedding" in kinds:
        return (0,)
    if "EinsumDense" in kinds:
        return _of_equation(layer.equation)
    return (rank - 1,)


def _of_equation(equation: str) -> tuple[int, ...]:
    """Return the axes of the kernel that an einsum, such as "abc,cde->abde", leaves to outputs."""
    inputs, _, outputs = equation.replace(".", "").replace(" ", "").partition("->")
    kernel = inputs.partition(",")[2]
    return tuple(axis for axis, letter in enumerate(kernel) if letter in outputs)
