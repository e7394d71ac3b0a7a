"""Keras's optimizers under the JAX backend: the tests of what both backends have, once more."""

from pathlib import Path

import pytest
from engines.jax.processes import passes

FILE = Path(__file__).parent.parent / "keras_shared" / "test_optimizers.py"


@pytest.mark.slow
def test_optimizers_under_the_jax_backend():
    some = "operator_is and (adamw or adagrad) or bfloat16"
    passes(FILE, "-k", some, "-m", "not exhaustive", in_float64=True, KERAS_BACKEND="jax")


@pytest.mark.exhaustive
def test_all_of_the_optimizers_under_the_jax_backend():
    passes(FILE, in_float64=True, KERAS_BACKEND="jax")
