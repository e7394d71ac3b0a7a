"""Simple eigenvalues of block Lanczos: nodes beside which a block has nothing left to show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spectral_density.linalg.quadrature import (
    CONVERGED,
    WEIGHT_FLOOR,
    Quadrature,
    only_node_near,
    ritz_residuals,
    spread_of,
)

# Probability that a multiple eigenvalue has next to nothing in the start vectors but for one
# direction, see `_negligible_mass`.
_OVERLOOKED = 1e-5
# Of 1/n: mass that is hardly more than that is no eigenvalue in any block.
_MOST_NEGLIGIBLE = 1e-4


def simple_block_nodes(
    quadratures: Sequence[Quadrature],
    residuals: np.ndarray,
    size: int,
    rounding: float = 0.0,
) -> np.ndarray:
    """Find the nodes that are converged, simple eigenvalues, whose weight is therefore 1/n.

    A node of a draw of b start vectors is taken for one where its residual is at most the
    resolution, a millionth of the range of the nodes or the rounding; where no other node that
    carries weight is within two resolutions; and where the block has shown what it has there: the
    other directions of its start vectors can have no more than a negligible `hidden_mass` at the
    node. So eigenvalues nearer to each other than the resolution count as a multiple one. It is
    taken for simple once all draws agree. Of a multiple eigenvalue every random block of two
    vectors or more has at least two copies, which converge one after the other: until the second
    is there, its mass is what the first one hides.

    Args:
        quadratures: of blocks of b > 1 vectors, one a draw.
        residuals: the last blocks below T, shape (num_draws, b, b).
        size: number n of rows of the operator.
        rounding: of a Ritz value, in the units of the nodes.

    Returns:
        Mask of shape (num_draws, m b), true at the nodes of every draw that are the same simple
        eigenvalue.
    """
    simple = np.zeros((len(quadratures), quadratures[0].order), dtype=bool)
    resolution = max(CONVERGED * spread_of(quadratures), rounding)
    negligible = _negligible_mass(len(residuals[0]), len(quadratures)) / size
    pairs = list(zip(quadratures, residuals, strict=True))
    converged = [ritz_residuals(*pair) <= resolution for pair in pairs]
    for candidate in np.flatnonzero(converged[0] & (quadratures[0].weights > WEIGHT_FLOOR)):
        node = quadratures[0].nodes[candidate]
        near = [only_node_near(quadrature, node, 2 * resolution) for quadrature in quadratures]
        matches = [match for match in near if match is not None]
        if len(matches) == len(quadratures) and all(
            settled[match] and hidden_mass(*pair, match, resolution) <= negligible
            for match, settled, pair in zip(matches, converged, pairs, strict=True)
        ):
            simple[np.arange(len(matches)), matches] = True
    return simple


def hidden_mass(
    quadrature: Quadrature, residual: np.ndarray, index: int, resolution: float = 0.0
) -> float:
    """Bound the mass that a block of start vectors has at a node beside that of the node itself.

    If x is an eigenvalue and c a combination of the start vectors, then their mass at x is at most
    ||c + (A - x) g||^2 for every g: the residual of solving (A - x) g = -c. Of a node that has
    converged, the best g in the Krylov space across its Ritz vector leaves, over all c together,
    the s s' of the node itself plus F G^-1 F', with

        F = sum_i s_i r_i' / (theta_i - x),    G = I + sum_i r_i r_i' / (theta_i - x)^2

    over the other nodes, s_i the first b components of the eigenvectors of T and r_i the residual
    vectors B_m times their last. Its trace is returned, the sum over b orthonormal combinations.

    Args:
        quadrature: of a block of b start vectors.
        residual: the last block B_m below T, shape (b, b).
        index: of the node x.
        resolution: nodes within twice of this from x are left out, as if they were no part of the
            Krylov space.

    Raises:
        ValueError: if the quadrature is that of one start vector.

    References:
        Paige, Saunders (1975), SIAM J. Numer. Anal. 12:617 (the residual);
        Simon (2008), "The Christoffel-Darboux kernel", theorem 2.1 (the bound for one vector).
    """
    if quadrature.first is None:
        raise ValueError("hidden_mass needs the quadrature of a block: of one vector it is zero.")
    gaps = quadrature.nodes - quadrature.nodes[index]
    others = np.abs(gaps) > 2 * resolution
    others[index] = False
    scaled = (residual @ quadrature.last)[:, others] / gaps[others]
    gram = np.eye(len(residual)) + scaled @ scaled.T
    cross = quadrature.first[:, others] @ scaled.T
    return float(np.sum(cross * np.linalg.solve(gram, cross.T).T))


def _negligible_mass(width: int, num_draws: int) -> float:
    """Return the mass, in units of 1/n, that a second eigenvector hardly ever falls short of.

    Its components in the b start vectors but for the direction of the first are b - 1 Gaussians in
    each draw: that all of their squares are below x has a probability of about x^((b - 1) d / 2).
    """
    exponent = (width - 1) * num_draws / 2
    return float(min(_OVERLOOKED ** (1 / exponent), _MOST_NEGLIGIBLE))
