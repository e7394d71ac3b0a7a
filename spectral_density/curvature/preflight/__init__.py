"""Is this operator really one fixed, symmetric, finite matrix? Two passes over the data tell."""

from spectral_density.curvature.preflight.report import Check, PreflightError, PreflightReport
from spectral_density.curvature.preflight.run import check, preflight

__all__ = ["Check", "PreflightError", "PreflightReport", "check", "preflight"]
