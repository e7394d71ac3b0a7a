"""Algorithms on operators whose vectors stay on the device: as on an accelerator, here on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_density import HessianOperator, lanczos, top_eigenpairs, trace
from spectral_density.engines.jax.vectors import JaxVectors

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 6)).astype(np.float32)
ENDS = ((0, 12), (12, 24), (24, 30))


def loss(weights, batch):
    """Of a Poisson regression, and a ridge that its Hessian has on the diagonal."""
    z = batch @ weights
    return jnp.mean(jnp.exp(z) - z) + 0.05 * jnp.sum(weights**2)


WEIGHTS = (0.3 * RNG.normal(size=6)).astype(np.float32)


def hessian():
    x = X.astype(np.float64)
    rates = np.exp(x @ WEIGHTS.astype(np.float64))
    return x.T @ (x * rates[:, None]) / 30 + 0.1 * np.eye(6)


def on_device(data=X):
    operator = HessianOperator(jnp.asarray(WEIGHTS), loss, [data[a:b] for a, b in ENDS])
    assert operator.vectors is None  # a CPU has no faster place than NumPy's
    operator.derivatives._vectors = JaxVectors(6)
    return operator


def test_products_stay_there():
    operator = on_device()
    rows = RNG.normal(size=(20, 6)).astype(np.float32)
    products = operator.products_of(jnp.asarray(rows))
    assert isinstance(products, jax.Array)
    np.testing.assert_allclose(products, rows @ hessian(), rtol=1e-4, atol=1e-5)


def test_algorithms_give_the_closed_form():
    operator, values = on_device(), np.linalg.eigvalsh(hessian())
    tridiagonal = lanczos(operator, 6, seed=1, check=False).tridiagonal()
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal), values, rtol=1e-5)
    pairs = top_eigenpairs(operator, 2, check=False)
    np.testing.assert_allclose(np.sort(pairs.values), values[-2:], rtol=1e-5)
    estimate = trace(operator, num_products=60, seed=0)
    assert abs(estimate.value - values.sum()) <= 5 * estimate.standard_error + 1e-4


def test_nan_names_its_batch():
    data = X.copy()
    data[13, 2] = np.nan
    operator = on_device(data)
    with pytest.raises(FloatingPointError, match=r"product is not finite in batch 1 of 3"):
        operator.products_of(jnp.ones((1, 6)))
    with pytest.raises(FloatingPointError, match=r"product is not finite in batch 1 of 3"):
        lanczos(operator, 2, check=False)
