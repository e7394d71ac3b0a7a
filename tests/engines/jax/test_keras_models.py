"""What is particular to Keras models on JAX, tested in a process where Keras has that backend."""

from pathlib import Path

import pytest
from engines.jax.processes import passes


@pytest.mark.slow
def test_keras_models_under_the_jax_backend():
    passes(Path(__file__).with_name("keras_models.py"), KERAS_BACKEND="jax")
