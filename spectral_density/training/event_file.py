"""TensorBoard event files, written by TensorFlow alone: TensorBoard need not be installed."""

from __future__ import annotations

import os

import tensorflow as tf


class EventFile:
    """Scalars and images by step, in a directory that TensorBoard reads.

    `tf.summary.scalar` and `tf.summary.image`, which write the same, need TensorBoard itself.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        """Create a file in a directory, which is made if it does not exist."""
        self._writer = tf.summary.create_file_writer(os.fspath(directory))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number."""
        self._write(tag, "scalars", "DATA_CLASS_SCALAR", tf.constant(value, tf.float32), step)

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Write a picture, given as PNG."""
        height, width = tf.image.decode_png(png).shape[:2]
        parts = tf.constant([str(width).encode(), str(height).encode(), png])
        self._write(tag, "images", "DATA_CLASS_BLOB_SEQUENCE", parts, step)

    def flush(self) -> None:
        """Write to the disk what is in the buffer."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, tag: str, plugin: str, data_class: str, tensor: tf.Tensor, step: int) -> None:
        metadata = tf.compat.v1.SummaryMetadata(display_name=tag)
        metadata.plugin_data.plugin_name = plugin
        # The enumeration has no name of its own in TensorFlow's interface.
        field = metadata.DESCRIPTOR.fields_by_name["data_class"]
        metadata.data_class = field.enum_type.values_by_name[data_class].number
        with self._writer.as_default():
            tf.summary.write(tag, tensor, step=step, metadata=metadata)
