"""The command line. It answers `--help` without importing a framework."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spectral_density.command.exit_codes import DONE, FAILED, INTERRUPTED, UNSOUND, print_error
from spectral_density.command.messages import in_options
from spectral_density.command.parser import make_parser

if TYPE_CHECKING:
    from spectral_density.command.matrix import MatrixRequest

_LONGEST = 1000  # characters of an error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, with an error in one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = make_parser().parse_args(words)
    options.words = words
    try:
        with _warnings_in_one_line():
            code = _COMMANDS[options.command](options)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader of the output has closed it. Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the last place where an error can be put into a line
        if options.debug:
            raise
        print_error(_in_one_line(error))
        return FAILED
    except KeyboardInterrupt as stop:
        if options.debug:
            raise
        print_error(str(stop) or "interrupted")
        return INTERRUPTED


def _in_one_line(error: Exception) -> str:
    """Return the message of an error, with its class where no message was written for users."""
    text = " ".join(in_options(str(error)).split())
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "... (--debug shows the rest)"
    if isinstance(error, (OSError, ValueError, MemoryError, ImportError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Any, category: Any, *where: Any, **options: Any) -> None:
        print_error(f"warning: {' '.join(in_options(str(message)).split())}")

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


# The commands. Each imports what it needs when it is called: frameworks take seconds --------------


def _print_line(text: str) -> None:
    print(text, flush=True)  # the bars on standard error come after it, in a file as well


def _matrix_request(options: argparse.Namespace) -> MatrixRequest:
    from dataclasses import fields

    from spectral_density.command.matrix import MatrixRequest

    names = [field.name for field in fields(MatrixRequest)]
    return MatrixRequest(**{name: getattr(options, name) for name in names})


def _run(options: argparse.Namespace) -> int:
    from spectral_density.command.run import RunRequest, run

    given = options.order is not None or options.draws is not None
    if options.max_products is not None and options.tolerance is None and given:
        options.misused(
            "argument --max-products: it decides what --order and --draws do; or pass --tolerance"
        )
    request = RunRequest(
        matrix=_matrix_request(options),
        out=options.out,
        order=options.order,
        draws=options.draws,
        block=options.block,
        tolerance=options.tolerance,
        max_products=options.max_products,
        draws_at_once=options.draws_at_once,
        basis=options.basis,
        basis_dtype=options.basis_dtype,
        check=not options.no_check,
        resume=options.resume,
        checkpoint=options.checkpoint,
    )
    resume = [] if options.resume else ["--resume"]
    run(request, _print_line, shlex.join(["spectral-density", *options.words, *resume]))
    return DONE


def _check(options: argparse.Namespace) -> int:
    from spectral_density.command.check import check

    return DONE if check(_matrix_request(options), _print_line) else UNSOUND


def _plot(options: argparse.Namespace) -> int:
    from spectral_density.command.figures import plot_files

    out = plot_files(
        options.spectra,
        options.out,
        labels=options.label,
        xscale=options.xscale,
        force=options.force,
    )
    print(f"wrote {out}")
    return DONE


def _show(options: argparse.Namespace) -> int:
    from spectral_density.command.show import show_file

    show_file(options.spectrum, print, as_json=options.json)
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from spectral_density.command.demo import run_demo

    run_demo(options.out, show=_print_line)
    return DONE


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "check": _check,
    "plot": _plot,
    "show": _show,
    "demo": _demo,
}
