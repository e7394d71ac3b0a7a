import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from plotting.pictures import (
    column_axes,
    finite_differences,
    landscape,
    stability_records,
)

from spectral_density import plotting
from spectral_density.plotting import (
    plot_density,
    plot_eigenvalues,
    plot_evolution,
    plot_finite_differences,
    plot_log_density,
    plot_loss_line,
    plot_loss_surface,
    plot_matrix,
    plot_outliers,
    plot_ridge,
    plot_spectra,
    plot_stability,
    plot_stem,
)


def every_picture(spectrum, spectra):
    """Each picture at the width of a column, by name."""
    named = {f"epoch {t}": s for t, s in spectra.items()}
    values = np.array([np.sort(s.nodes[0])[::-1][:5] for s in spectra.values()])
    pictures = {
        "density": lambda ax: plot_density(spectrum, ax),
        "symlog": lambda ax: plot_density(spectrum, ax, xscale="symlog"),
        "log": lambda ax: plot_log_density(spectrum, ax),
        "stem": lambda ax: plot_stem(spectrum, ax),
        "outliers": lambda ax: plot_outliers(spectrum, ax),
        "spectra": lambda ax: plot_spectra(named, ax),
        "ridge": lambda ax: plot_ridge(spectra, ax),
        "evolution": lambda ax: plot_evolution(spectra, ax),
        "eigenvalues": lambda ax: plot_eigenvalues(list(spectra), values, ax),
        "matrix": lambda ax: plot_matrix(
            np.eye(30), ax, layers={"a": range(20), "b": range(20, 30)}
        ),
        "line": lambda ax: plot_loss_line(landscape(1), ax),
        "surface": lambda ax: plot_loss_surface(landscape(2), ax),
        "stability": lambda ax: plot_stability(stability_records([0.3, 0.8, 1.0]), ax),
        "finite differences": lambda ax: plot_finite_differences(finite_differences(), ax),
    }
    return pictures


def test_every_picture_returns_its_axes_has_labels_and_fits_a_column(spectrum, spectra):
    for name, draw in every_picture(spectrum, spectra).items():
        ax = column_axes()
        assert draw(ax) is ax, name
        assert ax.get_xlabel(), name
        figure = ax.figure
        figure.canvas.draw()
        assert not figure.stale, name
        frame = figure.bbox.padded(1.0)
        for text in (
            ax.xaxis.label,
            ax.yaxis.label,
            ax.title,
            *(other.yaxis.label for other in figure.axes),
        ):
            if text.get_text():
                box = text.get_window_extent()
                inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
                inside &= frame.y0 <= box.y0 and box.y1 <= frame.y1
                assert inside, (name, text.get_text(), box)
        plt.close(figure)


def test_no_picture_changes_the_style_or_the_current_axes(spectrum, spectra):
    for name, draw in every_picture(spectrum, spectra).items():
        _, (first, second) = plt.subplots(1, 2)
        plt.sca(second)
        before = dict(mpl.rcParams)
        draw(first)
        assert plt.gca() is second, name
        assert dict(mpl.rcParams) == before, name
        plt.close("all")


def test_every_picture_can_be_drawn_on_a_subfigure(spectrum, spectra):
    for name, draw in every_picture(spectrum, spectra).items():
        left, _ = plt.figure(figsize=(7, 3), layout="constrained").subfigures(1, 2)
        ax = left.subplots()
        draw(ax)
        plt.gcf().canvas.draw()
        assert name
        plt.close("all")


def test_every_public_picture_is_listed():
    names = {name for name in dir(plotting) if name.startswith("plot_")}
    assert names == set(plotting.__all__)


def test_plotting_does_not_load_tensorflow():
    code = "import sys, spectral_density.plotting; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
