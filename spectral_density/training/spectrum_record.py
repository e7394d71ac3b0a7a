"""Measurements of a spectrum during training: their numbers, and the files they are written to."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectral_density._repr import repr_with_shapes
from spectral_density.analysis.sharpness import CriticalSharpness
from spectral_density.linalg.estimates import with_error
from spectral_density.linalg.quadrature import WEIGHT_FLOOR
from spectral_density.spectrum.spectrum import Spectrum
from spectral_density.training.event_file import EventFile, check_directory

_FIGURE_INCHES = (5.0, 3.2)


@dataclass(frozen=True, eq=False)
class SpectrumRecord:
    """One measurement of a `SpectrumCallback`; NaN where it failed (weights not finite, say)."""

    epoch: int  # epochs begun, counted from 1; 0 before the first
    step: int  # training steps made before it
    eigenvalues: np.ndarray  # (k,), the largest, in descending order
    bounds: np.ndarray  # (k,), some eigenvalue is at most this far from each
    smallest: float
    smallest_bound: float
    trace: float
    trace_standard_error: float
    seconds: float  # that it took
    spectrum: Spectrum | None  # with density=True
    threshold: float | None = None  # of the largest, with preconditioned=True
    critical: CriticalSharpness | None = None  # of the last step, with critical_sharpness=True

    __repr__ = repr_with_shapes

    @property
    def ratio(self) -> float:
        """The largest eigenvalue over the threshold; NaN where none was asked for."""
        return float(self.eigenvalues[0]) / self.threshold if self.threshold else np.nan

    @property
    def critical_sharpness(self) -> float:
        """The critical sharpness along the last step, NaN where there is none."""
        return np.nan if self.critical is None else self.critical.value

    def __str__(self) -> str:
        """Return the numbers in a line."""
        largest = ", ".join(f"{value:.4g}" for value in self.eigenvalues)
        parts = [
            f"largest eigenvalues {largest}",
            f"smallest {self.smallest:.4g}",
            f"trace {with_error(self.trace, self.trace_standard_error)}",
        ]
        if self.threshold is not None:
            parts.append(f"{self.ratio:.3g} of the threshold {self.threshold:.4g}")
        if self.critical is not None:
            parts.append(f"critical sharpness {self.critical_sharpness:.4g}")
        return f"step {self.step}: {'; '.join(parts)} ({self.seconds:.2g} s)"


def numbers_of(
    spectrum: Spectrum | None, k: int
) -> tuple[np.ndarray, np.ndarray, float, float, float, float]:
    """Return the fields of a record from `eigenvalues` on; NaN without a spectrum."""
    if spectrum is None:
        missing = np.full(k, np.nan)
        return missing, missing.copy(), np.nan, np.nan, np.nan, np.nan
    ends = spectrum.extreme_eigenvalues
    values, bounds = _largest(spectrum, k)
    return (
        values,
        bounds + spectrum.rounding,
        ends.smallest,
        ends.smallest_bound,
        spectrum.trace,
        spectrum.trace_standard_error,
    )


def _largest(spectrum: Spectrum, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest eigenvalues from all draws together, with residual bounds.

    The i-th largest Ritz value of a subspace is at most the i-th largest eigenvalue (Cauchy), so
    the largest over the draws is the best. NaN where no draw has so many.
    """
    carries = spectrum.weights > WEIGHT_FLOOR
    nodes = np.where(carries, spectrum.nodes, -np.inf)
    order = np.argsort(-nodes, axis=1, kind="stable")[:, :k]
    nodes = np.take_along_axis(nodes, order, axis=1)
    residuals = np.take_along_axis(spectrum.residuals, order, axis=1)
    best = np.argmax(nodes, axis=0)
    values, bounds = np.full(k, np.nan), np.full(k, np.nan)
    count = nodes.shape[1]
    values[:count] = nodes[best, np.arange(count)]
    bounds[:count] = residuals[best, np.arange(count)]
    missing = ~np.isfinite(values)
    values[missing] = bounds[missing] = np.nan
    return values, bounds


