"""Errors of finite differences against their step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_density.plotting.axes import LINE_STYLES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.analysis.finite_difference import FiniteDifferenceCheck


def plot_finite_differences(check: FiniteDifferenceCheck, ax: Axes | None = None) -> Axes:
    """Draw the errors of gradient and product against the step of the differences, log-log.

    The dotted line falls as h^2, as do the errors of correct derivatives until rounding errors
    dominate. An error that does not fall with h indicates a wrong derivative, or a kink.

    Args:
        check: what `finite_difference_check` returned.
        ax: axes to draw on; None for new ones.
    """
    ax = new_axes(ax)
    curves = {"gradient": check.gradient_errors, "product": check.product_errors}
    markers = zip(("s", "o"), LINE_STYLES, strict=False)
    corners = []
    for (name, errors), (marker, style) in zip(curves.items(), markers, strict=True):
        drawn = np.isfinite(errors) & (errors > 0)
        steps, shown = check.steps[drawn], errors[drawn]
        ax.loglog(steps, shown, marker=marker, linestyle=style, markersize=4, label=name)
        if len(steps):
            corners.append((steps.max(), shown[np.argmax(steps)], shown.min()))
    if corners:
        # From the upper curve's largest step down to the smallest error of all.
        end, top, _ = max(corners, key=lambda corner: corner[1])
        bottom = min(least for *_, least in corners)
        begin = max(check.steps.min(), end * np.sqrt(bottom / top))
        low = top * (begin / end) ** 2
        ax.loglog([begin, end], [low, top], ":", color="gray", zorder=1, label="slope 2")
        ax.legend(fontsize="small")
    ax.set_xlabel("step $h$ of the central difference")
    ax.set_ylabel("relative error")
    return ax
