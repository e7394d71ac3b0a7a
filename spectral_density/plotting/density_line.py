"""The curve of a density, which fades where there are no nodes, and only the kernel is left."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import allow_rasterization
from matplotlib.cbook import normalize_kwargs
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from spectral_density.spectrum.accuracy import support

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.spectrum.spectrum import Density, Spectrum

_OF_AXES = {"label", "scalex", "scaley", "data"}  # options of `Axes.plot` that are none of a line
_STEPS = 12  # of opacity beyond the outermost nodes
_BELOW_ONE = 100.0  # the axis ends at the height of a single eigenvalue over this
_ROOM_ABOVE = 8.0  # the peaks, for what is written there
_MOST_DECADES = 9  # of density below its peak


class DensityLine(Line2D):
    """A line that fades to the left and to the right of two ends.

    Attributes:
        ends: smallest and largest node, in the units of the eigenvalues.
        floor: density below which there is less than a small part of one eigenvalue.
    """

    def __init__(self, spectrum: Spectrum, density: Density):
        """Take the points of a density, and what is known of its ends."""
        super().__init__(density.grid, density.values)
        self.ends = support(spectrum.nodes, spectrum.weights)
        self.floor = lowest_shown(spectrum.size, density.sigma, float(density.values.max()))

    @allow_rasterization
    def draw(self, renderer: Any) -> None:
        """Draw the line between the ends, and what is beyond them in ever fainter pieces."""
        if not self.get_visible() or self.axes is None:
            return
        x, y = (np.asarray(values) for values in self.get_data())
        first, last = np.searchsorted(x, self.ends)
        last = min(last, len(x) - 1)
        alpha = self.get_alpha()
        opaque = to_rgba(self.get_color())[3] if alpha is None else alpha
        pieces = [(first, last, 1.0)]
        for start, stop in ((first, 0), (last, len(x) - 1)):
            joints = np.linspace(start, stop, _STEPS + 1).round().astype(int)
            for step, (near, far) in enumerate(pairwise(joints.tolist())):
                pieces.append((min(near, far), max(near, far), 1 - (step + 1) / (_STEPS + 1)))
        for start, stop, opacity in pieces:
            piece = Line2D(x[start : stop + 1], y[start : stop + 1])
            piece.update_from(self)
            piece.axes = self.axes
            piece.set_figure(self.axes.figure)
            piece.set_transform(self.get_transform())
            piece.set_solid_capstyle("butt")  # ends that overlap would show as dots
            piece.set_alpha(opaque * opacity)
            piece.draw(renderer)
        self.stale = False


def density_line(
    ax: Axes, spectrum: Spectrum, density: Density, **line_options: Any
) -> DensityLine:
    """Add the curve of a density to axes, logarithmic upward, in their next style."""
    (styled,) = ax.semilogy(density.grid, density.values, **line_options)
    line = DensityLine(spectrum, density)
    line.update_from(styled)
    # That leaves out some of what was given, such as the order of drawing.
    own = normalize_kwargs(line_options, Line2D)
    line.set(label=styled.get_label(), **{k: v for k, v in own.items() if k not in _OF_AXES})
    styled.remove()
    ax.add_line(line)
    return line


def lowest_shown(size: int, sigma: float, peak: float) -> float:
    """Return the density that axes end at: that of a small part of one eigenvalue of `size`."""
    single = 1 / (size * sigma * float(np.sqrt(2 * np.pi)))
    return max(single / _BELOW_ONE, peak * 10.0**-_MOST_DECADES)


def fit_density_limits(ax: Axes, bottom: float) -> None:
    """Set limits from `bottom` to a little above all curves, wherever they come from."""
    curves = [line for line in ax.lines if line.get_transform() == ax.transData]
    peaks = [float(np.nanmax(curve.get_ydata(), initial=0.0)) for curve in curves]
    ax.set_ylim(bottom, _ROOM_ABOVE * max(peaks))


def density_lines(ax: Axes) -> list[DensityLine]:
    """Return the curves of densities on axes."""
    return [line for line in ax.lines if isinstance(line, DensityLine)]
