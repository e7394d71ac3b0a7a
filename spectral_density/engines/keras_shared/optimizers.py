"""Update rules of the optimizers of Keras 3 and tf_keras, on every backend of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from spectral_density.engines.keras_shared.attributes import (
    is_of_keras,
    is_of_tf_keras,
    learning_rate_schedule,
    optimizer_state,
    trains,
)
from spectral_density.engines.layout import Parameters
from spectral_density.engines.update_rule import (
    Dynamics,
    Momentum,
    UpdateRule,
    refuse_no_average,
)

_REASONS = {
    "Lion": "its step is the sign of a momentum, whatever the gradient's size is",
    "Adafactor": "its steps are clipped, and scaled by the size of the weights",
    "Muon": "its steps are orthogonalized matrices",
    "Nadam": "the weights of gradient and momentum change from step to step",
    "MultiOptimizer": "it is several optimizers: pass P, one array for each variable",
}


class KerasRule(UpdateRule):
    """The update of an optimizer of Keras 3 or tf_keras: SGD, RMSprop, Adam, AdamW, Adagrad.

    Of a `LossScaleOptimizer` it is that of the inner optimizer, whose gradients are scaled back. A
    moving average of the weights (`use_ema`) does not change the steps unless it overwrites them;
    with gradient accumulation a step is one update of the weights, with a mean gradient. Of a
    schedule the learning rate is that of the next step.
    """

    def __init__(self, optimizer: Any):
        """Take an optimizer; its state is read when it is asked for.

        Raises:
            TypeError: if its class is not known.
            ValueError: if its step is not -eta P^-1 m.
        """
        optimizer = _inner(optimizer)
        kind = type(optimizer)
        self.name = kind.__name__
        legacy = "legacy" in kind.__module__
        if legacy or not (is_of_keras(kind, "optimizers") or is_of_tf_keras(kind, "optimizers")):
            raise TypeError(
                f"the update of a {kind.__module__}.{self.name} is not known: pass P, the diagonal "
                "of step = -learning_rate * m / P, as one vector or one array for each variable."
            )
        if self.name not in _DIAGONALS:
            reason = _REASONS.get(self.name, "")
            raise ValueError(
                f"the step of {self.name} is not -learning_rate * m / P with m made of gradients "
                f"and one diagonal P{': ' if reason else ''}{reason}. There are SGD, RMSprop, "
                "Adam, AdamW and Adagrad."
            )
        _refuse_options(optimizer, self.name)
        self._optimizer = optimizer

    @property
    def num_steps(self) -> int | None:
        """See `UpdateRule`: P of SGD is the same at each step."""
        if _DIAGONALS[self.name] is None:
            return None
        return int(_to_host(self._optimizer.iterations))

    def diagonal(self, parameters: Parameters) -> np.ndarray:
        """See `UpdateRule`."""
        diagonal = _DIAGONALS[self.name]
        state = _State(self._optimizer, self.name, parameters)
        state.check()
        if diagonal is None:
            return np.ones(parameters.size)
        step = self.num_steps
        if not step:
            raise ValueError(
                f"{self.name} has made no step, and its P is that of a step: train the model first "
                "(for a callback: at_start=False)."
            )
        # What is not finite is refused with its number.
        with np.errstate(divide="ignore", invalid="ignore"):
            return parameters.flatten(diagonal(self._optimizer, step, state))

    def dynamics(self) -> Dynamics:
        """See `UpdateRule`."""
        optimizer = self._optimizer
        momentum, coefficient = Momentum.NONE, 0.0
        if self.name in ("Adam", "AdamW"):
            momentum, coefficient = Momentum.AVERAGE, float(optimizer.beta_1)
        elif getattr(optimizer, "momentum", 0.0):
            nesterov = getattr(optimizer, "nesterov", False)
            momentum = Momentum.NESTEROV if nesterov else Momentum.HEAVY_BALL
            coefficient = float(optimizer.momentum)
        decay = float(optimizer.weight_decay or 0.0)
        return Dynamics(learning_rate_of(optimizer), momentum, coefficient, decay)


def learning_rate_of(optimizer: Any) -> float:
    """Return the learning rate of the next step of any optimizer of Keras 3 or tf_keras.

    Raises:
        ValueError: if it has several.
    """
    optimizer = _inner(optimizer)
    if type(optimizer).__name__ == "MultiOptimizer":
        raise ValueError(
            "a MultiOptimizer has a learning rate for each of its optimizers, and a step along "
            "which there is one is wanted: call critical_sharpness(operator, step, learning_rate) "
            "with the variables and the step of one of them."
        )
    schedule = None
    if any(map(is_of_tf_keras, type(optimizer).__mro__)):  # whose `learning_rate` is the last
        schedule = learning_rate_schedule(optimizer)
    if schedule is not None:
        return float(_to_host(schedule(optimizer.iterations)))
    return float(_to_host(optimizer.learning_rate))


def _inner(optimizer: Any) -> Any:
    """Return what a `LossScaleOptimizer` is around."""
    is_around = type(optimizer).__name__.startswith("LossScaleOptimizer")
    return optimizer.inner_optimizer if is_around else optimizer


def _to_host(variable: Any) -> np.ndarray:
    """Return the value of a variable or tensor of Keras's backend; bfloat16 as float32."""
    # What Keras offers for it, NumPy 2 warns of.
    tensor = keras.ops.convert_to_tensor(variable)
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return np.asarray(tensor)


