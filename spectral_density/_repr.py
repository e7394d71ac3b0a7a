"""Representations of results that name the shapes of arrays, never their entries."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def repr_with_shapes(result: Any) -> str:
    """Return the repr of a dataclass, with "array(n, k)" for each array in a field.

    A class takes it as its own by `__repr__ = repr_with_shapes`.
    """
    shown = ((field.name, getattr(result, field.name)) for field in fields(result) if field.repr)
    return f"{type(result).__name__}({', '.join(f'{name}={_named(v)}' for name, v in shown)})"


def _named(value: Any) -> str:
    if isinstance(value, (list, tuple)) and any(hasattr(part, "shape") for part in value):
        return f"[{', '.join(_named(part) for part in value)}]"
    # Numbers of NumPy have the shape (), and are shown.
    shape = getattr(value, "shape", ())
    return f"array({', '.join(map(str, shape))})" if shape else repr(value)
