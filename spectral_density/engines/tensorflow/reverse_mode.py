"""Products of Hessians and Jacobians with vectors, by reverse mode alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.refusals import (
    gradients_explained,
    refuse_without_derivatives,
)


def hessian_products(
    value: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
    vectors: list[list[tf.Tensor]],
    layers: Sequence[Any] = (),
) -> tuple[list[list[Any]], list[Any]]:
    """Return the products of the Hessian of `value()` with each vector, and its gradient.

    Reverse over reverse: the gradient g, then the gradient of <g, v> for each v. The vectors share
    the primal pass and the first gradient (Pearlmutter 1994, Neural Computation 6:147, in reverse
    mode: it goes through every operation that has a gradient, loops included).

    Raises:
        ValueError: if an operation lacks a derivative, naming it and its layer among `layers`.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
        outer.watch(variables)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(variables)
            scalar = value()
        refuse_without_derivatives(variables, [scalar], layers, order=2)
        with gradients_explained():
            gradient = [
                None if part is None else tf.convert_to_tensor(part)
                for part in inner.gradient(scalar, variables)
            ]
    used = [position for position, part in enumerate(gradient) if part is not None]
    if not used:
        return [[None] * len(gradient) for _ in vectors], gradient
    parts = [gradient[position] for position in used]
    refuse_without_derivatives(variables, parts, layers, order=1)
    with gradients_explained():
        products = [
            outer.gradient(
                parts, variables, output_gradients=[vector[position] for position in used]
            )
            for vector in vectors
        ]
    return products, gradient


def jacobian_products(
    tape: tf.GradientTape,
    outputs: list[tf.Tensor],
    variables: Any,
    vectors: list[list[tf.Tensor]],
    layers: Sequence[Any] = (),
) -> list[list[tf.Tensor]]:
    """Return the Jacobian of `outputs`, recorded on a persistent tape, times each vector.

    J v is the derivative of <J' u, v> in u: a second reverse pass over the first. Compiled, what
    depends on u alone is pruned, and no more is left than a pass in forward mode does; the vectors
    share the primal pass, and loops go through. TensorFlow's forward mode (`ForwardAccumulator`)
    is the same trick for each operation, needs a primal pass for each vector, measures 1.0 to 1.7
    times the time of this, gives the same bits, and fails in compiled loops.

    Raises:
        ValueError: if an operation lacks a derivative, naming it and its layer among `layers`.

    References:
        Townsend (2017), "A new trick for calculating Jacobian vector products".
    """
    dummies = [tf.zeros_like(output) for output in outputs]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as second:
        second.watch(dummies)
        pulled = [
            None if part is None else tf.convert_to_tensor(part)
            for part in tape.gradient(outputs, variables, output_gradients=dummies)
        ]
    used = [position for position, part in enumerate(pulled) if part is not None]
    if not used:
        return [dummies for _ in vectors]
    parts = [pulled[position] for position in used]
    refuse_without_derivatives(dummies, parts, layers, order=1)
    with gradients_explained():
        return [
            second.gradient(
                parts,
                dummies,
                output_gradients=[vector[position] for position in used],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            for vector in vectors
        ]
