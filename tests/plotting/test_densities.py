from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from cases import diagonal_operator, log_uniform_bulk, semicircle_with_outliers
from matplotlib.backends.backend_agg import RendererAgg
from plotting.pictures import column_axes
from scipy.integrate import trapezoid

from spectral_density import estimate_spectrum, top_eigenpairs
from spectral_density.plotting import (
    plot_density,
    plot_evolution,
    plot_layers,
    plot_log_density,
    plot_outliers,
    plot_ridge,
    plot_spectra,
    plot_stem,
)

# One density -------------------------------------------------------------------------------------


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


def test_a_symlog_density_resolves_zero_and_keeps_every_outlier(spectrum):
    ax = plot_density(spectrum, column_axes(), xscale="symlog")
    assert ax.get_xscale() == "symlog"
    grid, values = ax.lines[0].get_data()
    sigma = spectrum.default_sigma
    # Points within a tenth of the kernel next to zero, and no gap in which an outlier gets lost.
    assert np.diff(grid)[np.abs(grid[1:]) < sigma / 2].max() < sigma / 10
    assert np.diff(grid).max() < sigma / 3
    np.testing.assert_allclose(values, spectrum.density(grid).values, rtol=1e-12)


def test_symlog_is_linear_within_the_smallest_kernel_of_all_curves(spectra):
    ax = plot_density(spectra[2], sigma=0.5, xscale="symlog")
    plot_density(spectra[0], ax, sigma=0.1, xscale="symlog")
    plot_density(spectra[1], ax, sigma=0.3, xscale="symlog")
    assert ax.xaxis.get_transform().linthresh == 0.1


def test_an_unknown_scale_names_the_known_ones(spectrum):
    with pytest.raises(ValueError, match=r'xscale must be "linear" or "symlog", got .log.'):
        plot_density(spectrum, xscale="log")


def test_the_log_density_has_both_signs_on_their_sides():
    values = np.concatenate([-(10.0 ** np.linspace(-3, -1, 30)), 10.0 ** np.linspace(-4, 1, 90)])
    # Of fewer steps the signs of the smallest are not known yet.
    spectrum = estimate_spectrum(diagonal_operator(values), 120, 2)
    ax = plot_log_density(spectrum)
    x, y = ax.lines[0].get_data()
    assert ax.get_xscale() == "symlog"
    assert np.nanmin(np.diff(x)) >= 0
    assert np.isnan(y[x == 0]).all()
    # The area over d ln|lambda| is the share of the eigenvalues: 30 of 120 are negative.
    negative = (x < 0) & np.isfinite(y)
    share = trapezoid(y[negative], -np.log(-x[negative]))
    assert share == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_log_density_of_one_value_can_be_drawn(value):
    spectrum = estimate_spectrum(diagonal_operator(np.full(20, value)), 3, 2)
    plot_log_density(spectrum).figure.canvas.draw()


# What is not known -------------------------------------------------------------------------------


def strip_and_words(ax):
    (strip,) = (patch for patch in ax.patches if patch.get_gid() == "resolution")
    (words,) = (text for text in ax.texts if text.get_gid() == "resolution")
    box = strip.get_bbox() if hasattr(strip, "get_bbox") else strip.get_extents()
    return (box.x0, box.x1), words.get_text().strip()


@pytest.mark.parametrize("xscale", ["linear", "symlog"])
def test_what_is_within_one_kernel_of_zero_is_shaded(spectrum, xscale):
    sigma = spectrum.default_sigma
    ends, words = strip_and_words(plot_density(spectrum, xscale=xscale))
    assert ends == pytest.approx((-sigma, sigma))
    assert words == f"\N{PLUS-MINUS SIGN}{sigma:.2g}: not resolved"


def test_of_several_kernels_the_widest_is_shaded(spectrum):
    ax = plot_density(spectrum, sigma=0.3)
    for sigma in (0.5, 0.1):
        plot_density(spectrum, ax, sigma=sigma)
    ends, words = strip_and_words(ax)
    assert ends == pytest.approx((-0.5, 0.5))
    assert "0.5" in words


