"""Suppressed log output of Keras's backends and of absl."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def import_keras() -> None:
    """Import Keras and its backend without their log output; it is shown if an import fails.

    TensorFlow writes some of it before it reads TF_CPP_MIN_LOG_LEVEL.

    Raises:
        ModuleNotFoundError: if Keras, or the backend that it runs on, cannot be imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" in sys.modules:
        return
    with _standard_error_held_back():
        try:
            import keras
        except ImportError as error:
            raise ModuleNotFoundError(
                f"models are loaded by Keras, which cannot be imported with its backend ({error}). "
                "It runs on TensorFlow, or, with KERAS_BACKEND=jax in the environment, on JAX."
            ) from error
        # The second half of TensorFlow's log comes when devices are listed first.
        keras.distribution.list_devices()


@contextmanager
def absl_warnings_suppressed() -> Iterator[None]:
    """Suppress warnings that Keras and tensorflow_datasets write to absl's log."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _standard_error_held_back() -> Iterator[None]:
    """Hold back the standard error of the process; write it after an exception, else drop it."""
    try:
        sys.stderr.flush()
        standard_error = os.dup(2)
    except (OSError, ValueError, AttributeError):  # the process has no standard error
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(standard_error, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
