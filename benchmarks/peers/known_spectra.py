"""A convolutional network and a transformer of some 10,000 parameters, all eigenvalues known.

Trained on scikit-learn's digits, in JAX with float64, as is the dense Hessian; nothing of this
package takes part. It takes some minutes and 3 GB each, once: `benchmarks/.cache` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from peers.runner import CACHE, progress

NAMES = ("cnn", "transformer")
EXAMPLES, LEARNING_RATE = 600, 5e-3
STEPS = {"cnn": 30, "transformer": 60}
WIDTH, HEADS, BLOCKS = 24, 2, 2  # of the transformer, which reads an image row by row


def eigenvalues_of(name: str) -> np.ndarray:
    """Return the eigenvalues of the Hessian of a network, ascending."""
    path = CACHE / f"{name}_eigenvalues.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        np.save(path, _computed(name))
    return np.load(path)


def _computed(name: str) -> np.ndarray:
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree
    from sklearn.datasets import load_digits

    jax.config.update("jax_enable_x64", True)
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x[:EXAMPLES] / 16).reshape(-1, 8, 8), jnp.asarray(y[:EXAMPLES])
    start, logits = {"cnn": _cnn, "transformer": _transformer}[name]()
    w, unflatten = ravel_pytree(start)

    def loss(w: Any) -> Any:
        out = logits(unflatten(w), x)
        return -jnp.mean(jax.nn.log_softmax(out)[jnp.arange(len(y)), y])

    gradient = jax.jit(jax.grad(loss))
    w = _trained(gradient, w, STEPS[name])
    progress(f"{name}: {len(w):,} parameters, loss {float(loss(w)):.3g}; all eigenvalues, minutes")

    @jax.jit
    def product(w: Any, v: Any) -> Any:
        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    dense = np.empty((len(w), len(w)))
    for column in range(len(w)):
        dense[column] = product(w, jnp.zeros(len(w)).at[column].set(1.0))
    return np.linalg.eigvalsh((dense + dense.T) / 2)


def _trained(gradient: Callable[[Any], Any], w: Any, steps: int) -> Any:
    """Return the weights after steps of Adam."""
    first = second = np.zeros(len(w))
    for step in range(1, steps + 1):
        g = np.asarray(gradient(w))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        w = w - LEARNING_RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return w


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


def _cnn() -> tuple[Any, Callable[..., Any]]:
    """Return weights and logits of three convolutions and a dense layer, with relu."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    channels = (1, 16, 24, 24)
    kernels = [_normal(rng, 3, 3, a, b) for a, b in pairwise(channels)]
    start = {
        "kernels": kernels,
        "biases": [np.zeros(size) for size in channels[1:]],
        "dense": _normal(rng, 8 * 24 // 2, 10),
        "bias": np.zeros(10),
    }

    def logits(weights: Any, x: Any) -> Any:
        h = x[..., None]
        strides = ((1, 1), (2, 2), (2, 2))
        for kernel, bias, stride in zip(
            weights["kernels"], weights["biases"], strides, strict=True
        ):
            layout = ("NHWC", "HWIO", "NHWC")
            h = jax.lax.conv_general_dilated(h, kernel, stride, "SAME", dimension_numbers=layout)
            h = jax.nn.relu(h + bias)
        return h.reshape(len(h), -1) @ weights["dense"] + weights["bias"]

    return jax.tree.map(jnp.asarray, start), logits


def _transformer() -> tuple[Any, Callable[..., Any]]:
    """Return weights and logits of blocks of attention and dense layers over the rows."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    block = {"query": 1, "key": 1, "value": 1, "out": 1}
    start = {
        "rows": _normal(rng, 8, WIDTH),
        "places": 0.1 * rng.normal(size=(8, WIDTH)),
        "blocks": [
            {name: _normal(rng, WIDTH, WIDTH) for name in block}
            | {
                "up": _normal(rng, WIDTH, 4 * WIDTH),
                "down": _normal(rng, 4 * WIDTH, WIDTH),
                "scales": np.ones((2, WIDTH)),
            }
            for _ in range(BLOCKS)
        ],
        "dense": _normal(rng, WIDTH, 10),
    }

    def normalized(h: Any, scale: Any) -> Any:
        h = h - h.mean(-1, keepdims=True)
        return scale * h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)

    def logits(weights: Any, x: Any) -> Any:
        h = x @ weights["rows"] + weights["places"]
        for block in weights["blocks"]:
            at = normalized(h, block["scales"][0])
            query, key, value = (
                (at @ block[name]).reshape(*at.shape[:2], HEADS, -1)
                for name in ("query", "key", "value")
            )
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(WIDTH / HEADS)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
            h = h + mixed.reshape(h.shape) @ block["out"]
            h = h + jax.nn.gelu(normalized(h, block["scales"][1]) @ block["up"]) @ block["down"]
        return h.mean(1) @ weights["dense"]

    return jax.tree.map(jnp.asarray, start), logits
