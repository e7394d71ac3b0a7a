import numpy as np
import pytest
from plotting.pictures import column_axes, finite_differences

from spectral_density.plotting import plot_finite_differences


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
