"""What Keras layers hold in `losses`, kept over calls that are traced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock, local
from typing import Any

import keras

_LOCK = RLock()


class _Watch:
    """Tell whoever asks of each layer whose losses are about to be cleared in the same thread.

    Every outermost call of a layer clears them, its own and those of all layers within. Nothing
    else says which models a user's loss calls. The methods are Keras's own while nobody asks.
    """

    def __init__(self) -> None:
        self._of_thread = local()
        self._count = 0  # of listeners in all threads
        self._originals: list[tuple[type, Any]] = []

    @property
    def _listeners(self) -> list[Callable[[Any], None]]:
        """Those of this thread: another one may train a model of its own."""
        return self._of_thread.__dict__.setdefault("listeners", [])

    def add(self, listener: Callable[[Any], None]) -> None:
        with _LOCK:
            if not self._count:
                self._install()
            self._count += 1
        self._listeners.append(listener)

    def remove(self, listener: Callable[[Any], None]) -> None:
        self._listeners.remove(listener)
        with _LOCK:
            self._count -= 1
            if not self._count:
                for kind, original in self._originals:
                    kind._clear_losses = original  # type: ignore[attr-defined]
                self._originals.clear()

    def _install(self) -> None:
        legacy = sys.modules.get("tf_keras")
        kinds = [keras.layers.Layer, *([] if legacy is None else [legacy.layers.Layer])]
        for kind in kinds:
            original = kind._clear_losses

            def clear(layer: Any, original: Any = original) -> None:
                for listener in tuple(self._listeners):
                    listener(layer)
                original(layer)

            self._originals.append((kind, original))
            kind._clear_losses = clear


_WATCH = _Watch()


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
    _WATCH.add(held.keep)
    try:
        yield
    finally:
        _WATCH.remove(held.keep)
        held.restore()


def _containers(layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.Layer):
        return [layer._losses, layer._loss_ids]
    return [layer._eager_losses]
