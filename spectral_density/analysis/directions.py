"""Directions through the weights that a loss is looked at along: given or random."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import stream

NORMALIZATIONS = ("filter", "layer")

# Directions whose Gram matrix is off the identity by more than this are not orthonormal.
_ORTHONORMAL = 1e-4
# Directions whose cosine is nearer to one than this span no plane.
_PARALLEL = 1e-10
# Random streams: a key of this file's own.
_KEY = 7054


def given_directions(directions: Any, size: int, *, orthonormal: bool) -> np.ndarray:
    """Return directions as columns, shape (size, 1) or (size, 2), checked.

    Raises:
        ValueError: if they have another shape, are not finite, or are to be orthonormal and are
            not.
    """
    try:
        basis = np.asarray(directions, dtype=np.float64)
    except (TypeError, ValueError):
        basis = np.empty(())
    if basis.ndim == 1:
        basis = basis[:, np.newaxis]
    if basis.ndim != 2 or basis.shape[0] != size or basis.shape[1] not in (1, 2):
        raise ValueError(
            f"directions must have shape ({size},), ({size}, 1) or ({size}, 2), got "
            f"{np.shape(directions) or repr(directions)}."
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
    columns = [stream(seed, _KEY, column).standard_normal(size) for column in range(count)]
    return np.linalg.qr(np.stack(columns, axis=1))[0]


def normalized(operator: CurvatureOperator, basis: np.ndarray, by: str) -> np.ndarray:
    """Return directions in which each filter, or each variable, has the norm of its weights.

    A filter is what leads to one output of a layer, as the layers of Keras have them; of a layer
    that is not known, such as a leaf of a pytree, the entries with the same last index. Biases, and
    the scales of normalizations, stay where they are, as in the reference.

    Args:
        operator: whose weights are meant.
        basis: directions as columns, (num_params, d).
        by: "filter" or "layer".

    Raises:
        ValueError: if there is no filter, all weights or a direction are zero there, or two
            directions are the same.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv 1712.09913, section 4.
    """
    parameters, derivatives = operator.parameters, operator.derivatives
    axes = derivatives.inspection.filter_axes()
    if not any(axes):
        raise ValueError(
            f'normalize="{by}" needs filters, weights with two axes or more, and the operator is '
            f"of {', '.join(parameters.names[:3])} only: leave it out."
        )
    weights = parameters.unflatten(derivatives.state.read())
    columns = []
    for direction in basis.T:
        triples = zip(parameters.unflatten(direction), weights, axes, strict=True)
        columns.append(parameters.flatten([_scaled(*triple, by) for triple in triples]))
    scaled = np.stack(columns, axis=1)
    sizes = np.linalg.norm(scaled, axis=0)
    if not sizes.all():
        raise ValueError(
            f'with normalize="{by}" a direction is zero: it has no entry in a filter whose weights '
            "are not all zero. Choose other directions, or leave normalize out."
        )
    if scaled.shape[1] == 2 and abs(scaled[:, 0] @ scaled[:, 1]) > (1 - _PARALLEL) * sizes.prod():
        raise ValueError("the two directions are the same up to their lengths: there is no plane.")
    return scaled


def _scaled(
    direction: np.ndarray, weights: np.ndarray, axes: tuple[int, ...], by: str
) -> np.ndarray:
    """Return the direction of one variable with the norms of its weights."""
    if not axes:
        return np.zeros_like(direction)
    others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    over = others if by == "filter" else None
    norms, own = (np.sqrt(np.sum(a**2, axis=over, keepdims=True)) for a in (weights, direction))
    return direction * np.divide(norms, own, out=np.zeros_like(norms), where=own > 0)
