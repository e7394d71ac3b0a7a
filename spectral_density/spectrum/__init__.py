"""Spectra from quadratures: densities, accuracy, files and tables."""

from spectral_density.spectrum.accuracy import Accuracy, Ending
from spectral_density.spectrum.kernel_density import Density, LogDensity
from spectral_density.spectrum.spectrum import ExtremeEigenvalues, Spectrum

__all__ = ["Accuracy", "Density", "Ending", "ExtremeEigenvalues", "LogDensity", "Spectrum"]
