"""Gauss quadrature rules of (block) tridiagonal matrices, their bounds, and simple eigenvalues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, eigh_tridiagonal

from spectral_density.linalg.vectors import HostRows, Rows

WEIGHT_FLOOR = 1e-12
"""Nodes of less weight carry none: what follows a breakdown, never reported as eigenvalues."""

CONVERGED = 1e-6
"""Residual over range below which a node counts as a converged eigenvalue."""

# Difference of a weight and its overlap, in units of 1/n and of the weight, that is rounding.
_SAME_WEIGHT = 2e-5


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss quadrature of one draw: v' f(A) v ~ sum_j weights[j] f(nodes[j]).

    Of a block of b start vectors it is the mean over these of v' f(A) v, with m times b nodes.
    """

    nodes: np.ndarray = field(repr=False)  # (m,), ascending, the Ritz values
    weights: np.ndarray = field(repr=False)  # (m,), not negative, sum 1
    last: np.ndarray = field(repr=False)  # (m,), |last components| of the eigenvectors of T;
    # of a block (b, m), the last b components with their signs
    vectors: np.ndarray | None = field(default=None, repr=False)  # (m, m), those, as columns
    first: np.ndarray | None = field(default=None, repr=False)  # (b, m), first b of a block

    @property
    def order(self) -> int:
        """Number of nodes m."""
        return len(self.nodes)

    @property
    def vector_weights(self) -> np.ndarray:
        """Weights of each start vector, shape (b, m); `weights` is their mean."""
        return self.weights[np.newaxis] if self.first is None else self.first**2


class QuadratureBounds(NamedTuple):
    """Bounds of the quadrature error of one start vector, for any matrix."""

    ks: float  # largest difference of the cumulative distributions
    wasserstein: float  # Wasserstein-1 distance, in the units of the nodes


def gauss_quadrature(alpha: np.ndarray, beta: np.ndarray, /) -> Quadrature:
    """Turn a Lanczos tridiagonal matrix, or a block tridiagonal one, into its quadrature rule.

    Args:
        alpha: diagonal, shape (m,); of blocks those on the diagonal, (m, b, b).
        beta: off-diagonal, shape (m - 1,); of blocks those below the diagonal, (m - 1, b, b).

    Returns:
        Quadrature with ascending nodes, the eigenvalues of T, and weights, the squared first
        components of its eigenvectors, of blocks the mean of the first b. It is exact for
        polynomials up to degree 2 m - 1.

    Raises:
        ValueError: if the shapes do not fit or an entry is not finite.

    References:
        Golub, Welsch (1969), Math. Comp. 23:221.
        Golub, Meurant (2010), Matrices, Moments and Quadrature, chapter 4 (blocks).
    """
    alpha = np.asarray(alpha, dtype=np.float64)
    beta = np.asarray(beta, dtype=np.float64)
    if alpha.ndim == 3:
        return _block_quadrature(alpha, beta)
    if alpha.ndim != 1 or len(alpha) == 0 or beta.shape != (len(alpha) - 1,):
        raise ValueError(
            f"alpha must have shape (m,) and beta (m - 1,), got {alpha.shape} and {beta.shape}."
        )
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise ValueError("alpha and beta must be finite.")
    # A power of two: dividing by it is exact, and no intermediate result under- or overflows.
    largest = max(np.abs(alpha).max(), np.abs(beta).max(initial=0.0))
    scale = 2.0 ** np.floor(np.log2(largest)) if largest else 1.0
    # The QR iteration ("stev"): eigenvectors orthonormal to rounding also where nodes coincide,
    # which neither inverse iteration nor relatively robust representations promise.
    nodes, vectors = eigh_tridiagonal(alpha / scale, beta / scale, lapack_driver="stev")
    return Quadrature(scale * nodes, vectors[0] ** 2, np.abs(vectors[-1]), vectors)


def block_tridiagonal(alpha: np.ndarray, beta: np.ndarray, /) -> np.ndarray:
    """Return a block tridiagonal matrix as a dense array, shape (m b, m b).

    Args:
        alpha: blocks on the diagonal, shape (m, b, b).
        beta: blocks below it, shape (m - 1, b, b); above it are their transposes.
    """
    order, width = alpha.shape[:2]
    blocks = np.zeros((order, width, order, width))
    steps = np.arange(order)
    blocks[steps, :, steps, :] = alpha
    blocks[steps[1:], :, steps[:-1], :] = beta
    blocks[steps[:-1], :, steps[1:], :] = np.swapaxes(beta, 1, 2)
    return blocks.reshape(order * width, order * width)


