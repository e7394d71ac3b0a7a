"""Labels drawn from a model's own distribution, their losses and gradients at its outputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.data import BatchInput
from spectral_density.engines.jax.objectives import OutputsOfBatch
from spectral_density.engines.jax.output_loss import OutputLoss, num_averaged
from spectral_density.engines.jax.terms import value_weights
from spectral_density.linalg.arguments import stream

# Random streams: a key of this file's own.
_KEY = 7051


def sampled_labels(
    loss: OutputLoss, outputs: OutputsOfBatch, at: BatchInput, num_samples: int, seed: int
) -> list[jax.Array]:
    """Return labels drawn for each output, shape (num_samples, examples, ...).

    Keyed by seed, output, sample and example: the same however the data is cut into batches.
    """
    found = []
    for number, (part, ending) in enumerate(loss.terms(outputs, at)):
        z = outputs.tensors[part.position]
        found.append(_labels(number, z, ending, at, num_samples=num_samples, seed=seed))
    return found


def _labels(
    number: int, z: jax.Array, ending: Any, at: BatchInput, *, num_samples: int, seed: int
) -> jax.Array:
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    word = stream(seed, _KEY, number).integers(2**32, size=1, dtype=np.uint32)[0]
    key = jax.random.key(word)
    categorical = ending.distribution == "categorical"
    shape = z.shape[1:-1] if categorical else z.shape[1:]
    draw = jax.random.normal if ending.distribution == "normal" else jax.random.uniform

    def of_example(sample: jax.Array, example: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, sample), example)
        return draw(own, shape, jnp.float32)

    examples = at.first_example + jnp.arange(len(z))
    of_sample = jax.vmap(of_example, in_axes=(None, 0))
    noise = jax.vmap(of_sample, in_axes=(0, None))(jnp.arange(num_samples), examples)
    noise = noise.astype(z.dtype)
    if categorical:
        steps = jnp.cumsum(jax.nn.softmax(z), axis=-1)[..., :-1]
        return jnp.sum(steps <= noise[..., None], axis=-1)
    if ending.distribution == "bernoulli":
        return (noise < jax.nn.sigmoid(z)).astype(jnp.int32)
    return z + noise / np.sqrt(2.0)


def sampled_gradients(
    loss: OutputLoss, outputs: OutputsOfBatch, at: BatchInput, labels: list[jax.Array]
) -> list[jax.Array]:
    """Return the gradients at each output of the losses of drawn labels.

    As `OutputLoss.example_gradients` scales them, shape (num_samples, *output.shape).
    """
    found = [jnp.zeros((len(labels[0]), *tensor.shape), tensor.dtype) for tensor in outputs.tensors]
    for (part, ending), drawn in zip(loss.terms(outputs, at), labels, strict=True):
        tensor = outputs.tensors[part.position]
        weights = value_weights(part, at.scales)
        z = tensor.astype(weights.dtype)
        roots = jnp.sqrt(weights / num_averaged(z, ending.distribution))[..., None]
        gradients = _slopes(ending.distribution, z, drawn) * roots
        found[part.position] = jnp.where(roots != 0, gradients, 0).astype(tensor.dtype)
    return found


def _slopes(distribution: str | None, z: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the gradients of -log p(y | z) in z."""
    if distribution == "categorical":
        return jax.nn.softmax(z) - jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
    if distribution == "bernoulli":
        return jax.nn.sigmoid(z) - labels.astype(z.dtype)
    return 2.0 * (z - labels.astype(z.dtype))


def sampled_losses(
    loss: OutputLoss, outputs: OutputsOfBatch, at: BatchInput, labels: list[jax.Array]
) -> jax.Array:
    """Return what `sampled_gradients` are the gradients of, (num_samples * examples,).

    Over the root of the number of samples, whose outer products are averaged.
    """
    total: Any = 0.0
    for (part, ending), drawn in zip(loss.terms(outputs, at), labels, strict=True):
        weights = value_weights(part, at.scales)
        z = outputs.tensors[part.position].astype(weights.dtype)
        roots = jnp.sqrt(weights / num_averaged(z, ending.distribution))[..., None]
        values = _negative_logs(ending.distribution, z, drawn)
        values = jnp.where(roots != 0, values * roots, 0)
        total += values.reshape(*values.shape[:2], -1).sum(axis=-1)
    return (total / np.sqrt(len(labels[0]))).reshape(-1)


def _negative_logs(distribution: str | None, z: jax.Array, labels: jax.Array) -> jax.Array:
    """Return -log p(y | z) of labels, (num_samples, examples, ..., 1 or C), up to constants."""
    if distribution == "categorical":
        hot = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
        return -jnp.sum(hot * jax.nn.log_softmax(z), axis=-1, keepdims=True)
    labels = labels.astype(z.dtype)
    if distribution == "bernoulli":
        return jax.nn.softplus(z) - labels * z
    return jnp.square(z - labels)