def log_values(
    record: SpectrumRecord | None, name: str, stability: Iterable[str] = ()
) -> dict[str, float]:
    """Return the numbers for the logs of Keras, by `name` and what they are; NaN for no record.

    They are few: all that is in the logs is on the line of the progress bar.

    Args:
        record: the measurement.
        name: of the matrix.
        stability: which of a record's "threshold", "ratio" and "critical_sharpness" are wanted.
    """
    first, smallest, trace = np.nan, np.nan, np.nan
    if record is not None:
        first, smallest, trace = float(record.eigenvalues[0]), record.smallest, record.trace
    return {
        f"{name}_eigenvalue_1": first,
        f"{name}_eigenvalue_min": smallest,
        f"{name}_trace": trace,
        **{f"{name}_{what}": float(getattr(record, what, np.nan)) for what in stability},
    }


def further_values(record: SpectrumRecord | None, name: str, k: int) -> dict[str, float]:
    """Return the numbers that are in `History` and not in the logs: others, and the error."""
    eigenvalues = np.full(k, np.nan) if record is None else record.eigenvalues
    values = {f"{name}_eigenvalue_{i + 1}": float(eigenvalues[i]) for i in range(1, k)}
    values[f"{name}_trace_standard_error"] = (
        np.nan if record is None else record.trace_standard_error
    )
    return values


class RecordFiles:
    """The files of a callback: rows of a CSV file, scalars and figures for TensorBoard."""

    def __init__(
        self,
        name: str,
        csv_path: str | os.PathLike[str] | None,
        tensorboard_dir: str | os.PathLike[str] | None,
        stability: Iterable[str] = (),
    ):
        """Take the name of the matrix, and the paths, None for no file; nothing is written yet.

        What of `stability` is written beside the spectrum is as for `log_values`.

        Raises:
            ModuleNotFoundError: see `event_file.check_directory`.
        """
        if tensorboard_dir is not None:
            check_directory(tensorboard_dir)
        self._name = name
        self._stability = tuple(stability)
        self._csv_path = None if csv_path is None else Path(csv_path)
        self._csv_started = False
        self._tensorboard_dir = None if tensorboard_dir is None else os.fspath(tensorboard_dir)
        self._events: EventFile | None = None

    def write(self, record: SpectrumRecord) -> None:
        """Write a measurement to all files."""
        if self._csv_path is not None:
            self._write_row(self._csv_path, record)
        if self._tensorboard_dir is not None:
            if self._events is None:
                self._events = EventFile(self._tensorboard_dir)
            self._write_events(self._events, record)

    def flush(self) -> None:
        """Write to the disk what is in buffers."""
        if self._events is not None:
            self._events.flush()

    def _write_events(self, events: EventFile, record: SpectrumRecord) -> None:
        values = log_values(record, self._name, self._stability)
        values |= further_values(record, self._name, len(record.eigenvalues))
        for name, value in values.items():
            events.scalar(f"spectrum/{name}", value, record.step)
        if record.spectrum is not None:
            title = f"epoch {record.epoch}, step {record.step}"
            png = _density_png(record.spectrum, title)
            events.image(f"spectrum/{self._name}_density", png, record.step)
        events.flush()

    def _write_row(self, path: Path, record: SpectrumRecord) -> None:
        row: dict[str, Any] = {"epoch": record.epoch, "step": record.step}
        for rank, (value, bound) in enumerate(zip(record.eigenvalues, record.bounds, strict=True)):
            row[f"eigenvalue_{rank + 1}"] = float(value)
            row[f"eigenvalue_{rank + 1}_bound"] = float(bound)
        row["eigenvalue_min"] = record.smallest
        row["eigenvalue_min_bound"] = record.smallest_bound
        row["trace"] = record.trace
        row["trace_standard_error"] = record.trace_standard_error
        for what in self._stability:
            row[what] = float(getattr(record, what))
        row["seconds"] = record.seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if self._csv_started else "w", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if not self._csv_started:
                writer.writeheader()
            writer.writerow(row)
        self._csv_started = True


def _density_png(spectrum: Spectrum, title: str) -> bytes:
    from spectral_density.plotting import plot_density
    from spectral_density.plotting.axes import png_bytes

    def draw(ax: Any) -> None:
        plot_density(spectrum, ax)
        ax.set_title(title)

    return png_bytes(draw, _FIGURE_INCHES)