def test_away_from_zero_the_resolution_is_only_said():
    spectrum = estimate_spectrum(diagonal_operator(np.linspace(5, 6, 40)), 10, 2)
    ax = plot_density(spectrum)
    (words,) = (text.get_text() for text in ax.texts)
    assert ax.get_xlim()[0] > 4
    assert words == f"resolution {spectrum.default_sigma:.2g}"


def test_a_smoothing_finer_than_the_run_claims_no_more_than_the_run(spectrum):
    ends, _ = strip_and_words(plot_density(spectrum, sigma=spectrum.resolution / 10))
    assert ends == pytest.approx((-spectrum.resolution, spectrum.resolution))


@pytest.mark.parametrize("xscale", ["linear", "symlog"])
def test_a_wider_spectrum_joins_a_narrow_one_with_all_of_it_in_view(spectrum, xscale):
    narrow = estimate_spectrum(diagonal_operator(np.linspace(-0.3, 0.3, 300)), 20, 2)
    ax = plot_spectra({"narrow": narrow, "wide": spectrum}, xscale=xscale)
    assert ax.get_xlim()[1] > 10
    ax.plot([50.0, 60.0], [1.0, 1.0])
    assert ax.get_xlim()[1] > 60


def test_inverted_axes_and_limits_of_the_user_stay(spectrum):
    _, ax = plt.subplots()
    ax.set_xlim(12, -3)
    assert plot_density(spectrum, ax).get_xlim() == (12, -3)


def test_a_log_density_of_no_negative_eigenvalues_shades_what_it_does_not_resolve():
    values = np.concatenate([np.zeros(300), 10.0 ** np.linspace(-1, 1, 30)])
    spectrum = estimate_spectrum(diagonal_operator(values), 25, 2)
    ax = plot_log_density(spectrum)
    ends, words = strip_and_words(ax)
    assert ends[1] == pytest.approx(spectrum.resolution)
    assert ax.get_xlim()[0] < spectrum.resolution
    assert words.endswith("not resolved")


def test_of_two_log_densities_the_wider_strip_stays(spectrum):
    coarse = estimate_spectrum(diagonal_operator(semicircle_with_outliers(300)), 8, 2)
    ax = plot_log_density(coarse)
    plot_log_density(spectrum, ax)
    ends, _ = strip_and_words(ax)
    assert ends[1] == pytest.approx(max(coarse.resolution, spectrum.resolution))


def test_options_of_the_line_reach_it(spectrum):
    options = {"zorder": 7, "gid": "mine", "alpha": 0.5, "lw": 3, "c": "red", "picker": 4}
    line = plot_density(spectrum, **options).lines[0]
    assert (line.get_zorder(), line.get_gid(), line.get_linewidth()) == (7, "mine", 3)
    assert (line.get_color(), line.get_picker()) == ("red", 4)
    line.axes.figure.canvas.draw()
    assert max(piece[0] for piece in opacities(line)) == pytest.approx(0.5, abs=0.01)
    faint = plot_density(spectrum, color=(1, 0, 0, 0.25)).lines[0]
    faint.axes.figure.canvas.draw()
    assert max(piece[0] for piece in opacities(faint)) == pytest.approx(0.25, abs=0.01)


def test_the_words_take_no_room_and_stay_within_the_axes(spectrum):
    ax = plot_density(spectrum, column_axes())
    ax.figure.canvas.draw()
    before = ax.get_position().bounds
    ax.set_xlim(5, 11)
    ax.figure.canvas.draw()
    assert ax.get_position().bounds == pytest.approx(before, abs=0.05)


def test_a_log_density_shades_what_the_run_does_not_resolve(spectrum):
    ends, _ = strip_and_words(plot_log_density(spectrum))
    assert ends == pytest.approx((-spectrum.resolution, spectrum.resolution))


