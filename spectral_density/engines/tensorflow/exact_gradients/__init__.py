"""Gradient functions of operations for which TensorFlow has no second derivative, or a wrong one.

TensorFlow differentiates an operation by a function registered under its name. Where that of a
gradient is missing, is declared not differentiable or is wrong, the one here is exact.
`exact_second_derivatives` registers them while this package traces.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from spectral_density.engines.tensorflow.exact_gradients import arithmetic, images, sparse, windows
from spectral_density.engines.tensorflow.exact_gradients.registry import EXACT
from spectral_density.engines.tensorflow.keras_internals import patched_frameworks

__all__ = ["EXACT", "arithmetic", "exact_second_derivatives", "images", "sparse", "windows"]


def exact_second_derivatives(model: Any = None) -> AbstractContextManager[None]:
    """Make second derivatives exact in whatever is traced, or differentiated, in this context.

    One thread is in it at a time. Values stay the framework's own, first derivatives too or to
    rounding; what is replaced, for the whole process, is in `keras_internals`.

    Args:
        model: whose recurrent layers are unrolled where their steps are few.
    """
    return patched_frameworks(EXACT, model)
