import keras
import numpy as np
import pytest

from spectral_density.command.framework import framework_of


@pytest.fixture(params=["keras", "jax"])
def model(request):
    """A model of the backend that Keras runs on, and parameters of JAX."""
    if request.param == "keras":
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    jax = pytest.importorskip("jax")
    return {"w": jax.numpy.ones(3)}


def test_both_frameworks_give_the_first_batch_that_is_not_empty(model):
    framework = framework_of(model)
    x, y = np.ones((4, 3), np.float32), np.zeros(4, np.int32)
    batch = framework.first_batch([(x[:0], y[:0]), ({"b": x, "a": y}, y)])
    shapes = [tuple(tensor.shape) for tensor in framework.flatten(batch)]
    assert shapes == [(4,), (4, 3), (4,)]
    np.testing.assert_array_equal(framework.flatten(batch)[1], x)


def test_an_error_of_a_computation_is_told_from_a_message_for_the_user(model):
    framework = framework_of(model)
    x, y = framework.flatten(framework.first_batch([(np.ones((4, 3)), np.ones((4, 2)))]))
    with pytest.raises(framework.errors):
        _ = x + y
    assert not framework.is_of_computation(ValueError("a sentence"))


def test_another_backend_is_refused(monkeypatch):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="'torch' backend"):
        framework_of(model)