def _block_quadrature(alpha: np.ndarray, beta: np.ndarray) -> Quadrature:
    order, width = alpha.shape[:2]
    shapes = (order, width, width), (order - 1, width, width)
    if not order or not width or (alpha.shape, beta.shape) != shapes:
        raise ValueError(
            f"blocks alpha must have shape (m, b, b) and beta (m - 1, b, b), got {alpha.shape} and "
            f"{beta.shape}."
        )
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise ValueError("alpha and beta must be finite.")
    # The QR iteration ("ev"), as for one vector. Divide and conquer, which NumPy has, did not
    # converge on one of a million such matrices, and of its negative it returned what is no
    # decomposition.
    matrix = block_tridiagonal(alpha, beta)
    nodes, vectors = eigh(matrix, driver="ev", overwrite_a=True, check_finite=False)
    first, last = vectors[:width].copy(), vectors[-width:].copy()
    return Quadrature(nodes, np.mean(first**2, axis=0), last, vectors, first)


def gauss_radau_quadrature(
    alpha: np.ndarray, beta: np.ndarray, residual_norm: float, gauss: Quadrature, node: float
) -> Quadrature:
    """Return the Gauss-Radau rule, which has one node more, a prescribed one below all others.

    Args:
        alpha: diagonal, shape (m,).
        beta: off-diagonal, shape (m - 1,).
        residual_norm: the beta after the last step.
        gauss: `gauss_quadrature(alpha, beta)`, which is exact where that is zero.
        node: below all nodes of the Gauss rule.

    References:
        Golub (1973), SIAM Review 15:318, section 7.
    """
    if not residual_norm:
        return gauss
    last = node + residual_norm**2 * float(np.sum(gauss.last**2 / (gauss.nodes - node)))
    return gauss_quadrature(np.append(alpha, last), np.append(beta, residual_norm))


def ritz_residuals(quadrature: Quadrature, /, residual_norm: float | np.ndarray) -> np.ndarray:
    """Return ||A y - theta y|| for each node: some eigenvalue of A is at most this far from it.

    Args:
        quadrature: of one draw.
        residual_norm: the beta after the last step of that draw; of blocks (b, b).
    """
    if quadrature.first is not None:
        return np.linalg.norm(residual_norm @ quadrature.last, axis=0)
    return residual_norm * quadrature.last


def quadrature_bounds(
    quadrature: Quadrature, /, interval: tuple[float, float] | None = None
) -> QuadratureBounds:
    """Bound the distance between a quadrature and the spectral measure of its start vector.

    The error of the quadrature alone; that of having few start vectors comes on top. At each point
    the masses below it differ by no more than the weight of the node next to it, on either side; of
    a block of b vectors by that of the b nodes next to it.

    Args:
        quadrature: of one draw.
        interval: (lower, upper) bounds of the spectrum; the extreme nodes if not given.

    Returns:
        QuadratureBounds `(ks, wasserstein)`.

    Raises:
        ValueError: if a node that carries weight is outside the interval.

    References:
        Chen (2022), PhD thesis, University of Washington, after Karlin, Shapley (1953).
    """
    nodes, weights = quadrature.nodes, quadrature.weights
    lower, upper = (nodes[0], nodes[-1]) if interval is None else interval
    carrying = nodes[weights > WEIGHT_FLOOR]
    slack = 1e-12 * np.abs(nodes).max()
    if not (lower - slack <= carrying[0] and carrying[-1] <= upper + slack):
        raise ValueError(
            f"The interval ({lower}, {upper}) must hold the nodes, which are between "
            f"{carrying[0]} and {carrying[-1]}."
        )
    ends = np.clip(np.concatenate([[lower], nodes, [upper]]), lower, upper)
    block = 1 if quadrature.first is None else len(quadrature.first)
    beside = np.convolve(np.pad(weights, block), np.ones(block), "valid")
    worst = np.maximum(beside[: len(weights) + 1], beside[block:])
    return QuadratureBounds(float(worst.max()), float(worst @ np.diff(ends)))


def ritz_overlaps(
    basis: np.ndarray | Rows,
    quadrature: Quadrature,
    candidates: np.ndarray,
    start_vectors: Iterable[np.ndarray],
) -> np.ndarray:
    """Return squared inner products of the Ritz vectors of one draw and the start vectors of all.

    No Ritz vector is formed: <V s, v> is s' (V' v), one pass over the basis for a start vector.

    Args:
        basis: Lanczos vectors of one draw as rows, shape (m, n), or where they were computed.
        quadrature: of the same draw.
        candidates: the nodes that are asked for, k indices or a mask of shape (m,).
        start_vectors: the unit start vectors of all draws in turn, each of shape (n,).

    Returns:
        Overlaps, shape (num_draws, k).

    Raises:
        ValueError: if the quadrature has no vectors, or not the order of the basis.
    """
    kept = basis if isinstance(basis, Rows) else HostRows(basis)
    # A run may have ended before it used all of the room.
    fewest = 0 if isinstance(basis, Rows) else kept.capacity
    order = -1 if quadrature.vectors is None else len(quadrature.vectors)
    if quadrature.vectors is None or not fewest <= order <= kept.capacity:
        raise ValueError(
            "ritz_overlaps needs the quadrature of the basis's own draw with its vectors: use "
            "gauss_quadrature(alpha, beta)."
        )
    ritz = quadrature.vectors[:, candidates]
    starts = (kept.vectors.to_engine(np.asarray(vector)) for vector in start_vectors)
    rows = [(kept.project(start, order) @ ritz) ** 2 for start in starts]
    return np.array(rows).reshape(len(rows), ritz.shape[1])


