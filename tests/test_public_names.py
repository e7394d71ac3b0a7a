"""The public names and modules that stay importable, whatever the layout of the package."""

import importlib
import inspect
import warnings

import pytest

import spectral_density as sd

# The names in `__all__`, which may get more.
NAMES = {
    "spectral_density": """
        Accuracy BlockCurvature CheckpointError ConvergenceWarning CriticalSharpness
        CrossingStatus CurvatureDecomposition CurvatureOperator Density DiagonalEstimate
        EigenState Eigenpairs Ending Estimate FiniteDifferenceCheck FisherOperator
        GaussNewtonOperator GradientStep HessianOperator LanczosStep LossLandscape
        LowRankPreconditioner MatrixNorms NewtonDecrement NormalizedLayer Nystrom
        NystromPreconditioner PowerIteration PreconditionedOperator PreflightError
        PreflightReport QuadraticModelError QuadratureEstimate RandomizedEigh
        RandomizedSVD RangeBasis Solution SolverStep Spectrum SpectrumCallback
        SpectrumRecord Status StepStatus SubmatrixOperator Tridiagonalization
        __version__ approximate_hessian critical_sharpness curvature_decomposition
        diagonal effective_dimension eigv_to_density estimate_spectrum
        finite_difference_check frobenius_norm full_hessian get_hvp_fn gradient_step hvp
        lanczos lanczos_alg lanczos_algorithm layer_operators log_determinant
        loss_landscape low_rank_preconditioner newton_decrement normalized_filters
        nystrom nystrom_preconditioner power_iteration preconditioned preflight
        quadratic_model_error randomized_eigh randomized_svd range_finder solve
        stability_threshold top_eigenpairs trace tridiag_to_density tridiag_to_eigv
    """,
    "spectral_density.linalg": """
        ConvergenceWarning DiagonalEstimate EigenState Eigenpairs Estimate LanczosStep
        LowRankPreconditioner Nystrom NystromPreconditioner PowerIteration Quadrature
        QuadratureBounds QuadratureEstimate RandomizedEigh RandomizedSVD RangeBasis Solution
        SolverStep Status Tridiagonalization WEIGHT_FLOOR default_draws_at_once
        deflated_weights diagonal effective_dimension frobenius_norm gauss_quadrature
        lanczos lockstep_groups log_determinant low_rank_preconditioner nystrom
        nystrom_preconditioner power_iteration product_precision quadrature_bounds
        randomized_eigh randomized_svd range_finder ritz_overlaps ritz_residuals
        simple_candidates simple_nodes solve start_vector top_eigenpairs trace
    """,
    "spectral_density.curvature": """
        CurvatureOperator FiniteDifferenceCheck FisherOperator GaussNewtonOperator
        GradientStep HessianOperator LossLandscape NewtonDecrement NormalizedLayer
        Parameters PreconditionedOperator PreflightError PreflightReport QuadraticModelError
        StepStatus SubmatrixOperator finite_difference_check gradient_step layer_operators
        loss_landscape newton_decrement normalized_filters preconditioned preflight
        quadratic_model_error stability_threshold
    """,
    "spectral_density.training": """
        ArmijoBacktracking BestWeights FixedStep Globalization LevenbergMarquardt
        LowRankSaddleFreeNewton Minimization NewtonCG NewtonGMRES NewtonMINRES
        SecondOrderMethod SecondOrderModel SpectralStep TrainingReport TrainingStatus
        TrainingStep TrustRegion Work minimize
    """,
    "spectral_density.plotting": """
        plot_density plot_eigenvalues plot_evolution plot_finite_differences plot_layers
        plot_log_density plot_loss_line plot_loss_surface plot_matrix plot_outliers
        plot_ridge plot_spectra plot_stability plot_stem
    """,
}

# Other modules and what is imported from them, in the documentation too. One that has moved may
# warn of it.
MODULES = {
    "spectral_density.approximate": "approximate_hessian estimate_spectrum lanczos_algorithm",
    "spectral_density.checkpoint": "CheckpointError",
    "spectral_density.spectrum": "Density ExtremeEigenvalues LogDensity Spectrum",
    "spectral_density.training.callback": "SpectrumCallback SpectrumRecord",
    # Named like a function of their package.
    "spectral_density.curvature.preflight": "PreflightError PreflightReport preflight",
    "spectral_density.linalg.lanczos": "Tridiagonalization lanczos",
    "spectral_density.linalg.nystrom": "Nystrom nystrom",
    "spectral_density.linalg.range_finder": "RangeBasis range_finder",
    "spectral_density.training.minimize": "Minimization minimize",
}


def names_of(module, names):
    """The objects of these names in a module, which has all of them."""
    missing = [name for name in names.split() if not hasattr(module, name)]
    assert not missing, f"{module.__name__} lacks {', '.join(missing)}"
    return {name: getattr(module, name) for name in names.split()}


@pytest.mark.parametrize("room", NAMES)
def test_every_public_name_is_importable_without_a_warning(room):
    module = importlib.import_module(room)
    names_of(module, NAMES[room])
    assert set(NAMES[room].split()) <= set(module.__all__)


@pytest.mark.parametrize("path", MODULES)
def test_modules_stay_importable_and_hold_the_public_objects(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = names_of(importlib.import_module(path), MODULES[path])
    for name, value in found.items():
        assert value is getattr(sd, name, value)


def is_function(path):
    """Whether a module has the name of a public function of its package."""
    package, _, name = path.rpartition(".")
    return name in NAMES.get(package, "").split()


@pytest.mark.parametrize("path", list(filter(is_function, MODULES)))
def test_the_import_of_a_module_leaves_the_function_of_its_name_in_place(path):
    package, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module(path)
    assert inspect.isfunction(getattr(importlib.import_module(package), name))
