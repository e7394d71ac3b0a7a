"""Update rules of Optax's optimizers, from their states; Optax is not imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from spectral_density.engines.jax.models import path_of
from spectral_density.engines.layout import Parameters
from spectral_density.engines.update_rule import (
    Dynamics,
    Momentum,
    UpdateRule,
)

# What Optax's functions take where nothing is passed; what is not here has to be passed.
_DEFAULTS = {
    "weight_decay": 0.0,
    "eps_root": 0.0,
    "nesterov": False,
    "eps_in_sqrt": True,
}
_NAMES = ("learning_rate", "b1", "b2", "decay", "momentum", "eps", *_DEFAULTS)

# States beside that of a method which leave the step what it is.
_NEUTRAL = ("EmptyState", "ScaleByScheduleState")
# States around another.
_INNER = {"inner_state", "inner_opt_state"}
_AROUND = (
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "MultiStepsState",
    "ApplyIfFiniteState",
)


class OptaxRule(UpdateRule):
    """The update that a state of Optax belongs to: sgd, rmsprop, adam, adamw, amsgrad, adagrad.

    A state holds sums of gradients and no hyperparameters, unless it was made by
    `optax.inject_hyperparams`: those that matter have to be passed. A state does not tell whether
    gradients are clipped, nor `adamax`, `nadam` and `lamb` from `adam`: of these the result is that
    of `adam`.
    """

    def __init__(self, state: Any, hyperparameters: Mapping[str, Any]):
        """Take a state, and hyperparameters by Optax's names.

        Raises:
            TypeError: if a hyperparameter is unknown, or no number.
            ValueError: if the state is of an optimizer whose step is not -eta P^-1 m.
        """
        injected: dict[str, Any] = {}
        found = list(_methods(state, injected))
        self._hyperparameters = _Hyperparameters({**injected, **hyperparameters})
        kinds = [type(part).__name__ for part in found]
        momenta = [part for part in found if type(part).__name__ == "TraceState"]
        adaptive = [part for part in found if type(part).__name__ != "TraceState"]
        unknown = [kind for kind in kinds if kind not in (*_METHODS, "TraceState")]
        if unknown:
            raise ValueError(
                f"the state has a part {unknown[0]}, of a step that is not -learning_rate * m / P "
                "with m made of gradients and one diagonal P. There are the states of optax.sgd, "
                "rmsprop, adam, adamw, amsgrad and adagrad, or P by hand, as one vector."
            )
        if len(adaptive) > 1 or len(momenta) > 1:
            raise ValueError(
                f"the state has the parts {', '.join(kinds)}: several methods in a chain have no "
                "step -learning_rate * m / P that is known. Pass P by hand, as one vector."
            )
        self._state = adaptive[0] if adaptive else None
        self._method = _METHODS[type(self._state).__name__] if adaptive else _SGD
        self._has_trace = bool(momenta)
        self.name = self._method.name
        if self._method.is_average and (momenta or self._hyperparameters["nesterov"]):
            raise ValueError(
                f"the state of {self.name} with momentum of its own, or nesterov=True: the weights "
                "of gradient and momentum change from step to step. Pass P by hand, as one vector."
            )

    def diagonal(self, parameters: Parameters) -> np.ndarray:
        """See `UpdateRule`."""
        state = self._state
        if state is None or self._method.diagonal is None:
            return np.ones(parameters.size)
        # Of a tuple without such a field it is a method.
        step = int(state.count) if "count" in state._fields else None
        if step == 0 or (step is None and not _any(getattr(state, self._method.moment))):
            raise ValueError(
                f"the state of {self.name} has seen no gradient, and its P is that of a step: pass "
                "the state that an update returned."
            )

        def arrays(field: str) -> list[np.ndarray]:
            return _in_order(getattr(state, field), parameters, self.name)

        return parameters.flatten(self._method.diagonal(self._hyperparameters, step, arrays))

    def dynamics(self) -> Dynamics:
        """See `UpdateRule`."""
        values = self._hyperparameters
        momentum, coefficient = Momentum.NONE, 0.0
        if self._method.is_average:
            momentum, coefficient = Momentum.AVERAGE, values.number("b1")
        elif self._has_trace:
            momentum = Momentum.NESTEROV if values["nesterov"] else Momentum.HEAVY_BALL
            coefficient = values.number("momentum")
        return Dynamics(
            values.number("learning_rate"), momentum, coefficient, values.number("weight_decay")
        )


class _Hyperparameters:
    """Hyperparameters by Optax's names, of which some have a default."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = dict(values)
        unknown = [name for name in values if name not in _NAMES]
        if unknown:
            raise TypeError(
                f"there is no hyperparameter {unknown[0]!r}: Optax's names are {', '.join(_NAMES)}."
            )

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name, _DEFAULTS.get(name))

    def number(self, name: str) -> float:
        """Return a number.

        Raises:
            ValueError: if it is not known.
            TypeError: if it is a schedule, or no number.
        """
        value = self[name]
        if value is None:
            raise ValueError(
                f"a state of Optax does not hold {name}: pass {name}= as to the optimizer, or "
                "make that by optax.inject_hyperparams, whose state does."
            )
        if callable(value):
            raise TypeError(f"{name} is a schedule: pass its value at the step, {name}=f(step).")
        return float(value)


