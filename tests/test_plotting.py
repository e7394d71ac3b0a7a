import matplotlib as mpl
import numpy as np
import pytest
from cases import diagonal_operator, log_uniform_bulk, semicircle_with_outliers

mpl.use("Agg")

import matplotlib.pyplot as plt

from spectral_density import estimate_spectrum
from spectral_density.plotting import plot_density, plot_stem


@pytest.fixture(scope="module")
def spectrum():
    return estimate_spectrum(diagonal_operator(semicircle_with_outliers(300)), 30, 4)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    plt.close("all")


def test_the_density_is_drawn_with_its_band_over_named_axes(spectrum):
    ax = spectrum.plot()
    density = spectrum.density()
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), density.grid)
    np.testing.assert_array_equal(line.get_ydata(), density.values)
    assert len(ax.collections) == 1
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "eigenvalue"
    assert "density" in ax.get_ylabel()
    ax.figure.canvas.draw()


def test_the_band_can_be_left_out(spectrum):
    assert not plot_density(spectrum, band=False).collections


def test_the_whole_curve_is_within_the_limits_but_for_its_tails(spectrum):
    ax = spectrum.plot()
    bottom, top = ax.get_ylim()
    values = spectrum.density().values
    assert 0 < bottom < np.quantile(values, 0.5)
    assert top > spectrum.density().upper.max()


def test_a_second_spectrum_joins_the_first_on_the_same_axes(spectrum):
    other = estimate_spectrum(diagonal_operator(1e-3 * log_uniform_bulk(300)), 30, 4)
    ax = spectrum.plot(label="before")
    assert other.plot(ax, label="after", linestyle="--") is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    assert ax.lines[1].get_linestyle() == "--"
    bottom, top = ax.get_ylim()
    assert top > max(s.density().upper.max() for s in (spectrum, other))
    assert bottom < min(s.density().values.max() for s in (spectrum, other))


def test_a_line_that_was_there_before_keeps_the_limits_positive(spectrum):
    _, ax = plt.subplots()
    ax.axvline(0.0)
    ax.plot([], [])
    bottom, top = plot_density(spectrum, ax).get_ylim()
    assert 0 < bottom < top


def test_sigma_and_deflation_reach_the_density(spectrum):
    ax = plot_density(spectrum, sigma=0.5, deflate=False)
    expected = spectrum.density(sigma=0.5, deflate=False)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), expected.values)


def test_the_stems_are_the_nodes_and_their_weights(spectrum):
    ax = spectrum.plot(kind="stem")
    (markers,) = ax.lines
    np.testing.assert_array_equal(markers.get_xdata(), spectrum.nodes.ravel())
    np.testing.assert_array_equal(markers.get_ydata(), spectrum.weights.ravel())
    assert ax.get_ylim()[0] > 0
    ax.figure.canvas.draw()


def test_stems_can_show_the_known_weights(spectrum):
    heights = plot_stem(spectrum, deflate=True, color="red").lines[0].get_ydata()
    np.testing.assert_array_equal(heights, spectrum.deflated_weights.ravel())
    assert np.isclose(heights, 1 / 300, rtol=1e-9).sum() >= 40


def test_stems_join_without_cutting_off_what_was_there(spectrum):
    other = estimate_spectrum(diagonal_operator([0.0, 1.0] * 20), 2, 2)
    ax = spectrum.plot(kind="stem")
    before = ax.get_ylim()[0]
    other.plot(ax, kind="stem")
    assert ax.get_ylim()[0] <= before


def test_nodes_without_weight_are_not_drawn():
    spectrum = estimate_spectrum(diagonal_operator([0.0, 3.0, 5.0] * 20), 30, 2)
    drawn = spectrum.plot(kind="stem").lines[0].get_xdata()
    assert np.abs(np.subtract.outer(drawn, [0.0, 3.0, 5.0])).min(axis=1).max() < 1e-12


@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["density", "stem"])
def test_a_spectrum_of_one_value_can_be_drawn(value, kind):
    spectrum = estimate_spectrum(diagonal_operator(np.full(20, value)), 3, 2)
    spectrum.plot(kind=kind).figure.canvas.draw()


def test_the_style_and_the_current_axes_are_left_alone(spectrum):
    _, (first, second) = plt.subplots(1, 2)
    plt.sca(second)
    before = dict(mpl.rcParams)
    spectrum.plot(first)
    assert plt.gca() is second
    assert dict(mpl.rcParams) == before


def test_an_unknown_kind_names_the_known_ones(spectrum):
    with pytest.raises(ValueError, match="kind must be one of"):
        spectrum.plot(kind="pie")
