"""Which matrix: curvature operators of a model's loss. The only room that knows TensorFlow."""

from spectral_density.curvature.blocks import SubmatrixOperator, layer_operators
from spectral_density.curvature.finite_difference import (
    FiniteDifferenceCheck,
    finite_difference_check,
)
from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.landscape import LossLandscape, loss_landscape
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
    "FiniteDifferenceCheck",
    "FisherOperator",
    "GaussNewtonOperator",
    "GradientStep",
    "HessianOperator",
    "LossLandscape",
    "NewtonDecrement",
    "NormalizedLayer",
    "Parameters",
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
    "preflight",
    "quadratic_model_error",
]
