"""Store Hessians and Gauss-Newton matrices of small networks, as PyTorch and JAX compute them.

    python benchmarks/peers/store_matrices.py torch|jax tests/curvature/data [NETWORK ...]

Run it in the environment of the framework (`benchmarks/environments.py`). The test
`tests/curvature/test_other_frameworks.py` builds the same networks in Keras and compares. Each file
holds the weights in Keras's order and layout, inputs, labels, and the upper triangles of both
matrices, all in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Network:
    """Shapes of a network; what it computes is written once for each framework."""

    weights: tuple[tuple[int, ...], ...]  # in Keras's order and layout
    inputs: tuple[int, ...]
    outputs: int
    classes: bool  # labels are classes of a softmax cross-entropy, or numbers of a squared error


PROJECTION = ((4, 2, 2), (2, 2))  # of a query, key or value: two heads of two numbers
NETWORKS = {
    "layer_normalization": Network(
        ((3, 4), (4,), (4,), (4,), (4, 3), (3,)), (8, 3), outputs=3, classes=True
    ),
    "convolution": Network(
        ((3, 3, 1, 2), (2,), (2, 2, 2, 2), (2,), (8, 3), (3,)), (6, 6, 6, 1), 3, classes=True
    ),
    "lstm": Network(((2, 12), (3, 12), (12,), (3, 2), (2,)), (6, 5, 2), 2, classes=False),
    "attention": Network(
        ((2, 4), (4,), *PROJECTION, *PROJECTION, *PROJECTION, (2, 2, 4), (4,), (4, 2), (2,)),
        (5, 3, 2),
        outputs=2,
        classes=False,
    ),
}


def data_of(network: Network) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all weights as one vector, inputs and labels; the weights are exact in float32."""
    rng = np.random.default_rng(15)
    size = sum(int(np.prod(shape)) for shape in network.weights)
    weights = rng.normal(scale=0.6, size=size).astype(np.float32).astype(np.float64)
    x = rng.normal(size=network.inputs).astype(np.float32).astype(np.float64)
    if network.classes:
        return weights, x, rng.integers(network.outputs, size=len(x))
    y = rng.normal(size=(len(x), network.outputs))
    return weights, x, y.astype(np.float32).astype(np.float64)


