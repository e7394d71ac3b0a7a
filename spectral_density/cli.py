"""The command line. It answers `--help` without importing TensorFlow."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral_density._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 with the error in one line, or 130."""
    options = _parser().parse_args(arguments)
    # TensorFlow reports its build and its devices on standard error unless told not to.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return int(options.run(options))
    except (OSError, ValueError, MemoryError, ModuleNotFoundError) as error:
        if options.debug:
            raise
        print(f"spectral-density: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("spectral-density: interrupted", file=sys.stderr)
        return 130  # what a shell reports after Ctrl-C


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectral-density",
        description="The eigenvalue density of the Hessian of a Keras or TensorFlow model.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a small network on scikit-learn's digits and compute its Hessian's spectrum",
        description="Train a small network on scikit-learn's digits, estimate the eigenvalue "
        "density of its Hessian, and compare it with the exact eigenvalues.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("spectral-density-demo"), help="folder for the results"
    )
    demo.set_defaults(run=_demo)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from spectral_density.demo import run_demo

    run_demo(options.out, show=print)
    return 0
