"""How close to instability a training is: eigenvalues as shares of their thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral_density.plotting.axes import LINE_STYLES, new_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The axis ends between these, so that the line at 1 is to be seen: what is beyond is marked.
_LEAST_TOP, _MOST_TOP, _LEAST_BOTTOM = 1.3, 3.0, -1.0
# With more points than this markers hide the line styles.
_MOST_MARKED = 25
# Names the artists that are there once, however many calls draw on the same axes.
_THRESHOLD = "threshold"


def plot_stability(
    records: Sequence[Any] | Mapping[Any, Sequence[Any]],
    ax: Axes | None = None,
    *,
    xlabel: str = "step",
    **line_options: Any,
) -> Axes:
    """Draw the sharpness, the largest eigenvalue, over training as a share of its threshold.

    The line at 1 is the threshold of full-batch training, which then goes on at it (the edge of
    stability). With mini-batches the share of the full-batch matrix stays below 1, by how much
    depends on the size of the batches: it is not a distance from instability then.

    The axis ends at 3 at most: triangles at its edge mark what is beyond, at the start of a
    training or where it diverges. Lines have gaps where a measurement failed; a training without a
    number is left out.

    Args:
        records: of a `SpectrumCallback` with `preconditioned=True`; or a dict of those of several,
            by the names in the legend.
        ax: axes to draw on; None for new ones.
        xlabel: "step", or "epoch" for epochs across.
        **line_options: passed to `Axes.plot`.

    Raises:
        ValueError: if there is no record with a threshold, or `xlabel` is another word.
        TypeError: if records of several trainings have no names.
    """
    if xlabel not in ("step", "epoch"):
        raise ValueError(f'xlabel must be "step" or "epoch", got {xlabel!r}.')
    runs = records if isinstance(records, Mapping) else {"": records}
    curves = {name: _curve(run, xlabel) for name, run in runs.items()}
    known = [times[np.isfinite(ratios)] for times, ratios, _ in curves.values()]
    if not any(len(times) for times in known):
        raise ValueError(
            "no record has a threshold: the records of SpectrumCallback(preconditioned=True) do."
        )
    ax = new_axes(ax)
    for number, (name, curve) in enumerate(curves.items()):
        style = LINE_STYLES[number % len(LINE_STYLES)]
        _draw(ax, curve, {"linestyle": style, "label": str(name) or None, **line_options})
    _mark_threshold(ax)
    whole_numbers(ax, np.concatenate(known))
    ax.set_xlabel(xlabel)
    ax.set_ylabel("sharpness / threshold")
    if any(str(name) for name in curves):
        ax.legend(fontsize="small")
    return ax


def _draw(
    ax: Axes, curve: tuple[np.ndarray, np.ndarray, np.ndarray], options: dict[str, Any]
) -> None:
    """Draw one training: a line with the band of its bounds, and marks at the edge."""
    times, ratios, bounds = curve
    is_known = np.isfinite(ratios)
    if not is_known.any():
        return
    if "marker" not in options:
        beside = np.concatenate([[False], is_known, [False]])
        is_alone = is_known & ~beside[:-2] & ~beside[2:]  # and has no line
        is_marked = is_known if len(times) <= _MOST_MARKED else is_alone
        options = {"marker": ".", "markevery": is_marked.tolist(), **options}
    (line,) = ax.plot(times, ratios, **options)
    color = line.get_color()
    ax.fill_between(times, ratios - bounds, ratios + bounds, color=color, alpha=0.2, linewidth=0)
    beyond = times[is_known & (ratios > _MOST_TOP)]
    if len(beyond):
        edge = np.full(len(beyond), _MOST_TOP)
        ax.plot(beyond, edge, "^", color=color, markersize=5, clip_on=False)


def _mark_threshold(ax: Axes) -> None:
    """Draw the line at 1 with its words, once, and set limits at which it is to be seen."""
    if not any(line.get_gid() == _THRESHOLD for line in ax.lines):
        ax.axhline(1.0, color="gray", linewidth=1, zorder=1, gid=_THRESHOLD)
        # Away from the line, where the curves go on.
        ax.text(
            *(0.99, 0.98, "unstable above 1 (full batch)"),
            transform=ax.transAxes,
            ha="right",
            va="top",
            color="gray",
            fontsize="small",
        )
    # Of all calls on these axes.
    heights = [np.asarray(line.get_ydata(), dtype=np.float64) for line in ax.lines]
    known = np.concatenate([height[np.isfinite(height)] for height in heights])
    bottom, top = 1.1 * known.min(), 1.1 * ax.dataLim.y1
    ax.set_ylim(min(0.0, max(bottom, _LEAST_BOTTOM)), min(max(_LEAST_TOP, top), _MOST_TOP))


def _curve(run: Sequence[Any], xlabel: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times, ratios and their bounds, (t,) each, NaN for a measurement that failed.

    Raises:
        TypeError: if it is no list of records.
    """
    if any(isinstance(record, (list, tuple)) for record in run):
        raise TypeError(
            "records of several trainings are passed by name, as a dict: "
            'plot_stability({"Adam": first, "SGD": second}).'
        )
    if any(not hasattr(record, "threshold") for record in run):
        raise TypeError("records are those of a SpectrumCallback: pass callback.records.")
    measured = [record for record in run if record.threshold is not None]
    times = np.array([getattr(record, xlabel) for record in measured], dtype=np.float64)
    ratios = np.array([record.ratio for record in measured], dtype=np.float64)
    ratios[~np.isfinite(ratios)] = np.nan
    bounds = np.array([record.bounds[0] / record.threshold for record in measured], np.float64)
    return times, ratios, bounds
