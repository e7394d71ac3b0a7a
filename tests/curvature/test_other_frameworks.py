"""Hessians and Gauss-Newton matrices against those that PyTorch and JAX compute."""

from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import default_dtype, tf_variables

from spectral_density import GaussNewtonOperator, HessianOperator

# Written by benchmarks/peers/store_matrices.py.
DATA = Path(__file__).parent / "data"
VECTORS = np.random.default_rng(3).normal(size=(200, 2))
TOLERANCES = {"float32": 1e-5, "float64": 1e-9}


def layer_normalization():
    dense = layers.Dense(4, activation="tanh")
    return [keras.Input((3,)), dense, layers.LayerNormalization(epsilon=1e-3), layers.Dense(3)]


def convolution():
    return [
        keras.Input((6, 6, 1)),
        layers.Conv2D(2, 3, padding="same", activation="tanh"),
        layers.MaxPooling2D(2),
        layers.Conv2D(2, 2, activation="tanh"),
        layers.Flatten(),
        layers.Dense(3),
    ]


def lstm():
    return [keras.Input((5, 2)), layers.LSTM(3), layers.Dense(2)]


def attention():
    inputs = keras.Input((3, 2))
    hidden = layers.Dense(4, activation="tanh")(inputs)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=2)(hidden, hidden)
    pooled = layers.GlobalAveragePooling1D()(layers.Add()([hidden, attended]))
    return keras.Model(inputs, layers.Dense(2)(pooled))


NETWORKS = {f.__name__: f for f in (layer_normalization, convolution, lstm, attention)}


@cache
def stored(name, framework):
    with np.load(DATA / f"{name}_{framework}.npz") as file:
        return dict(file)


def symmetric(upper, n):
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n)] = upper
    return matrix + np.triu(matrix, 1).T


@cache
def products(operator, name, dtype):
    """Ours with two vectors, for the weights that both frameworks were given."""
    data = stored(name, "torch")
    with default_dtype(dtype):
        made = NETWORKS[name]()
        model = keras.Sequential(made) if isinstance(made, list) else made
        start = 0
        for variable in tf_variables(model):
            size = int(np.prod(variable.shape))
            variable.assign(data["weights"][start : start + size].reshape(variable.shape))
            start += size
        classes = data["y"].ndim == 1
        loss = keras.losses.SparseCategoricalCrossentropy(True) if classes else "mse"
        batch = data["x"].astype(dtype), data["y"] if classes else data["y"].astype(dtype)
        return operator(model, loss, [batch]) @ VECTORS[: len(data["weights"])]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_the_matrix_is_that_of_pytorch_and_jax(operator, name, dtype):
    ours = products(operator, name, dtype)
    for framework in ("torch", "jax"):
        data = stored(name, framework)
        kind = "hessian" if operator is HessianOperator else "gauss_newton"
        n = len(data["weights"])
        theirs = symmetric(data[kind], n) @ VECTORS[:n]
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        # Keras rounds the scale of the scores, 1/sqrt(2) here, to float32.
        tolerance = max(TOLERANCES[dtype], 1e-7 if name == "attention" else 0.0)
        assert error <= tolerance, framework


@pytest.mark.parametrize("name", NETWORKS)
def test_both_frameworks_were_given_the_same_and_agree(name):
    torch, jax = stored(name, "torch"), stored(name, "jax")
    for part in ("weights", "x", "y"):
        np.testing.assert_array_equal(torch[part], jax[part])
    for part in ("hessian", "gauss_newton"):
        np.testing.assert_allclose(torch[part], jax[part], rtol=0, atol=1e-12)
