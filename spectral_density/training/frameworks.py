"""The engine that an object comes from, by name: no framework is imported for another's sake."""

from __future__ import annotations

from typing import Any

_ENGINES = "spectral_density.engines."


def engine_name(thing: Any) -> str:
    """Return "jax" or "tensorflow", given an engine or what one has made, such as derivatives."""
    return type(thing).__module__.removeprefix(_ENGINES).partition(".")[0]