def _refuse_options(optimizer: Any, name: str) -> None:
    """Raise if an option makes the step another than -eta P^-1 m."""
    for option in ("clipnorm", "clipvalue", "global_clipnorm"):
        bound = getattr(optimizer, option, None)
        if bound and bound > 0:
            raise ValueError(
                f"{name} has {option}={bound}: its steps are not linear in the gradient, and no "
                f"curvature says when they are unstable. Train without {option}, or pass the P "
                "that holds where nothing is clipped by hand."
            )
    frequency = getattr(optimizer, "ema_overwrite_frequency", None)
    if getattr(optimizer, "use_ema", False) and frequency:
        raise ValueError(
            f"{name} has ema_overwrite_frequency={frequency}: every {frequency} steps the weights "
            "are replaced by their average, which is no step. Leave it None."
        )
    if getattr(optimizer, "adaptive_epsilon", False):  # of tf_keras
        raise ValueError(f"{name} has adaptive_epsilon=True, whose P is not known: pass P by hand.")


class _State:
    """The state of an optimizer for the variables of an operator, in their order."""

    def __init__(self, optimizer: Any, name: str, parameters: Parameters):
        self._optimizer = optimizer
        self._name = name
        self._parameters = parameters

    @property
    def dtypes(self) -> list[str]:
        """The dtype of each variable, which its state has, too."""
        return [keras.backend.standardize_dtype(v.dtype) for v in self._parameters.variables]

    def check(self) -> None:
        """Raise what makes the steps of a variable others.

        Raises:
            ValueError: if it is constrained, or unknown to an optimizer that is built.
        """
        variables = self._parameters.variables
        # Operators of TensorFlow have the `tf.Variable`, and Keras 3 the constraint.
        owners = optimizer_state(self._optimizer, "trainable_variables", variables)
        known = trains(self._optimizer, variables)
        names = self._parameters.names
        for name, variable, owner, is_known in zip(names, variables, owners, known, strict=True):
            if not is_known:
                raise ValueError(self._unknown(name))
            if getattr(variable if owner is None else owner, "constraint", None) is not None:
                raise ValueError(
                    f"{name!r} has a constraint, which is applied after each step: steps "
                    "are not -learning_rate * m / P. Choose other variables with variables=."
                )

    def arrays(self, slots: str) -> list[np.ndarray]:
        """Return what is kept for each variable, float64.

        Raises:
            ValueError: if there is nothing for a variable.
        """
        found = optimizer_state(self._optimizer, slots, self._parameters.variables)
        for name, kept in zip(self._parameters.names, found, strict=True):
            if kept is None:
                raise ValueError(self._unknown(name))
        return [_to_host(kept).astype(np.float64) for kept in found]

    def _unknown(self, name: str) -> str:
        return (
            f"{self._name} has no state for {name!r}: it trains another model, or "
            "was built before the layer was made trainable. Pass the optimizer that has "
            "trained the operator's variables."
        )


def _bias_correction(coefficient: float, name: str, step: int, dtype: str) -> float:
    """Return 1 - coefficient^step in Keras's own operations, which round the coefficient, too."""
    refuse_no_average(name, float(coefficient))
    power = keras.ops.power(keras.ops.cast(coefficient, dtype), keras.ops.cast(step, dtype))
    return float(_to_host(1 - power))


# P of each method, in float64 but for the bias corrections.


def _adam(optimizer: Any, step: int, state: _State) -> list[np.ndarray]:
    """Return (1 - b1^t) / sqrt(1 - b2^t) (sqrt(v) + epsilon)."""
    squares = state.arrays("velocity_hats" if optimizer.amsgrad else "velocities")
    diagonals = []
    for square, dtype in zip(squares, state.dtypes, strict=True):
        first = _bias_correction(optimizer.beta_1, "beta_1", step, dtype)
        second = _bias_correction(optimizer.beta_2, "beta_2", step, dtype)
        diagonals.append(first / np.sqrt(second) * (np.sqrt(square) + optimizer.epsilon))
    return diagonals


def _rmsprop(optimizer: Any, step: int, state: _State) -> list[np.ndarray]:
    """Return sqrt(v + epsilon), or sqrt(v - mean^2 + epsilon)."""
    squares = state.arrays("velocities")
    if optimizer.centered:
        means = state.arrays("average_gradients")
        squares = [square - mean**2 for square, mean in zip(squares, means, strict=True)]
    return [np.sqrt(square + optimizer.epsilon) for square in squares]


def _adagrad(optimizer: Any, step: int, state: _State) -> list[np.ndarray]:
    """Return sqrt(sum + epsilon)."""
    return [np.sqrt(total + optimizer.epsilon) for total in state.arrays("accumulators")]


_DIAGONALS: dict[str, Callable[[Any, int, _State], list[np.ndarray]] | None] = {
    "SGD": None,
    "RMSprop": _rmsprop,
    "Adam": _adam,
    "AdamW": _adam,
    "Adagrad": _adagrad,
}
