"""Precision of matrix products in compiled functions: full, whatever the default of a chip.

Recent GPUs round float32 factors to ten bits (TF32), which moves a product by 3.5e-3 of its norm
while u'Av = v'Au holds to 6e-8. JAX reads its precision where it traces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax

FULL = "highest"
"""What JAX calls the precision of the dtype itself."""

_FULL = (None, FULL, "float32")
_LOWER = ("tensorfloat32", "bfloat16")


def lower_precision(name: Any) -> str | None:
    """Return the precision below the full one that a name of JAX means, None for the full one.

    Raises:
        ValueError: if it is no such name.
    """
    if name in _FULL:
        return None
    if name in _LOWER:
        return str(name)
    raise ValueError(
        f"matmul_precision must be None for full precision, or one of {', '.join(_LOWER)}, as "
        f"jax.default_matmul_precision names them, got {name!r}."
    )


def at_precision(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that multiplies matrices at a precision of JAX where it is traced."""

    @wraps(function)
    def precise(*arguments: Any) -> Any:
        with jax.default_matmul_precision(name):
            return function(*arguments)

    return precise


def exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that multiplies matrices at full precision where it is traced."""
    return at_precision(FULL, function)


def compiled(function: Callable[..., Any], precision: str | None = None) -> Any:
    """Return a function compiled by JAX, at full precision unless a lower one is named."""
    return jax.jit(at_precision(precision or FULL, function))
