"""Options of methods and globalizations: choices, and their representation."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def one_of(value: Any, name: str, choices: Iterable[str]) -> Any:
    """Return a value that is one of several choices.

    Raises:
        ValueError: if it is none of them.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def representation(options: Any, hidden: Collection[str] = ()) -> str:
    """Return the class of an object and its public attributes, but for some, as text."""
    shown = {k: v for k, v in vars(options).items() if not k.startswith("_") and k not in hidden}
    return f"{type(options).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"
