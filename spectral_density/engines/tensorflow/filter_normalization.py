"""Filter normalization: unit norm for filters whose scale batch normalization cancels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from spectral_density._repr import repr_with_shapes
from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.tensorflow.frameworks import tf_variable
from spectral_density.engines.tensorflow.keras_internals import graph_calls
from spectral_density.engines.tensorflow.weights import restored


@dataclass(frozen=True)
class NormalizedLayer:
    """A layer whose filters have unit norm, and their norms before."""

    layer: str  # name of the convolution or dense layer
    batch_normalization: str  # name of the layer it feeds
    norms: np.ndarray  # (num_channels,), float64; a filter of norm 0 is left as it is

    __repr__ = repr_with_shapes


@contextmanager
def normalized_filters(
    model: Any, pairs: Iterable[Any] | None = None
) -> Iterator[list[NormalizedLayer]]:
    r"""Scale each filter that feeds a batch normalization to unit norm inside a `with` block.

    The output of batch normalization is invariant to the scale of such a filter: with filter, bias
    and moving mean multiplied by c > 0, and the moving variance by c^2, the network computes the
    same function, and the Hessian with respect to the filter is multiplied by 1 / c^2. Curvatures
    of two networks, or of one at two times, are comparable where every filter has norm 1:

    .. math:: w \to w / s, \quad b \to b / s, \quad \mu \to \mu / s, \quad
              \sigma^2 \to \sigma^2 / s^2, \qquad s = \|w\|_2

    Predictions at inference do not change, up to the normalization's epsilon, which is not scaled;
    weight decay depends on the scale, and changes. All variables are restored bit for bit when the
    block ends, after an exception too; other values assigned to them inside are lost.

    A layer feeds a normalization if that is the only consumer of its output: a convolution,
    depthwise or transposed or not, or a dense layer, without activation, called once, and a
    `BatchNormalization` over its channels, called once. Separable convolutions have two kernels in
    a row and are left out, as are layers that share their weights with others.

    Args:
        model: Keras 3 or tf_keras model, sequential or functional, nested ones included.
        pairs: `(layer, batch_normalization)` pairs, names or layers, of a subclassed model, whose
            `call` does not say which layer feeds which. Exactly these are normalized.

    Yields:
        A list of `NormalizedLayer`.

    Raises:
        TypeError: if `model` is no Keras model, or a pair no such pair of layers.
        ValueError: if there is nothing to normalize, it cannot be known which layer feeds which,
            or a pair cannot be normalized (the message says why).
        FloatingPointError: if a norm, or a variable divided by it, is not finite.

    References:
        van Laarhoven (2017), arXiv 1706.05350, section 2; Li et al. (2018), arXiv 1712.09913,
        section 4 (filter-wise normalization).
    """
    module = keras_module(model)
    if module is None or not isinstance(model, module.Model):
        raise TypeError(f"model must be a Keras model, got {type(model).__name__}.")
    if not model.built:
        raise ValueError(f"model {model.name!r} was never built, so it has no weights yet.")
    chosen = _pairs_of_graph(model, module) if pairs is None else _named_pairs(model, module, pairs)
    if not chosen:
        raise ValueError(
            f"nothing to normalize in {model.name!r}: no convolution or dense layer, without "
            "activation and used once, has a BatchNormalization over its channels as the only "
            "thing it feeds."
        )
    changes: list[tuple[tf.Variable, tf.Tensor]] = []
    records = []
    for pair in chosen:
        new, norms = _normalized(pair)
        changes += new
        records.append(NormalizedLayer(pair.layer.name, pair.norm.name, norms))
    with restored(variable for variable, _ in changes):
        for variable, value in changes:
            variable.assign(value)
        yield records


class _Filters(NamedTuple):
    """The kernel of a layer, and its axes of output channels."""

    kernel: tf.Variable
    bias: tf.Variable | None
    channel_axes: tuple[int, ...]
    channels_first: bool


class _Pair(NamedTuple):
    layer: Any
    norm: Any
    filters: _Filters


# Scaling -----------------------------------------------------------------------------------------


def _normalized(pair: _Pair) -> tuple[list[tuple[tf.Variable, tf.Tensor]], np.ndarray]:
    """Return each variable of a pair with its new value, and the norms; nothing is assigned."""
    filters, norm = pair.filters, pair.norm
    kernel = _float64(filters.kernel)
    others = tuple(i for i in range(kernel.ndim) if i not in filters.channel_axes)
    # Scaled before they are squared, so that squares neither overflow nor underflow.
    largest = np.abs(kernel).max(axis=others, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0)
    norms = unit * np.sqrt(np.sum((kernel / unit) ** 2, axis=others, keepdims=True))
    if not np.isfinite(norms).all():
        raise FloatingPointError(f"a filter of layer {pair.layer.name!r} is not finite.")
    divisors = np.where(norms > 0, norms, 1.0)
    flat = divisors.reshape(-1)
    mean, variance = tf_variable(norm.moving_mean), tf_variable(norm.moving_variance)
    new = [(filters.kernel, kernel / divisors)]
    if filters.bias is not None:
        new.append((filters.bias, _float64(filters.bias) / flat))
    new += [(mean, _float64(mean) / flat), (variance, _float64(variance) / flat / flat)]
    changes = []
    for variable, value in new:
        cast = tf.cast(value, variable.dtype)
        if not np.isfinite(_float64(cast)).all():
            raise FloatingPointError(
                f"{variable.name} divided by the norms of the filters of {pair.layer.name!r} "
                f"(smallest {flat.min():.3g}) is not finite."
            )
        changes.append((variable, cast))
    return changes, norms.reshape(-1)


def _float64(values: Any) -> np.ndarray:
    return np.asarray(tf.cast(values, tf.float64))


# Pairs of layers ---------------------------------------------------------------------------------


def _pairs_of_graph(model: Any, module: Any) -> list[_Pair]:
    """Find the pairs in a sequential or functional model and the models nested in it."""
    if not _holds_batch_norm(model, module):
        return []
    calls: list[tuple[Any, list[Any]]] = []
    _collect_calls(model, module, calls, set())
    times = Counter(id(operation) for operation, _ in calls)
    owners = _owners(model)
    normalizable = []
    for layer, consumers in calls:
        norm = consumers[0] if len(consumers) == 1 else None
        filters = _filters(layer, module)
        if (
            isinstance(norm, module.layers.BatchNormalization)
            and filters is not None
            and times[id(layer)] == times[id(norm)] == 1
            and all(owners[id(v)] == 1 for v in _scaled_variables(filters, norm))
            and _obstacle(layer, norm, filters, module) is None
        ):
            normalizable.append(_Pair(layer, norm, filters))
    return normalizable


def _collect_calls(
    model: Any, module: Any, calls: list[tuple[Any, list[Any]]], seen: set[int]
) -> None:
    """Append each call of a layer with the consumers of its outputs; None is a model's output."""
    if id(model) in seen:
        return
    seen.add(id(model))
    if not _has_graph(model, module):
        raise ValueError(
            f"{model.name!r} is a {type(model).__name__} with a call of its own, which does not "
            "say which layer feeds which batch normalization. Name all pairs of the model: "
            'pairs=[("conv", "batch_normalization"), ...].'
        )
    own = list(_sequence(model) if isinstance(model, module.Sequential) else _graph(model))
    calls += own
    for operation, _ in own:
        if not isinstance(operation, module.layers.Layer):
            continue
        graph = isinstance(operation, module.Model) and _has_graph(operation, module)
        if graph or _holds_batch_norm(operation, module):
            _collect_calls(operation, module, calls, seen)
        else:
            # Nothing to normalize inside, but its layers may be called by it, too.
            calls += [(part, []) for part in all_layers(operation, include_self=False)]


