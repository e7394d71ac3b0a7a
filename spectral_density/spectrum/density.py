"""Tridiagonal Lanczos matrices to Gaussian-smoothed eigenvalue densities on a grid.

These functions keep the meaning that published figures rest on: a kernel variance in proportion to
the spectral range, a grid between the average extreme nodes, and a density scaled to sum to one.
`Spectrum.density` follows scale and shift of the matrix and reports the mass it loses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

_DEFAULT_SIGMA_SQUARED = 1e-5
# exp(-x^2 / 2) is exactly 0 in float64 from x = 38.6 on.
_KERNEL_REACH = 39.0
# Entries of the kernel block in work at one time: 512 KiB, which stays in the cache.
_BLOCK_SIZE = 1 << 16
# Rounding of a float32 projection V'AV stays below this; a triangle left empty does not.
_ASYMMETRY_TOLERANCE = 1e-3


def tridiag_to_eigv(tridiag_list: Iterable[ArrayLike]) -> tuple[FloatArray, FloatArray]:
    """Turn tridiagonal matrices into the nodes and weights of their Gauss quadratures.

    Args:
        tridiag_list: one symmetric matrix (order, order) for each draw: arrays or tensors in a
            list, or one array (num_draws, order, order). Orders may differ.

    Returns:
        `(eig_vals, all_weights)`, both (num_draws, largest order), float64. Row i holds the
        eigenvalues of matrix i in ascending order, and the squared first components of its
        eigenvectors, which sum to 1. A draw of smaller order is filled up with its last node at
        weight 0.

    Raises:
        ValueError: if there is no matrix, or one is empty, not square, not real, not finite or not
            symmetric.

    References:
        Golub and Welsch (1969), Math. Comp. 23:221.
        Ghorbani, Krishnan and Xiao (2019), arXiv 1901.10159.
    """
    matrices = [_as_tridiagonal(matrix, draw) for draw, matrix in enumerate(tridiag_list)]
    if not matrices:
        raise ValueError("tridiag_list is empty: it needs one tridiagonal matrix for each draw.")

    order = max(len(matrix) for matrix in matrices)
    eig_vals = np.empty((len(matrices), order))
    all_weights = np.zeros((len(matrices), order))
    for draw, matrix in enumerate(matrices):
        nodes, vectors = np.linalg.eigh(matrix)
        eig_vals[draw, : len(nodes)] = nodes
        eig_vals[draw, len(nodes) :] = nodes[-1]
        all_weights[draw, : len(nodes)] = vectors[0] ** 2
    return eig_vals, all_weights


def eigv_to_density(  # noqa: PLR0917 (the order of the original)
    eig_vals: ArrayLike,
    all_weights: ArrayLike | None = None,
    grids: ArrayLike | None = None,
    grid_len: int = 10000,
    sigma_squared: float | None = None,
    grid_expand: float = 1e-2,
) -> tuple[FloatArray, FloatArray]:
    """Smooth weighted nodes with a Gaussian kernel and average over the draws.

    The kernel variance is `sigma_squared * max(1, upper - lower)`. Here `lower` and `upper` are
    the means over the draws of the smallest and of the largest node, moved outward by
    `grid_expand`.

    Args:
        eig_vals: nodes, shape (num_draws, order), in any order.
        all_weights: their weights, same shape, not negative; `None` gives each node 1 / order.
        grids: increasing points (grid_len,) at which to evaluate, evenly spaced: the scaling takes
            the first spacing for all. `None` takes `grid_len` points from `lower` to `upper`.
        grid_len: number of points of the default grid; without effect when `grids` is given.
        sigma_squared: factor of the kernel variance, `None` for 1e-5.
        grid_expand: how far the range goes beyond the average extreme nodes on each side, in the
            units of the nodes.

    Returns:
        `(density, grids)`, both (grid_len,), float64, with
        `sum(density) * (grids[1] - grids[0]) == 1`.

    Raises:
        ValueError: if an argument has the wrong shape, is not finite or is out of bounds, if the
            grid has fewer than two points or does not increase, or if no kernel reaches it.

    References:
        Ghorbani, Krishnan and Xiao (2019), arXiv 1901.10159.
    """
    nodes = _as_nodes(eig_vals)
    weights = _as_weights(all_weights, nodes)
    if sigma_squared is None:
        sigma_squared = _DEFAULT_SIGMA_SQUARED
    if not 0 < sigma_squared < np.inf:
        raise ValueError(f"sigma_squared must be positive and finite, got {sigma_squared}.")
    if not np.isfinite(grid_expand):
        raise ValueError(f"grid_expand must be finite, got {grid_expand}.")

    lower = float(np.mean(nodes.min(axis=1))) - grid_expand
    upper = float(np.mean(nodes.max(axis=1))) + grid_expand
    variance = float(sigma_squared * max(1.0, upper - lower))
    if not 0 < variance < np.inf:
        raise ValueError(
            f"The kernel variance sigma_squared * max(1, range) is {variance}: "
            f"sigma_squared={sigma_squared} over the range [{lower:g}, {upper:g}] leaves float64. "
            "Rescale the nodes, or change sigma_squared or grid_expand."
        )
    points = _default_grid(lower, upper, grid_len) if grids is None else _as_grid(grids)

    density = _kernel_sums(points, nodes.ravel(), weights.ravel(), variance)
    total = density.sum() * (points[1] - points[0])
    if not total > 0:
        raise ValueError(
            f"No kernel has mass on the grid: {len(points)} points in "
            f"[{points[0]:g}, {points[-1]:g}], nodes in [{nodes.min():g}, {nodes.max():g}], "
            f"standard deviation {np.sqrt(variance):g}. Move or refine the grid, or raise "
            "sigma_squared."
        )
    return density / total, points


def tridiag_to_density(
    tridiag_list: Iterable[ArrayLike],
    sigma_squared: float | None = _DEFAULT_SIGMA_SQUARED,
    grid_len: int = 10000,
) -> tuple[FloatArray, FloatArray]:
    """Estimate the eigenvalue density of a matrix from its Lanczos tridiagonal matrices.

    Args:
        tridiag_list: one symmetric matrix (order, order) for each draw; see `tridiag_to_eigv`.
        sigma_squared: factor of the kernel variance; see `eigv_to_density`.
        grid_len: number of grid points, 2 or more.

    Returns:
        `(density, grids)`, both (grid_len,), float64, with
        `sum(density) * (grids[1] - grids[0]) == 1`.

    Raises:
        ValueError: as `tridiag_to_eigv` and `eigv_to_density` do.

    References:
        Ghorbani, Krishnan and Xiao (2019), arXiv 1901.10159.
    """
    eig_vals, all_weights = tridiag_to_eigv(tridiag_list)
    return eigv_to_density(eig_vals, all_weights, grid_len=grid_len, sigma_squared=sigma_squared)


def _kernel_sums(
    points: FloatArray, nodes: FloatArray, weights: FloatArray, variance: float
) -> FloatArray:
    """Sum `weights * exp(-(point - node)^2 / (2 variance))` over the nodes, at every point.

    The kernel's constant factor is left out, as is the number of draws: the scaling removes both.
    """
    order = np.argsort(nodes)
    nodes, weights = nodes[order], weights[order]
    reach = _KERNEL_REACH * np.sqrt(variance)
    first = np.searchsorted(nodes, points - reach, side="left")
    last = np.searchsorted(nodes, points + reach, side="right")

    sums = np.zeros(len(points))
    step = max(1, min(_BLOCK_SIZE // len(nodes), len(points)))
    # Far nodes overflow to an exponent of -inf, which is the 0 they contribute.
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, len(points), step):
            stop = min(start + step, len(points))
            near = slice(first[start], last[stop - 1])
            block = points[start:stop, None] - nodes[near]
            np.square(block, out=block)
            block /= -2.0 * variance
            np.exp(block, out=block)
            sums[start:stop] = block @ weights[near]
    return sums


def _as_real(values: Any, name: str) -> FloatArray:
    """Convert to a finite float64 array, or raise a `ValueError` that begins with `name`."""
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array):
            raise ValueError("its entries are complex")
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of real numbers: {error}.") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite entries.")
    return array


def _as_tridiagonal(values: ArrayLike, draw: int) -> FloatArray:
    name = f"tridiag_list[{draw}]"
    matrix = _as_real(values, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"{name} must be a square matrix (order, order) with order >= 1, "
            f"got shape {matrix.shape}. A single matrix goes into a list: [T]."
        )
    if np.abs(matrix - matrix.T).max() > _ASYMMETRY_TOLERANCE * np.abs(matrix).max():
        raise ValueError(f"{name} is not symmetric: fill both triangles.")
    return matrix


def _as_nodes(eig_vals: ArrayLike) -> FloatArray:
    nodes = _as_real(eig_vals, "eig_vals")
    if nodes.ndim != 2 or not nodes.size:
        raise ValueError(
            f"eig_vals must have shape (num_draws, order), both at least 1, got {nodes.shape}. "
            "The eigenvalues of a single draw go in as eig_vals[None, :]."
        )
    return nodes


def _as_weights(all_weights: ArrayLike | None, nodes: FloatArray) -> FloatArray:
    if all_weights is None:
        return np.full(nodes.shape, 1.0 / nodes.shape[1])
    weights = _as_real(all_weights, "all_weights")
    if weights.shape != nodes.shape:
        raise ValueError(
            f"all_weights must have the shape of eig_vals, {nodes.shape}, got {weights.shape}."
        )
    if (weights < 0).any() or not weights.any():
        raise ValueError("all_weights must not be negative, and one at least must be positive.")
    return weights


def _as_grid(grids: ArrayLike) -> FloatArray:
    points = _as_real(grids, "grids")
    if points.ndim != 1 or len(points) < 2:
        raise ValueError(f"grids must be 1-D with at least 2 points, got shape {points.shape}.")
    if (np.diff(points) <= 0).any():
        raise ValueError("grids must be strictly increasing.")
    return points


def _default_grid(lower: float, upper: float, grid_len: int) -> FloatArray:
    if grid_len is None or grid_len < 2:
        raise ValueError(f"grid_len must be at least 2, got {grid_len}.")
    points = np.linspace(lower, upper, num=grid_len)
    if not (np.diff(points) > 0).all():
        raise ValueError(
            f"{grid_len} points from {lower!r} to {upper!r} do not increase in float64. "
            "Pass grids=, a larger grid_expand or a smaller grid_len."
        )
    return points
