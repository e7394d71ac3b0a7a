"""The curvature of a loss of Keras, TensorFlow or JAX: spectra, eigenvalues, and their uses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_density._version import __version__

if TYPE_CHECKING:
    from spectral_density import plotting as plotting
    from spectral_density import training as training
    from spectral_density.analysis.decomposition import (
        BlockCurvature,
        CurvatureDecomposition,
        MatrixNorms,
        curvature_decomposition,
    )
    from spectral_density.analysis.interactions import InteractionMap, interaction_map
    from spectral_density.analysis.layer_spectra import layer_spectra
    from spectral_density.analysis.sharpness import (
        CriticalSharpness,
        CrossingStatus,
        critical_sharpness,
    )
    from spectral_density.checkpoint import (
        CheckpointError,
    )
    from spectral_density.compat import (
        approximate_hessian,
        full_hessian,
        get_hvp_fn,
        hvp,
        lanczos_alg,
        lanczos_algorithm,
    )
    from spectral_density.curvature import (
        CurvatureOperator,
        FiniteDifferenceCheck,
        FisherOperator,
        GaussNewtonOperator,
        GradientStep,
        HessianOperator,
        LossLandscape,
        NewtonDecrement,
        NormalizedLayer,
        PreconditionedOperator,
        QuadraticModelError,
        StepStatus,
        SubmatrixOperator,
        finite_difference_check,
        gradient_step,
        layer_operators,
        loss_landscape,
        newton_decrement,
        normalized_filters,
        preconditioned,
        quadratic_model_error,
        stability_threshold,
    )
    from spectral_density.curvature.preflight import PreflightError, PreflightReport, preflight
    from spectral_density.estimate import estimate_spectrum
    from spectral_density.linalg import (
        ConvergenceWarning,
        DiagonalEstimate,
        Eigenpairs,
        EigenState,
        Estimate,
        LanczosStep,
        LowRankPreconditioner,
        Nystrom,
        NystromPreconditioner,
        PowerIteration,
        QuadratureEstimate,
        RandomizedEigh,
        RandomizedSVD,
        RangeBasis,
        Solution,
        SolverStep,
        Status,
        Tridiagonalization,
        diagonal,
        effective_dimension,
        frobenius_norm,
        lanczos,
        log_determinant,
        low_rank_preconditioner,
        nystrom,
        nystrom_preconditioner,
        power_iteration,
        randomized_eigh,
        randomized_svd,
        range_finder,
        solve,
        top_eigenpairs,
        trace,
    )
    from spectral_density.spectrum.accuracy import Accuracy, Ending
    from spectral_density.spectrum.density import (
        eigv_to_density,
        tridiag_to_density,
        tridiag_to_eigv,
    )
    from spectral_density.spectrum.spectrum import (
        Density,
        Spectrum,
    )
    from spectral_density.training.callback import SpectrumCallback
    from spectral_density.training.spectrum_record import SpectrumRecord

# Each public name and the module it comes from, loaded on first use (PEP 562): TensorFlow takes
# seconds to import, need not be installed, and a density or a saved spectrum does not need it.
_HOMES = {
    "Accuracy": "spectrum",
    "BlockCurvature": "analysis.decomposition",
    "CheckpointError": "checkpoint",
    "ConvergenceWarning": "linalg",
    "CriticalSharpness": "analysis.sharpness",
    "CrossingStatus": "analysis.sharpness",
    "CurvatureDecomposition": "analysis.decomposition",
    "CurvatureOperator": "curvature",
    "Density": "spectrum",
    "DiagonalEstimate": "linalg",
    "EigenState": "linalg",
    "Eigenpairs": "linalg",
    "Ending": "spectrum",
    "Estimate": "linalg",
    "FiniteDifferenceCheck": "analysis.finite_difference",
    "FisherOperator": "curvature",
    "GaussNewtonOperator": "curvature",
    "GradientStep": "analysis.quadratic",
    "HessianOperator": "curvature",
    "InteractionMap": "analysis.interactions",
    "LanczosStep": "linalg",
    "LossLandscape": "analysis.landscape",
    "LowRankPreconditioner": "linalg",
    "MatrixNorms": "analysis.decomposition",
    "NewtonDecrement": "analysis.quadratic",
    "NormalizedLayer": "engines.tensorflow.filter_normalization",
    "Nystrom": "linalg",
    "NystromPreconditioner": "linalg",
    "PowerIteration": "linalg",
    "PreconditionedOperator": "curvature",
    "PreflightError": "curvature",
    "PreflightReport": "curvature",
    "QuadraticModelError": "analysis.quadratic",
    "QuadratureEstimate": "linalg",
    "RandomizedEigh": "linalg",
    "RandomizedSVD": "linalg",
    "RangeBasis": "linalg",
    "Solution": "linalg",
    "SolverStep": "linalg",
    "Spectrum": "spectrum",
    "SpectrumCallback": "training.callback",
    "SpectrumRecord": "training.spectrum_record",
    "Status": "linalg",
    "StepStatus": "analysis.quadratic",
    "SubmatrixOperator": "curvature",
    "Tridiagonalization": "linalg",
    "approximate_hessian": "compat",
    "critical_sharpness": "analysis.sharpness",
    "curvature_decomposition": "analysis.decomposition",
    "diagonal": "linalg",
    "effective_dimension": "linalg",
    "eigv_to_density": "spectrum.density",
    "estimate_spectrum": "estimate",
    "finite_difference_check": "analysis.finite_difference",
    "frobenius_norm": "linalg",
    "full_hessian": "compat",
    "get_hvp_fn": "compat",
    "gradient_step": "analysis.quadratic",
    "hvp": "compat",
    "interaction_map": "analysis.interactions",
    "lanczos": "linalg",
    "lanczos_alg": "compat",
    "lanczos_algorithm": "compat",
    "layer_operators": "curvature",
    "layer_spectra": "analysis.layer_spectra",
    "log_determinant": "linalg",
    "loss_landscape": "analysis.landscape",
    "low_rank_preconditioner": "linalg",
    "newton_decrement": "analysis.quadratic",
    "normalized_filters": "engines.tensorflow.filter_normalization",
    "nystrom": "linalg",
    "nystrom_preconditioner": "linalg",
    "power_iteration": "linalg",
    "preconditioned": "curvature",
    "preflight": "curvature",
    "quadratic_model_error": "analysis.quadratic",
    "randomized_eigh": "linalg",
    "randomized_svd": "linalg",
    "range_finder": "linalg",
    "solve": "linalg",
    "stability_threshold": "curvature",
    "top_eigenpairs": "linalg",
    "trace": "linalg",
    "tridiag_to_density": "spectrum.density",
    "tridiag_to_eigv": "spectrum.density",
}

__all__ = [
    "Accuracy",
    "BlockCurvature",
    "CheckpointError",
    "ConvergenceWarning",
    "CriticalSharpness",
    "CrossingStatus",
    "CurvatureDecomposition",
    "CurvatureOperator",
    "Density",
    "DiagonalEstimate",
    "EigenState",
    "Eigenpairs",
    "Ending",
    "Estimate",
    "FiniteDifferenceCheck",
    "FisherOperator",
    "GaussNewtonOperator",
    "GradientStep",
    "HessianOperator",
    "InteractionMap",
    "LanczosStep",
    "LossLandscape",
    "LowRankPreconditioner",
    "MatrixNorms",
    "NewtonDecrement",
    "NormalizedLayer",
    "Nystrom",
    "NystromPreconditioner",
    "PowerIteration",
    "PreconditionedOperator",
    "PreflightError",
    "PreflightReport",
    "QuadraticModelError",
    "QuadratureEstimate",
    "RandomizedEigh",
    "RandomizedSVD",
    "RangeBasis",
    "Solution",
    "SolverStep",
    "Spectrum",
    "SpectrumCallback",
    "SpectrumRecord",
    "Status",
    "StepStatus",
    "SubmatrixOperator",
    "Tridiagonalization",
    "__version__",
    "approximate_hessian",
    "critical_sharpness",
    "curvature_decomposition",
    "diagonal",
    "effective_dimension",
    "eigv_to_density",
    "estimate_spectrum",
    "finite_difference_check",
    "frobenius_norm",
    "full_hessian",
    "get_hvp_fn",
    "gradient_step",
    "hvp",
    "interaction_map",
    "lanczos",
    "lanczos_alg",
    "lanczos_algorithm",
    "layer_operators",
    "layer_spectra",
    "log_determinant",
    "loss_landscape",
    "low_rank_preconditioner",
    "newton_decrement",
    "normalized_filters",
    "nystrom",
    "nystrom_preconditioner",
    "power_iteration",
    "preconditioned",
    "preflight",
    "quadratic_model_error",
    "randomized_eigh",
    "randomized_svd",
    "range_finder",
    "solve",
    "stability_threshold",
    "top_eigenpairs",
    "trace",
    "tridiag_to_density",
    "tridiag_to_eigv",
]


# Subpackages whose functions are called by their full names, as in sd.plotting.plot_spectra.
_SUBPACKAGES = ("plotting", "training")


def __getattr__(name: str) -> Any:
    """Load a public name from its module, or a subpackage."""
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted([*__all__, *_SUBPACKAGES])
