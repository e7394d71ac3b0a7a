import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from cases import diagonal_operator, log_uniform_bulk, semicircle_with_outliers

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from scipy.integrate import trapezoid

from spectral_density import estimate_spectrum, plotting, top_eigenpairs
from spectral_density.plotting import (
    plot_density,
    plot_eigenvalues,
    plot_evolution,
    plot_finite_differences,
    plot_layers,
    plot_log_density,
    plot_loss_line,
    plot_loss_surface,
    plot_matrix,
    plot_outliers,
    plot_ridge,
    plot_spectra,
    plot_stem,
)
from spectral_density.plotting._axes import SignedDecades, png_bytes, set_scale, signed_log_grid

COLUMN = (3.3, 2.5)  # inches


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


def column_axes():
    return plt.subplots(figsize=COLUMN, layout="constrained")[1]


def landscape(num_directions):
    """A paraboloid and what is known of it, without TensorFlow."""
    t = np.linspace(-1, 1, 9)
    curvature = np.diag([2.0, 6.0])[:num_directions, :num_directions]
    grids = np.meshgrid(*[t] * num_directions, indexing="ij")
    losses = 1.0 + sum(curvature[k, k] / 2 * grid**2 for k, grid in enumerate(grids))
    return SimpleNamespace(
        coordinates=(t,) * num_directions,
        losses=losses,
        loss=1.0,
        slopes=np.zeros(num_directions),
        curvature=curvature,
        quadratic_model=lambda: losses,
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


@pytest.mark.parametrize(("low", "high"), [(-1e-3, 40.0), (-2e5, 3e-2), (1e-9, 1e9), (-5.0, 5.0)])
def test_ticks_of_a_symlog_axis_are_few_decades_that_do_not_touch(low, high):
    ax = column_axes()
    ax.plot([low, high], [0.0, 1.0])
    set_scale(ax, "x", "symlog", 1e-4)
    ax.figure.canvas.draw()
    labels = [label for label in ax.get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert 2 <= len(boxes) <= 8
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_ticks_are_zero_and_powers_of_ten():
    locator = SignedDecades(1e-2)
    locator.set_axis(column_axes().xaxis)
    ticks = np.array(locator.tick_values(-0.5, 20.0))
    assert 0.0 in ticks
    powers = np.log10(np.abs(ticks[ticks != 0]))
    np.testing.assert_allclose(powers, np.round(powers), atol=1e-9)


def test_a_signed_logarithmic_grid_has_its_ends_and_more_points_next_to_zero():
    grid = signed_log_grid(-1.0, 100.0, 1e-3, 1_000)
    assert (grid[0], grid[-1]) == (-1.0, 100.0)
    steps = np.diff(grid)
    assert (steps > 0).all()
    assert steps[np.argmin(np.abs(grid))] < 1e-3 * steps[-1]


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


def test_layers_can_be_drawn_on_axes_of_the_caller(spectra):
    _, axes = plt.subplots(1, 3)
    panels = plot_layers({str(t): s for t, s in spectra.items()}, axes, xscale="linear")
    assert list(panels) == list(axes)
    with pytest.raises(ValueError, match="3 spectra and 2 axes"):
        plot_layers({str(t): s for t, s in spectra.items()}, axes[:2])


# Over training -----------------------------------------------------------------------------------


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


# Matrices ----------------------------------------------------------------------------------------


def test_a_matrix_is_drawn_by_magnitude_with_layers_in_their_order():
    matrix = np.diag([1.0, -10.0, 1e-3, 100.0])
    ax = plot_matrix(matrix, column_axes(), layers={"b": [2, 3], "a": np.array([0, 1])})
    (image,) = ax.images
    drawn = np.asarray(image.get_array())
    np.testing.assert_allclose(np.diag(drawn), [1e-3, 100.0, 1.0, 10.0])
    assert drawn.min() == pytest.approx(1e-4)  # six decades below the largest
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert [line.get_xdata()[0] for line in ax.lines[1::2]] == [2]
    ax.figure.canvas.draw()


def test_a_large_matrix_is_drawn_in_cells_of_equal_energy():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(1500, 1500))
    ax = plot_matrix(matrix, decades=12)
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn.shape == (600, 600)
    edges = np.unique(np.linspace(0, 1500, 601).astype(int))
    sizes = np.outer(np.diff(edges), np.diff(edges))
    assert np.sum(drawn**2 * sizes) == pytest.approx(np.sum(matrix**2))


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (np.ones((2, 3)), {}, "must be square"),
        (np.zeros((2, 2)), {}, "is zero"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), {}, "NaN or infinity"),
        (np.eye(3), {"layers": {"a": [0, 1]}}, "each of the 3 indices once"),
        (np.eye(3), {"layers": {"a": [0, 1], "b": [1]}}, "each of the 3 indices once"),
    ],
)
def test_a_matrix_that_cannot_be_drawn_is_an_error(matrix, options, message):
    with pytest.raises(ValueError, match=message):
        plot_matrix(matrix, **options)


