"""Update rules of Optax's optimizers, from their states; Optax is not imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from spectral_density.engines.jax.models import path_of
from spectral_density.engines.layout import Parameters
from spectral_density.engines.update_rule import (
    Dynamics,
    Momentum,
    UpdateRule,
    refuse_no_average,
)

# What is taken where nothing is passed; what is not here has to be passed.
_DEFAULTS = {
    "weight_decay": 0.0,  # of adam, whose state is that of adamw, which has 1e-4
    "eps_root": 0.0,
    "nesterov": False,
    "eps_in_sqrt": True,
}
_AVERAGES = ("b1", "b2", "decay", "momentum")
_NAMES = ("learning_rate", *_AVERAGES, "eps", *_DEFAULTS)

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
    `optax.inject_hyperparams`, and then numbers without the switches: those that matter have to be
    passed. What has no state of its own cannot be told from a state: clipped or normalized
    gradients, `sign_sgd` and `fromage` from `sgd`, and `adamax`, `nadam`, `radam`, `yogi` and
    `lamb`, whose state is that of `adam`.
    """

    def __init__(self, state: Any, hyperparameters: Mapping[str, Any]):
        """Take a state, and hyperparameters by Optax's names.

        Raises:
            TypeError: if a hyperparameter is unknown, or no number.
            ValueError: if the state is of an optimizer whose step is not -eta P^-1 m.
        """
        around = _Around()
        found = list(_methods(state, around))
        self._around = around
        self._hyperparameters = _Hyperparameters({**around.injected, **hyperparameters})
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
        if around.is_injected and type(self._state).__name__ == "ScaleByAdamState":
            self._hyperparameters.require("nesterov", "nadam from adam")
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
        is_fresh = 0 in (step, *self._around.counts)
        if is_fresh or (step is None and not _any(getattr(state, self._method.moment))):
            raise ValueError(
                f"the state of {self.name} has seen no gradient, and its P is that of a step: pass "
                "the state that an update returned."
            )

        if self._around.is_injected and self._method.has_eps_in_sqrt:
            self._hyperparameters.require("eps_in_sqrt", "sqrt(v + eps) from sqrt(v) + eps")

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
            values.require("nesterov", "Nesterov's momentum from the heavy ball")
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
            ValueError: if it is not known, or no coefficient of an average.
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
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind in "bcOSU":
            raise TypeError(f"{name} must be a real number, got {value!r}.")
        found = float(array.reshape(()))
        if name in _AVERAGES:
            refuse_no_average(name, found)
        return found

    def require(self, name: str, what: str) -> None:
        """Raise if a switch was not passed.

        Raises:
            ValueError: saying what a state does not tell.
        """
        if name not in self._values:
            raise ValueError(
                f"a state of Optax does not tell {what}, nor does that of inject_hyperparams: pass "
                f"{name}=True or {name}=False, as the optimizer has it."
            )


@dataclass
class _Around:
    """What the states around that of a method hold."""

    injected: dict[str, Any] = field(default_factory=dict)  # hyperparameters, by name
    is_injected: bool = False
    counts: list[int] = field(default_factory=list)  # of updates, where they are counted


def _methods(state: Any, around: _Around) -> Iterator[Any]:
    """Yield the states of methods in a state, and note what is around them."""
    name = type(state).__name__
    if isinstance(state, dict):  # of a named chain
        for part in state.values():
            yield from _methods(part, around)
    elif type(state) in (tuple, list):  # of a chain
        for part in state:
            yield from _methods(part, around)
    elif name in (*_AROUND, *_NEUTRAL):
        counts = {"count", "gradient_step"}.intersection(state._fields)
        around.counts += [int(getattr(state, count)) for count in counts]
        injected = getattr(state, "hyperparams", {})
        around.is_injected |= "hyperparams" in state._fields
        around.injected |= {key: value for key, value in injected.items() if key in _NAMES}
        for inner in _INNER.intersection(state._fields):
            yield from _methods(getattr(state, inner), around)
    else:
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
    times = Counter(path_of(keys) for keys, _ in paths)
    for path, shape in zip(parameters.names, parameters.shapes, strict=True):
        if times[path] > 1:
            raise ValueError(
                f"{times[path]} leaves of the state of {name} have the path {path!r}: rename a key "
                "of the parameters that has a slash."
            )
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
    return float(kind(1) - np.power(kind(coefficient), kind(step)))  # 0 where it rounds to 1


def _corrected(moments: list[np.ndarray], decay: float, step: int | None) -> list[np.ndarray]:
    """Return moments, over their bias correction where steps are counted, float64."""
    if step is None:
        return _wide(moments)
    with np.errstate(divide="ignore", invalid="ignore"):  # refused with what is not finite
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
    """Return sqrt(sum + eps).

    Raises:
        ValueError: where a sum is zero, for which Optax makes no step.
    """
    totals = _wide(arrays("sum_of_squares"))
    count = sum(int(np.sum(total == 0)) for total in totals)
    if count:
        raise ValueError(
            f"the sums of squares of adagrad have {count:,} zeros, where Optax makes no step, and "
            "P is infinite: choose other variables with variables=, or a positive "
            "initial_accumulator_value."
        )
    return [np.sqrt(total + values.number("eps")) for total in totals]


@dataclass(frozen=True)
class _Method:
    name: str
    diagonal: _Diagonal | None
    moment: str = ""  # the field that gradients make positive
    is_average: bool = False
    has_eps_in_sqrt: bool = False


_SGD = _Method("sgd", None)
_METHODS = {
    "ScaleByAdamState": _Method("adam", _adam, "nu", is_average=True),
    "ScaleByAmsgradState": _Method("amsgrad", _amsgrad, "nu_max", is_average=True),
    "ScaleByRmsState": _Method("rmsprop", _rms, "nu", has_eps_in_sqrt=True),
    "ScaleByRmsWithCountState": _Method("rmsprop", _rms, "nu", has_eps_in_sqrt=True),
    "ScaleByRStdDevState": _Method("rmsprop", _deviation, "nu", has_eps_in_sqrt=True),
    "ScaleByRStdDevWithCountState": _Method("rmsprop", _deviation, "nu", has_eps_in_sqrt=True),
    "ScaleByRssState": _Method("adagrad", _sum, "sum_of_squares"),
}
