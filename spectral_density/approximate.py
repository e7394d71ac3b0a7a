"""Deprecated name of `spectral_density.estimate` and `spectral_density.compat`."""

from __future__ import annotations

import warnings
from typing import Any

from spectral_density import compat, estimate

_MOVED = {
    "NUM_DRAWS": estimate,
    "ORDER": estimate,
    "approximate_hessian": compat,
    "estimate_spectrum": estimate,
    "lanczos_algorithm": compat,
}


def __getattr__(name: str) -> Any:
    """Return a name that has moved, with a warning that says where."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _MOVED[name]
    message = f"{__name__}.{name} has moved: use {home.__name__}.{name}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(home, name)
