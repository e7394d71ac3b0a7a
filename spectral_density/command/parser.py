"""Parser of the command line: the arguments of each command, and the types of values."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from spectral_density._version import __version__
from spectral_density.command.exit_codes import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISUSED,
    UNSOUND,
    print_error,
)

_EPILOG = f"""\
exit codes: {DONE} done, {FAILED} an error (one line on standard error), {MISUSED} wrong usage,
{UNSOUND} check found the matrix unsound, {INTERRUPTED} interrupted."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of the commands are."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the options are listed, and exit."""
        print_error(f"{message} ({self.prog} --help)")
        self.exit(MISUSED)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `command` of its result is the name of one."""
    parser = _Parser(
        prog="spectral-density",
        description="The eigenvalue density of the Hessian of a Keras model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for add in (_add_run, _add_plot, _add_show, _add_check, _add_demo):
        command = add(commands)
        # After the command, too, where it does not undo what stood before it.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def _add_run(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "run",
        help="compute the spectrum of a saved model on a dataset",
        description="Compute the eigenvalue density of the Hessian of a saved Keras model, and "
        "write spectrum.npz, spectrum.png, spectrum.svg and summary.json to a directory.",
    )
    _add_matrix(command)
    _add_amount(command)
    _add_directory(command)
    _add_memory(command)
    command.set_defaults(misused=command.error)
    return command


def _add_amount(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say how many steps and draws there are."""
    command.add_argument(
        "--order",
        type=_count,
        metavar="N",
        help="Lanczos steps per draw: the resolution (default: 90, or all of a smaller model)",
    )
    command.add_argument(
        "--draws",
        type=_count,
        metavar="N",
        help="random start vectors, or blocks of them (default: as many as the density takes)",
    )
    command.add_argument(
        "--block",
        type=_count,
        metavar="N",
        help="start vectors of a draw that share one Krylov space (default: 2, or 1 with --draws "
        "or --tolerance)",
    )
    command.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="SHARE",
        help="as many steps and draws as this accuracy takes, a share of the range of the "
        "eigenvalues such as 3e-4; --order and --draws are then the most",
    )
    command.add_argument(
        "--max-products",
        type=_count,
        metavar="N",
        help="the most products with single vectors in total, for --tolerance (default: 900, or "
        "--order times --draws), or to be spent as well as can be",
    )


def _add_directory(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say where results and checkpoints are."""
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory of the results"
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out where it was interrupted, or begin it",
    )
    command.add_argument(
        "--no-check", action="store_true", help="do not check first that the matrix is sound"
    )
    keeping = command.add_mutually_exclusive_group()
    keeping.add_argument(
        "--keep-checkpoint",
        dest="checkpoint",
        action="store_const",
        const="keep",
        default="until done",
        help="keep the Lanczos vectors after the run, so that --resume can add steps or draws",
    )
    keeping.add_argument(
        "--no-checkpoint",
        dest="checkpoint",
        action="store_const",
        const="none",
        help="write no vectors: nothing to resume",
    )


def _add_memory(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say how much memory there may be."""
    memory = command.add_argument_group("memory")
    memory.add_argument(
        "--draws-at-once",
        type=_count,
        metavar="N",
        help="draws that share each pass over the data (default: by the size of the model); "
        "with 1, a run repeats to the bit",
    )
    memory.add_argument(
        "--basis",
        choices=("memory", "disk"),
        default="memory",
        help="where the Lanczos vectors are while the run needs them (default: memory)",
    )
    memory.add_argument(
        "--basis-dtype",
        choices=("float64", "float32"),
        default="float64",
        help="float32 takes half the memory and half the disk (default: float64)",
    )


def _add_check(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "check",
        help="find out whether a model, its data and its loss make one fixed symmetric matrix",
        description="Find out, in two passes over the data, whether a model, its data and its "
        "loss make one fixed, symmetric, finite matrix, and by differences whether it is the right "
        f"derivative. The exit code is {UNSOUND} if not.",
    )
    _add_matrix(command)
    return command


def _add_matrix(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which matrix."""
    command.add_argument("model", type=Path, metavar="MODEL", help="a .keras or .h5 file")
    which = command.add_argument_group("which matrix")
    _add_data(which)
    _add_operator(which)
    _add_loading(which)


def _add_data(which: Any) -> None:
    which.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="tfds:name[split], such as 'tfds:mnist[train[:512]]'; a file.npz with arrays x, y "
        "and, if wanted, weights w; or module:function of the current directory, which returns "
        "a dataset of batches",
    )
    which.add_argument(
        "--download",
        action="store_true",
        help="fetch a dataset of tfds: that is not on the disk",
    )
    which.add_argument(
        "--batch-size", type=_count, metavar="N", help="examples in a batch (default: 128)"
    )
    which.add_argument(
        "--no-scale",
        dest="scale",
        action="store_false",
        help="leave uint8 images in [0, 255]; they are scaled to [0, 1] otherwise",
    )


def _add_operator(which: Any) -> None:
    which.add_argument(
        "--loss",
        metavar="NAME",
        help="a Keras loss, or module:name (default: the loss the model was compiled with)",
    )
    which.add_argument(
        "--from-logits", action="store_true", help="the model ends in logits: for --loss NAME"
    )
    which.add_argument(
        "--operator",
        choices=("hessian", "ggn", "fisher"),
        default="hessian",
        help="ggn is the Gauss-Newton matrix (default: hessian)",
    )
    which.add_argument(
        "--fisher-kind",
        choices=("type2", "monte_carlo", "empirical"),
        default="type2",
        help="for --operator fisher (default: type2)",
    )
    which.add_argument(
        "--layers",
        type=_pattern,
        metavar="REGEX",
        help="only the variables whose path matches, such as 'dense_1/|logits/kernel'",
    )
    which.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of all that is random (default: 0)"
    )


def _add_loading(which: Any) -> None:
    which.add_argument(
        "--custom-objects",
        metavar="MODULE",
        help="module of the current directory with the classes that the model is made of",
    )
    which.add_argument(
        "--unsafe",
        action="store_true",
        help="load Lambda layers, which runs code from the file: only if you trust it",
    )


def _add_plot(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "plot",
        help="draw one or several spectra on one figure",
        description="Draw one or several spectra on one figure.",
    )
    command.add_argument(
        "spectra", type=Path, nargs="+", metavar="A.npz", help="spectrum files, or run directories"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("spectra.png"),
        metavar="FILE",
        help=".png, .svg or .pdf (default: spectra.png)",
    )
    command.add_argument(
        "--label", action="append", metavar="TEXT", help="one for each spectrum, in their order"
    )
    command.add_argument(
        "--xscale",
        choices=("linear", "symlog"),
        default="linear",
        help="symlog spreads the bulk around zero out (default: linear)",
    )
    command.add_argument("--force", action="store_true", help="write over --out if it is there")
    return command


def _add_show(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "show",
        help="show a spectrum in the terminal",
        description="Show the numbers of a spectrum, and its density drawn in characters.",
    )
    command.add_argument(
        "spectrum", type=Path, metavar="A.npz", help="spectrum file, or run directory"
    )
    command.add_argument("--json", action="store_true", help="only the numbers, as JSON")
    return command


def _add_demo(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "demo",
        help="train a small network on scikit-learn's digits and compute its Hessian's spectrum",
        description="Train a small network on scikit-learn's digits, estimate the eigenvalue "
        "density of its Hessian, and compare it with the exact eigenvalues.",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("spectral-density-demo"),
        metavar="DIR",
        help="directory of the results (default: spectral-density-demo)",
    )
    return command


def _count(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
