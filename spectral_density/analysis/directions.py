"""Directions through the weights that a loss is looked at along: given or random."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.curvature.operator import CurvatureOperator

NORMALIZATIONS = ("filter", "layer")

# Directions whose Gram matrix is off the identity by more than this are not orthonormal.
_ORTHONORMAL = 1e-4


def given_directions(directions: Any, size: int, *, orthonormal: bool) -> np.ndarray:
    """Return directions as columns, shape (size, 1) or (size, 2), checked.

    Raises:
        ValueError: if they have another shape, are not finite, or are to be orthonormal and are
            not.
    """
    basis = np.asarray(directions, dtype=np.float64)
    if basis.ndim == 1:
        basis = basis[:, np.newaxis]
    if basis.ndim != 2 or basis.shape[0] != size or basis.shape[1] not in (1, 2):
        raise ValueError(
            f"directions must have shape ({size},), ({size}, 1) or ({size}, 2), got "
            f"{np.shape(directions)}."
        )
    if not np.isfinite(basis).all():
        raise ValueError("the directions hold NaN or infinity.")
    mismatch = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()
    if orthonormal and mismatch > _ORTHONORMAL:
        raise ValueError(
            f"the directions must be orthonormal, and are off by {mismatch:.2g}: distances in the "
            "picture would not be distances of weights. numpy.linalg.qr makes them so."
        )
    return basis


def random_directions(size: int, count: int, seed: int) -> np.ndarray:
    """Return orthonormal directions, uniform on the sphere, (size, count)."""
    gaussian = np.random.default_rng(seed).standard_normal((count, size)).T
    return np.linalg.qr(gaussian)[0]


def normalized(operator: CurvatureOperator, basis: np.ndarray, by: str) -> np.ndarray:
    """Return directions in which each filter, or each variable, has the norm of its weights.

    A filter is what leads to one output: the entries of a variable with the same last index, as
    Keras and Flax lay out kernels. Biases and the scales of normalizations, which have one axis,
    stay where they are, as in the reference; by "layer" too.

    Args:
        operator: whose weights are meant.
        basis: directions as columns, (num_params, d).
        by: "filter" or "layer".

    Raises:
        ValueError: if no variable has two axes.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv 1712.09913, section 4.
    """
    parameters = operator.parameters
    if all(len(shape) < 2 for shape in parameters.shapes):
        raise ValueError(
            f'normalize="{by}" needs weights with two axes or more, and the operator is of '
            f"{', '.join(parameters.names[:3])} only: leave it out."
        )
    weights = parameters.unflatten(operator.derivatives.state.read())
    columns = []
    for direction in basis.T:
        parts = [
            _scaled(part, values, by)
            for part, values in zip(parameters.unflatten(direction), weights, strict=True)
        ]
        columns.append(parameters.flatten(parts))
    return np.stack(columns, axis=1)


def _scaled(direction: np.ndarray, weights: np.ndarray, by: str) -> np.ndarray:
    """Return the direction of one variable with the norms of its weights."""
    if weights.ndim < 2:
        return np.zeros_like(direction)
    axes = tuple(range(weights.ndim - 1)) if by == "filter" else None
    norms, own = (np.sqrt(np.sum(a**2, axis=axes, keepdims=True)) for a in (weights, direction))
    return direction * np.divide(norms, own, out=np.zeros_like(norms), where=own > 0)
