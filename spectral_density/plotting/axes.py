"""Axes of all pictures: signed logarithmic scales with few ticks, limits, rendering to bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import Formatter, FuncFormatter, Locator, LogLocator, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar

EIGENVALUE = "eigenvalue"
DENSITY = "density (1 / eigenvalue)"

LINE_STYLES = ("-", "--", "-.", ":")
"""Line styles of successive curves on the same axes, which must be distinguishable in grey."""

COLORMAP = "viridis"
"""Perceptually uniform, and monotonic in lightness for readers who do not see colours."""

_RESOLUTION = "resolution"  # names the artists of the mark
_TEXT_HEIGHT = 0.985  # of the axes

_FEW = 100.0  # of a colour bar, range below which it has ticks within a decade

_TICK_INCHES = 0.45  # width of a label such as -10^-2, with spacing


def new_axes(ax: Axes | None, *, square: bool = False) -> Axes:
    """Return `ax`, or the axes of a new figure for None.

    Args:
        ax: axes or None.
        square: the aspect is fixed, and the axes are as high as their colour bar.
    """
    if ax is not None:
        return ax
    return plt.subplots(layout="compressed" if square else "constrained")[1]


def png_bytes(draw: Callable[[Axes], Any], size: tuple[float, float], dpi: int = 110) -> bytes:
    """Return a figure as PNG, without pyplot, which would show it in notebooks.

    Args:
        draw: called with the axes.
        size: width and height in inches.
        dpi: dots per inch.
    """
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def color_bar(ax: Axes, mappable: Any, label: str) -> Colorbar:
    """Set a colour bar beside the axes."""
    bar = ax.figure.colorbar(mappable, ax=ax)
    bar.set_label(label, fontsize="small")
    low, high = mappable.get_clim()
    if isinstance(mappable.norm, LogNorm) and high < _FEW * low:
        # Powers of ten alone would leave a tick or none.
        bar.locator, bar.formatter = (
            LogLocator(subs=(1.0, 2.0, 5.0)),
            FuncFormatter(lambda value, _: f"{value:g}"),
        )
        bar.update_ticks()
    bar.minorticks_off()
    return bar


def set_scale(ax: Axes, which: str, scale: str, linthresh: float) -> None:
    """Set the scale of an axis of eigenvalues.

    Args:
        ax: the axes.
        which: "x" or "y".
        scale: "linear" or "symlog".
        linthresh: magnitude below which "symlog" is linear; of several curves on the same axes the
            smallest counts.

    Raises:
        ValueError: if the scale is another.
    """
    if scale not in ("linear", "symlog"):
        raise ValueError(f'{which}scale must be "linear" or "symlog", got {scale!r}.')
    if scale == "linear":
        return
    axis = getattr(ax, f"{which}axis")
    if axis.get_scale() == "symlog":
        linthresh = min(linthresh, axis.get_transform().linthresh)
    getattr(ax, f"set_{which}scale")("symlog", linthresh=linthresh, linscale=0.5)
    axis.set_major_locator(SignedDecades(linthresh))
    axis.set_major_formatter(_SignedPower())
    axis.set_minor_locator(_NoTicks())


class SignedDecades(Locator):
    """Ticks at zero and signed powers of ten, as many as fit without overlap."""

    def __init__(self, linthresh: float):
        self._first = int(np.ceil(np.log10(linthresh) - 1e-9))

    def __call__(self) -> list[float]:
        """Return the ticks of the axis as it is now."""
        axis: Any = self.axis
        return self.tick_values(*axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Return the ticks between two limits."""
        low, high = sorted((vmin, vmax))
        last = int(np.floor(np.log10(max(abs(low), abs(high), 10.0**self._first)) + 1e-9))
        powers = range(last, self._first - 1, -1)
        most = self._most_ticks()
        step = 1
        while True:
            magnitudes = [10.0**power for power in powers[::step]]
            ticks = [-m for m in magnitudes] + [0.0] + magnitudes[::-1]
            shown = sorted(tick for tick in ticks if low <= tick <= high)
            if len(shown) <= most or step >= len(powers):
                return shown
            step += 1

    def _most_ticks(self) -> int:
        axis: Any = self.axis
        axes = axis.axes
        box = axes.get_window_extent()
        across = axis.axis_name == "x"
        inches = (box.width if across else 1.8 * box.height) / axes.figure.dpi
        return max(3, int(inches / _TICK_INCHES))


