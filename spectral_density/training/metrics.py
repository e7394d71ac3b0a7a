"""Names of metrics in the logs of Keras."""

from __future__ import annotations

from collections.abc import Iterable


def first_accuracy(names: Iterable[str], prefix: str = "") -> str | None:
    """Return the first name with "acc" in it that has a prefix, such as "val_"; None for none."""
    return next((name for name in names if name.startswith(prefix) and "acc" in name), None)
