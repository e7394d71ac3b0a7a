"""Ctrl-C, taken between two steps.

Python raises KeyboardInterrupt wherever it happens to be: in the midst of a call from compiled code
it may be dropped, so that the run goes on, or bring the process down.
"""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType


class BetweenSteps(AbstractContextManager["BetweenSteps"]):
    """Put off the first Ctrl-C until the step is done; a second one is not put off.

    Where Ctrl-C does something else than to raise KeyboardInterrupt, that is left as it is.
    """

    def __enter__(self) -> BetweenSteps:
        self._asked = False
        here = threading.current_thread() is threading.main_thread()
        self._put_off = here and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._put_off:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._put_off:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def check(self, step: object = None) -> None:
        """Raise KeyboardInterrupt if it was asked for; to be called after each step."""
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            signal.default_int_handler(number, frame)
        # Nothing is printed: the handler may run in the midst of what writes the progress bar.
        self._asked = True
