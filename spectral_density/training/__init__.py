"""Second-order training under `keras.Model.fit`, and minimization of functions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_density._former_modules import register
from spectral_density.training.best_weights import BestWeights
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
from spectral_density.training.newton_krylov import NewtonCG, NewtonGMRES, NewtonMINRES
from spectral_density.training.saddle_free_newton import LowRankSaddleFreeNewton
from spectral_density.training.steps import TrainingStatus, TrainingStep, Work

if TYPE_CHECKING:
    from spectral_density.training.model import SecondOrderModel
    from spectral_density.training.report import TrainingReport

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

# Loaded on first use (PEP 562): they import Keras, which a function of a pytree does not need.
_HOMES = {"SecondOrderModel": "model", "TrainingReport": "report"}


def __getattr__(name: str) -> Any:
    """Load a class that needs Keras from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