# Losses ------------------------------------------------------------------------------------------


def test_the_loss_line_has_the_loss_the_weights_and_the_quadratic_model():
    line = landscape(1)
    ax = plot_loss_line(line, column_axes())
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), line.losses)
    assert (ax.lines[1].get_xdata()[0], ax.lines[1].get_ydata()[0]) == (0.0, 1.0)
    assert ax.lines[2].get_linestyle() == "--"
    assert "2" in ax.get_legend().get_texts()[1].get_text()
    assert len(plot_loss_line(line, quadratic=False).lines) == 2


def test_the_limits_of_the_loss_line_are_the_losses_own():
    line = landscape(1)
    line.quadratic_model = lambda: 1e6 * line.losses
    assert plot_loss_line(line).get_ylim()[1] < 10


def test_the_surface_has_its_first_direction_across():
    plane = landscape(2)
    ax = plot_loss_surface(plane, column_axes(), quadratic=True)
    assert ax.get_aspect() == 1.0
    # The loss is steeper along the second: its contours are wider than high.
    contour = ax.collections[1].get_paths()[2].vertices
    assert np.ptp(contour[:, 0]) > 1.5 * np.ptp(contour[:, 1])
    ax.figure.canvas.draw()


@pytest.mark.parametrize("spoil", ["huge", "infinite", "constant", "negative"])
def test_every_surface_can_be_drawn(spoil):
    plane = landscape(2)
    if spoil == "huge":
        plane.losses = plane.losses**30
    elif spoil == "infinite":
        plane.losses[0, 0] = np.inf
    elif spoil == "constant":
        plane.losses[:] = 1.0
    else:
        plane.losses -= 5.0
    plot_loss_surface(plane).figure.canvas.draw()


def test_a_landscape_of_the_other_kind_names_the_other_picture():
    with pytest.raises(ValueError, match="use plot_loss_surface"):
        plot_loss_line(landscape(2))
    with pytest.raises(ValueError, match="use plot_loss_line"):
        plot_loss_surface(landscape(1))


# Checks ------------------------------------------------------------------------------------------


def test_errors_of_finite_differences_stand_next_to_a_line_of_slope_two():
    check = finite_differences()
    check.gradient_errors[2], check.product_errors[3] = 0.0, np.nan
    gradient, product, slope = plot_finite_differences(check, column_axes()).lines
    np.testing.assert_array_equal(gradient.get_xdata(), np.delete(check.steps, 2))
    np.testing.assert_array_equal(product.get_ydata(), np.delete(check.product_errors, 3))
    assert gradient.get_marker() != product.get_marker()
    x, y = np.log(slope.get_data())
    assert np.diff(y) / np.diff(x) == pytest.approx(2.0)
    assert slope.get_ydata()[-1] == check.gradient_errors[0]


def test_errors_that_are_all_zero_leave_the_axes_empty():
    check = finite_differences()
    check.gradient_errors, check.product_errors = np.zeros((2, 7))
    ax = plot_finite_differences(check)
    assert not ax.get_legend()
    ax.figure.canvas.draw()


# Everywhere --------------------------------------------------------------------------------------


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
        "finite differences": lambda ax: plot_finite_differences(finite_differences(), ax),
    }
    return pictures


def finite_differences():
    steps = 10.0 ** -np.arange(1, 8)
    return SimpleNamespace(
        steps=steps,
        gradient_errors=steps**2 + 1e-15 / steps,
        product_errors=0.3 * steps**2 + 1e-12 / steps,
    )


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


def test_pictures_as_bytes_leave_no_figure_behind(spectrum):
    png = png_bytes(spectrum.plot, (3.0, 2.0))
    assert png.startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_plotting_does_not_load_tensorflow():
    code = "import sys, spectral_density.plotting; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
