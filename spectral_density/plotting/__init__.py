"""Every picture. Functions take and return matplotlib axes and leave the style to the user.

Colours are those of the user's style or of perceptually uniform maps; what colour tells apart, line
styles, markers or order tell apart too.
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
from spectral_density.plotting.losses import plot_loss_line, plot_loss_surface
from spectral_density.plotting.matrices import plot_matrix
from spectral_density.plotting.training import plot_eigenvalues, plot_evolution, plot_ridge

__all__ = [
    "plot_density",
    "plot_eigenvalues",
    "plot_evolution",
    "plot_finite_differences",
    "plot_layers",
    "plot_log_density",
    "plot_loss_line",
    "plot_loss_surface",
    "plot_matrix",
    "plot_outliers",
    "plot_ridge",
    "plot_spectra",
    "plot_stem",
]
