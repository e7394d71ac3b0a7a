"""Numerical linear algebra from products `A @ v` alone: NumPy and SciPy, no framework."""

from spectral_density._former_modules import register
from spectral_density.linalg.arguments import product_precision
from spectral_density.linalg.eigen import ConvergenceWarning, Eigenpairs, top_eigenpairs
from spectral_density.linalg.estimates import DiagonalEstimate, Estimate, QuadratureEstimate
from spectral_density.linalg.functions import effective_dimension, log_determinant
from spectral_density.linalg.lockstep import default_draws_at_once, lockstep_groups
from spectral_density.linalg.nystrom_approximation import Nystrom, nystrom
from spectral_density.linalg.power import PowerIteration, power_iteration
from spectral_density.linalg.preconditioners import (
    LowRankPreconditioner,
    NystromPreconditioner,
    low_rank_preconditioner,
    nystrom_preconditioner,
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
from spectral_density.linalg.randomized import (
    RandomizedEigh,
    RandomizedSVD,
    randomized_eigh,
    randomized_svd,
)
from spectral_density.linalg.range_basis import RangeBasis, range_finder
from spectral_density.linalg.solvers import Solution, SolverStep, Status, solve
from spectral_density.linalg.start_vectors import start_vector
from spectral_density.linalg.thick_restart import EigenState
from spectral_density.linalg.traces import diagonal, frobenius_norm, trace
from spectral_density.linalg.tridiagonalization import LanczosStep, Tridiagonalization, lanczos

__all__ = [
    "WEIGHT_FLOOR",
    "ConvergenceWarning",
    "DiagonalEstimate",
    "EigenState",
    "Eigenpairs",
    "Estimate",
    "LanczosStep",
    "LowRankPreconditioner",
    "Nystrom",
    "NystromPreconditioner",
    "PowerIteration",
    "Quadrature",
    "QuadratureBounds",
    "QuadratureEstimate",
    "RandomizedEigh",
    "RandomizedSVD",
    "RangeBasis",
    "Solution",
    "SolverStep",
    "Status",
    "Tridiagonalization",
    "default_draws_at_once",
    "deflated_weights",
    "diagonal",
    "effective_dimension",
    "frobenius_norm",
    "gauss_quadrature",
    "lanczos",
    "lockstep_groups",
    "log_determinant",
    "low_rank_preconditioner",
    "nystrom",
    "nystrom_preconditioner",
    "power_iteration",
    "product_precision",
    "quadrature_bounds",
    "randomized_eigh",
    "randomized_svd",
    "range_finder",
    "ritz_overlaps",
    "ritz_residuals",
    "simple_candidates",
    "simple_nodes",
    "solve",
    "start_vector",
    "top_eigenpairs",
    "trace",
]

register(__name__, ["lanczos", "nystrom", "range_finder"])