def _has_graph(model: Any, module: Any) -> bool:
    """Tell whether the layers of a model define what it computes, by the `call` of Keras itself."""
    known = isinstance(model, module.Sequential) or graph_calls(model) is not None
    return known and type(model).call.__module__.startswith(f"{module.__name__}.")


def _holds_batch_norm(layer: Any, module: Any) -> bool:
    inside = all_layers(layer, include_self=False)
    return any(isinstance(part, module.layers.BatchNormalization) for part in inside)


def _sequence(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    layers = list(model.layers)
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        yield layer, [after]


def _graph(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each call in the graph of a functional model with the consumers of its outputs."""
    calls = graph_calls(model) or []
    consumers: dict[int, list[Any]] = {}
    for call in calls:
        for tensor in call.inputs:
            consumers.setdefault(id(tensor), []).append(call.operation)
    for tensor in tf.nest.flatten(model.outputs):
        consumers.setdefault(id(tensor), []).append(None)
    for call in reversed(calls):
        yield call.operation, [c for made in call.outputs for c in consumers.get(id(made), [])]


def _owners(model: Any) -> Counter[int]:
    """Count the layers that hold each variable as their own."""
    owners: Counter[int] = Counter()
    for layer in {id(part): part for part in all_layers(model)}.values():
        parts = all_layers(layer, include_self=False)
        inside = {id(tf_variable(v)) for part in parts for v in part.variables}
        owners.update({id(tf_variable(v)) for v in layer.variables} - inside)
    return owners


def _named_pairs(model: Any, module: Any, pairs: Iterable[Any]) -> list[_Pair]:
    """Return the pairs that a user names, checked."""
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a list of (layer, batch_normalization), got {pairs!r}.")
    normalizable = []
    used: Counter[int] = Counter()
    for entry in pairs:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise TypeError(f"pairs must hold (layer, batch_normalization) pairs, got {entry!r}.")
        layer, norm = (_layer(model, part) for part in entry)
        if not isinstance(norm, module.layers.BatchNormalization):
            raise TypeError(f"{norm.name!r} is a {type(norm).__name__}, no BatchNormalization.")
        filters = _filters(layer, module)
        if filters is None:
            raise TypeError(
                f"{layer.name!r} is a {type(layer).__name__}, no convolution or dense layer with "
                "one floating-point kernel."
            )
        reason = _obstacle(layer, norm, filters, module)
        if reason is not None:
            raise ValueError(f"{layer.name!r} and {norm.name!r} cannot be normalized: {reason}.")
        used.update(id(v) for v in _scaled_variables(filters, norm))
        normalizable.append(_Pair(layer, norm, filters))
        if used.most_common(1)[0][1] > 1:
            raise ValueError(
                f"{layer.name!r} or {norm.name!r} shares its weights with an earlier pair, and "
                "they can be divided by one set of norms only."
            )
    return normalizable


def _layer(model: Any, given: Any) -> Any:
    layers = {id(part): part for part in all_layers(model, include_self=False)}
    if not isinstance(given, str):
        if id(given) not in layers:
            raise ValueError(f"{getattr(given, 'name', given)!r} is no layer of {model.name!r}.")
        return given
    named = [part for part in layers.values() if part.name == given]
    if len(named) != 1:
        names = ", ".join(sorted({part.name for part in layers.values()}))
        how_many = f"{len(named)} layers are" if named else "no layer is"
        raise ValueError(f"{how_many} named {given!r}; pass the layer itself. There are: {names}.")
    return named[0]


# Layers ------------------------------------------------------------------------------------------


def _filters(layer: Any, module: Any) -> _Filters | None:
    """Return the filters of a convolution or dense layer; None for any other layer."""
    known = module.layers
    if keras_module(layer) is not module or not layer.built:
        return None
    if isinstance(layer, (known.SeparableConv1D, known.SeparableConv2D)):
        return None
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    if isinstance(layer, (known.DepthwiseConv1D, known.DepthwiseConv2D)):
        kernel = getattr(layer, "depthwise_kernel", None)
        kernel = layer.kernel if kernel is None else kernel
        axes: tuple[int, ...] = (-2, -1)
    elif isinstance(layer, (known.Conv1DTranspose, known.Conv2DTranspose, known.Conv3DTranspose)):
        kernel, axes = layer.kernel, (-2,)
    elif isinstance(layer, (known.Conv1D, known.Conv2D, known.Conv3D, known.Dense)):
        kernel, axes = layer.kernel, (-1,)
    else:
        return None
    try:
        variable = tf_variable(kernel)
    except TypeError:  # a sum of several variables, as with low-rank adaptation
        return None
    if not variable.dtype.is_floating:
        return None
    rank = len(variable.shape)
    bias = None if layer.bias is None else tf_variable(layer.bias)
    return _Filters(variable, bias, tuple(rank + axis for axis in axes), channels_first)


def _obstacle(layer: Any, norm: Any, filters: _Filters, module: Any) -> str | None:
    """Return the reason why a pair cannot be normalized, None if it can."""
    if layer.activation is not None and layer.activation is not module.activations.linear:
        name = getattr(layer.activation, "__name__", layer.activation)
        return f"the activation {name} stands between them"
    if not norm.built:
        return "the batch normalization was never built"
    rank = norm.input_spec.ndim
    axes = [axis % rank for axis in np.atleast_1d(np.asarray(norm.axis)).tolist()]
    channel = 1 if filters.channels_first else rank - 1
    if axes != [channel]:
        return f"the axis of the batch normalization is {axes}, that of the channels {channel}"
    num_channels = int(np.prod([filters.kernel.shape[axis] for axis in filters.channel_axes]))
    if norm.moving_mean.shape[0] != num_channels:
        return f"{num_channels} filters feed {norm.moving_mean.shape[0]} channels"
    return None


def _scaled_variables(filters: _Filters, norm: Any) -> list[tf.Variable]:
    """Return the variables of a pair that are scaled."""
    own = [filters.kernel, filters.bias, norm.moving_mean, norm.moving_variance]
    return [tf_variable(variable) for variable in own if variable is not None]
