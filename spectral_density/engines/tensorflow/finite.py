"""Whether tensors hold numbers only."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def all_finite(structure: Any) -> bool:
    """Tell whether all floating-point tensors of a structure hold numbers only."""
    parts = [
        tf.convert_to_tensor(part) for part in tf.nest.flatten(structure, expand_composites=True)
    ]
    # In float64, which has what every other type has.
    return all(
        bool(np.isfinite(np.asarray(tf.cast(part, tf.float64))).all())
        for part in parts
        if part.dtype.is_floating
    )
