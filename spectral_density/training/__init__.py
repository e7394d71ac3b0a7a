"""Second-order training under `keras.Model.fit`, and minimization of functions."""

from spectral_density._former_modules import register
from spectral_density.training.globalization import (
    ArmijoBacktracking,
    FixedStep,
    Globalization,
    LevenbergMarquardt,
    SpectralStep,
    TrustRegion,
)
from spectral_density.training.methods import SecondOrderMethod
from spectral_density.training.minimization import Minimization, minimize
from spectral_density.training.model import BestWeights, SecondOrderModel
from spectral_density.training.newton_krylov import NewtonCG, NewtonGMRES, NewtonMINRES
from spectral_density.training.report import TrainingReport
from spectral_density.training.saddle_free_newton import LowRankSaddleFreeNewton
from spectral_density.training.steps import TrainingStatus, TrainingStep, Work

__all__ = [
    "ArmijoBacktracking",
    "BestWeights",
    "FixedStep",
    "Globalization",
    "LevenbergMarquardt",
    "LowRankSaddleFreeNewton",
    "Minimization",
    "NewtonCG",
    "NewtonGMRES",
    "NewtonMINRES",
    "SecondOrderMethod",
    "SecondOrderModel",
    "SpectralStep",
    "TrainingReport",
    "TrainingStatus",
    "TrainingStep",
    "TrustRegion",
    "Work",
    "minimize",
]

register(__name__, ["minimize"])
