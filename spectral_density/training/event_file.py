"""TensorBoard event files, written without TensorFlow and TensorBoard: neither need be installed.

A file is a sequence of records in TensorFlow's TFRecord format, each an `Event` in the wire format
of protocol buffers (tensorflow/core/util/event.proto, framework/summary.proto and tensor.proto).
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Of `DataType` and of `DataClass` in these files.
_FLOAT, _STRING = 1, 7
_SCALAR, _BLOBS = 1, 3

_numbers = itertools.count()  # of the files of this process


class EventFile:
    """Scalars and images by step, in a directory that TensorBoard reads."""

    def __init__(self, directory: str | os.PathLike[str]):
        """Create a file in a directory, which is made if it does not exist.

        Raises:
            ModuleNotFoundError: see `check_directory`.
        """
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self._file = _opened(os.fspath(directory), f"{name}.{os.getpid()}.{next(_numbers)}.v2")
        # At the latest when nobody writes to it any more.
        self._close = weakref.finalize(self, self._file.close)
        self._write(0, _text(3, b"brain.Event:2"))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number."""
        # Without a dimension in its shape, which is there all the same.
        tensor = _varint(1, _FLOAT) + _text(2, b"") + _text(5, struct.pack("<f", value))
        self._write_value(tag, "scalars", _SCALAR, tensor, step)

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Write a picture, given as PNG."""
        # The first chunk of a PNG is its header, which begins with width and height.
        width, height = struct.unpack(">II", png[16:24])
        parts = [str(width).encode(), str(height).encode(), png]
        shape = _text(2, _varint(1, len(parts)))
        tensor = _varint(1, _STRING) + _text(2, shape) + b"".join(_text(8, part) for part in parts)
        self._write_value(tag, "images", _BLOBS, tensor, step)

    def flush(self) -> None:
        """Write to the disk what is in the buffer."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._close()

    def _write_value(self, tag: str, plugin: str, kind: int, tensor: bytes, step: int) -> None:
        name = tag.encode()
        metadata = _text(1, _text(1, plugin.encode())) + _text(2, name) + _varint(4, kind)
        value = _text(1, name) + _text(9, metadata) + _text(8, tensor)
        self._write(step, _text(5, _text(1, value)))

    def _write(self, step: int, fields: bytes) -> None:
        """Write an event as a record: its length and its bytes, each with a checksum."""
        event = _key(1, 1) + struct.pack("<d", time.time()) + _varint(2, step) + fields
        length = struct.pack("<Q", len(event))
        for part in (length, event):
            self._file.write(part + struct.pack("<I", _checksum(part)))


def check_directory(directory: str | os.PathLike[str]) -> None:
    """Raise where event files cannot be written to a directory.

    Raises:
        ModuleNotFoundError: if it is remote, such as "gs://...", and there is no TensorFlow.
    """
    if _is_remote(os.fspath(directory)):
        _files_of_tensorflow(os.fspath(directory))


def _is_remote(directory: str) -> bool:
    return "://" in directory


def _files_of_tensorflow(directory: str) -> Any:
    """Return TensorFlow's module for files, which knows remote ones."""
    try:
        from tensorflow.io import gfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"event files in {directory!r} are written by TensorFlow, which is not installed: "
            "install it, or name a directory of this machine."
        ) from error
    return gfile


def _opened(directory: str, name: str) -> Any:
    """Return a file of a directory, open for writing bytes."""
    if _is_remote(directory):
        files = _files_of_tensorflow(directory)
        files.makedirs(directory)
        return files.GFile(f"{directory.rstrip('/')}/{name}", "wb")
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    return (path / name).open("wb")


# The wire format of protocol buffers: fields by number ------------------------------------------


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _varint(field: int, value: int) -> bytes:
    """Return a field that is an integer, not negative."""
    return _key(field, 0) + _base_128(value)


def _text(field: int, value: bytes) -> bytes:
    """Return a field that is text, bytes, a message, or packed numbers."""
    return _key(field, 2) + _base_128(len(value)) + value


def _base_128(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


# Checksums of TFRecord ---------------------------------------------------------------------------


def _table() -> Iterable[int]:
    """Yield the remainders of all bytes by the polynomial of CRC-32C (Castagnoli), reflected."""
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        yield remainder


_TABLE = tuple(_table())


def _checksum(data: bytes) -> int:
    """Return the CRC-32C of data, masked as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
