"""Which matrix: curvature operators of a model's loss, over a dataset."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preconditioned import PreconditionedOperator, preconditioned
from spectral_density.curvature.preflight import PreflightError, PreflightReport, preflight
from spectral_density.curvature.stability import stability_threshold
from spectral_density.curvature.submatrix import SubmatrixOperator, layer_operators
from spectral_density.engines.layout import Parameters

if TYPE_CHECKING:
    from spectral_density.analysis.finite_difference import (
        FiniteDifferenceCheck,
        finite_difference_check,
    )
    from spectral_density.analysis.landscape import LossLandscape, loss_landscape
    from spectral_density.analysis.quadratic import (
        GradientStep,
        NewtonDecrement,
        QuadraticModelError,
        StepStatus,
        gradient_step,
        newton_decrement,
        quadratic_model_error,
    )
    from spectral_density.engines.tensorflow.filter_normalization import (
        NormalizedLayer,
        normalized_filters,
    )

# What was in this package before `analysis` was, loaded on first use (PEP 562).
_MOVED = {
    "FiniteDifferenceCheck": "analysis.finite_difference",
    "GradientStep": "analysis.quadratic",
    "LossLandscape": "analysis.landscape",
    "NewtonDecrement": "analysis.quadratic",
    "NormalizedLayer": "engines.tensorflow.filter_normalization",
    "QuadraticModelError": "analysis.quadratic",
    "StepStatus": "analysis.quadratic",
    "finite_difference_check": "analysis.finite_difference",
    "gradient_step": "analysis.quadratic",
    "loss_landscape": "analysis.landscape",
    "newton_decrement": "analysis.quadratic",
    "normalized_filters": "engines.tensorflow.filter_normalization",
    "quadratic_model_error": "analysis.quadratic",
}

__all__ = [
    "CurvatureOperator",
    "FiniteDifferenceCheck",
    "FisherOperator",
    "GaussNewtonOperator",
    "GradientStep",
    "HessianOperator",
    "LossLandscape",
    "NewtonDecrement",
    "NormalizedLayer",
    "Parameters",
    "PreconditionedOperator",
    "PreflightError",
    "PreflightReport",
    "QuadraticModelError",
    "StepStatus",
    "SubmatrixOperator",
    "finite_difference_check",
    "gradient_step",
    "layer_operators",
    "loss_landscape",
    "newton_decrement",
    "normalized_filters",
    "preconditioned",
    "preflight",
    "quadratic_model_error",
    "stability_threshold",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use and remember it."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"spectral_density.{_MOVED[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List all names, those not loaded yet included."""
    return sorted({*globals(), *__all__})