def simple_candidates(quadrature: Quadrature, /, residual_norm: float) -> np.ndarray:
    """Return the indices of the nodes of one draw that are converged and carry weight."""
    converged = ritz_residuals(quadrature, residual_norm) <= CONVERGED * spread_of([quadrature])
    return np.flatnonzero(converged & (quadrature.weights > WEIGHT_FLOOR))


def simple_nodes(
    quadratures: Sequence[Quadrature],
    residual_norms: np.ndarray,
    overlaps: np.ndarray,
    candidates: np.ndarray,
    size: int,
) -> np.ndarray:
    """Find the nodes that are converged, simple eigenvalues, whose weight is therefore 1/n.

    Let P project on the eigenspace of a node. Its weight in draw d is ||P v_d||^2, and its Ritz
    vector in the first draw is y = P v_0 / ||P v_0||. If the space is a line, <y, v_d>^2 is the
    weight of every draw; if it is larger, the weights of the others exceed it by what v_d has in
    the space but across y. Equality in all draws therefore means simple; eigenvalues too close to
    be distinguished fail the test as a multiple one does. One draw is not enough.

    Args:
        quadratures: one a draw.
        residual_norms: the beta after the last step, shape (num_draws,).
        overlaps: `ritz_overlaps` of the first draw, shape (num_draws, k).
        candidates: the nodes of the first draw they are of, k indices or a mask of shape (m,).
        size: number n of rows of the operator.

    Returns:
        Mask of shape (num_draws, m), true at the nodes of every draw that are the same simple
        eigenvalue.
    """
    simple = np.zeros((len(quadratures), quadratures[0].order), dtype=bool)
    if len(quadratures) < 2:
        return simple
    candidates = np.asarray(candidates)
    candidates = np.flatnonzero(candidates) if candidates.dtype == bool else candidates
    spread = spread_of(quadratures)
    residuals = [ritz_residuals(*pair) for pair in zip(quadratures, residual_norms, strict=True)]
    rows = range(len(quadratures))
    for column, candidate in enumerate(candidates):
        node = quadratures[0].nodes[candidate]
        if residuals[0][candidate] > CONVERGED * spread:
            continue
        matches = [only_node_near(q, node, 2 * CONVERGED * spread) for q in quadratures]
        if None in matches:
            continue
        columns = np.array(matches)
        pairs = list(zip(rows, columns, strict=True))
        residual = max(residuals[d][j] for d, j in pairs)
        weights = np.array([quadratures[d].weights[j] for d, j in pairs])
        rounding = _SAME_WEIGHT * (1 / size + weights)
        same = np.abs(weights - overlaps[:, column]) <= rounding
        if residual <= CONVERGED * spread and same.all():
            simple[rows, columns] = True
    return simple


def deflated_weights(weights: np.ndarray, simple: np.ndarray, size: int) -> np.ndarray:
    """Set the weights of simple eigenvalues to 1/n, and rescale the others so that all sum to 1.

    Args:
        weights: shape (num_draws, m) or (m,).
        simple: mask of the same shape, see `simple_nodes`.
        size: number n of rows of the operator.

    Returns:
        New weights of the same shape. Without a simple node they are as they were.
    """
    weights = np.asarray(weights, dtype=np.float64)
    count = simple.sum(axis=-1, keepdims=True)
    others = np.where(simple, 0.0, weights)
    total = others.sum(axis=-1, keepdims=True)
    left = np.clip(1.0 - count / size, 0.0, None)
    # Where the simple nodes are all there is, they share the whole.
    alone = total <= WEIGHT_FLOOR
    factor = np.divide(left, total, out=np.zeros_like(total), where=~alone)
    known = np.where(alone, 1.0 / np.maximum(count, 1), 1.0 / size)
    return np.where(count == 0, weights, np.where(simple, known, factor * others))


def spread_of(quadratures: Sequence[Quadrature]) -> float:
    """Return the distance between the extreme nodes that carry weight in any draw."""
    carrying = [q.nodes[q.weights > WEIGHT_FLOOR] for q in quadratures]
    return float(max(c[-1] for c in carrying) - min(c[0] for c in carrying))


def only_node_near(quadrature: Quadrature, value: float, distance: float) -> int | None:
    """Return the one node that carries weight within the distance, None if there is not just one.

    Two are a multiple eigenvalue that rounding has split, or two too close to distinguish.
    """
    near = np.abs(quadrature.nodes - value) <= distance
    matches = np.flatnonzero(near & (quadrature.weights > WEIGHT_FLOOR))
    return int(matches[0]) if len(matches) == 1 else None
