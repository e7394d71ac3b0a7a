"""The spectrum of the curvature while a model trains: a Keras callback that stays in the wings."""

from __future__ import annotations

import csv
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils.io_utils import print_msg

from spectral_density.approximate import estimate_spectrum
from spectral_density.curvature.batches import first_batch
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.losses import make_objective
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import integer, number
from spectral_density.linalg.lockstep import default_draws_at_once
from spectral_density.linalg.quadrature import WEIGHT_FLOOR
from spectral_density.spectrum import Spectrum

_log = logging.getLogger("spectral_density")

T = TypeVar("T")

# What was never done is foreseen from the first training step, most of which goes into building its
# graph. The survey of the probe set took 0.06 to 0.18 of it for networks from two dense layers to a
# transformer and an LSTM; the graph of a product took 0.4 to 3.5 of it, and 5 to 20 surveys. On a
# large probe set it is the passes that count, of a product and of the survey.
_SURVEY_IN_STEPS = 0.25
_GRAPH_IN_STEPS = 4.0
_GRAPH_IN_SURVEYS = 20.0
_PRODUCT_IN_SURVEYS = 4.0
# Seconds that the first step takes at least: in a second `fit` it builds no graph.
_LEAST_FIRST_STEP = 0.3
# The next measurement may take longer than the last, and the budget is to hold all the same.
_SAFETY = 1.25

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


