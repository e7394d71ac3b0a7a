"""What Keras layers hold in `losses`, kept over calls that are traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from spectral_density.engines.tensorflow.keras_internals import CLEARED_LOSSES


class _Held:
    """The losses that layers held before they were called."""

    def __init__(self) -> None:
        self._of_layers: dict[int, tuple[Any, list[Any]]] = {}

    def keep(self, layer: Any) -> None:
        """Remember what a layer, and those within, hold; nothing new of one known already."""
        for part in layer._flatten_layers():
            if id(part) not in self._of_layers:
                copies = [container.copy() for container in _containers(part)]
                self._of_layers[id(part)] = part, copies

    def restore(self) -> None:
        for layer, copies in self._of_layers.values():
            if not isinstance(layer, keras.layers.Layer):
                layer._eager_losses = copies[0]
                continue
            for container, contents in zip(_containers(layer), copies, strict=True):
                container.clear()
                add = container.extend if isinstance(container, list) else container.update
                add(contents)


@contextmanager
def losses_put_back(model: Any) -> Iterator[None]:
    """Put back what the layers of a Keras model hold in `losses`, and those of others called here.

    Every call replaces it, and a call that is traced leaves symbolic tensors there. A loss may call
    other models than its own, which nobody names. Around a trace it belongs inside of
    `exact_second_derivatives`, where one thread is at a time.
    """
    held = _Held()
    if hasattr(model, "_flatten_layers"):
        held.keep(model)
    CLEARED_LOSSES.add(held.keep)
    try:
        yield
    finally:
        CLEARED_LOSSES.remove(held.keep)
        held.restore()


def _containers(layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.Layer):
        return [layer._losses, layer._loss_ids]
    return [layer._eager_losses]
