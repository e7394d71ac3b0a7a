"""Whether an operator is one fixed, symmetric, finite matrix, and the right derivative."""

from spectral_density.curvature.preflight.report import Check, PreflightError, PreflightReport
from spectral_density.curvature.preflight.run import check, preflight

__all__ = ["Check", "PreflightError", "PreflightReport", "check", "preflight"]
