"""Algorithms on any symmetric operator `A @ v`: NumPy and SciPy only, never TensorFlow."""

from spectral_density.linalg.arguments import product_precision
from spectral_density.linalg.lanczos import (
    LanczosStep,
    Tridiagonalization,
    default_draws_at_once,
    lanczos,
    start_vector,
)
from spectral_density.linalg.quadrature import (
    WEIGHT_FLOOR,
    Quadrature,
    QuadratureBounds,
    deflated_weights,
    gauss_quadrature,
    quadrature_bounds,
    ritz_overlaps,
    ritz_residuals,
    simple_candidates,
    simple_nodes,
)

__all__ = [
    "WEIGHT_FLOOR",
    "LanczosStep",
    "Quadrature",
    "QuadratureBounds",
    "Tridiagonalization",
    "default_draws_at_once",
    "deflated_weights",
    "gauss_quadrature",
    "lanczos",
    "product_precision",
    "quadrature_bounds",
    "ritz_overlaps",
    "ritz_residuals",
    "simple_candidates",
    "simple_nodes",
    "start_vector",
]
