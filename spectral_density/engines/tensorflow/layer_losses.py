"""What Keras layers hold in `losses`, kept over calls that are traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.tensorflow.keras_internals import (
    CLEARED_LOSSES,
    losses_held,
    set_losses_held,
)


class _Held:
    """The losses that layers held before they were called."""

    def __init__(self) -> None:
        self._of_layers: dict[int, tuple[Any, list[Any]]] = {}

    def keep(self, layer: Any) -> None:
        """Remember what a layer, and those within, hold; nothing new of one known already."""
        for part in all_layers(layer):
            if id(part) not in self._of_layers:
                self._of_layers[id(part)] = part, losses_held(part)

    def restore(self) -> None:
        for layer, copies in self._of_layers.values():
            set_losses_held(layer, copies)


@contextmanager
def losses_put_back(model: Any) -> Iterator[None]:
    """Put back what the layers of a Keras model hold in `losses`, and those of others called here.

    Every call replaces it, and a call that is traced leaves symbolic tensors there. A loss may call
    other models than its own, which nobody names. Around a trace it belongs inside of
    `exact_second_derivatives`, where one thread is at a time.
    """
    held = _Held()
    if keras_module(model) is not None:
        held.keep(model)
    CLEARED_LOSSES.add(held.keep)
    try:
        yield
    finally:
        CLEARED_LOSSES.remove(held.keep)
        held.restore()