class _SignedPower(Formatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        if x == 0:
            return "0"
        sign = "-" if x < 0 else ""
        power = np.log10(abs(x))
        if abs(power - round(power)) > 1e-6:
            return f"{x:.3g}"
        if -1 <= round(power) <= 1:
            return f"{sign}{abs(x):g}".replace("-", "\N{MINUS SIGN}")
        return f"${sign}10^{{{round(power)}}}$"


class _NoTicks(Locator):
    def __call__(self) -> list[float]:
        return []

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return []


def whole_numbers(ax: Axes, times: np.ndarray) -> None:
    """Set integer ticks on the horizontal axis where all times are integers."""
    if (times == np.round(times)).all():
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def signed_log_grid(low: float, high: float, linthresh: float, count: int) -> np.ndarray:
    """Return points from low to high, nearly evenly spaced on a symlog axis."""
    ends = np.arcsinh(np.array([low, high]) / linthresh)
    points = linthresh * np.sinh(np.linspace(ends[0], ends[1], count))
    points[[0, -1]] = low, high
    return np.maximum.accumulate(points)


def mark_resolution(ax: Axes, width: float) -> None:
    """Shade what is within a distance of zero on the horizontal axis, and say what it is.

    Of several calls on the same axes the largest distance stays. Where the strip is not on the axis
    the distance is said only. Limits and autoscaling are left as they are.

    Args:
        ax: axes with eigenvalues across.
        width: distance that is not resolved.
    """
    for old in [*ax.patches, *ax.texts]:
        if old.get_gid() == _RESOLUTION:
            if isinstance(old, Rectangle):
                width = max(width, old.get_width() / 2)
            old.remove()
    across = ax.get_xaxis_transform()
    strip = Rectangle((-width, 0), 2 * width, 1, transform=across, zorder=0, linewidth=0)
    strip.set(facecolor="0.5", alpha=0.2, gid=_RESOLUTION)
    # As an artist it is no data that limits are made for.
    ax.add_artist(strip)
    low, high = sorted(ax.get_xlim())
    style: dict[str, Any] = {"color": "0.45", "fontsize": "x-small", "gid": _RESOLUTION}
    if -width < high and low < width:
        words = f"\N{PLUS-MINUS SIGN}{width:.2g}: not resolved"
        place, at = _place(ax, max(-width, low), min(width, high), len(words))
        text = ax.text(at, s=f" {words} ", transform=across, clip_on=True, **place, **style)
    else:
        place = {"ha": "right", "va": "top", "transform": ax.transAxes}
        text = ax.text(0.98, _TEXT_HEIGHT, f"resolution {width:.2g}", **place, **style)
    text.set_in_layout(False)


def _place(
    ax: Axes, left: float, right: float, num_characters: int
) -> tuple[dict[str, Any], float]:
    """Return how to set words about a strip, and at which eigenvalue: within if they fit."""
    bottom = ax.get_ylim()[0]
    pixels = ax.transData.transform([(left, bottom), (right, bottom)])[:, 0]
    box = ax.get_window_extent()
    size = 0.7 * plt.rcParams["font.size"] * ax.figure.dpi / 72
    length = 0.55 * size * num_characters
    middle = (left + right) / 2
    if np.ptp(pixels) > length:
        return {"y": _TEXT_HEIGHT, "ha": "center", "va": "top"}, middle
    if np.ptp(pixels) > 2 * size and box.height > 1.5 * length:
        return {"y": 0.45, "ha": "center", "va": "center", "rotation": "vertical"}, middle
    if box.x1 - pixels[1] > pixels[0] - box.x0:
        return {"y": _TEXT_HEIGHT, "ha": "left", "va": "top"}, right
    return {"y": _TEXT_HEIGHT, "ha": "right", "va": "top"}, left
