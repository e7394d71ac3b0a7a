"""Patches of TensorFlow and Keras: what is replaced for the whole process, and restored.

See the docstring of the package for what other threads see of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import RLock, local
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import numpy as keras_numpy
from tensorflow.python.framework import ops
from tensorflow.python.framework.smart_cond import smart_constant_value
from tensorflow.python.ops import custom_gradient, nn_fused_batch_norm_grad, nn_impl

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.kinds import keras_module

# Tracing takes some hundredths of a second a step.
_MAX_STEPS = 64

# Replicas trace in threads of their own: what is replaced is global, and a Keras layer holds the
# losses of one call at a time.
_TRACED_ALONE = RLock()


@contextmanager
def patched_frameworks(
    gradients: Mapping[str, Callable[..., Any]], model: Any = None
) -> Iterator[None]:
    """Replace what TensorFlow and Keras would differentiate wrongly or not at all a second time.

    One thread is in it at a time.

    Args:
        gradients: gradient functions by the type of the operations that they differentiate.
        model: whose recurrent layers are unrolled where their steps are few.
    """
    with _TRACED_ALONE, ExitStack() as stack:
        stack.enter_context(registered_gradients(gradients))
        stack.enter_context(differentiable_moments())
        stack.enter_context(known_conditions_decided())
        stack.enter_context(no_recomputation())
        stack.enter_context(no_cudnn_recurrences())
        stack.enter_context(unrolled_recurrences(model))
        yield


@contextmanager
def registered_gradients(gradients: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Register gradient functions in TensorFlow's registry, in place of those that are there.

    Both `GradientTape` and the gradients of nested functions look them up there.

    Args:
        gradients: by the type of the operations that they differentiate.
    """
    registry = ops.gradient_registry._registry
    before = {name: registry.get(name) for name in gradients}
    registry.update({name: {"type": f, "location": None} for name, f in gradients.items()})
    try:
        yield
    finally:
        for name, entry in before.items():
            if entry is None:
                del registry[name]
            else:
                registry[name] = entry


@contextmanager
def differentiable_moments() -> Iterator[None]:
    """Let the gradient through the mean inside TensorFlow's variances.

    `tf.nn.moments`, under all of its names, and the gradient of the fused batch normalization stop
    it there. The derivative of the variance with respect to the mean is zero, so that the first
    derivative stays the same; the next one does not. Keras normalizes layers with both.
    """
    modules = nn_impl, nn_fused_batch_norm_grad
    before = [module.array_ops for module in modules]
    for module, array_ops in zip(modules, before, strict=True):
        module.array_ops = _WithoutStops(array_ops)
    try:
        yield
    finally:
        for module, array_ops in zip(modules, before, strict=True):
            module.array_ops = array_ops


class _WithoutStops:
    """A module in which `stop_gradient` is the identity."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def stop_gradient(tensor: Any, name: str | None = None) -> Any:
        return tensor


@contextmanager
def known_conditions_decided() -> Iterator[None]:
    """Take the branches of `keras.ops` whose conditions are known while tracing (ranks, shapes).

    TensorFlow's second gradient of `tf.cond` fails when it runs, where the branches differ in
    shape: those of `keras.ops.inner` do for vectors.
    """
    before = keras_numpy.tf
    keras_numpy.tf = _DecidingConditions(before)
    try:
        yield
    finally:
        keras_numpy.tf = before


class _DecidingConditions:
    """TensorFlow with a `cond` that makes one branch only where its condition is constant."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def cond(pred: Any, true_fn: Any = None, false_fn: Any = None, name: str | None = None) -> Any:
        known = smart_constant_value(pred if tf.is_tensor(pred) else bool(pred))
        if known is None:
            return tf.cond(pred, true_fn, false_fn, name)
        return tf.nest.map_structure(tf.convert_to_tensor, true_fn() if known else false_fn())


