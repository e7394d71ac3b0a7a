"""How close to instability a training is: eigenvalues as shares of their thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral_density.plotting.axes import LINE_STYLES, new_axes, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The axis ends here where a training is far below the threshold, so that the line is to be seen.
_LEAST_TOP = 1.3
# With more points than this markers hide the line styles.
_MOST_MARKED = 25


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

    Args:
        records: of a `SpectrumCallback` with `preconditioned=True`; or several of them, by the
            names in the legend.
        ax: axes to draw on; None for new ones.
        xlabel: "step", or "epoch" for epochs across.
        **line_options: passed to `Axes.plot`.

    Raises:
        ValueError: if there is no record with a threshold, or `xlabel` is another word.
    """
    if xlabel not in ("step", "epoch"):
        raise ValueError(f'xlabel must be "step" or "epoch", got {xlabel!r}.')
    runs = records if isinstance(records, Mapping) else {"": records}
    curves = {name: _curve(run, xlabel) for name, run in runs.items()}
    if not any(len(times) for times, _, _ in curves.values()):
        raise ValueError(
            "no record has a threshold: the records of SpectrumCallback(preconditioned=True) do."
        )
    ax = new_axes(ax)
    for number, (name, (times, ratios, bounds)) in enumerate(curves.items()):
        options = {
            "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
            "marker": "." if len(times) <= _MOST_MARKED else "",
            "label": str(name) or None,
            **line_options,
        }
        (line,) = ax.plot(times, ratios, **options)
        ax.fill_between(
            times, ratios - bounds, ratios + bounds, color=line.get_color(), alpha=0.2, linewidth=0
        )
    ax.axhline(1.0, color="gray", linewidth=1, zorder=1)
    # Away from the line, where the curves go on.
    ax.text(
        *(0.99, 0.98, "unstable above 1 (full batch)"),
        transform=ax.transAxes,
        ha="right",
        va="top",
        color="gray",
        fontsize="small",
    )
    ax.set_ylim(0, max(_LEAST_TOP, 1.1 * ax.get_ylim()[1]))
    whole_numbers(ax, np.concatenate([times for times, _, _ in curves.values()]))
    ax.set_xlabel(xlabel)
    ax.set_ylabel("sharpness / threshold")
    if any(str(name) for name in curves):
        ax.legend(fontsize="small")
    return ax


def _curve(run: Sequence[Any], xlabel: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times, ratios and their bounds, (t,) each, of the records that have them."""
    measured = [r for r in run if r.threshold is not None and np.isfinite(r.ratio)]
    times = np.array([getattr(record, xlabel) for record in measured], dtype=np.float64)
    ratios = np.array([record.ratio for record in measured])
    bounds = np.array([record.bounds[0] / record.threshold for record in measured])
    return times, ratios, bounds
