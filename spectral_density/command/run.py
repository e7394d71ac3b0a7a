"""The command `run`: a spectrum from a saved model and a dataset, with its files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spectral_density.command import results
from spectral_density.command.data import DEFAULT_BATCH_SIZE
from spectral_density.command.interrupts import BetweenSteps
from spectral_density.command.matrix import MatrixRequest, RequestedMatrix, check_files, open_matrix
from spectral_density.command.messages import in_options
from spectral_density.command.quiet import import_keras
from spectral_density.command.summary import file_hash, spectrum_numbers, versions
from spectral_density.estimate import NUM_DRAWS, ORDER, estimate_spectrum
from spectral_density.spectrum.accuracy import Ending

if TYPE_CHECKING:
    from spectral_density.curvature import CurvatureOperator
    from spectral_density.spectrum.spectrum import Spectrum


@dataclass(frozen=True)
class RunRequest:
    """How the spectrum is computed, and where it goes."""

    matrix: MatrixRequest
    out: Path
    order: int | None = None  # None for 90, or as many as there are parameters
    draws: int | None = None  # None for as many as the density takes
    block: int | None = None  # None for the library's choice
    tolerance: float | None = None  # with one, both are the most there may be, and None no bound
    max_products: int | None = None  # None for as many as without a tolerance
    draws_at_once: int | None = None
    basis: Literal["memory", "disk"] = "memory"
    basis_dtype: Literal["float64", "float32"] = "float64"
    check: bool = True
    resume: bool = False
    checkpoint: Literal["until done", "keep", "none"] = "until done"

    @property
    def most_products(self) -> int:
        """Products with single vectors of all draws together, at most."""
        vectors = NUM_DRAWS if self.draws is None else self.draws * (self.block or 1)
        return self.max_products or (self.order or ORDER) * vectors


def run(request: RunRequest, show: Callable[[str], None], resume_command: str) -> None:
    """Compute a spectrum and write its file, its pictures and its summary to a directory.

    Args:
        request: the matrix, the run, and its directory.
        show: called with each line of the report.
        resume_command: the command that resumes this run, for the message after an interrupt.

    Raises:
        FileExistsError: if the directory holds a run and `resume` is off.
        KeyboardInterrupt: with what is saved and how to resume.
        ValueError: if the operator is no fixed, symmetric, finite matrix; see `open_matrix`.
        CheckpointError: if the checkpoint is of another run, damaged or in use.
        MemoryError: if the run would not fit into the memory.
    """
    check_files(request.matrix)
    settings = _settings(request)
    previous = results.previous_run(
        request.out, settings, resume=request.resume, use_checkpoint=request.checkpoint != "none"
    )
    if previous.complete and not previous.is_less_than(settings):
        show(f"the run in {request.out} is complete: nothing to do")
        return
    import_keras()
    matrix = open_matrix(request.matrix)
    operator = matrix.operator
    show(str(matrix))
    order = _order(request, operator)
    if request.check:
        show(f"check     {_verdict(operator, request.matrix)}")
    state = operator.model_state()
    show(f"state     {state} on these data")
    if request.checkpoint != "none":
        _check_disk_space(request, operator.shape[0])
    going_on = f", going on from {request.out / results.CHECKPOINT}" if previous.checkpoint else ""
    show(f"run       {_plan(request, order)}{going_on}")
    passes, start = operator.num_passes, time.perf_counter()
    with (
        _errors_explained(request, resume_command),
        results.recorded_start(request.out, settings, previous),
    ):
        spectrum = _estimate(operator, request, settings, order)
        spectrum = replace(spectrum, model_state=state.numbers())
    cost: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "passes": operator.num_passes - passes,
        "resumed": previous.checkpoint,
    }
    summary = _summary(settings, matrix, spectrum, cost)
    written = results.write(request.out, spectrum, summary)
    missed = spectrum.ended_by not in (Ending.PLAN, Ending.TOLERANCE)
    # A checkpoint that outlived its run was kept on purpose.
    if request.checkpoint == "until done" and not previous.complete and not missed:
        shutil.rmtree(request.out / results.CHECKPOINT)
    show(f"          {cost['seconds']:.1f} s, {_counted(cost['passes'], 'pass')} over the data")
    show(f"\n{in_options(str(spectrum))}\n")
    for path in written:
        show(f"wrote     {path}")
    if missed:
        show(_missed_tolerance(request, spectrum.ended_by))


def _estimate(
    operator: CurvatureOperator, request: RunRequest, settings: dict[str, Any], order: int | None
) -> Spectrum:
    with BetweenSteps() as interrupts:
        return estimate_spectrum(
            operator,
            order,
            settings["draws"],
            block=request.block,
            tolerance=settings["tolerance"],
            max_products=settings["max_products"],
            seed=request.matrix.seed,
            draws_at_once=request.draws_at_once,
            basis=request.basis,
            # float64, which is the default, is that of the vectors where they are on a device.
            basis_dtype=None if request.basis_dtype == "float64" else request.basis_dtype,
            checkpoint=None if request.checkpoint == "none" else request.out / results.CHECKPOINT,
            check=False,  # the verdict was shown above, or was not wanted
            callback=interrupts.check,
        )


# Before the run ----------------------------------------------------------------------------------


def _settings(request: RunRequest) -> dict[str, Any]:
    """Return the settings that decide the result, as the summary records them."""
    of_matrix = asdict(request.matrix)
    del of_matrix["download"]  # the result is the same
    fixed = request.tolerance is None
    model, data = of_matrix.pop("model"), Path(request.matrix.data)
    layers = request.matrix.layers
    return {
        **of_matrix,
        "batch_size": request.matrix.batch_size or DEFAULT_BATCH_SIZE,
        "model_sha256": file_hash(model) if model.is_file() else None,
        "data_sha256": file_hash(data) if data.suffix == ".npz" and data.is_file() else None,
        "layers": None if layers is None else layers.pattern,
        "order": request.order or (ORDER if fixed else None),
        "draws": request.draws,
        # Runs of before there were blocks do not state it.
        **({} if request.block is None else {"block": request.block}),
        "tolerance": request.tolerance,
        "max_products": request.max_products if fixed else request.most_products,
        "draws_at_once": request.draws_at_once,
        "basis_dtype": request.basis_dtype,
    }


def _order(request: RunRequest, operator: CurvatureOperator) -> int | None:
    size = operator.shape[0]
    if request.order is None and request.max_products is not None:
        return None
    if request.order is None:
        # A small model has no more steps than parameters.
        most = max(size // (request.block or 1), 1)
        return min(ORDER, most) if request.tolerance is None else None
    if request.order > size:
        raise ValueError(
            f"--order is {request.order}, and a matrix of {size:,} parameters has no more than "
            f"{size:,} Lanczos steps."
        )
    return request.order


def _plan(request: RunRequest, order: int | None) -> str:
    """Return how many steps and draws there will be, as text."""
    if request.tolerance is None and order is not None:
        if request.draws is None:
            return f"{_counted(order, 'step')}, as many draws as the density takes"
        block = f" of {request.block} vectors" if (request.block or 1) > 1 else ""
        return f"{_counted(request.draws, 'draw')}{block} of {_counted(order, 'step')}"
    bounds = [_counted(request.most_products, "product")]
    if request.tolerance is None:
        return f"at most {bounds[0]}, in steps and draws as the distribution shows"
    if order is not None:
        bounds.append(f"{_counted(order, 'step')} a draw")
    if request.draws is not None:
        bounds.append(_counted(request.draws, "draw"))
    return f"to a tolerance of {request.tolerance:g} of the range, with at most {', '.join(bounds)}"


def _counted(number: int, noun: str) -> str:
    many = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"


def _verdict(operator: CurvatureOperator, request: MatrixRequest) -> str:
    """Return the verdict of preflight, with what is doubtful, in a line.

    Raises:
        ValueError: if the operator is unsound.
    """
    from spectral_density.curvature.preflight import preflight

    report = preflight(operator, seed=request.seed)
    if report.failed:
        failed = in_options(" ".join(check.message for check in report.failed), request)
        raise ValueError(f"{failed} (--no-check computes the spectrum nevertheless)")
    doubts = "".join(f"; {check.message}" for check in report.doubtful)
    return in_options(f"{report.verdict}{doubts}", request)


def _check_disk_space(request: RunRequest, size: int) -> None:
    """Raise if the checkpoint would not fit on the disk, before anything is computed.

    Raises:
        OSError: with the figures and the way out.
    """
    existing = next(p for p in (request.out, *request.out.absolute().parents) if p.exists())
    width = 4 if request.basis_dtype == "float32" else 8
    needed = request.most_products * size * width
    folder = request.out / results.CHECKPOINT
    if folder.exists():
        needed -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"the checkpoint of this run would take {needed / 2**30:,.1f} GiB more in {request.out}"
            f", and {free / 2**30:,.1f} GiB are free: choose an --out with room, --basis-dtype "
            "float32 for half of it, or --no-checkpoint."
        )


# The end of the run ------------------------------------------------------------------------------


@contextmanager
def _errors_explained(request: RunRequest, resume_command: str) -> Iterator[None]:
    """Add to an interrupt what is kept, and to a lack of memory the options that save some."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not results.has_steps(request.out):
            raise KeyboardInterrupt("interrupted; no step is kept") from stop
        raise KeyboardInterrupt(
            f"interrupted; the steps so far are kept in {request.out / results.CHECKPOINT}. "
            f"Go on with: {resume_command}"
        ) from stop
    except MemoryError as error:
        raise MemoryError(
            f"{error} Here these are --basis-dtype float32, --basis disk, --draws-at-once, --order "
            "and --layers."
        ) from error


def _missed_tolerance(request: RunRequest, ended_by: Ending) -> str:
    """Return how a run that did not meet its tolerance can be continued."""
    option = {Ending.ORDER: "--order", Ending.DRAWS: "--draws"}.get(ended_by, "--max-products")
    checkpoint = request.out / results.CHECKPOINT
    if request.checkpoint == "none":
        return f"missed    the tolerance: it takes a larger {option}"
    return (
        f"missed    the tolerance: a larger {option} with --resume goes on from {checkpoint}, "
        "which is kept"
    )


def _summary(
    settings: dict[str, Any], matrix: RequestedMatrix, spectrum: Spectrum, cost: dict[str, Any]
) -> dict[str, Any]:
    batches = matrix.operator.batches
    return {
        **spectrum_numbers(spectrum),
        "model": matrix.model,
        "data": matrix.data,
        "data_notes": list(matrix.data_notes),
        "loss": matrix.loss,
        "num_examples": int(batches.num_examples),
        "num_batches": len(batches),
        **cost,
        "settings": settings,
        "versions": versions(),
    }