class SpectrumCallback(keras.callbacks.Callback):
    """Measure the top eigenvalues, the trace and the density of a curvature matrix during `fit`.

    A measurement is a run of stochastic Lanczos quadrature on a fixed probe set: `order` products
    with a block of `num_draws` vectors, one pass over the probe set each. The start vectors are the
    same every time, so that what changes from one measurement to the next is the matrix. An
    operator is made for each `fit`, and its product compiled once, for batches of one shape.

    The values are in the `logs` of each epoch, and with them in `History`, progress bar,
    `CSVLogger` and what else reads them; `name` stands before each:

    - `hessian_eigenvalue_1` to `hessian_eigenvalue_k`, the largest in descending order;
    - `hessian_eigenvalue_min`, the smallest;
    - `hessian_trace`.

    They are NaN for an epoch without measurement. With `every_steps` an epoch has its last. All
    measurements, with the bounds of their errors, are in `records`.

    The training is not disturbed: weights, optimizer, BatchNorm statistics, seed generators and
    global random states are what they are without the callback. The operator is not checked, which
    would take products of its own: `preflight(callback.operator)` does it after the training.

    What is wrong with the arguments, the model or the loss, and what `HessianOperator` refuses, is
    raised before the first step. From there on the training goes on whatever happens here: an error
    (of a product, of the probe set, of a file) is logged, warned of once for each kind of error,
    and the values of its measurement are NaN.

    Keras does not tell a callback of the `class_weight` of `fit`: pass it to the callback, too.

    Attributes:
        records: list of `SpectrumRecord`, of all calls of `fit` with this object.
        operator: the curvature operator of the current or last `fit`; None before it is made.
        num_skipped: measurements left out to stay within the budget.

    Example:
        >>> probe = [(x[:1000], y[:1000])]                                     # doctest: +SKIP
        >>> callback = SpectrumCallback(probe, every_epochs=5, budget=0.1)     # doctest: +SKIP
        >>> model.fit(x, y, epochs=100, callbacks=[callback])                  # doctest: +SKIP

    References:
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
    """

    def __init__(
        self,
        dataset: Any,
        loss: Any = None,
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        at_start: bool = False,
        num_eigenvalues: int = 5,
        order: int = 24,
        num_draws: int = 4,
        seed: int = 0,
        density: bool = False,
        operator: Callable[..., CurvatureOperator] = HessianOperator,
        variables: Any = None,
        class_weight: Mapping[int, float] | None = None,
        name: str | None = None,
        csv_path: str | os.PathLike[str] | None = None,
        tensorboard_dir: str | os.PathLike[str] | None = None,
        budget: float | None = None,
        verbose: int | None = None,
    ):
        """Say what to measure, when, and where to write it; nothing is computed before `fit`.

        Args:
            dataset: the probe set: re-iterable batches, see `HessianOperator`. Equal batches share
                one compiled product; a shorter last one has a second.
            loss: None for the loss the model was compiled with; see `HessianOperator`.
            every_epochs: measure at the end of every n-th epoch; 1 if `every_steps` is not given.
            every_steps: measure after every n-th training step instead.
            at_start: measure before the first step, too, of each `fit`. The model must be built.
            num_eigenvalues: k, how many of the largest eigenvalues.
            order: Lanczos steps, at least k. The bounds in `records` say whether they were enough.
            num_draws: start vectors; the error of the trace falls with its square root.
            seed: seed of the start vectors.
            density: keep the whole spectrum in `records`, and write figures of its density.
            operator: which matrix: `HessianOperator`, `GaussNewtonOperator`, or anything that is
                called as `operator(model, loss, dataset, variables=...)` and returns one.
            variables: which trainable variables, see `HessianOperator`.
            class_weight: weights of the classes in the probe set, the same as those of `fit`, which
                are not known here otherwise; the operator is called with `class_weight=` then.
            name: what stands before the names in `logs`; None for "hessian", "gauss_newton", ...
                after the operator.
            csv_path: a file with one row for each measurement, written as they are made. A file
                that exists is overwritten by the first `fit`, and continued by others.
            tensorboard_dir: a directory for event files with scalars and, with `density`, figures.
            budget: share of the training time that measurements may take, such as 0.1: those that
                would take more are left out. None for no limit.
            verbose: 0 for silence, 1 for one line at the end of training, 2 for one after each
                measurement, too; None for 1 unless `fit` is silent.

        Raises:
            ValueError: if an option is out of its range, or both `every_epochs` and `every_steps`
                are given.
            TypeError: if an option has a wrong type.
        """
        super().__init__()
        if every_epochs is not None and every_steps is not None:
            raise ValueError("pass every_epochs or every_steps, not both.")
        if every_epochs is None and every_steps is None:
            every_epochs = 1
        self._every_epochs = _positive(every_epochs, "every_epochs")
        self._every_steps = _positive(every_steps, "every_steps")
        self._at_start = bool(at_start)
        self._num_eigenvalues = integer(num_eigenvalues, "num_eigenvalues", 1)
        self._order = integer(order, "order", 1)
        if self._order < self._num_eigenvalues:
            raise ValueError(
                f"order={order} Lanczos steps have no more than {order} eigenvalues, and "
                f"num_eigenvalues is {num_eigenvalues}: use order >= num_eigenvalues."
            )
        self._num_draws = integer(num_draws, "num_draws", 1)
        self._seed = integer(seed, "seed", 0)
        self._budget = None if budget is None else number(budget, "budget", above=0.0)
        if self._budget is not None and self._budget > 1:
            raise ValueError(f"budget is a share of the training time, at most 1, got {budget}.")
        if verbose not in (None, 0, 1, 2):
            raise ValueError(f"verbose must be 0, 1, 2 or None, got {verbose!r}.")
        if not callable(operator):
            raise TypeError(
                "operator must be a class such as HessianOperator, or a function "
                f"(model, loss, dataset, variables=) -> operator, got {operator!r}. "
                "The callback makes one for the model that is trained."
            )
        self._dataset, self._loss, self._variables = dataset, loss, variables
        self._make_operator = operator
        self._class_weight = class_weight
        self._density = bool(density)
        self._verbose = verbose
        self.name = name if name is not None else _matrix_name(operator)
        self._csv_path = None if csv_path is None else Path(csv_path)
        self._csv_started = False
        self._tensorboard_dir = None if tensorboard_dir is None else os.fspath(tensorboard_dir)
        self._events: _EventFile | None = None
        self.records: list[SpectrumRecord] = []
        self.operator: Any = None
        self.num_skipped = 0
        self._epoch = self._step = self._epoch_start = 0
        self._fresh: SpectrumRecord | None = None
        self._time = _TimeShare(self._budget)
        self._under_way = False
        self._warned: set[str] = set()

    @property
    def seconds(self) -> float:
        """Seconds that the callback took in the current or last `fit`."""
        return self._time.spent

    @property
    def share(self) -> float:
        """Share of the time of the current or last `fit` that the callback took."""
        return self._time.share

    # Keras's side --------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Make the operator anew: another `fit` may have another loss or other frozen layers."""
        self._time = _TimeShare(self._budget)
        self.operator = None
        self._fresh = None
        self._num_before = len(self.records)
        self.num_skipped = 0
        self._under_way = False
        self._warned.clear()
        if not self.model.built:
            self._check_arguments()
        elif self._budget is None:
            with self._time.spending("survey"):
                self._survey()
        else:
            # What the probe set costs is not known yet; one batch shows what is wrong. Nor is the
            # time that a class derived by the user takes.
            with self._time.spending("trial"):
                make = _of_this_package(self._make_operator)
                self._operator_over([first_batch(self._dataset)], make)
        if self._at_start:
            self._due()
        self._under_way = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count."""
        self._epoch = epoch + 1
        self._epoch_start = self._step
        self._fresh = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """See when the first step begins, which says what building a graph costs."""
        self._time.step_begins()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure after every n-th step."""
        self._time.step_ends()
        # Several steps at once (steps_per_execution) are one call, with the number of the last.
        before, self._step = self._step, self._epoch_start + batch + 1
        if self._every_steps and self._step // self._every_steps > before // self._every_steps:
            self._attempt(self._due)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure after every n-th epoch, and put the values into the logs."""
        if self._every_epochs and (epoch + 1) % self._every_epochs == 0:
            self._attempt(self._due)
        if logs is not None:
            logs.update(self._log_values(self._fresh))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Say what it took."""
        self._time.stop()
        if self._events is not None:
            self._attempt(self._events.flush)
        self._attempt(lambda: self._say(1, self._summary()))

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """Return what an action returns, None where it fails once the training is under way.

        The only place where every error is caught: a training of hours is not ours to end. It is
        told all the same. `KeyboardInterrupt` and `SystemExit` are no `Exception`.
        """
        try:
            return action()
        except FloatingPointError as error:
            # A training that diverges is to end as it would without us.
            _log.warning("no spectrum at step %d: %s", self._step, error)
        except Exception as error:
            if not self._under_way:
                raise
            self._report(error)
        return None

    def _report(self, error: Exception) -> None:
        """Log an error, and warn of the first of its kind."""
        _log.warning("no spectrum at step %d: %s", self._step, error, exc_info=error)
        kind = type(error).__name__
        if kind in self._warned:
            return
        self._warned.add(kind)
        try:
            warnings.warn(
                f"SpectrumCallback failed at step {self._step}, and the training goes on: {kind}: "
                f"{error}. "
                "What is missing for it is NaN. Further errors of this kind are only logged.",
                UserWarning,
                stacklevel=2,
            )
        except UserWarning:
            # Where warnings are errors this one would end the training; it is in the log.
            return

    # Keras 2 asks these of every callback.

    _supports_tf_logs = False

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    # Measuring -----------------------------------------------------------------------------------

    def _due(self) -> None:
        """Measure if there is the time."""
        affordable = self._attempt(self._afford_preparation)
        if affordable is None:
            self._keep(self._record(_clock(), None))
            return
        if not affordable:
            self.num_skipped += 1
            _log.debug("spectrum at step %d left out: over the budget", self._step)
            return
        with self._time.spending("measurement"):
            record = self._record(_clock(), self._attempt(self._measure))
            self._keep(record)
        self._say(2, self._describe(record))

    def _keep(self, record: SpectrumRecord) -> None:
        """Keep a measurement, and write it to the files."""
        self._fresh = record
        self.records.append(record)
        self._attempt(lambda: self._write(record))

    def _afford_preparation(self) -> bool:
        """Make the operator and compile its product as far as the budget allows.

        What a first measurement takes is not known beforehand. So the way to it is made in steps,
        each of which is foreseen from the one before: the survey of the probe set from the first
        training step, the compiled product from both, the measurement from a second product.
        """
        ledger = self._time
        first = max(ledger.first_step, _LEAST_FIRST_STEP)
        if self.operator is None:
            if not ledger.affords(_SURVEY_IN_STEPS * first):
                return False
            with ledger.spending("survey"):
                self._survey()
        if self._budget is None or "measurement" in ledger.last:
            return ledger.affords(_SAFETY * ledger.last.get("measurement", 0.0))
        if "product" not in ledger.last:
            survey = ledger.last["survey"]
            graph = _GRAPH_IN_STEPS * first + _PRODUCT_IN_SURVEYS * survey
            if not ledger.affords(min(graph, _GRAPH_IN_SURVEYS * survey)):
                return False
            with ledger.spending("compilation"):
                self._multiply_once()
            with ledger.spending("product"):
                self._multiply_once()
        order, width = self._shape()
        products = order * (self._num_draws // width)
        return ledger.affords(_SAFETY * products * ledger.last["product"])

    def _survey(self) -> None:
        self.operator = self._operator_over(self._dataset, self._make_operator)

    def _operator_over(self, dataset: Any, make: Callable[..., Any]) -> Any:
        options = {} if self._class_weight is None else {"class_weight": self._class_weight}
        return make(self.model, self._loss, dataset, variables=self._variables, **options)

    def _check_arguments(self) -> None:
        """Raise what is known to be wrong with the loss while the model has no weights yet."""
        make = self._make_operator
        if isinstance(make, type) and issubclass(make, CurvatureOperator):
            make_objective(self.model, self._loss)

    def _multiply_once(self) -> None:
        n = self.operator.shape[0]
        self.operator.matmat(np.ones((n, self._shape()[1])) / np.sqrt(n))

    def _shape(self) -> tuple[int, int]:
        """Return the Lanczos steps, and the draws in lockstep.

        All blocks have one width, which takes one compiled product.
        """
        n = self.operator.shape[0]
        order = min(self._order, n)
        most = min(self._num_draws, default_draws_at_once(n, order))
        return order, max(d for d in range(1, most + 1) if self._num_draws % d == 0)

    def _measure(self) -> Spectrum:
        order, width = self._shape()
        return estimate_spectrum(
            self.operator,
            order,
            self._num_draws,
            seed=self._seed,
            draws_at_once=width,
            check=False,
            progress=False,
        )

    def _record(self, start: float, spectrum: Spectrum | None) -> SpectrumRecord:
        """Return a measurement that began then; its numbers are NaN without a spectrum."""
        found = _numbers(spectrum, self._num_eigenvalues)
        return SpectrumRecord(
            self._epoch,
            self._step,
            *found,
            seconds=_clock() - start,
            spectrum=spectrum if self._density else None,
        )

    # Writing -------------------------------------------------------------------------------------

    def _log_values(self, record: SpectrumRecord | None) -> dict[str, float]:
        """Return what goes into the logs: NaN where there is nothing new."""
        k = self._num_eigenvalues
        eigenvalues = np.full(k, np.nan) if record is None else record.eigenvalues
        values = {f"{self.name}_eigenvalue_{i + 1}": float(v) for i, v in enumerate(eigenvalues)}
        values[f"{self.name}_eigenvalue_min"] = np.nan if record is None else record.smallest
        values[f"{self.name}_trace"] = np.nan if record is None else record.trace
        return values

    def _write(self, record: SpectrumRecord) -> None:
        if self._csv_path is not None:
            self._write_row(self._csv_path, record)
        if self._tensorboard_dir is not None:
            if self._events is None:
                self._events = _EventFile(self._tensorboard_dir)
            for name, value in self._log_values(record).items():
                self._events.scalar(f"spectrum/{name}", value, record.step)
            if record.spectrum is not None:
                self._events.image(
                    f"spectrum/{self.name}_density",
                    _density_png(record.spectrum, f"epoch {record.epoch}, step {record.step}"),
                    record.step,
                )
            self._events.flush()

    def _write_row(self, path: Path, record: SpectrumRecord) -> None:
        row: dict[str, Any] = {"epoch": record.epoch, "step": record.step}
        for rank, (value, bound) in enumerate(zip(record.eigenvalues, record.bounds, strict=True)):
            row[f"eigenvalue_{rank + 1}"] = float(value)
            row[f"eigenvalue_{rank + 1}_bound"] = float(bound)
        row["eigenvalue_min"] = record.smallest
        row["eigenvalue_min_bound"] = record.smallest_bound
        row["trace"] = record.trace
        row["trace_standard_error"] = record.trace_standard_error
        row["seconds"] = record.seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if self._csv_started else "w", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if not self._csv_started:
                writer.writeheader()
            writer.writerow(row)
        self._csv_started = True

    def _describe(self, record: SpectrumRecord) -> str:
        largest = ", ".join(f"{value:.4g}" for value in record.eigenvalues)
        return (
            f"SpectrumCallback: step {record.step}: largest eigenvalues {largest}; smallest "
            f"{record.smallest:.4g}; trace {record.trace:.4g} ({record.seconds:.2g} s)"
        )

    def _summary(self) -> str:
        count = len(self.records) - self._num_before
        skipped = (
            f" ({self.num_skipped} left out to stay in the budget)" if self.num_skipped else ""
        )
        return (
            f"SpectrumCallback: {count} measurement{'s' if count != 1 else ''}{skipped} took "
            f"{self._time.spent:.3g} s, {100 * self._time.share:.1f} % of the training time"
        )

    def _say(self, level: int, message: str) -> None:
        _log.info(message)
        verbose = self._verbose
        if verbose is None:
            verbose = int(bool((self.params or {}).get("verbose", 0)))
        if verbose >= level:
            # The progress bar leaves the cursor at the end of its line.
            print_msg(f"\n{message}" if level > 1 else message)


class _TimeShare:
    """The books of a training: time spent measuring, and whether more can be afforded."""

    def __init__(self, budget: float | None):
        self._budget = budget
        self._begin = _clock()
        self._end: float | None = None
        self._step_begin: float | None = None
        self.first_step = 0.0  # seconds of the first training step, graph included
        self.spent = 0.0
        self.last: dict[str, float] = {}  # what a thing took when it was done last

    @property
    def share(self) -> float:
        elapsed = (_clock() if self._end is None else self._end) - self._begin
        return self.spent / elapsed if elapsed > 0 else 0.0

    def affords(self, cost: float) -> bool:
        """Tell whether the share is within the budget right after something of this cost."""
        if self._budget is None:
            return True
        elapsed = _clock() - self._begin
        return self.spent + cost <= self._budget * (elapsed + cost)

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        start = _clock()
        try:
            yield
        finally:
            self.last[what] = _clock() - start
            self.spent += self.last[what]

    def step_begins(self) -> None:
        if self._step_begin is None:
            self._step_begin = _clock()

    def step_ends(self) -> None:
        if not self.first_step and self._step_begin is not None:
            self.first_step = _clock() - self._step_begin

    def stop(self) -> None:
        self._end = _clock()


def _clock() -> float:
    return time.perf_counter()


class _EventFile:
    """TensorBoard event files, written by TensorFlow alone: TensorBoard need not be installed."""

    def __init__(self, directory: str):
        self._writer = tf.summary.create_file_writer(directory)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._put(tag, "scalars", "DATA_CLASS_SCALAR", tf.constant(value, tf.float32), step)

    def image(self, tag: str, png: bytes, step: int) -> None:
        height, width = tf.image.decode_png(png).shape[:2]
        parts = tf.constant([str(width).encode(), str(height).encode(), png])
        self._put(tag, "images", "DATA_CLASS_BLOB_SEQUENCE", parts, step)

    def flush(self) -> None:
        self._writer.flush()

    def _put(self, tag: str, plugin: str, data_class: str, tensor: tf.Tensor, step: int) -> None:
        metadata = tf.compat.v1.SummaryMetadata(display_name=tag)
        metadata.plugin_data.plugin_name = plugin
        # The enumeration has no name of its own in TensorFlow's interface.
        field = metadata.DESCRIPTOR.fields_by_name["data_class"]
        metadata.data_class = field.enum_type.values_by_name[data_class].number
        with self._writer.as_default():
            tf.summary.write(tag, tensor, step=step, metadata=metadata)


def _numbers(
    spectrum: Spectrum | None, k: int
) -> tuple[np.ndarray, np.ndarray, float, float, float, float]:
    """Return the fields of a record that are numbers; NaN without a spectrum."""
    if spectrum is None:
        nothing = np.full(k, np.nan)
        return nothing, nothing.copy(), np.nan, np.nan, np.nan, np.nan
    ends = spectrum.extreme_eigenvalues
    values, bounds = _largest(spectrum, k)
    # What rounding adds, which no residual sees, is in the bounds of the ends.
    bounds += max(ends.largest_bound - bounds[0], 0.0)
    return (
        values,
        bounds,
        ends.smallest,
        ends.smallest_bound,
        spectrum.trace,
        spectrum.trace_standard_error,
    )


def _largest(spectrum: Spectrum, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest eigenvalues as all draws together know them, with residual bounds.

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


def _density_png(spectrum: Spectrum, title: str) -> bytes:
    from spectral_density.plotting import plot_density
    from spectral_density.plotting._axes import png_bytes

    def draw(ax: Any) -> None:
        plot_density(spectrum, ax)
        ax.set_title(title)

    return png_bytes(draw, _FIGURE_INCHES)


def _of_this_package(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return the class of this package that an operator class is derived from, or the operator."""
    kinds = operator.__mro__ if isinstance(operator, type) else ()
    package = __name__.partition(".")[0] + "."
    return next((kind for kind in kinds if kind.__module__.startswith(package)), operator)


def _positive(value: int | None, name: str) -> int:
    return 0 if value is None else integer(value, name, 1)


def _matrix_name(operator: Any) -> str:
    """Return "gauss_newton" for GaussNewtonOperator, and "curvature" for what is no class."""
    name = getattr(operator, "__name__", "")
    if not isinstance(operator, type) or not name.endswith("Operator"):
        return "curvature"
    words = re.findall(r"[A-Z][a-z0-9]*", name.removesuffix("Operator"))
    return "_".join(words).lower() or "curvature"
