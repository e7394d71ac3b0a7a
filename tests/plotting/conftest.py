import matplotlib as mpl
import pytest
from cases import diagonal_operator, semicircle_with_outliers

mpl.use("Agg")

import matplotlib.pyplot as plt

from spectral_density import estimate_spectrum


@pytest.fixture(scope="module")
def spectrum():
    return estimate_spectrum(diagonal_operator(semicircle_with_outliers(300)), 30, 4)


@pytest.fixture(scope="module")
def spectra(spectrum):
    """A bulk that stays and outliers that grow."""
    scaled = [semicircle_with_outliers(300) * (1 + t) for t in range(3)]
    return {t: estimate_spectrum(diagonal_operator(s), 30, 2) for t, s in enumerate(scaled)}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")
