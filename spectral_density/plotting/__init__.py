"""Pictures of spectra, matrices and losses, on matplotlib axes, in the user's style.

Colours are those of the style or of perceptually uniform maps. Curves of different colour also
differ in line style, marker or order.
"""

from spectral_density.plotting.checks import plot_finite_differences
from spectral_density.plotting.densities import (
    plot_density,
    plot_layers,
    plot_log_density,
    plot_outliers,
    plot_spectra,
    plot_stem,
)
from spectral_density.plotting.interactions import plot_interactions
from spectral_density.plotting.landscapes import plot_loss_line, plot_loss_surface
from spectral_density.plotting.matrices import plot_matrix
from spectral_density.plotting.stability import plot_stability
from spectral_density.plotting.training import plot_eigenvalues, plot_evolution, plot_ridge

__all__ = [
    "plot_density",
    "plot_eigenvalues",
    "plot_evolution",
    "plot_finite_differences",
    "plot_interactions",
    "plot_layers",
    "plot_log_density",
    "plot_loss_line",
    "plot_loss_surface",
    "plot_matrix",
    "plot_outliers",
    "plot_ridge",
    "plot_spectra",
    "plot_stability",
    "plot_stem",
]
