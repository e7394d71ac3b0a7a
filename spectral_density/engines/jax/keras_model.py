"""Keras models under the JAX backend as functions of the arrays in their variables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import keras

from spectral_density.engines.jax.models import TRACING_ERRORS, Arrays, BoundModel
from spectral_density.engines.jax.parameters import Leaves, chosen
from spectral_density.engines.keras_shared.attributes import (
    all_layers,
    twice_differentiable_kernels,
)
from spectral_density.engines.keras_shared.filters import filter_axes
from spectral_density.engines.keras_shared.inputs import inputs_explained
from spectral_density.engines.keras_shared.kinds import NOTHING_TRAINABLE, refuse_unbuilt
from spectral_density.engines.keras_shared.layers import layers_and_variables, positions_by_owner
from spectral_density.engines.layout import frozen


class KerasModel(BoundModel):
    """A Keras model whose variables take the values of given arrays while it is called.

    What a call reads beside the weights (other weights, statistics of batch normalizations, states
    of random generators and recurrent layers, variables of other models) is held constant; what it
    writes is dropped.
    """

    def __init__(self, model: Any, variables: Any = None):
        """Take a model that is built.

        Args:
            model: of Keras 3, under the JAX backend.
            variables: which trainable variables: None for all, the exact name of a layer or
                variable, `re.compile(...)`, a variable, a layer, or a list of these.

        Raises:
            ValueError: if it is not built, is cut over devices, has nothing trainable, or a name
                is unknown.
        """
        refuse_unbuilt(model)
        refuse_model_parallel()
        _refuse_quantized(model)
        self.model = model
        trainable = list({id(v): v for v in model.trainable_variables}.values())
        if not trainable:
            raise ValueError(NOTHING_TRAINABLE)
        names = [variable.path for variable in trainable]
        weights = trainable if variables is None else self._selected(variables, trainable, names)
        self.leaves = Leaves(weights, [variable.path for variable in weights])
        self._others: list[Any] = []  # what calls read beside the weights, as far as they showed
        self._is_new = False

    def _selected(self, variables: Any, trainable: list[Any], names: list[str]) -> list[Any]:
        items = variables if isinstance(variables, (list, tuple)) else [variables]
        positions: set[int] = set()
        for item in items:
            positions |= self._positions(item, trainable, names)
        return [trainable[at] for at in sorted(positions)]

    def _positions(self, item: Any, trainable: list[Any], names: list[str]) -> set[int]:
        """Return the positions of what an item means: a layer, its name, or a variable's."""
        if isinstance(item, str):
            layers = [x for x in all_layers(self.model, include_self=False) if x.name == item]
            item = layers[0] if len(layers) == 1 else item
        if isinstance(item, keras.layers.Layer):
            own = {id(v) for v in item.trainable_variables}
            found = {at for at, v in enumerate(trainable) if id(v) in own}
            if not found:
                raise ValueError(frozen(item.name))
            return found
        return set(chosen(item, trainable, names, "the model"))

    def inputs_explained(self, batch: Any) -> AbstractContextManager[None]:
        """See `BoundModel`."""
        return inputs_explained(self.model, batch, TRACING_ERRORS)

    def constants(self) -> list[jax.Array]:
        """See `BoundModel`."""
        return [jnp.asarray(variable.value) for variable in self._others]

    @contextmanager
    def bound(self, weights: Arrays, constants: Arrays) -> Iterator[Any]:
        """See `BoundModel`."""
        known = [*self.leaves.variables, *self._others[: len(constants)]]
        arrays = [*weights, *constants]
        scope = _ReadingScope(list(zip(known, arrays, strict=True)), self._note)
        with twice_differentiable_kernels(all_layers(self.model)), scope:
            yield self.model

    def _note(self, variable: Any) -> None:
        if not any(variable is other for other in self._others):
            self._others.append(variable)
            self._is_new = True

    def traced_again(self) -> bool:
        """See `BoundModel`: what a trace took for numbers are arguments of the next."""
        found, self._is_new = self._is_new, False
        return found

    def everything(self) -> dict[str, Any]:
        """See `BoundModel`: weights and what else is read; not the states of metrics."""
        found = {v.path: v.value for v in [*self.model.weights, *self._others]}
        return found | dict(zip(self.leaves.names, self.leaves.current(), strict=True))

    def groups(self) -> dict[str, list[int]]:
        """See `BoundModel`."""
        return positions_by_owner(layers_and_variables(self.model), self.leaves.variables)

    def batch_normalizations(self) -> list[str]:
        """See `BoundModel`."""
        return [
            f"{type(layer).__name__} {layer.name!r}"
            for layer in all_layers(self.model)
            if "BatchNorm" in type(layer).__name__
        ]

    def filter_axes(self) -> list[tuple[int, ...]]:
        """See `BoundModel`."""
        return filter_axes(self.model, list(self.leaves.variables))

    def positions(self, item: Any) -> set[int]:
        """See `BoundModel`."""
        return self._positions(item, list(self.leaves.variables), list(self.leaves.names))


def refuse_model_parallel() -> None:
    """Raise where Keras cuts weights over devices.

    Raises:
        ValueError: saying what to use.
    """
    if isinstance(keras.distribution.distribution(), keras.distribution.ModelParallel):
        raise ValueError(
            "keras.distribution is set to ModelParallel, which cuts weights over devices, and "
            "products are made where each device has all of them. Build the model under "
            "keras.distribution.DataParallel(), or under none."
        )


def _refuse_quantized(model: Any) -> None:
    """Raise if a layer's gradient is a straight-through estimate.

    Raises:
        ValueError: naming the layer.
    """
    for layer in all_layers(model):
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"layer {layer.name!r} is quantized ({mode}): its gradient is a straight-through "
                "estimate, which has no second derivative. Take the model before it is quantized."
            )


class _ReadingScope(keras.StatelessScope):
    """Gives variables the values of arrays, and tells of variables that have none."""

    def __init__(self, pairs: list[tuple[Any, Any]], note: Any):
        super().__init__(state_mapping=pairs, collect_losses=True)
        self._note = note

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None:
            self._note(variable)
        return value