def test_the_words_stay_within_the_axes_in_every_size(spectrum):
    for size in ((3.3, 2.5), (3.3, 1.2), (6.9, 4.0)):
        for xscale in ("linear", "symlog"):
            _, ax = plt.subplots(figsize=size, layout="constrained")
            plot_density(spectrum, ax, xscale=xscale)
            ax.figure.canvas.draw()
            box, frame = ax.texts[0].get_window_extent(), ax.figure.bbox.padded(1.0)
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, (size, xscale)
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, (size, xscale)


def opacities(line):
    """What a line draws: the opacity of each piece, with the values it goes from and to."""
    drawn = []

    class Recorder(RendererAgg):
        def draw_path(self, gc, path, transform, rgbFace=None):
            ends = transform.transform(path.vertices[[0, -1]])[:, 0]
            drawn.append((gc.get_rgb()[3], *ends))

    line.draw(Recorder(400, 300, 100))
    back = line.axes.transData.inverted()
    return [(alpha, *back.transform([(a, 1), (b, 1)])[:, 0]) for alpha, a, b in drawn]


def test_beyond_the_outermost_nodes_the_line_fades(spectrum):
    ax = plot_density(spectrum)
    ax.figure.canvas.draw()
    pieces = sorted(opacities(ax.lines[0]), key=lambda piece: piece[1])
    spacing = np.diff(spectrum.density().grid).max()
    (full,) = (piece for piece in pieces if piece[0] == 1.0)
    assert full[1] == pytest.approx(spectrum.nodes.min(), abs=2 * spacing)
    assert full[2] == pytest.approx(spectrum.nodes.max(), abs=2 * spacing)
    shades = [piece[0] for piece in pieces]
    assert np.all(np.diff(shades[: shades.index(1.0) + 1]) > 0)
    assert np.all(np.diff(shades[shades.index(1.0) :]) < 0)
    assert max(shades[0], shades[-1]) < 0.1
    np.testing.assert_allclose([p[2] for p in pieces[:-1]], [p[1] for p in pieces[1:]], rtol=1e-6)


def test_the_axis_ends_below_one_eigenvalue_and_not_far_below(spectrum):
    bottom, _ = plot_density(spectrum).get_ylim()
    one = 1 / (spectrum.size * spectrum.default_sigma * np.sqrt(2 * np.pi))
    assert one / 1000 <= bottom <= one / 10


def test_the_curve_of_a_log_density_comes_down_to_the_axis(spectrum):
    for some in (spectrum, estimate_spectrum(diagonal_operator(log_uniform_bulk(300)), 40, 2)):
        ax = plot_log_density(some)
        x, y = ax.lines[0].get_data()
        for side in (x < 0, x > 0):
            seen = y[side][np.isfinite(y[side])]
            if len(seen):
                assert max(seen[0], seen[-1]) < 2 * ax.get_ylim()[0]


# Outliers ----------------------------------------------------------------------------------------


def test_outliers_are_marked_where_they_are_with_their_bounds(spectrum):
    ax = plot_outliers(spectrum, plot_density(spectrum, column_axes()))
    (bars,) = ax.containers
    marked = np.sort(bars.lines[0].get_xdata())
    np.testing.assert_array_equal(marked, np.sort(spectrum.nodes[0][spectrum.simple[0]]))
    exact = semicircle_with_outliers(300)
    lengths = [segment[1, 0] - segment[0, 0] for segment in bars.lines[2][0].get_segments()]
    assert np.abs(np.subtract.outer(marked, exact)).min(axis=1).max() <= max(lengths) / 2
    (text,) = (entry.get_text() for entry in ax.get_legend().get_texts())
    assert text.startswith(f"{len(marked)} eigenvalues")


