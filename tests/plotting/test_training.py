import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import LogNorm
from plotting.pictures import column_axes

from spectral_density.plotting import (
    plot_eigenvalues,
    plot_evolution,
    plot_ridge,
)


def test_a_ridge_has_a_named_row_for_each_spectrum_from_top_to_bottom(spectra):
    ax = plot_ridge(spectra, column_axes(), ylabel="epoch")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"]
    assert (np.diff(ax.get_yticks()) < 0).all()
    grid = ax.lines[0].get_xdata()
    peaks = [
        line.get_ydata().max() - tick for line, tick in zip(ax.lines, ax.get_yticks(), strict=True)
    ]
    assert max(peaks) == pytest.approx(1.0)
    sigma = max(s.default_sigma for s in spectra.values())
    peak = max(s.density(grid, sigma).values.max() for s in spectra.values())
    expected = 1 + np.log10(np.maximum(spectra[1].density(grid, sigma).values / peak, 1e-5)) / 5
    np.testing.assert_allclose(ax.lines[1].get_ydata() - ax.get_yticks()[1], expected, atol=1e-9)


def test_a_ridge_hides_what_is_behind_whatever_the_background(spectra):
    with plt.style.context("dark_background"):
        ax = plot_ridge(spectra)
        assert mpl.colors.same_color(ax.collections[0].get_facecolor()[0], ax.get_facecolor())


def test_the_heat_map_has_a_column_of_densities_for_each_time(spectra):
    ax = plot_evolution({10.0 * t: s for t, s in spectra.items()}, column_axes(), xlabel="step")
    (mesh,) = ax.collections
    assert mesh.get_array().shape[1] == 3
    assert isinstance(mesh.norm, LogNorm)
    assert mesh.norm.vmax == pytest.approx(1e5 * mesh.norm.vmin)
    assert ax.get_xlim() == (-5.0, 25.0)
    assert ax.get_xlabel() == "step"
    _, cax = ax.figure.axes
    assert "density" in cax.get_ylabel()
    ax.figure.canvas.draw()


def test_the_heat_map_sorts_times_and_refuses_names(spectra):
    backward = plot_evolution({2: spectra[2], 0: spectra[0]}).collections[0].get_array()
    forward = plot_evolution({0: spectra[0], 2: spectra[2]}).collections[0].get_array()
    np.testing.assert_array_equal(backward, forward)
    with pytest.raises(ValueError, match="must be epochs or steps, numbers"):
        plot_evolution({"before": spectra[0]})


def test_one_spectrum_makes_a_heat_map(spectra):
    plot_evolution({3: spectra[0]}, yscale="symlog").figure.canvas.draw()


def test_eigenvalues_over_training_leave_out_what_was_not_measured():
    values = np.array([[2.0, 1.0], [np.nan, np.nan], [4.0, 3.0]])
    ax = plot_eigenvalues([1, 2, 3], values, bounds=0.1 * values, threshold=3.5)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 3])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1.0, 3.0])
    assert len(ax.collections) == 2
    assert "3.5" in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(ValueError, match=r"must be \(t,\) and \(t, k\)"):
        plot_eigenvalues([1, 2], values)
