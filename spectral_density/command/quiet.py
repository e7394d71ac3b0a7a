"""What is said without being asked for, by TensorFlow and by absl's log, left out."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; what they report on standard error is shown if they fail.

    TensorFlow writes some of it before it reads TF_CPP_MIN_LOG_LEVEL.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        return
    with _error_output_kept():
        import keras
        import tensorflow as tf

        del keras
        # The second half of the notes comes with the first devices asked for.
        tf.config.list_logical_devices()


@contextmanager
def absl_warnings_left_out() -> Iterator[None]:
    """Leave out what Keras and tensorflow_datasets warn of by absl's log."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _error_output_kept() -> Iterator[None]:
    """Keep what is written to the standard error of the process; show it after an exception."""
    try:
        sys.stderr.flush()
        standard_error = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is none
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(standard_error, 2)
            kept.seek(0)
            sys.stderr.write(kept.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
