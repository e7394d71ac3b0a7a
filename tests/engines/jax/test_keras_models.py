"""What is particular to Keras models on JAX, tested in a process where Keras has that backend."""

from pathlib import Path

import pytest
from engines.jax.processes import passes

FILE = Path(__file__).with_name("keras_models.py")


@pytest.mark.slow
def test_keras_models_under_the_jax_backend():
    some = "training_mode or empirical or filters"
    passes(FILE, "-k", some, KERAS_BACKEND="jax")


@pytest.mark.exhaustive
def test_everything_of_keras_models_under_the_jax_backend():
    passes(FILE, KERAS_BACKEND="jax")