def _methods(state: Any, injected: dict[str, Any]) -> Iterator[Any]:
    """Yield the states of methods in a state, and note the hyperparameters that it holds."""
    name = type(state).__name__
    if type(state) in (tuple, list, dict):  # of a chain
        for part in state.values() if isinstance(state, dict) else state:
            yield from _methods(part, injected)
    elif name in _AROUND:
        for key, value in getattr(state, "hyperparams", {}).items():
            if key in _NAMES:
                injected[key] = value
        for field in _INNER.intersection(state._fields):
            yield from _methods(getattr(state, field), injected)
    elif name not in _NEUTRAL:
        yield state


def _any(tree: Any) -> bool:
    return any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(tree))


def _in_order(tree: Any, parameters: Parameters, name: str) -> list[np.ndarray]:
    """Return the leaves of a state for the variables of an operator, by their paths.

    Raises:
        ValueError: if one is missing, or has another shape.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {path_of(keys): np.asarray(leaf) for keys, leaf in paths}
    for path, shape in zip(parameters.names, parameters.shapes, strict=True):
        found = leaves.get(path)
        if found is None or found.shape != shape:
            has = "nothing" if found is None else f"an array of shape {found.shape}"
            raise ValueError(
                f"the state of {name} has {has} for {path!r} of shape {shape}: it is of another "
                "model. Pass the state that trains the operator's parameters."
            )
    return [leaves[path] for path in parameters.names]


# P of each method, as `optax.transforms` computes it.

_Arrays = Callable[[str], list[np.ndarray]]
_Diagonal = Callable[[_Hyperparameters, "int | None", _Arrays], list[np.ndarray]]


def _wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def _bias_correction(coefficient: float, step: int, dtype: np.dtype) -> float:
    """Return 1 - coefficient^step, rounded as it is by JAX in this dtype."""
    kind = dtype.type
    return float(kind(1) - np.power(kind(coefficient), kind(step)))


def _corrected(moments: list[np.ndarray], decay: float, step: int | None) -> list[np.ndarray]:
    """Return moments, over their bias correction where steps are counted, float64."""
    if step is None:
        return _wide(moments)
    return [m.astype(np.float64) / _bias_correction(decay, step, m.dtype) for m in moments]


def _root(squares: list[np.ndarray], values: _Hyperparameters) -> list[np.ndarray]:
    """Return sqrt(v + eps), or sqrt(v) + eps."""
    eps = values.number("eps")
    with np.errstate(invalid="ignore"):  # what is negative is refused with what is zero
        if values["eps_in_sqrt"]:
            return [np.sqrt(square + eps) for square in squares]
        return [np.sqrt(square) + eps for square in squares]


def _adam(values: _Hyperparameters, step: int | None, arrays: _Arrays) -> list[np.ndarray]:
    """Return (1 - b1^t) (sqrt(v / (1 - b2^t) + eps_root) + eps)."""
    moments = arrays("nu")
    squares = _corrected(moments, values.number("b2"), step)
    return _averaged(values, step, moments, squares)


def _amsgrad(values: _Hyperparameters, step: int | None, arrays: _Arrays) -> list[np.ndarray]:
    """Return that of Adam with the largest corrected v so far."""
    moments = arrays("nu_max")
    return _averaged(values, step, moments, _wide(moments))


def _averaged(
    values: _Hyperparameters,
    step: int | None,
    moments: list[np.ndarray],
    squares: list[np.ndarray],
) -> list[np.ndarray]:
    eps, eps_root = values.number("eps"), values.number("eps_root")
    first = values.number("b1")
    return [
        _bias_correction(first, step or 0, moment.dtype) * (np.sqrt(square + eps_root) + eps)
        for moment, square in zip(moments, squares, strict=True)
    ]


def _rms(values: _Hyperparameters, step: int | None, arrays: _Arrays) -> list[np.ndarray]:
    # Without a count there is no correction, and the decay does not matter.
    decay = 0.0 if step is None else values.number("decay")
    return _root(_corrected(arrays("nu"), decay, step), values)


def _deviation(values: _Hyperparameters, step: int | None, arrays: _Arrays) -> list[np.ndarray]:
    decay = 0.0 if step is None else values.number("decay")
    squares, means = (_corrected(arrays(field), decay, step) for field in ("nu", "mu"))
    return _root([s - m**2 for s, m in zip(squares, means, strict=True)], values)


def _sum(values: _Hyperparameters, step: int | None, arrays: _Arrays) -> list[np.ndarray]:
    return [np.sqrt(total + values.number("eps")) for total in _wide(arrays("sum_of_squares"))]


@dataclass(frozen=True)
class _Method:
    name: str
    diagonal: _Diagonal | None
    moment: str = ""  # the field that gradients make positive
    is_average: bool = False


_SGD = _Method("sgd", None)
_METHODS = {
    "ScaleByAdamState": _Method("adam", _adam, "nu", is_average=True),
    "ScaleByAmsgradState": _Method("amsgrad", _amsgrad, "nu_max", is_average=True),
    "ScaleByRmsState": _Method("rmsprop", _rms, "nu"),
    "ScaleByRmsWithCountState": _Method("rmsprop", _rms, "nu"),
    "ScaleByRStdDevState": _Method("rmsprop", _deviation, "nu"),
    "ScaleByRStdDevWithCountState": _Method("rmsprop", _deviation, "nu"),
    "ScaleByRssState": _Method("adagrad", _sum, "sum_of_squares"),
}
