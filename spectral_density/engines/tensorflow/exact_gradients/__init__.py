"""Gradient functions of operations for which TensorFlow has no second derivative, or a wrong one.

TensorFlow differentiates an operation by a function registered under its name. Where that of a
gradient is missing, is declared not differentiable or is wrong, the one here is exact.
`keras_internals` registers them while this package traces.
"""

from spectral_density.engines.tensorflow.exact_gradients import arithmetic, images, sparse, windows
from spectral_density.engines.tensorflow.exact_gradients.registry import EXACT

__all__ = ["EXACT", "arithmetic", "images", "sparse", "windows"]
