"""Judge a Hessian by central differences of its gradient, and the gradient by those of the loss."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density import HessianOperator, PreflightError

STEP = 1e-5  # in float64
SINGLE_STEP = 1e-2  # where something computes in float32, which tolerances from 1e-4 on mean


def judge(
    build: Callable[[], HessianOperator],
    variables: Sequence[tf.Variable],
    loss: Callable[[], tf.Tensor],
    tolerance: float,
) -> tuple[str, str]:
    """Return a verdict and what there is to say of it.

    The verdict is "right", "refused" (a `ValueError` whose message is ours), "raw error" (any
    other), or "wrong, " with what the preflight calls it.

    Args:
        build: makes the operator.
        variables: all of its, in their order.
        loss: what is differentiated, from the variables as they are.
        tolerance: largest error of a derivative along a direction, relative if that is above 1.
    """
    rng = np.random.default_rng(7)
    direction = [
        rng.choice([-1, 1], v.shape) * rng.uniform(0.5, 1, v.shape).astype(v.dtype.as_numpy_dtype)
        for v in variables
    ]
    u = np.concatenate([np.ravel(part) for part in direction])
    try:
        hessian = build()
        product, gradient = hessian @ u, hessian.gradient()
    except Exception as error:
        ours = type(error) is ValueError and is_sentence(str(error))
        return "refused" if ours else "raw error", f"{type(error).__name__}: {error}"
    step = STEP if tolerance < 1e-4 else SINGLE_STEP
    errors = (
        relative_error(gradient @ u, slope(loss, variables, direction, step)),
        relative_error(product, slope(hessian.gradient, variables, direction, step)),
    )
    said = f"error of the gradient {errors[0]:.1e}, of the matrix {errors[1]:.1e}"
    if max(errors) <= tolerance:
        return "right", said
    return f"wrong, {verdict_of(hessian)}", said


def is_fault(verdict: str) -> bool:
    """Whether something is wrong and called sound, or ends in an error of TensorFlow."""
    return verdict in ("raw error", "wrong, sound") or "raised" in verdict


def slope(
    function: Callable[[], Any],
    variables: Sequence[tf.Variable],
    direction: Sequence[np.ndarray],
    step: float,
) -> np.ndarray:
    """Return the central difference of a function of variables along a direction."""
    starts = [variable.numpy() for variable in variables]
    ends = []
    for sign in (1, -1):
        for variable, start, part in zip(variables, starts, direction, strict=True):
            variable.assign(start + sign * step * part)
        ends.append(np.asarray(function(), np.float64))
    for variable, start in zip(variables, starts, strict=True):
        variable.assign(start)
    return (ends[0] - ends[1]) / (2 * step)


def relative_error(value: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest error, relative to the largest entry where that is above 1."""
    return float(np.abs(value - truth).max() / max(1.0, np.abs(truth).max()))


def is_sentence(text: str) -> bool:
    """Whether a message is ours: nothing of a traced function or of a graph."""
    return len(text) < 1500 and not any(
        part in text for part in ("in user code", "Traceback", "{{node", "Graph execution error")
    )


def verdict_of(hessian: HessianOperator) -> str:
    """Return what the preflight says."""
    try:
        return hessian.check().verdict
    except PreflightError:
        return "unsound"
    except Exception as error:
        return f"check() raised {type(error).__name__}"
