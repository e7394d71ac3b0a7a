"""Import of the user's modules from the current directory, as by `python -m`."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any


def import_module(name: str) -> ModuleType:
    """Import a module that is in the current directory, or installed.

    Raises:
        ValueError: if there is no such module, or it raised an error.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise _failed(f"importing the module {name!r}", error) from error
        raise ValueError(
            f"there is no module {name!r} in the current directory ({here}), and none is installed."
        ) from error
    except Exception as error:  # whatever the user's code raises
        raise _failed(f"importing the module {name!r}", error) from error


def import_object(text: str) -> Any:
    """Return what `module:name` means; the name may be dotted.

    Raises:
        ValueError: if there is no such module or name, or the module raised an error.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"{text!r} is not of the form module:function.")
    module = import_module(module_name)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise ValueError(f"the module {module_name!r} ({module.__file__}) has no {name!r}.")
        value = getattr(value, part)
    return value


def call(text: str) -> Any:
    """Call the function that `module:function` means, and return what it returns.

    Raises:
        ValueError: as `import_object`, or if it is no function, or raised an error.
    """
    function = import_object(text)
    if not callable(function):
        raise ValueError(f"{text} is a {type(function).__name__}, not a function.")
    try:
        return function()
    except Exception as error:  # whatever the user's code raises
        raise _failed(f"{text}()", error) from error


def _failed(what: str, error: Exception) -> ValueError:
    return ValueError(f"{what} raised {type(error).__name__}: {error}")
