"""Warnings that show the user's own line."""

from __future__ import annotations

import sys
import warnings

# What stands between a user's line and the one that warns: algorithms check operators, frameworks
# trace losses and train models.
_SKIPPED = frozenset(
    {"spectral_density", "tensorflow", "keras", "tf_keras", "scipy", "contextlib", "functools"}
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that is neither of this package nor of what it calls and runs in.

    Args:
        message: what is wrong, and what to do.
        category: of the warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _top(frame.f_globals) in _SKIPPED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _top(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
