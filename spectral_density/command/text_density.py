"""Eigenvalue densities drawn in characters."""

from __future__ import annotations

import math

import numpy as np

from spectral_density.spectrum.spectrum import Spectrum

_DECADES, _ROWS_PER_DECADE = 6, 2  # of the density that are shown
_UNICODE, _ASCII = " ▁▂▃▄▅▆▇█", " .:|"
_MARGIN = 7  # columns left of the drawing, for the labels and the axis
_COLUMNS_PER_TICK = 10


def text_density(spectrum: Spectrum, *, width: int = 78, encoding: str | None = "utf-8") -> str:
    """Draw the density, logarithmic upwards, over the eigenvalues.

    Each column shows the largest value within it, so that no outlier falls between two columns;
    marks below the axis show where known simple eigenvalues lie.

    Args:
        spectrum: what to draw.
        width: columns in all, at least 30.
        encoding: of the output; block characters only where it has them.
    """
    blocks = _UNICODE if _can_show(_UNICODE + "┤┬─└▲", encoding) else _ASCII
    side, tick, rule, corner, mark = "┤┬─└▲" if blocks is _UNICODE else "|+-+^"
    columns = max(width, 30) - _MARGIN
    density = spectrum.density()
    low, high = float(density.grid[0]), float(density.grid[-1])
    values = _column_maxima(density.grid, density.values, columns)
    top = math.ceil(math.log10(values.max()))
    with np.errstate(divide="ignore"):
        decades = np.log10(values) - (top - _DECADES)
    full = len(blocks) - 1
    levels = np.maximum(np.round(decades * _ROWS_PER_DECADE * full), 0).astype(int)
    lines = []
    for row in range(_DECADES * _ROWS_PER_DECADE, 0, -1):
        above, inside = divmod(row, _ROWS_PER_DECADE)
        label = "" if inside else f"1e{top - _DECADES + above:+03d}"
        filled = np.clip(levels - (row - 1) * full, 0, full)
        lines.append(f"{label:>{_MARGIN - 2}} {side}" + "".join(blocks[k] for k in filled))
    ticks = {_column(tick_, low, high, columns): tick_ for tick_ in _ticks(low, high, columns)}
    axis = "".join(tick if column in ticks else rule for column in range(columns))
    lines.append(f"{f'1e{top - _DECADES:+03d}':>{_MARGIN - 2}} {corner}{axis}")
    lines.append(" " * _MARGIN + _labels(ticks, columns))
    legend = "density, logarithmic, over the eigenvalue"
    known = spectrum.nodes[0][spectrum.simple[0]]
    if len(known):
        marked = {_column(value, low, high, columns) for value in known}
        marks = "".join(mark if column in marked else " " for column in range(columns))
        lines.append(" " * _MARGIN + marks)
        what = "1 simple eigenvalue" if len(known) == 1 else f"{len(known)} simple eigenvalues"
        legend += f"; {mark} {what}"
    return "\n".join([*(line.rstrip() for line in lines), " " * _MARGIN + legend])


def _column_maxima(grid: np.ndarray, values: np.ndarray, columns: int) -> np.ndarray:
    """Return the largest value within each of equal columns of the grid, shape (columns,)."""
    edges = np.linspace(0, len(grid), columns + 1).astype(int)[:-1]
    return np.maximum.reduceat(values, edges)


def _column(value: float, low: float, high: float, columns: int) -> int:
    return min(int((value - low) / (high - low) * columns), columns - 1)


def _ticks(low: float, high: float, columns: int) -> list[float]:
    """Return round numbers within the range, far enough apart for their labels."""
    least = (high - low) * _COLUMNS_PER_TICK / columns
    decade = 10.0 ** math.floor(math.log10(least))
    step = next(decade * factor for factor in (1, 2, 5, 10) if decade * factor >= least)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _labels(ticks: dict[int, float], columns: int) -> str:
    """Return the numbers of the ticks, each centred below its own."""
    cells = [" "] * columns
    for column, value in ticks.items():
        text = f"{value:.4g}"
        start = min(max(column - len(text) // 2, 0), columns - len(text))
        cells[start : start + len(text)] = text
    return "".join(cells)


def _can_show(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
