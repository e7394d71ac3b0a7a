"""Exact spectra of three small trained networks, for statistics to be held against.

`python network_spectra.py` makes `data/network_spectra.npz` anew, with JAX in float64 and dense
eigenvalue routines of NumPy; nothing of this package takes part.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("data") / "network_spectra.npz"
NAMES = ("tanh_classifier", "relu_classifier", "autoencoder")
# Layer sizes, activation, whether labels are learned, and steps of Adam at 0.01.
NETWORKS = {
    "tanh_classifier": ((64, 24, 10), "tanh", True, 150),
    "relu_classifier": ((64, 16, 12, 10), "relu", True, 400),
    "autoencoder": ((64, 14, 5, 14, 64), "tanh", False, 60),
}


def network_spectrum(name):
    """The eigenvalues of the Hessian of one network, ascending."""
    with np.load(FILE) as file:
        return file[name]


def effective_rank(eigenvalues):
    """Exponential of the entropy of |lambda| / sum |lambda| (Roy, Vetterli 2007)."""
    shares = np.abs(eigenvalues) / np.abs(eigenvalues).sum()
    shares = shares[shares > 0]
    return np.exp(-np.sum(shares * np.log(shares)))


def tail_exponent(eigenvalues, threshold):
    """1 + N / sum ln(lambda / threshold) over the N eigenvalues above it."""
    tail = eigenvalues[eigenvalues > threshold]
    return 1 + len(tail) / np.sum(np.log(tail / threshold))


def _make():
    import jax
    import jax.numpy as jnp
    from sklearn.datasets import load_digits

    jax.config.update("jax_enable_x64", True)
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x[:600] / 16), jnp.asarray(y[:600])
    activations = {"tanh": jnp.tanh, "relu": jax.nn.relu}

    def outputs(weights, sizes, activation):
        at, h = 0, x
        for layer, (rows, columns) in enumerate(pairwise(sizes)):
            kernel = weights[at : at + rows * columns].reshape(rows, columns)
            bias = weights[at + rows * columns :][:columns]
            at += rows * columns + columns
            h = h @ kernel + bias
            h = activation(h) if layer < len(sizes) - 2 else h
        return h

    spectra = {}
    for name, (sizes, activation, labels, steps) in NETWORKS.items():

        def loss(weights, sizes=sizes, activation=activations[activation], labels=labels):
            out = outputs(weights, sizes, activation)
            if labels:
                return -jnp.mean(jax.nn.log_softmax(out)[jnp.arange(len(y)), y])
            return jnp.mean((out - x) ** 2)

        weights = _trained(jax.jit(jax.grad(loss)), _start(sizes), steps)
        columns = jax.lax.map(
            lambda v, w=weights, f=loss: jax.jvp(jax.grad(f), (w,), (v,))[1],
            jnp.eye(len(weights)),
            batch_size=64,
        )
        dense = np.asarray(columns)
        spectra[name] = np.linalg.eigvalsh((dense + dense.T) / 2)
    np.savez(FILE, **spectra)


def _start(sizes):
    rng = np.random.default_rng(0)
    parts = []
    for rows, columns in pairwise(sizes):
        scale = np.sqrt(6 / (rows + columns))
        parts += [rng.uniform(-1, 1, (rows, columns)).ravel() * scale, np.zeros(columns)]
    return np.concatenate(parts)


def _trained(gradient, weights, steps):
    """Return the weights after steps of Adam at a learning rate of 0.01."""
    first = second = np.zeros_like(weights)
    for step in range(1, steps + 1):
        g = np.asarray(gradient(weights))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        weights = weights - 0.01 * first / (1 - 0.9**step) / size
    return weights


if __name__ == "__main__":
    _make()
