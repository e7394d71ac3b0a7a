"""Modules that functions of the same name replaced are still importable, with a deprecation."""

import importlib
import sys

import pytest

from spectral_density import linalg


@pytest.mark.parametrize("name", ["lanczos", "nystrom", "range_finder"])
def test_a_former_module_gives_the_public_names_with_a_deprecation(name):
    module = importlib.import_module(f"spectral_density.linalg.{name}")
    with pytest.warns(DeprecationWarning, match=f"import {name} from spectral_density.linalg"):
        assert getattr(module, name) is getattr(linalg, name)
    # The import has not put the module in the place of the function.
    assert callable(getattr(linalg, name))
    with pytest.raises(AttributeError, match="has no attribute 'orthogonalise'"):
        _ = module.orthogonalise


def test_no_module_has_the_name_of_a_function_of_the_package():
    prefix = "spectral_density.linalg."
    modules = {name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)}
    assert modules & set(linalg.__all__) == {"lanczos", "nystrom", "range_finder"}
    files = [sys.modules[prefix + name].__spec__ for name in ("lanczos", "nystrom", "range_finder")]
    assert files == [None, None, None]
