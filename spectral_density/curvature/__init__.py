"""Which matrix: curvature operators of a model's loss. The only room that knows TensorFlow."""

from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.parameters import Parameters

__all__ = ["CurvatureOperator", "HessianOperator", "Parameters"]
