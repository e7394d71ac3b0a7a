"""Keyboard interrupts, delayed to the end of a step.

Python raises KeyboardInterrupt at any point: within a call from compiled code it may be dropped, so
that the run goes on, or end the process.
"""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType


class BetweenSteps(AbstractContextManager["BetweenSteps"]):
    """Delay the first Ctrl-C until the end of the step; a second one is not delayed.

    Where another handler of Ctrl-C is installed, it stays.
    """

    def __enter__(self) -> BetweenSteps:
        self._interrupted = False
        main = threading.current_thread() is threading.main_thread()
        self._installed = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._installed:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def check(self, step: object = None) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed; to be called after each step."""
        if self._interrupted:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            signal.default_int_handler(number, frame)
        # Nothing is printed: the handler may run while the progress bar is being written.
        self._interrupted = True
