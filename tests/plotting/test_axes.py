from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from plotting.pictures import column_axes

from spectral_density.plotting.axes import SignedDecades, png_bytes, set_scale, signed_log_grid


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


def test_pictures_as_bytes_leave_no_figure_behind(spectrum):
    png = png_bytes(spectrum.plot, (3.0, 2.0))
    assert png.startswith(b"\x89PNG")
    assert not plt.get_fignums()
