"""Spectra from quadratures: densities, their accuracy, and what a reader sees of them."""

from spectral_density.spectrum.accuracy import Accuracy, Ending
from spectral_density.spectrum.spectrum import (
    Density,
    ExtremeEigenvalues,
    LogDensity,
    Spectrum,
)

__all__ = ["Accuracy", "Density", "Ending", "ExtremeEigenvalues", "LogDensity", "Spectrum"]
