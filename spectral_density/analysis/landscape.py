"""Loss landscapes: the loss on a line or in a plane through the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.analysis.arguments import require_movable
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import integer, number

# Directions whose Gram matrix is off the identity by more than this are not orthonormal.
_ORTHONORMAL = 1e-4
# Where the curvature along a direction is less than this share of the slope, or both are zero, the
# quadratic model gives no distance.
_FLAT = 1e-12


@dataclass(frozen=True, repr=False, eq=False)
class LossLandscape:
    """The loss at w + sum_k t_k d_k on a grid of distances t, for unit directions d.

    `slopes` and `curvature` are its quadratic model, from the gradient and the matrix.
    """

    coordinates: tuple[np.ndarray, ...]  # distances t_k, (g,) for each direction
    losses: np.ndarray  # (g,) or (g, g), the first direction along the first axis
    loss: float  # at the weights themselves
    slopes: np.ndarray  # (d,), g'd_k
    curvature: np.ndarray  # (d, d), d_j'A d_k
    num_passes: int  # over the data

    def quadratic_model(self) -> np.ndarray:
        """Return loss + g's + 1/2 s'As for the step s to each point, in the shape of `losses`."""
        grids = np.meshgrid(*self.coordinates, indexing="ij")
        steps = np.stack(grids, axis=-1)
        bend = np.einsum("...j,jk,...k->...", steps, self.curvature, steps)
        return self.loss + steps @ self.slopes + bend / 2

    def __repr__(self) -> str:
        """Name the grid and the range of losses, never the arrays."""
        shape = " x ".join(str(size) for size in self.losses.shape)
        reach = max(float(np.abs(t).max()) for t in self.coordinates)
        return (
            f"LossLandscape({shape} points up to {reach:.3g} away, loss {self.loss:.4g} at the "
            f"weights, {np.nanmin(self.losses):.4g} to {np.nanmax(self.losses):.4g} around them)"
        )


def loss_landscape(
    operator: CurvatureOperator,
    directions: np.ndarray,
    /,
    *,
    radius: float | Sequence[float] | None = None,
    num_points: int | None = None,
    progress: bool | None = None,
) -> LossLandscape:
    """Compute the loss on a line, or in a plane, through the weights.

    The weights are moved and restored bit for bit, after an exception too. It takes one pass over
    the data for each point of the grid, and three more for the loss, the gradient and the curvature
    at the weights.

    Args:
        operator: whose loss, gradient and matrix are used.
        directions: orthonormal, shape (num_params,) or (num_params, 1) for a line,
            (num_params, 2) for a plane: `top_eigenpairs(operator, 2).vectors`.
        radius: largest distance on either side, one for all directions or one for each; None for
            that at which the quadratic model has risen by the loss itself, the larger of both.
        num_points: points along each direction, odd to have the weights among them; None for 41
            on a line and 25 in a plane.
        progress: show a bar; None for only in interactive runs.

    Returns:
        LossLandscape; draw it with `plotting.plot_loss_line` or `plot_loss_surface`. Losses that
        are not finite, far away, are kept as they are.

    Raises:
        TypeError: if the operator is no curvature operator.
        ValueError: if the directions have another shape or are not orthonormal, or an option is
            out of range.

    References:
        Goodfellow, Vinyals, Saxe (2015), arXiv 1412.6544 (lines).
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv 1712.09913 (planes).
    """
    require_movable(operator)
    basis = _orthonormal(directions, operator.parameters.size)
    count = basis.shape[1]
    if num_points is None:
        num_points = 41 if count == 1 else 25
    num_points = integer(num_points, "num_points", 2)
    if radius is not None:
        radius = _radii(radius, count)
    passes = operator.num_passes
    loss = operator.loss()
    gradient = operator.gradient()
    curvature = basis.T @ operator.matmat(basis)
    curvature = (curvature + curvature.T) / 2
    slopes = basis.T @ gradient
    if radius is None:
        radius = [max(map(_natural_radius, np.diag(curvature), slopes, [loss] * count))] * count
    coordinates = tuple(np.linspace(-r, r, num_points) for r in radius)
    losses = np.empty((num_points,) * count)
    with (
        operator.derivatives.state.moved() as move,
        progress_bar(losses.size, "Losses", progress) as bar,
    ):
        for index in product(range(num_points), repeat=count):
            move(basis @ [t[i] for t, i in zip(coordinates, index, strict=True)])
            losses[index] = operator.loss()
            bar.update(1)
    return LossLandscape(coordinates, losses, loss, slopes, curvature, operator.num_passes - passes)


def _orthonormal(directions: Any, size: int) -> np.ndarray:
    """Return directions as columns, shape (size, 1) or (size, 2), checked."""
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
    if mismatch > _ORTHONORMAL:
        raise ValueError(
            f"the directions must be orthonormal, and are off by {mismatch:.2g}: distances in the "
            "picture would not be distances of weights. numpy.linalg.qr makes them so."
        )
    return basis


def _radii(radius: Any, count: int) -> list[float]:
    radii = [radius] * count if np.ndim(radius) == 0 else list(radius)
    if len(radii) != count:
        raise ValueError(f"radius has {len(radii)} values for {count} directions.")
    return [number(r, "radius", above=0.0) for r in radii]


def _natural_radius(curvature: float, slope: float, loss: float) -> float:
    """Return t where |slope| t + |curvature| t^2 / 2 is |loss|; 1 where there is no such t."""
    rise, bend, steep = abs(loss), abs(curvature), abs(slope)
    if rise == 0 or max(bend, steep) <= _FLAT * rise:
        return 1.0
    # The root of the quadratic equation, in the form that loses no digits for small curvature.
    return 2 * rise / (steep + np.sqrt(steep**2 + 2 * bend * rise))
