"""Lines that callbacks print beside Keras's own."""

from __future__ import annotations

import logging

import keras


def print_message(text: str) -> None:
    """Print a line as Keras does: to its log where interactive logging is off."""
    if keras.config.is_interactive_logging_enabled():
        print(text, flush=True)
    else:
        logging.getLogger("absl").info(text)
