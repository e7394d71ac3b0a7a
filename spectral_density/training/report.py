"""A Keras callback that records every step: in History, CSV and TensorBoard, and as a table."""

from __future__ import annotations

import csv
import os
from typing import Any

import keras
import numpy as np

from spectral_density.engines.keras_shared.attributes import print_message
from spectral_density.training.event_file import EventFile
from spectral_density.training.metrics import first_accuracy
from spectral_density.training.model import SecondOrderModel
from spectral_density.training.steps import TrainingStep

# Columns of the table: key of a row, heading, format.
_COLUMNS = (
    ("data_passes", "passes", "{:.2f}"),
    ("step", "step", "{:d}"),
    ("loss", "loss", "{:.4g}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("val_loss", "val loss", "{:.4g}"),
    ("val_accuracy", "val acc.", "{:.4f}"),
    ("best_val_accuracy", "best acc.", "{:.4f}"),
    ("gradient_norm", "|g|", "{:.3g}"),
    ("step_norm", "|step|", "{:.3g}"),
    ("damping", "damping", "{:.3g}"),
    ("rank", "rank", "{:d}"),
    ("smallest_eigenvalue", "smallest", "{:.3g}"),
    ("largest_eigenvalue", "largest", "{:.3g}"),
    ("num_products", "products", "{:d}"),
    ("status", "status", "{}"),
)
_WIDTH = 9
# Known once an epoch, and repeated in the rows of the steps that follow.
_VALIDATION = ("val_loss", "val_accuracy", "best_val_accuracy")


class TrainingReport(keras.callbacks.Callback):
    """Record each step of a `SecondOrderModel`.

    A row has `step`, `epoch`, `status`, `loss` (of the step's batch), `accuracy` (Keras's running
    mean over the epoch so far), `gradient_norm`, `step_length`, `step_norm`, `damping`, `radius`,
    `rank`, `smallest_eigenvalue`, `largest_eigenvalue`, `num_products` and `data_passes`, and, from
    the first validation on, `val_loss`, `val_accuracy` and `best_val_accuracy`; what is
    missing is NaN. Methods compare at equal `data_passes`, not at equal epochs; see `Work`.

    `History`, and with it what else reads the logs of an epoch, has the figures of each epoch's
    last step; CSV and TensorBoard have every step.

    Attributes:
        rows: a dict for each step, of all `fit`s so far.
    """

    def __init__(
        self,
        csv: str | os.PathLike[str] | None = None,
        *,
        tensorboard: str | os.PathLike[str] | None = None,
        table: bool = False,
        passes_per_row: float = 1.0,
    ):
        """Set where to write.

        Args:
            csv: file for the rows, overwritten by each `fit`.
            tensorboard: directory for scalars, by step.
            table: print a table, a row for each pass over the data.
            passes_per_row: data passes from one row of the table to the next.
        """
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._csv_path = csv
        self._tensorboard_path = tensorboard
        self._table = table
        self._passes_per_row = passes_per_row
        self._validation: dict[str, float] = {}

    # Keras's side --------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the files."""
        if not isinstance(self.model, SecondOrderModel):
            raise TypeError(
                f"TrainingReport reports the steps of a SecondOrderModel, got "
                f"{type(self.model).__name__}."
            )
        self._epoch = 0
        self._row: dict[str, Any] | None = None
        self._next_pass = 0.0
        self._printed = True
        self._file: Any = None
        self._csv: Any = None
        self._events: EventFile | None = None
        if self._tensorboard_path is not None:
            self._events = EventFile(self._tensorboard_path)
        if self._table:
            print_message(" ".join(heading.rjust(_WIDTH) for _, heading, _ in _COLUMNS))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the step."""
        step = self.model.last_step
        if step is None:
            return
        self._finish_row()
        self._row = self._as_row(step, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the validation to the last step, and its figures to the logs."""
        logs = {} if logs is None else logs
        if self._row is None:
            return
        self._update_validation(logs)
        self._row |= self._validation
        # Keras's own values stay.
        logs |= {
            key: value
            for key, value in self._row.items()
            if key not in ("epoch", "status") and key not in logs
        }
        self._finish_row()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the files."""
        self._finish_row()
        if self._table and self.rows and not self._printed:
            self._print_row(self.rows[-1])
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    # Rows ----------------------------------------------------------------------------------------

    def _as_row(self, step: TrainingStep, logs: dict[str, Any]) -> dict[str, Any]:
        accuracy = first_accuracy(logs)
        return {
            "step": step.number,
            "epoch": self._epoch,
            "status": step.status.name,
            "loss": step.loss,
            "accuracy": np.nan if accuracy is None else float(logs[accuracy]),
            "gradient_norm": step.gradient_norm,
            "step_length": step.step_length,
            "step_norm": step.step_norm,
            "damping": step.damping,
            "radius": step.radius,
            "rank": step.rank,
            "smallest_eigenvalue": step.smallest_eigenvalue,
            "largest_eigenvalue": step.largest_eigenvalue,
            "num_products": step.num_products,
            "data_passes": step.data_passes,
            **{key: self._validation.get(key, np.nan) for key in _VALIDATION},
        }

    def _update_validation(self, logs: dict[str, Any]) -> None:
        known = self._validation
        if "val_loss" in logs:
            known["val_loss"] = float(logs["val_loss"])
        name = first_accuracy(logs, "val_")
        if name is not None:
            known["val_accuracy"] = accuracy = float(logs[name])
            known["best_val_accuracy"] = max(known.get("best_val_accuracy", -np.inf), accuracy)

    def _finish_row(self) -> None:
        """Write the last row, which was kept until the validation of its epoch was known."""
        row, self._row = self._row, None
        if row is None:
            return
        self.rows.append(row)
        if self._csv_path is not None:
            if self._csv is None:
                self._file = open(self._csv_path, "w", newline="", encoding="utf-8")  # noqa: SIM115
                self._csv = csv.DictWriter(self._file, fieldnames=list(row))
                self._csv.writeheader()
            self._csv.writerow(row)
            self._file.flush()
        if self._events is not None:
            for key, value in row.items():
                if key not in ("step", "status") and np.isfinite(value):
                    self._events.scalar(f"training/{key}", value, row["step"])
        self._printed = self._table and row["data_passes"] >= self._next_pass
        if self._printed:
            done = np.floor(row["data_passes"] / self._passes_per_row)
            self._next_pass = (done + 1) * self._passes_per_row
            self._print_row(row)

    def _print_row(self, row: dict[str, Any]) -> None:
        print_message(" ".join(_cell(row[key], form) for key, _, form in _COLUMNS))


def _cell(value: Any, form: str) -> str:
    missing = isinstance(value, float) and not np.isfinite(value)
    return ("-" if missing else form.format(value)).rjust(_WIDTH)
