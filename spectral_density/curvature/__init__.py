"""Which matrix: curvature operators of a model's loss. The only room that knows TensorFlow."""

from spectral_density.curvature.blocks import SubmatrixOperator, layer_operators
from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.normalization import NormalizedLayer, normalized_filters
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.parameters import Parameters
from spectral_density.curvature.preflight import PreflightError, PreflightReport, preflight
from spectral_density.curvature.quadratic import (
    GradientStep,
    NewtonDecrement,
    QuadraticModelError,
    StepStatus,
    gradient_step,
    newton_decrement,
    quadratic_model_error,
)

__all__ = [
    "CurvatureOperator",
    "FisherOperator",
    "GaussNewtonOperator",
    "GradientStep",
    "HessianOperator",
    "NewtonDecrement",
    "NormalizedLayer",
    "Parameters",
    "PreflightError",
    "PreflightReport",
    "QuadraticModelError",
    "StepStatus",
    "SubmatrixOperator",
    "gradient_step",
    "layer_operators",
    "newton_decrement",
    "normalized_filters",
    "preflight",
    "quadratic_model_error",
]
