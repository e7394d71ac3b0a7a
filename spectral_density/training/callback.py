"""A Keras callback that measures the spectrum of a curvature matrix during training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from math import nan
from typing import Any, TypeVar

import keras

from spectral_density._arguments import explained
from spectral_density._warnings import warn
from spectral_density.analysis.sharpness import CriticalSharpness
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.engines.keras_shared.attributes import print_message
from spectral_density.spectrum.spectrum import Spectrum
from spectral_density.training import time_budget
from spectral_density.training.schedule import Schedule
from spectral_density.training.spectrum_probe import SpectrumProbe
from spectral_density.training.spectrum_record import (
    RecordFiles,
    SpectrumRecord,
    further_values,
    log_values,
    numbers_of,
)
from spectral_density.training.stability_probe import StabilityProbe
from spectral_density.training.time_budget import TimeBudget, checked_share

_log = logging.getLogger("spectral_density")

T = TypeVar("T")


class SpectrumCallback(keras.callbacks.Callback):
    """Measure the top eigenvalues, the trace and the density of a curvature matrix during `fit`.

    A measurement is a run of stochastic Lanczos quadrature on a fixed probe set: `order` products
    with a block of `num_draws` vectors, one pass over the probe set each. The start vectors are the
    same every time, so that what changes from one measurement to the next is the matrix. An
    operator is made for each `fit`, and its product compiled once, for batches of one shape.

    Three values are in the `logs` of each epoch, and with them in `History`, progress bar,
    `CSVLogger` and what else reads them; `name` stands before each:

    - `hessian_eigenvalue_1`, the largest;
    - `hessian_eigenvalue_min`, the smallest;
    - `hessian_trace`.

    `History`, the CSV file and TensorBoard have `hessian_eigenvalue_2` to `hessian_eigenvalue_k`,
    in descending order, and `hessian_trace_standard_error`, too.

    With `preconditioned=True` the eigenvalues are those of the matrix as the optimizer sees it, and
    there are `preconditioned_hessian_threshold`, beyond which the largest is unstable, and
    `preconditioned_hessian_ratio` of both; with `critical_sharpness=True`
    `hessian_critical_sharpness`. The threshold is that of full-batch training: with mini-batches
    the ratio of the full-batch matrix stays below 1.

    They are NaN for an epoch without measurement. With `every_steps` an epoch has its last. All
    measurements, with the bounds of their errors, are in `records`.

    It works under Keras's TensorFlow and JAX backends and with tf_keras, and records the same.

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
        Cohen et al. (2022), arXiv 2207.14484 (`preconditioned`).
    """

    @explained
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
        preconditioned: bool = False,
        critical_sharpness: bool = False,
        name: str | None = None,
        csv_path: str | os.PathLike[str] | None = None,
        tensorboard_dir: str | os.PathLike[str] | None = None,
        budget: float | None = None,
        verbose: int | None = None,
    ):
        """Set what to measure, when, and where to write it; nothing is computed before `fit`.

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
            preconditioned: measure P^-1/2 A P^-1/2, the matrix as the model's optimizer sees it,
                and hold its largest eigenvalue against the threshold of stability at the learning
                rate of the next step: see `preconditioned` and `stability_threshold`.
            critical_sharpness: measure the critical sharpness of the last step, on the probe set:
                at most seven more losses, and a copy of the weights. Of the first epoch of a `fit`
                that does not know its number of steps there is none, unless with `every_steps`.
                See `critical_sharpness`.
            name: what stands before the names in `logs`; None for "hessian", "gauss_newton", ...
                after the operator, with "preconditioned_" before it where that is asked for.
            csv_path: a file with one row for each measurement, written as they are made. A file
                that exists is overwritten by the first `fit`, and continued by others.
            tensorboard_dir: a directory for event files with scalars and, with `density`, figures;
                a remote one, such as "gs://...", needs TensorFlow.
            budget: share of the training time that measurements may take, such as 0.1: those that
                would take more are left out. None for no limit.
            verbose: 0 for silence, 1 for one line at the end of training, 2 for one after each
                measurement, too; None for 1 unless `fit` is silent.

        Raises:
            ValueError: if an option is out of its range, or both `every_epochs` and `every_steps`
                are given.
            TypeError: if an option has a wrong type.
            ModuleNotFoundError: if `tensorboard_dir` is remote, and there is no TensorFlow.
        """
        super().__init__()
        self._schedule = Schedule.checked(every_epochs, every_steps)
        self._at_start = bool(at_start)
        self._probe = SpectrumProbe(
            dataset,
            loss,
            operator,
            variables,
            class_weight,
            num_eigenvalues=num_eigenvalues,
            order=order,
            num_draws=num_draws,
            seed=seed,
        )
        self._density = bool(density)
        self._budget = checked_share(budget)
        if verbose not in (None, 0, 1, 2):
            raise ValueError(f"verbose must be 0, 1, 2 or None, got {verbose!r}.")
        self._verbose = verbose
        self._stability = StabilityProbe(preconditioned, critical_sharpness)
        if name is None:
            name = ("preconditioned_" if preconditioned else "") + self._probe.name
        self.name = name
        self._files = RecordFiles(self.name, csv_path, tensorboard_dir, self._stability.names)
        self.records: list[SpectrumRecord] = []
        self.operator: Any = None
        self.num_skipped = 0
        self._epoch = self._step = self._epoch_start = 0
        self._steps_of_epoch: int | None = None  # of the last in this `fit`, which may not tell
        self._new_record: SpectrumRecord | None = None  # of the current epoch
        self._time = TimeBudget(self._budget)
        self._training = False  # whether the first step has begun
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
        self._time = TimeBudget(self._budget)
        self.operator = None
        self._new_record = self._steps_of_epoch = None
        self._num_before = len(self.records)
        self.num_skipped = 0
        self._training = False
        self._warned.clear()
        self._stability.forget()
        self._stability.check(self.model)
        if not self.model.built:
            self._probe.check_loss(self.model)
        elif self._budget is None:
            self._make_operator()
        else:
            # The cost of a pass over the probe set is not known yet; one batch shows what is wrong.
            with self._time.spending("first batch"):
                self._probe.check_first_batch(self.model)
        if self._at_start:
            self._measure_within_budget()
        self._training = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count epochs and steps."""
        self._epoch = epoch + 1
        self._epoch_start = self._step
        self._new_record = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record when a step begins, and keep the weights where it is to be looked along."""
        if self._stability.critical and self._is_due_after(batch):
            self._attempt(self._keep_weights)
        self._time.step_begins()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure after every n-th step."""
        self._time.step_ends()
        # Several steps together (steps_per_execution) are one call, with the number of the last.
        before, self._step = self._step, self._epoch_start + batch + 1
        if self._schedule.is_due_between(before, self._step):
            self._attempt(self._measure_within_budget)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure after every n-th epoch, and add the values to the logs."""
        self._steps_of_epoch = self._step - self._epoch_start
        if self._schedule.is_due_after_epoch(epoch):
            self._attempt(self._measure_within_budget)
        if logs is not None:
            logs.update(log_values(self._new_record, self.name, self._stability.names))
        further = further_values(self._new_record, self.name, self._probe.num_eigenvalues)
        # The logs would put all of them on the line of the progress bar.
        history = getattr(getattr(self.model, "history", None), "history", None)
        if isinstance(history, dict):
            for name, value in further.items():
                history.setdefault(name, []).append(value)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Print how long the measurements took."""
        self._time.stop()
        self._attempt(self._files.flush)
        self._attempt(self._print_summary)

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """Return the result of an action, None where it fails after the training has begun.

        The only place where every error is caught and reported: a measurement must not end a
        training of hours. `KeyboardInterrupt` and `SystemExit` are no `Exception`.
        """
        try:
            return action()
        except FloatingPointError as error:
            # A training that diverges ends as it would without the callback.
            _log.warning("no spectrum at step %d: %s", self._step, error)
        except Exception as error:
            if not self._training:
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
            warn(
                f"SpectrumCallback failed at step {self._step}, and the training goes on: {kind}: "
                f"{error}. "
                "What is missing for it is NaN. Further errors of this kind are only logged."
            )
        except UserWarning:
            # Where warnings are errors this one would end the training; it is in the log.
            return

    # Keras 2 reads these of every callback.

    _supports_tf_logs = False

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    # Measuring -----------------------------------------------------------------------------------

    def _measure_within_budget(self) -> None:
        """Measure if the budget allows it."""
        allowed = self._attempt(self._prepare)
        if allowed is None:
            self._keep(None, time_budget.clock())
            return
        if not allowed:
            self.num_skipped += 1
            _log.debug("spectrum at step %d left out: over the budget", self._step)
            return
        with self._time.spending("measurement"):
            start = time_budget.clock()
            spectrum = self._attempt(self._measure)
            threshold = self._attempt(lambda: self._stability.threshold(self.model))
            critical = self._attempt(
                lambda: self._stability.along_step(self._operator_of_now(), self._step)
            )
            record = self._keep(spectrum, start, threshold, critical)
        self._print(2, f"SpectrumCallback: {record}")

    def _measure(self) -> Spectrum:
        return self._probe.measure(self._stability.matrix(self._operator_of_now(), self.model))

    def _is_due_after(self, batch: int) -> bool:
        """Tell whether a measurement comes right after this step of the epoch."""
        step = self._epoch_start + batch
        if self._schedule.is_due_between(step, step + 1):
            return True
        last = (self.params or {}).get("steps") or self._steps_of_epoch
        return batch + 1 == last and self._schedule.is_due_after_epoch(self._epoch - 1)

    def _keep_weights(self) -> None:
        # Within a budget there may be no operator yet.
        if self.operator is not None:
            with self._time.spending("weights"):
                self._stability.before_step(self._operator_of_now(), self.model, self._step)

    def _keep(
        self,
        spectrum: Spectrum | None,
        start: float,
        threshold: float | None = None,
        critical: CriticalSharpness | None = None,
    ) -> SpectrumRecord:
        """Record a measurement that began at `start`, NaN without a spectrum, and write it."""
        if threshold is None and self._stability.preconditioned:
            threshold = nan
        record = SpectrumRecord(
            self._epoch,
            self._step,
            *numbers_of(spectrum, self._probe.num_eigenvalues),
            seconds=time_budget.clock() - start,
            spectrum=spectrum if self._density else None,
            threshold=threshold,
            critical=critical,
        )
        self._new_record = record
        self.records.append(record)
        self._attempt(lambda: self._files.write(record))
        return record

    def _make_operator(self) -> None:
        with self._time.spending("first pass"):
            self.operator = self._probe.operator(self.model)

    def _operator_of_now(self) -> CurvatureOperator:
        """Return the operator, with the weights of now in the variables that it reads.

        Under JAX they hold nothing in the middle of an epoch: `fit` passes arrays from step to
        step, and writes them to the variables where a callback asks for its model.
        """
        _ = self.model
        return self.operator

    def _prepare(self) -> bool:
        """Make the operator and compile its product as far as the budget allows.

        The cost of a first measurement is not known beforehand. So it is prepared in steps, each of
        whose costs is estimated from those before: the first pass over the probe set from the first
        training step, the compiled product from both, the measurement from a second product.

        Returns:
            Whether the budget allows a measurement now.
        """
        budget, probe = self._time, self._probe
        if self.operator is None:
            if not budget.allows_first_pass():
                return False
            self._make_operator()
        if self._budget is None or "measurement" in budget.last:
            return budget.allows_another()
        if "product" not in budget.last:
            if not budget.allows_graph():
                return False
            with budget.spending("compilation"):
                probe.multiply_once(self._operator_of_now())
            with budget.spending("product"):
                probe.multiply_once(self._operator_of_now())
        products = probe.num_block_products(self.operator.shape[0])
        return budget.allows_products(products + self._stability.cost_in_products)

    # Messages ------------------------------------------------------------------------------------

    def _print_summary(self) -> None:
        count = len(self.records) - self._num_before
        skipped = (
            f" ({self.num_skipped} left out to stay in the budget)" if self.num_skipped else ""
        )
        self._print(
            1,
            f"SpectrumCallback: {count} measurement{'s' if count != 1 else ''}{skipped} took "
            f"{self._time.spent:.3g} s, {100 * self._time.share:.1f} % of the training time",
        )

    def _print(self, level: int, message: str) -> None:
        _log.info(message)
        verbose = self._verbose
        if verbose is None:
            verbose = int(bool((self.params or {}).get("verbose", 0)))
        if verbose >= level:
            # The progress bar leaves the cursor at the end of its line.
            print_message(f"\n{message}" if level > 1 else message)
