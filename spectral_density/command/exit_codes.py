"""Exit codes of the command, and lines on standard error."""

from __future__ import annotations

import sys

DONE, FAILED, MISUSED, UNSOUND, INTERRUPTED = 0, 1, 2, 3, 130
"""argparse gives the third, and a shell reports the last after Ctrl-C."""


def print_error(text: str) -> None:
    """Print a line about an error or a warning."""
    print(f"spectral-density: {text}", file=sys.stderr)
