"""The networks of the problems in JAX: functions of a list of arrays in Keras's layout."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def dense(weights: list[jax.Array], x: jax.Array, *, activation: str, bias: bool, **_: Any) -> Any:
    step = 2 if bias else 1
    for i in range(0, len(weights), step):
        x = x @ weights[i]
        if bias:
            x = x + weights[i + 1]
        if i + step < len(weights):
            x = ACTIVATIONS[activation](x)
    return x


def cnn(weights: list[jax.Array], x: jax.Array, **_: Any) -> jax.Array:
    def pool(x: jax.Array) -> jax.Array:
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    for i in range(0, 8, 2):
        x = jax.lax.conv_general_dilated(
            x, weights[i], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + weights[i + 1])
        if i in (2, 6):
            x = pool(x)
    x = jax.nn.relu(x.reshape(len(x), -1) @ weights[8] + weights[9])
    return x @ weights[10] + weights[11]


def norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + shift


def transformer(
    weights: list[jax.Array], tokens: jax.Array, *, heads: int, layers: int, **_: Any
) -> jax.Array:
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], heads, -1)

    x = weights[0][tokens] + weights[1]
    length = x.shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    for layer in range(layers):
        w = weights[2 + 16 * layer : 18 + 16 * layer]
        y = norm(x, *w[:2])
        q, k, v = (split(y @ w[i] + w[i + 1]) for i in (2, 4, 6))
        scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(q.shape[-1])
        shares = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        y = jnp.einsum("bhlm,bmhd->blhd", shares, v).reshape(x.shape)
        x = x + y @ w[8] + w[9]
        y = jax.nn.gelu(norm(x, *w[10:12]) @ w[12] + w[13], approximate=False)
        x = x + y @ w[14] + w[15]
    return norm(x, *weights[-4:-2]) @ weights[-2] + weights[-1]


def lstm(weights: list[jax.Array], x: jax.Array, *, width: int, **_: Any) -> jax.Array:
    kernel, recurrent, bias, head, head_bias = weights

    def step(state: tuple[jax.Array, jax.Array], inputs: jax.Array) -> Any:
        h, c = state
        i, f, g, o = jnp.split(inputs + h @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((len(x), width), x.dtype)
    inputs = jnp.swapaxes(x @ kernel + bias, 0, 1)
    (h, _), _ = jax.lax.scan(step, (zeros, zeros), inputs)
    return h @ head + head_bias


def resnet(
    weights: list[jax.Array], x: jax.Array, *, widths: list[int], blocks: int, **_: Any
) -> jax.Array:
    """Residual blocks of two convolutions; see `problems.resnet`."""
    following = iter(weights)

    def conv(x: jax.Array, stride: int = 1) -> jax.Array:
        """Return a convolution, normalized by the statistics 0 and 1."""
        kernel, scale, shift = (next(following) for _ in range(3))
        edge = kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(edge, edge)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x * (scale / np.sqrt(1 + 1e-5)) + shift

    x = jax.nn.relu(conv(x))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            inner = conv(jax.nn.relu(conv(x, stride)))
            shortcut = x if x.shape[-1] == width and stride == 1 else conv(x, stride)
            x = jax.nn.relu(inner + shortcut)
    kernel, bias = following
    return x.mean((1, 2)) @ kernel + bias


NETWORKS = {
    "dense": dense,
    "cnn": cnn,
    "transformer": transformer,
    "lstm": lstm,
    "resnet": resnet,
}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return one loss an example, the mean over its labels."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return losses.reshape(len(losses), -1).mean(1)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return one loss an example, the mean over its outputs."""
    return jnp.mean((outputs - targets) ** 2, axis=-1)


LOSSES = {"cross-entropy": cross_entropy, "squared-error": squared_error}


def mean_loss(network: dict[str, Any]) -> Any:
    """Return the loss of (weights, batch), the mean over the examples of a batch (x, y)."""
    network = dict(network)
    forward = partial(NETWORKS[network.pop("kind")], **network)
    losses = LOSSES[network["loss"]]

    def loss(weights: list[jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = batch
        return losses(forward(weights, x), y).mean()

    return loss
