import numpy as np
import pytest
import tensorflow as tf

from spectral_density.training import event_file
from spectral_density.training.event_file import EventFile


def events(directory):
    """What TensorFlow reads, which compares the checksums of every record."""
    (file,) = directory.iterdir()
    records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    return [tf.compat.v1.Event.FromString(record) for record in records]


@pytest.mark.parametrize("remote", [False, True])
def test_scalars_are_read_by_tensorflow(tmp_path, remote):
    directory = tmp_path / "runs" / "first"
    # A directory with a scheme is TensorFlow's to write.
    file = EventFile(f"file://{directory}/" if remote else directory)
    steps = [0, 1, 127, 128, 300_000_000_000]
    for step in steps:
        file.scalar(f"loss/é {step}", 0.1 * step, step)
    file.scalar("none", np.nan, 7)
    file.close()
    version, *found = events(directory)
    assert version.file_version == "brain.Event:2"
    assert [event.step for event in found] == [*steps, 7]
    for event, step in zip(found, steps, strict=False):
        (value,) = event.summary.value
        assert value.tag == value.metadata.display_name == f"loss/é {step}"
        assert value.metadata.plugin_data.plugin_name == "scalars"
        array = tf.make_ndarray(value.tensor)
        assert (array.dtype, array.shape) == (np.float32, ())
        assert array == np.float32(0.1 * step)
    assert np.isnan(tf.make_ndarray(found[-1].summary.value[0].tensor))


def test_an_image_has_its_size_and_its_bytes(tmp_path):
    png = tf.io.encode_png(np.zeros((3, 200, 3), np.uint8)).numpy()
    file = EventFile(tmp_path)
    file.image("picture", png, 2)
    file.flush()
    (value,) = events(tmp_path)[1].summary.value
    assert tf.make_ndarray(value.tensor).tolist() == [b"200", b"3", png]


def test_the_checksum_is_that_of_the_catalogue_of_crcs(tmp_path):
    # CRC-32C of "123456789" is E3069283; the mask is that of TFRecord.
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert event_file._checksum(b"123456789") == masked


def test_two_files_of_one_second_are_two(tmp_path):
    for value in (1.0, 2.0):
        file = EventFile(tmp_path)
        file.scalar("a", value, 1)
        del file  # closes it
    assert len([path for path in tmp_path.iterdir() if path.stat().st_size > 100]) == 2
