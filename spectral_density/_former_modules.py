"""Deprecated names of modules that functions of the same name have replaced."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any


class _FormerModule(ModuleType):
    """A module whose public names are those of its package, each with a deprecation."""

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


def register(package: str, names: Iterable[str]) -> None:
    """Make former modules of a package importable, for instance `training.minimize`.

    There are no files of theirs: a submodule that is imported takes the place of the function of
    its name in the package.
    """
    for name in names:
        module = _FormerModule(f"{package}.{name}", __doc__)
        sys.modules[module.__name__] = module