@contextmanager
def no_recomputation() -> Iterator[None]:
    """Call the functions that `tf.recompute_grad` wraps as if it had not wrapped them.

    It raises `NotImplementedError` where its gradient is differentiated. Keras rematerializes
    layers with it (`keras.RematScope`, `keras.remat`). A function is wrapped when a model is made,
    so that what is replaced is how TensorFlow calls what it wrapped.
    """
    names = "_graph_mode_decorator", "_eager_mode_decorator"
    before = {name: getattr(custom_gradient, name) for name in names}
    for name in names:
        setattr(custom_gradient, name, _direct(before[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(custom_gradient, name, before[name])


def _direct(call: Callable[..., Any]) -> Callable[..., Any]:
    def call_or_recompute(f: Any, args: Any, kwargs: Any) -> Any:
        if getattr(f, "__qualname__", "") != "recompute_grad.<locals>.inner":
            return call(f, args, kwargs)
        cells = dict(zip(f.__code__.co_freevars, f.__closure__, strict=True))
        return cells["f"].cell_contents(*args, **kwargs)

    return call_or_recompute


@contextmanager
def no_cudnn_recurrences() -> Iterator[None]:
    """Keep the recurrent layers of Keras and tf_keras from cuDNN's kernels.

    Those kernels have no second derivative. The layers' attributes are overridden in their classes,
    since a layer may be called that no model at hand contains.
    """
    overridden = [(keras.layers.LSTM, "use_cudnn"), (keras.layers.GRU, "use_cudnn")]
    tf_keras = sys.modules.get("tf_keras")
    if tf_keras is not None:
        name = "_could_use_gpu_kernel"
        overridden += [(tf_keras.layers.LSTM, name), (tf_keras.layers.GRU, name)]
    # One that is there already is of a context around this one.
    new = [(layer, name) for layer, name in overridden if name not in vars(layer)]
    for layer, name in new:
        setattr(layer, name, _AlwaysFalse(name))
    try:
        yield
    finally:
        for layer, name in new:
            delattr(layer, name)


class _AlwaysFalse:
    """An attribute that reads False, and keeps what is assigned to it in the instance."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> bool:
        return False

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


@contextmanager
def unrolled_recurrences(model: Any) -> Iterator[None]:
    """Unroll the steps of Keras's recurrent layers, where they are known to be few.

    The layers compute the same with `unroll=True`. A loop in a graph keeps a list of every tensor
    of its steps for each reverse pass; without one a product takes half the time or less.
    """
    module = keras_module(model)
    layers = [
        layer
        for layer in (all_layers(model) if module is keras else ())
        if isinstance(layer, keras.layers.RNN) and not layer.unroll and _has_few_steps(layer)
    ]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in layers:
            layer.unroll = False


def _has_few_steps(layer: Any) -> bool:
    shape = (layer.get_build_config() or {}).get("input_shape")
    return shape is not None and len(shape) == 3 and 0 < (shape[1] or 0) <= _MAX_STEPS


class ClearedLosses:
    """Tell whoever asks of each layer whose losses are about to be cleared in the same thread.

    Every outermost call of a layer clears them, its own and those of all layers within. Nothing
    else says which models a user's loss calls. The methods are Keras's own while nobody asks.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._of_thread = local()
        self._count = 0  # of listeners in all threads
        self._originals: list[tuple[type, Any]] = []

    @property
    def _listeners(self) -> list[Callable[[Any], None]]:
        """Those of this thread: another one may train a model of its own."""
        return self._of_thread.__dict__.setdefault("listeners", [])

    def add(self, listener: Callable[[Any], None]) -> None:
        """Call a function with each layer whose losses are cleared in this thread from now on."""
        with self._lock:
            if not self._count:
                self._install()
            self._count += 1
        self._listeners.append(listener)

    def remove(self, listener: Callable[[Any], None]) -> None:
        """Call it no more."""
        self._listeners.remove(listener)
        with self._lock:
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


CLEARED_LOSSES = ClearedLosses()
"""The one of this process."""
