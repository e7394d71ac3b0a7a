"""Progress bars for terminals and notebooks, hidden in non-interactive runs."""

from __future__ import annotations

import os
import sys
from typing import Any

_SHORT = 1.0  # seconds of work that need no bar

_here = True  # whether this process shows bars, of several workers that do the same work


def leave_to_the_chief() -> None:
    """Show no bars in this process from now on: it is one of several workers, and not the first."""
    global _here
    _here = False


def is_interactive() -> bool:
    """Whether standard error is a terminal, or this process a notebook kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and "IPKernelApp" in getattr(shell, "config", {}):
        return True
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def progress_bar(total: int, description: str, progress: bool | None = None) -> Any:
    """Open a tqdm bar.

    Args:
        total: number of units of work.
        description: what is being done, shown left of the bar.
        progress: True or False to force the bar on or off, None to show it in interactive runs
            only, and only where the work takes more than a second. Of several workers only the
            chief shows it.

    Returns:
        A `tqdm` bar: a context manager with `update(n)`.
    """
    # tqdm's own switch, which its notebook bars do not heed.
    switched_off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    shown = is_interactive() and not switched_off if progress is None else bool(progress)
    shown = shown and _here
    if shown:
        from tqdm.auto import tqdm
    else:
        # A hidden bar needs no notebook widgets, and no warning about their absence.
        from tqdm import tqdm
    delay = _SHORT if progress is None else 0
    return tqdm(total=total, desc=description, disable=not shown, delay=delay)
