"""Operators whose products are functions of a framework, and whose vectors stay there."""

import numpy as np
from scipy.sparse.linalg import LinearOperator


class DeviceOperator(LinearOperator):
    """A symmetric matrix, or a diagonal, that multiplies rows of a device by `multiply`."""

    def __init__(self, entries, vectors, multiply):
        entries = np.asarray(entries)
        super().__init__(np.float64, (len(entries), len(entries)))
        self.product_dtype = vectors.dtype
        self.vectors = vectors
        # What the device has of them, rounded: the truth that products are compared with.
        self.entries = entries.astype(vectors.dtype).astype(np.float64)
        self.num_products = 0
        self._on_device = vectors.to_engine(entries)
        self._multiply = multiply

    def products_of(self, rows):
        self.num_products += rows.shape[0]
        return self._multiply(self._on_device, rows)

    def _matmat(self, block):
        if self.entries.ndim == 1:
            return self.entries[:, np.newaxis] * block
        return self.entries @ block


def jax_operator(entries, dtype=None):
    import jax
    import jax.numpy as jnp

    from spectral_density.engines.jax.vectors import JaxVectors

    @jax.jit
    def multiply(entries, rows):
        if entries.ndim == 1:
            return entries * rows
        return jnp.dot(rows, entries, precision="highest")

    return DeviceOperator(entries, JaxVectors(len(entries), dtype=dtype), multiply)


def tensorflow_operator(entries, dtype="float64"):
    import tensorflow as tf

    from spectral_density.engines.tensorflow.vectors import TensorFlowVectors

    def multiply(entries, rows):
        return entries * rows if len(entries.shape) == 1 else tf.matmul(rows, entries)

    return DeviceOperator(entries, TensorFlowVectors(len(entries), dtype=dtype), multiply)
