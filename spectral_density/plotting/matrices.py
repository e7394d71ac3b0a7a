"""Magnitudes of the entries of a matrix, with the boundaries of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from scipy.sparse import issparse

from spectral_density.plotting.axes import COLORMAP, color_bar, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES = 6
_CELLS = 600  # along each side, more than a printed column resolves
# Layers that are a smaller fraction of the side are not labelled: labels would overlap.
_NAMED_SHARE = 0.04


def plot_matrix(
    matrix: Any,
    ax: Axes | None = None,
    *,
    layers: Mapping[str, Any] | None = None,
    decades: float = _DECADES,
    colormap: Any = COLORMAP,
) -> Axes:
    """Draw the magnitudes |A| of a dense matrix on a logarithmic colour scale.

    A matrix larger than the picture is drawn in cells of several entries, each of their root mean
    square.

    Args:
        matrix: array of shape (n, n), such as `operator.to_dense()`.
        ax: axes to draw on; None for new ones. The colour bar is set beside them.
        layers: indices of each layer by name, as `curvature.submatrix.layer_indices` returns them;
            rows and columns are drawn in their order, with lines between layers.
        decades: number shown below the largest magnitude; smaller entries have the darkest colour.
        colormap: colours of the magnitudes.

    Raises:
        ValueError: if the matrix is not square, is zero or not finite, or `layers` do not have
            each index once.
    """
    matrix = np.abs(np.asarray(matrix.toarray() if issparse(matrix) else matrix, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"the matrix must be square and not empty, got shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise ValueError("the matrix holds NaN or infinity.")
    if not matrix.any():
        raise ValueError("the matrix is zero: there are no magnitudes to draw.")
    n = len(matrix)
    ends = np.array([n])
    if layers is not None:
        order = _order(layers, n)
        ends = np.cumsum([len(indices) for indices in layers.values()])
        matrix = matrix[np.ix_(order, order)]
    edges = np.unique(np.linspace(0, n, min(n, _CELLS) + 1).astype(int))
    cells = _root_mean_square(matrix, edges)
    ax = new_axes(ax, square=True)
    top = cells.max()
    image = ax.imshow(
        np.maximum(cells, top * 10.0**-decades),
        norm=LogNorm(top * 10.0**-decades, top),
        cmap=colormap,
        extent=(0, n, n, 0),
        interpolation="nearest",
    )
    color_bar(ax, image, "|entry|")
    if layers is None:
        ax.set_xlabel("parameter")
        ax.set_ylabel("parameter")
        return ax
    for end in ends[:-1]:
        for line in (ax.axhline, ax.axvline):
            line(end, color="white", linewidth=0.8)
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    named = sizes >= _NAMED_SHARE * n
    middles = ((starts + ends) / 2)[named]
    names = [name for name, shown in zip(layers, named, strict=True) if shown]
    # On the left only: rows and columns are the same, and labels below would overlap.
    ax.set_yticks(middles, names)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.set_xlabel(f"{n:,} parameters")
    return ax


def _order(layers: Mapping[str, Any], n: int) -> np.ndarray:
    order = np.concatenate([np.asarray(indices, dtype=np.intp) for indices in layers.values()])
    if len(order) != n or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(
            f"layers must have each of the {n:,} indices once; there are {len(order):,} indices, "
            f"{len(np.unique(order)):,} of them different."
        )
    return order


def _root_mean_square(matrix: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the root mean square of each cell between edges."""
    if len(edges) == len(matrix) + 1:
        return matrix
    largest = matrix.max()  # so that no square underflows
    rows = np.add.reduceat((matrix / largest) ** 2, edges[:-1], axis=0)
    sums = np.add.reduceat(rows, edges[:-1], axis=1)
    sizes = np.diff(edges)
    return largest * np.sqrt(sums / np.outer(sizes, sizes))