def test_eigenpairs_are_marked_with_their_residuals():
    pairs = top_eigenpairs(diagonal_operator(semicircle_with_outliers(300)), 3, tolerance=1e-3)
    ax = plot_outliers(pairs, count=2, label="top")
    (bars,) = ax.containers
    np.testing.assert_array_equal(bars.lines[0].get_xdata(), pairs.values[:2])
    half = [np.ptp(segment[:, 0]) / 2 for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(half, pairs.residuals[:2], rtol=1e-6, atol=1e-14)


def test_where_no_outlier_is_known_the_two_ends_are_marked():
    spectrum = estimate_spectrum(diagonal_operator(semicircle_with_outliers(300)), 30, 1)
    (bars,) = plot_outliers(spectrum).containers
    ends = spectrum.extreme_eigenvalues
    assert set(bars.lines[0].get_xdata()) == {ends.smallest, ends.largest}


@pytest.mark.parametrize(
    ("bounds", "shown"),
    [
        ([9.6e-5, 1e-7], r"$1 \times 10^{-4}$"),
        ([3.1e-5, 0.0], r"$4 \times 10^{-5}$"),
        ([0.0, 0.0], "0"),
        ([2.0, 0.5], "2"),
    ],
)
def test_the_legend_rounds_the_largest_bound_up(bounds, shown):
    pairs = top_eigenpairs(np.diag([3.0, 2.0, 1.0]), 2)
    ax = plot_outliers(replace(pairs, residuals=np.array(bounds)))
    (bars,) = ax.containers
    assert bars.get_label() == rf"2 eigenvalues $\pm$ {shown}"


def test_outliers_do_not_move_the_limits_of_a_density(spectrum):
    ax = plot_density(spectrum)
    before = ax.get_ylim()
    plot_outliers(spectrum, ax)
    assert ax.get_ylim() == before


# Several -----------------------------------------------------------------------------------------


def test_several_spectra_share_one_kernel_and_differ_without_colour(spectra):
    named = {f"epoch {t}": s for t, s in spectra.items()}
    ax = plot_spectra(named, column_axes())
    sigma = max(s.default_sigma for s in spectra.values())
    for line, spectrum in zip(ax.lines, spectra.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), spectrum.density(sigma=sigma).values)
    assert len({line.get_linestyle() for line in ax.lines}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(named)


def test_several_spectra_get_axes_of_their_own_and_options(spectra):
    ax = plot_spectra({"a": spectra[0]}, sigma=0.5, band=False, xscale="symlog", linewidth=3)
    assert not ax.collections
    assert ax.lines[0].get_linewidth() == 3
    assert ax.get_xscale() == "symlog"


@pytest.mark.parametrize("plot", [plot_spectra, plot_layers, plot_ridge, plot_evolution])
def test_no_spectrum_is_an_error(plot):
    with pytest.raises(ValueError, match="no spectrum to draw"):
        plot({})


def test_layers_have_panels_with_their_names_over_the_same_eigenvalues(spectra):
    named = {f"layer_{t}": s for t, s in spectra.items()}
    panels = plot_layers(named, columns=2)
    assert panels.shape == (3,)
    assert [panel.get_title() for panel in panels] == list(named)
    assert len({panel.get_xlim() for panel in panels}) == 1
    assert len({panel.get_ylim() for panel in panels}) == 1
    assert len(panels[0].figure.axes) == 3
    low = min(panel.lines[0].get_xdata()[0] for panel in panels)
    assert panels[0].get_xlim()[0] <= low
    panels[0].figure.canvas.draw()


def test_each_layer_has_its_own_resolution_within_the_panel(spectra):
    panels = plot_layers({f"layer_{t}": s for t, s in spectra.items()})
    panels[0].figure.canvas.draw()
    for panel, spectrum in zip(panels, spectra.values(), strict=True):
        ends, _ = strip_and_words(panel)
        assert ends[1] == pytest.approx(spectrum.default_sigma)
        box, frame = panel.texts[0].get_window_extent(), panel.bbox.padded(3.0)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1


def test_layers_can_be_drawn_on_axes_of_the_caller(spectra):
    _, axes = plt.subplots(1, 3)
    panels = plot_layers({str(t): s for t, s in spectra.items()}, axes, xscale="linear")
    assert list(panels) == list(axes)
    with pytest.raises(ValueError, match="3 spectra and 2 axes"):
        plot_layers({str(t): s for t, s in spectra.items()}, axes[:2])
