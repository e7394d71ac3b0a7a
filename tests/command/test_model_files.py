import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spectral_density.command.model_files import load_model

# Keras saves weights by an interface that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MODULE = """
import keras


class Squares(keras.layers.Layer):
    def call(self, x):
        return x * x


class Subclassed(keras.Model):
    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def own_loss(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the module `pieces`."""
    (tmp_path / "pieces.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("pieces", None)


def dense(*extra):
    return keras.Sequential([keras.Input((3,)), *extra, layers.Dense(2)])


def same(model, loaded):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


def functional():
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(4, "tanh")(inputs)))


@pytest.mark.parametrize("make", [dense, functional])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_a_saved_model_comes_back_with_its_loss(tmp_path, make, suffix, caplog):
    model = make()
    model.compile("adam", "mean_absolute_error", metrics=["mse"])
    path = tmp_path / f"m{suffix}"
    model.save(path)
    caplog.clear()
    loaded = load_model(path)
    same(model, loaded)
    assert loaded.loss in ("mean_absolute_error", keras.losses.mean_absolute_error)
    assert load_model(path, compiled=False).loss is None
    assert not caplog.records  # of optimizers and metrics nobody asked


def test_a_subclassed_model_needs_the_module_of_its_class(here):
    import pieces

    model = pieces.Subclassed(2)
    model(np.zeros((1, 3), np.float32))
    model.save("m.keras")
    with pytest.raises(ValueError, match=r"uses 'Subclassed'.*--custom-objects MODULE"):
        load_model(here / "m.keras")
    same(model, load_model(here / "m.keras", custom_objects="pieces"))


def test_custom_layers_and_losses_are_named(here):
    import pieces

    model = dense(pieces.Squares())
    model.save("layer.keras")
    with pytest.raises(ValueError, match="'Squares'") as error:
        load_model(here / "layer.keras", compiled=False)
    assert "--loss" not in str(error.value)
    same(model, load_model(here / "layer.keras", custom_objects="pieces"))
    model = dense()
    model.compile("sgd", pieces.own_loss)
    model.save("loss.keras")
    with pytest.raises(ValueError, match=r"'own_loss'.*--loss NAME does without"):
        load_model(here / "loss.keras")
    same(model, load_model(here / "loss.keras", compiled=False))
    assert load_model(here / "loss.keras", custom_objects="pieces").loss is pieces.own_loss


def test_a_module_that_is_missing_or_broken_is_named(here):
    dense().save("m.keras")
    (here / "broken.py").write_text("1 / 0\n")
    for name, message in (("nowhere", "no module 'nowhere'"), ("broken", "ZeroDivisionError")):
        with pytest.raises(ValueError, match=message):
            load_model(here / "m.keras", custom_objects=name)


def test_a_lambda_layer_is_loaded_on_request_only(tmp_path):
    model = dense(layers.Lambda(lambda x: 2 * x))
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"Lambda layer.*--unsafe"):
        load_model(tmp_path / "m.keras")
    same(model, load_model(tmp_path / "m.keras", unsafe=True))


def test_weights_without_a_model_are_refused(tmp_path):
    dense().save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match=r"holds weights only.*model\.save"):
        load_model(tmp_path / "m.weights.h5")


def test_a_directory_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        load_model(tmp_path)
    tf.saved_model.save(tf.Module(), str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="is a TensorFlow SavedModel"):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"m\.keras|file"):
        load_model(tmp_path / "m.keras")


def test_an_archive_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="no Keras model file"):
        load_model(tmp_path / "d.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere.keras")


def test_a_damaged_model_and_one_of_another_name_are_refused(tmp_path):
    dense().save(tmp_path / "m.keras")
    (tmp_path / "m.keras").rename(tmp_path / "m.zip")
    with pytest.raises(ValueError, match=r"must end in \.keras: rename it"):
        load_model(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "damaged.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
    with pytest.raises(ValueError, match=r"Keras cannot load .*damaged\.keras"):
        load_model(tmp_path / "damaged.keras")


def test_a_file_of_keras_2_is_loaded_by_tf_keras(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    assert isinstance(loaded, tf_keras.Model)
    same(model, loaded)