def cut(flat: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Return the weights that a vector holds one after the other."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    starts = [0, *ends[:-1]]
    return [flat[s:e].reshape(shape) for s, e, shape in zip(starts, ends, shapes, strict=True)]


def with_torch(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the Hessian and the Gauss-Newton matrix by PyTorch's own layers and autograd."""
    import torch
    from torch.autograd.functional import hessian, jacobian
    from torch.nn import functional as F

    network = NETWORKS[name]
    weights, x, y = (torch.tensor(part) for part in data_of(network))

    def layer_normalization(w: list[torch.Tensor]) -> torch.Tensor:
        hidden = F.layer_norm(torch.tanh(x @ w[0] + w[1]), (4,), w[2], w[3], eps=1e-3)
        return hidden @ w[4] + w[5]

    def convolution(w: list[torch.Tensor]) -> torch.Tensor:
        image = x.permute(0, 3, 1, 2)
        hidden = torch.tanh(F.conv2d(image, w[0].permute(3, 2, 0, 1), w[1], padding=1))
        hidden = F.max_pool2d(hidden, 2)
        hidden = torch.tanh(F.conv2d(hidden, w[2].permute(3, 2, 0, 1), w[3]))
        return hidden.permute(0, 2, 3, 1).reshape(len(x), -1) @ w[4] + w[5]

    def lstm(w: list[torch.Tensor]) -> torch.Tensor:
        module = torch.nn.LSTM(2, 3, batch_first=True, dtype=torch.float64)
        parameters = {
            "weight_ih_l0": w[0].T,
            "weight_hh_l0": w[1].T,
            "bias_ih_l0": w[2],
            "bias_hh_l0": torch.zeros_like(w[2]),
        }
        states, _ = torch.func.functional_call(module, parameters, (x,))
        return states[:, -1] @ w[3] + w[4]

    def attention(w: list[torch.Tensor]) -> torch.Tensor:
        module = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
        parameters = {
            "in_proj_weight": torch.cat([w[i].reshape(4, 4).T for i in (2, 4, 6)]),
            "in_proj_bias": torch.cat([w[i].reshape(4) for i in (3, 5, 7)]),
            "out_proj.weight": w[8].reshape(4, 4).T,
            "out_proj.bias": w[9],
        }
        hidden = torch.tanh(x @ w[0] + w[1])
        attended, _ = torch.func.functional_call(module, parameters, (hidden, hidden, hidden))
        return (hidden + attended).mean(1) @ w[10] + w[11]

    functions = {f.__name__: f for f in (layer_normalization, convolution, lstm, attention)}

    def outputs(flat: torch.Tensor) -> torch.Tensor:
        return functions[name](cut(flat, network.weights))

    def loss(values: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(values, y) if network.classes else F.mse_loss(values, y)

    at = outputs(weights).detach()
    return matrices(
        hessian(lambda flat: loss(outputs(flat)), weights),
        jacobian(outputs, weights),
        hessian(loss, at),
    )


def with_jax(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the Hessian and the Gauss-Newton matrix by `jax.hessian` and `jax.jacrev`."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    network = NETWORKS[name]
    weights, x, y = (jnp.asarray(part) for part in data_of(network))

    def layer_normalization(w: list[jax.Array]) -> jax.Array:
        hidden = jnp.tanh(x @ w[0] + w[1])
        centred = hidden - hidden.mean(-1, keepdims=True)
        hidden = centred / jnp.sqrt(hidden.var(-1, keepdims=True) + 1e-3) * w[2] + w[3]
        return hidden @ w[4] + w[5]

    def convolve(image: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
        form = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), padding, dimension_numbers=form)

    def convolution(w: list[jax.Array]) -> jax.Array:
        hidden = jnp.tanh(convolve(x, w[0], "SAME") + w[1])
        hidden = jax.lax.reduce_window(
            hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        hidden = jnp.tanh(convolve(hidden, w[2], "VALID") + w[3])
        return hidden.reshape(len(x), -1) @ w[4] + w[5]

    def lstm(w: list[jax.Array]) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], now: jax.Array) -> tuple[Any, None]:
            h, c = state
            i, f, g, o = jnp.split(now @ w[0] + h @ w[1] + w[2], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros((len(x), 3))
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return h @ w[3] + w[4]

    def attention(w: list[jax.Array]) -> jax.Array:
        hidden = jnp.tanh(x @ w[0] + w[1])
        q, k, v = (jnp.einsum("btd,dhk->bthk", hidden, w[i]) + w[i + 1] for i in (2, 4, 6))
        # jax.nn.dot_product_attention computes its softmax in float32.
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
        heads = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)
        attended = jnp.einsum("bthk,hkd->btd", heads, w[8]) + w[9]
        return (hidden + attended).mean(1) @ w[10] + w[11]

    functions = {f.__name__: f for f in (layer_normalization, convolution, lstm, attention)}

    def outputs(flat: jax.Array) -> jax.Array:
        return functions[name](cut(flat, network.weights))

    def loss(values: jax.Array) -> jax.Array:
        if network.classes:
            return -jnp.mean(jax.nn.log_softmax(values)[jnp.arange(len(x)), y])
        return jnp.mean((values - y) ** 2)

    at = outputs(weights)
    return matrices(
        jax.hessian(lambda flat: loss(outputs(flat)))(weights),
        jax.jacrev(outputs)(weights),
        jax.hessian(loss)(at),
    )


def matrices(hessian: Any, jacobian: Any, of_the_loss: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the Hessian, and the Gauss-Newton matrix J' H_out J."""
    h = np.asarray(hessian)
    j = np.asarray(jacobian).reshape(-1, len(h))
    return h, j.T @ np.asarray(of_the_loss).reshape(len(j), len(j)) @ j


FRAMEWORKS: dict[str, Callable[[str], tuple[np.ndarray, np.ndarray]]] = {
    "torch": with_torch,
    "jax": with_jax,
}


def main() -> None:
    framework, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or NETWORKS:
        network = NETWORKS[name]
        weights, x, y = data_of(network)
        hessian, gauss_newton = FRAMEWORKS[framework](name)
        upper = np.triu_indices(len(weights))
        np.savez_compressed(
            folder / f"{name}_{framework}.npz",
            weights=weights,
            x=x,
            y=y,
            hessian=hessian[upper],
            gauss_newton=gauss_newton[upper],
        )
        print(f"{name}: {len(weights)} weights, asymmetry {np.abs(hessian - hessian.T).max():.1e}")


if __name__ == "__main__":
    main()
