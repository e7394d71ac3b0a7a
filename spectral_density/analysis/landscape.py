"""Loss landscapes: the loss on a line or in a plane through the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.analysis.arguments import require_movable
from spectral_density.analysis.directions import (
    NORMALIZATIONS,
    given_directions,
    normalized,
    random_directions,
)
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import integer, number
from spectral_density.linalg.eigen import top_eigenpairs

# Where the curvature along a direction is less than this share of the slope, or both are zero, the
# quadratic model gives no distance.
_FLAT = 1e-12


@dataclass(frozen=True, repr=False, eq=False)
class LossLandscape:
    """The loss at w + sum_k t_k d_k on a grid of coordinates t.

    `slopes` and `curvature` are its quadratic model, from the gradient and the matrix. Coordinates
    are distances where `gram` is the identity: |sum_k t_k d_k|^2 = t' gram t.
    """

    coordinates: tuple[np.ndarray, ...]  # t_k, (g,) for each direction
    losses: np.ndarray  # (g,) or (g, g), the first direction along the first axis
    loss: float  # at the weights themselves
    slopes: np.ndarray  # (d,), g'd_k
    curvature: np.ndarray  # (d, d), d_j'A d_k
    num_passes: int  # over the data
    gram: np.ndarray  # (d, d), d_j'd_k
    directions: str  # "top", "random" or "given"
    normalize: str | None = None  # "filter" or "layer", whose norms are the unit of t

    def quadratic_model(self) -> np.ndarray:
        """Return loss + g's + 1/2 s'As for the step s to each point, in the shape of `losses`."""
        grids = np.meshgrid(*self.coordinates, indexing="ij")
        steps = np.stack(grids, axis=-1)
        bend = np.einsum("...j,jk,...k->...", steps, self.curvature, steps)
        return self.loss + steps @ self.slopes + bend / 2

    def __repr__(self) -> str:
        """Name the grid and the range of losses, never the arrays."""
        shape = " x ".join(str(size) for size in self.losses.shape)
        lengths = np.sqrt(np.diag(self.gram))
        reach = max(np.abs(t).max() * d for t, d in zip(self.coordinates, lengths, strict=True))
        return (
            f"LossLandscape({shape} points up to {reach:.3g} away, loss {self.loss:.4g} at the "
            f"weights, {np.nanmin(self.losses):.4g} to {np.nanmax(self.losses):.4g} around them)"
        )


def loss_landscape(
    operator: CurvatureOperator,
    directions: np.ndarray | str = "top",
    /,
    *,
    num_directions: int | None = None,
    normalize: str | None = None,
    seed: int = 0,
    radius: float | Sequence[float] | None = None,
    num_points: int | None = None,
    progress: bool | None = None,
) -> LossLandscape:
    """Compute the loss on a line, or in a plane, through the weights.

    The weights are moved and restored bit for bit, after an exception too. It takes one pass over
    the data for each point of the grid, three more for the loss, the gradient and the curvature at
    the weights, and what `top_eigenpairs` takes for the top directions.

    Args:
        operator: whose loss, gradient and matrix are used.
        directions: "top" for the eigenvectors of the largest eigenvalues in magnitude; "random"
            for directions uniform on the sphere; or an array of shape (num_params,) or
            (num_params, 1) for a line, (num_params, 2) for a plane, orthonormal unless they are
            normalized.
        num_directions: of "top" and "random": 1 for a line, 2 for a plane; None for a plane, or a
            line where there is one parameter only.
        normalize: "filter" to give each filter of a direction the norm of that filter in the
            weights, "layer" for each variable as a whole; biases, and the scales of normalizations,
            do not move then. Such directions are not orthonormal, and two networks can be
            compared by them whatever the scale of their weights. None for unit directions.
        seed: of random directions, and of the start vectors for the top ones.
        radius: largest coordinate on either side, one for all directions or one for each; None for
            that at which the quadratic model has risen by the loss itself, the larger of both, and
            for 1 where directions are normalized: every filter has moved by its own norm there.
        num_points: points along each direction, odd to have the weights among them; None for 41
            on a line and 25 in a plane.
        progress: show a bar; None for only in interactive runs.

    Returns:
        LossLandscape; draw it with `plotting.plot_loss_line` or `plot_loss_surface`. Losses that
        are not finite, far away, are kept as they are.

    Raises:
        TypeError: if the operator is no curvature operator.
        ValueError: if the directions have another shape or are not orthonormal, or an option is
            unknown or out of range.

    References:
        Goodfellow, Vinyals, Saxe (2015), arXiv 1412.6544 (lines).
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv 1712.09913 (random planes, filters).
    """
    require_movable(operator)
    source = _source(directions)
    if normalize is not None and normalize not in NORMALIZATIONS:
        raise ValueError(f'normalize must be "filter", "layer" or None, got {normalize!r}.')
    seed, size = integer(seed, "seed", 0), operator.parameters.size
    if source == "given":
        basis = given_directions(directions, size, orthonormal=normalize is None)
        count = basis.shape[1]
        if num_directions not in (None, count):
            raise ValueError(
                f"num_directions={num_directions!r} is for top and random directions, and the "
                f"array has {count}: leave it out."
            )
    else:
        most = min(2, size)
        count = integer(
            most if num_directions is None else num_directions, "num_directions", 1, most
        )
    if num_points is None:
        num_points = 41 if count == 1 else 25
    num_points = integer(num_points, "num_points", 2)
    if radius is not None:
        radius = _radii(radius, count)
    elif normalize is not None:
        radius = [1.0] * count
    passes = operator.num_passes
    if source == "top":
        basis = top_eigenpairs(operator, count, seed=seed, progress=progress).vectors
    elif source == "random":
        basis = random_directions(size, count, seed)
    if normalize is not None:
        basis = normalized(operator, basis, normalize)
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
    return LossLandscape(
        coordinates,
        losses,
        loss,
        slopes,
        curvature,
        operator.num_passes - passes,
        gram=basis.T @ basis,
        directions=source,
        normalize=normalize,
    )


def _source(directions: Any) -> str:
    if not isinstance(directions, str):
        return "given"
    if directions not in ("top", "random"):
        raise ValueError(f'directions must be "top", "random" or an array, got {directions!r}.')
    return directions


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
