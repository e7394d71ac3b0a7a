"""How the outputs of a model end in a jaxpr: in a softmax, a sigmoid, or something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex

ACTIVATIONS = {"Softmax": jax.nn.softmax, "Sigmoid": jax.nn.sigmoid}


def activation_of(jaxpr: Any, position: int) -> tuple[str | None, Any]:
    """Return the softmax or sigmoid that an output of a jaxpr is, and the variable of its logits.

    Args:
        jaxpr: open, of the model's outputs.
        position: of the output.
    """
    made_by = {id(var): eqn for eqn in jaxpr.eqns for var in eqn.outvars}

    def producer(var: Any, name: str) -> Any:
        eqn = made_by.get(id(var))
        return eqn if eqn is not None and eqn.primitive.name == name else None

    out = jaxpr.outvars[position]
    sigmoid = producer(out, "logistic")
    if sigmoid is not None:
        return "Sigmoid", sigmoid.invars[0]
    quotient = producer(out, "div")
    powers = quotient and producer(quotient.invars[0], "exp")
    spread = quotient and producer(quotient.invars[1], "broadcast_in_dim")
    total = spread and producer(spread.invars[0], "reduce_sum")
    if not (powers and total) or total.invars[0] is not quotient.invars[0]:
        return None, None
    # Over the last axis alone: what a cross-entropy of Keras takes for classes.
    if tuple(total.params["axes"]) != (len(out.aval.shape) - 1,):
        return None, None
    shifted = producer(powers.invars[0], "sub")
    is_shifted = shifted and producer(shifted.invars[1], "stop_gradient")  # by the largest
    return "Softmax", shifted.invars[0] if is_shifted else powers.invars[0]


def activations_of(function: Callable[..., list[Any]], *arguments: Any) -> list[str | None]:
    """Return the softmax or sigmoid that each output of a function is, None for another."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return [activation_of(jaxpr, at)[0] for at in range(len(jaxpr.outvars))]


def with_logits(
    function: Callable[..., tuple[list[Any], Any]], moved: list[bool], *arguments: Any
) -> tuple[list[Any], Any]:
    """Return what a function gives, logits in place of the outputs that are to be moved.

    Args:
        function: returns a list of outputs, and more.
        moved: for each output, whether it is a softmax or sigmoid whose argument is returned.
        arguments: of the function, also within a trace.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    outvars = list(closed.jaxpr.outvars)
    for position, is_moved in enumerate(moved):
        if is_moved:
            outvars[position] = activation_of(closed.jaxpr, position)[1]
    jaxpr = closed.jaxpr.replace(outvars=outvars)
    flat = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, closed.consts))(*jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)
