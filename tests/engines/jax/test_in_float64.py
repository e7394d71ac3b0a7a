"""Matrices, sums and checks of pytrees once more in a process where JAX has float64."""

from pathlib import Path

import pytest
from engines.jax.processes import passes


@pytest.mark.exhaustive
def test_functions_of_pytrees_in_float64():
    chosen = "closed_form or sums or gauss or kinks_are or from_function"
    passes(Path(__file__).with_name("test_pytrees.py"), "-k", chosen, in_float64=True)
