"""Spectra from quadratures: densities, statistics, accuracy, files and tables."""

from spectral_density.spectrum.accuracy import Accuracy, Ending
from spectral_density.spectrum.extremes import ExtremeEigenvalues, Outlier
from spectral_density.spectrum.kernel_density import Density, LogDensity
from spectral_density.spectrum.spectrum import Spectrum
from spectral_density.spectrum.statistics import SpectrumStatistic

__all__ = [
    "Accuracy",
    "Density",
    "Ending",
    "ExtremeEigenvalues",
    "LogDensity",
    "Outlier",
    "Spectrum",
    "SpectrumStatistic",
]
