"""A jaxpr evaluated again beside its arguments, on the piece of its function that it was on.

Networks are smooth in pieces: a rectifier or a largest entry changes its branch where a weight is
moved. Which branch each took is recorded once, and held: then differences of the gradient are those
of the smooth piece that products are derivatives of. What a user's loss stops the gradient of is a
constant of that piece, too; what a rule for a derivative stops is none, and may be a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp

from spectral_density.engines.jax.jaxprs import equations, line_of

Lines = frozenset[Any]

# Calls whose jaxpr is evaluated in place: where it is no more differentiated, rules are of no use.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr"}
_CALLS |= {"checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_CALLS |= {"custom_vjp_call_jaxpr": "fun_jaxpr", "core_call": "call_jaxpr"}

# What has kinks, and is not held: loops and branches, windows, orders, steps.
_NOT_HELD = {"scan", "while", "cond", "reduce_window_max", "reduce_window_min", "sort", "top_k"}
_NOT_HELD |= {"select_and_scatter_add", "select_and_gather_add", "cummax", "cummin", "clamp"}
_NOT_HELD |= {"floor", "ceil", "round", "rem", "pallas_call", "pure_callback", "custom_call"}


def crosses_kinks(jaxpr: Any) -> bool:
    """Tell whether an open jaxpr has operations with kinks that are not held."""
    return any(eqn.primitive.name in _NOT_HELD for eqn in equations(jaxpr))


def recorded(closed: Any, arguments: Sequence[Any], stops: Lines) -> tuple[list[Any], list[Any]]:
    """Return what a closed jaxpr gives, and the branches that it took; in a trace or outside.

    Args:
        closed: the jaxpr.
        arguments: of it, flat.
        stops: the lines of the source where a loss stops gradients.
    """
    branches: list[Any] = []
    found = _evaluate(closed.jaxpr, closed.consts, arguments, _Recorder(branches, stops))
    return found, branches


def replayed(
    closed: Any, arguments: Sequence[Any], branches: Sequence[Any], stops: Lines
) -> list[Any]:
    """Return what a closed jaxpr gives where the branches are held."""
    return _evaluate(closed.jaxpr, closed.consts, arguments, _Player(iter(branches), stops))


class _Recorder:
    """Computes each branch anew, and notes it."""

    def __init__(self, branches: list[Any], stops: Lines):
        self._branches = branches
        self.stops = stops

    def branch(self, computed: Any) -> Any:
        self._branches.append(computed)
        return computed


class _Player:
    """Takes each branch as it was noted."""

    def __init__(self, branches: Iterator[Any], stops: Lines):
        self._branches = branches
        self.stops = stops

    def branch(self, computed: Any) -> Any:
        del computed  # compiled away
        return next(self._branches)


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], held: Any) -> list[Any]:
    values: dict[int, Any] = {}

    def read(var: Any) -> Any:
        return var.val if hasattr(var, "val") else values[id(var)]

    pairs = [*zip(jaxpr.constvars, consts, strict=True), *zip(jaxpr.invars, arguments, strict=True)]
    values.update((id(var), value) for var, value in pairs)
    for eqn in jaxpr.eqns:
        found = _apply(jaxpr, eqn, [read(var) for var in eqn.invars], held)
        values.update((id(var), value) for var, value in zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _apply(jaxpr: Any, eqn: Any, inputs: list[Any], held: Any) -> list[Any]:
    """Return the outputs of one equation, its branch held."""
    name = eqn.primitive.name
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]]
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs, held)
    if name in ("max", "min"):
        return [_held_choice(jaxpr, eqn, inputs, held)]
    if name == "abs":
        # The slope at zero is one, as in JAX's own rule.
        return [inputs[0] * held.branch(jnp.where(inputs[0] < 0, -1, 1).astype(inputs[0].dtype))]
    if name in ("reduce_max", "reduce_min"):
        return [_held_extreme(name, inputs[0], eqn.params["axes"], held)]
    found = _computed(jaxpr, eqn, inputs)
    is_stopped = name == "stop_gradient" and line_of(eqn) in held.stops
    if is_stopped or name == "sign" or _chooses(eqn):
        return [held.branch(each) for each in found]
    return found


def _held_choice(jaxpr: Any, eqn: Any, inputs: list[Any], held: Any) -> Any:
    """Return the larger or smaller of two arrays; where they are equal, what derivatives say.

    JAX's own rule takes half of each there, and compares the result with both. That of a rectifier
    takes none of its argument.
    """
    first, second = inputs
    larger, smaller = first > second, first < second
    above, below = (larger, smaller) if eqn.primitive.name == "max" else (smaller, larger)
    is_halved = any(
        other.primitive.name == "eq" and any(var is eqn.outvars[0] for var in other.invars)
        for other in jaxpr.eqns
    )
    tie = 0.5 if is_halved else float(hasattr(eqn.invars[0], "val"))
    share = held.branch(jnp.where(above, 1.0, jnp.where(below, 0.0, tie)))
    mean = (first + second) / 2
    return jnp.where(share == 1, first, jnp.where(share == 0, second, mean))


def _held_extreme(name: str, array: Any, axes: Sequence[int], held: Any) -> Any:
    """Return the mean of the entries that were largest (or smallest), which all were equal."""
    reduce = jnp.max if name == "reduce_max" else jnp.min
    chosen = array == reduce(array, axis=axes, keepdims=True)
    weights = chosen / jnp.sum(chosen, axis=axes, keepdims=True)
    weights = held.branch(weights.astype(array.dtype))
    return jnp.sum(jnp.where(weights != 0, array * weights, 0), axis=axes)


def _chooses(eqn: Any) -> bool:
    """Tell whether an equation makes integers or truth values of floating-point numbers."""
    floating = [jnp.issubdtype(var.aval.dtype, jnp.floating) for var in eqn.invars]
    discrete = [not jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars]
    return any(floating) and all(discrete)


def _computed(jaxpr: Any, eqn: Any, inputs: list[Any]) -> list[Any]:
    """Return what one equation gives, by a jaxpr of it alone."""
    pairs = zip(eqn.invars, inputs, strict=True)
    given = {id(var): (var, value) for var, value in pairs if not hasattr(var, "val")}
    alone = jaxpr.replace(
        constvars=[],
        invars=[var for var, _ in given.values()],
        outvars=list(eqn.outvars),
        eqns=[eqn],
    )
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))(*(value for _, value in given.values()))
