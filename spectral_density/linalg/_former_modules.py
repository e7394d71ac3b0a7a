"""Deprecated names of modules that functions of the same name have replaced."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

# No files: a submodule that is imported takes the place of the function in the package.
_NAMES = ("lanczos", "nystrom", "range_finder")


class _FormerModule(ModuleType):
    """A module whose public names are those of the package, each with a deprecation."""

    def __getattr__(self, name: str) -> Any:
        package = self.__name__.rpartition(".")[0]
        if name not in import_module(package).__all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"{self.__name__} is no module any more: import {name} from {package}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(package), name)


def register(package: str) -> None:
    """Make the former modules importable: `from spectral_density.linalg.lanczos import lanczos`."""
    for name in _NAMES:
        module = _FormerModule(f"{package}.{name}", __doc__)
        sys.modules[module.__name__] = module
