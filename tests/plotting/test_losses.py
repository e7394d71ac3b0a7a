import numpy as np
import pytest
from plotting.pictures import column_axes, landscape

from spectral_density.plotting import plot_loss_line, plot_loss_surface


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


def test_the_levels_of_a_surface_are_round():
    for scale, power in ((1.0, 1), (0.037, 1), (1.0, 9), (1.0, 30)):
        plane = landscape(2)
        plane.losses = scale * plane.losses**power
        bar = plot_loss_surface(plane).figure.axes[1]
        values = [float(label.get_text()) for label in bar.get_yticklabels()]
        assert 2 <= len(values) <= 7
        for value in values:
            assert float(f"{value:.2g}") == value


def test_a_legend_says_what_the_dashed_contours_are():
    ax = plot_loss_surface(landscape(2), column_axes(), quadratic=True)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["quadratic model"]
    assert plot_loss_surface(landscape(2)).get_legend() is None


@pytest.mark.parametrize(
    ("directions", "normalize", "across"),
    [
        ("top", None, "distance along $v_1$"),
        ("given", None, "distance along $d_1$"),
        ("random", None, "distance along random $d_1$"),
        ("random", "filter", "random $d_1$ (filter norms)"),
        ("given", "layer", "$d_1$ (layer norms)"),
        ("top", "filter", "$d_1$ (filter norms)"),
    ],
)
def test_axes_say_which_directions_they_are(directions, normalize, across):
    plane = landscape(2)
    plane.directions, plane.normalize = directions, normalize
    assert plot_loss_surface(plane).get_xlabel() == across


def test_a_line_names_an_eigenvalue_only_where_it_is_one():
    line = landscape(1)
    assert r"$\lambda$ = 2" in plot_loss_line(line).get_legend().get_texts()[1].get_text()
    line.directions = "random"
    ax = plot_loss_line(line)
    assert "curvature 2" in ax.get_legend().get_texts()[1].get_text()
    assert ax.get_xlabel() == "distance along random $d_1$"


def test_losses_that_hardly_differ_have_different_labels():
    plane = landscape(2)
    plane.losses = 2.302585 + 1e-6 * plane.losses
    ax = plot_loss_surface(plane)
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.figure.axes[1].get_yticklabels()]
    assert len(set(labels)) == len(labels) > 2


def test_a_surface_without_a_finite_loss_is_an_error():
    plane = landscape(2)
    plane.losses[:] = np.nan
    with pytest.raises(ValueError, match="no loss of the landscape is finite"):
        plot_loss_surface(plane)


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
