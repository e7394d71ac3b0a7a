"""What a loss is a function of: a pytree of parameters, or the variables of a Keras model.

Both are called in one way: within `bound`, with the arrays that derivatives are taken in, and those
that are held constant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import numpy as np

from spectral_density.engines.jax.parameters import Leaves, chosen

Arrays = Sequence[jax.Array]

# What tracing a user's function raises where it is called with things it does not expect; JAX's own
# errors are among them.
TRACING_ERRORS = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(NameError, RuntimeError),
)


class BoundModel(ABC):
    """A model whose arrays are given.

    Attributes:
        leaves: what derivatives are taken in.
    """

    leaves: Leaves

    @abstractmethod
    def constants(self) -> list[jax.Array]:
        """Return the arrays that are held constant, as they are now."""

    @abstractmethod
    def bound(self, weights: Arrays, constants: Arrays) -> Any:
        """Return a context that yields what a user's functions are called with."""

    @abstractmethod
    def everything(self) -> dict[str, Any]:
        """Return all arrays by name, those that are held constant included."""

    @abstractmethod
    def groups(self) -> dict[str, list[int]]:
        """Return the positions of the leaves of each layer, by its name."""

    @abstractmethod
    def positions(self, item: Any) -> set[int]:
        """Return the positions of the leaves that an item of a selection means."""

    def batch_normalizations(self) -> list[str]:
        """Return the batch normalizations of the model, by kind and name, as far as it tells."""
        return []

    def filter_axes(self) -> list[tuple[int, ...]]:
        """Return the axes that number the filters of each leaf; empty where nothing is known."""
        return []

    def inputs_explained(self, batch: Any) -> AbstractContextManager[None]:
        """Return a context that explains an error where the model cannot take a batch's inputs."""
        del batch
        return nullcontext()

    def traced_again(self) -> bool:
        """Tell whether the last trace met constants that it did not know of."""
        return False


class PytreeModel(BoundModel):
    """A pytree of parameters, of which some leaves may be held constant."""

    def __init__(self, params: Any, variables: Any = None):
        """Take any pytree of arrays.

        Args:
            params: with NumPy's or JAX's arrays as leaves.
            variables: which leaves: None for all, the exact path of a leaf or group of leaves,
                `re.compile(...)`, or a list of these. The others are held constant.

        Raises:
            TypeError: if a leaf is no array.
            ValueError: if there are no floating-point leaves, or leaves that are not are chosen.
        """
        paths, self._structure = jax.tree_util.tree_flatten_with_path(params)
        self._names = [path_of(keys) for keys, _ in paths]
        self._arrays = [
            _checked(name, leaf) for name, (_, leaf) in zip(self._names, paths, strict=True)
        ]
        floating = [jax.numpy.issubdtype(array.dtype, np.floating) for array in self._arrays]
        if not any(floating):
            leaves = f" among {', '.join(self._names)}" if self._names else ": it has no leaves"
            raise ValueError(f"params has no floating-point leaf to take derivatives in{leaves}.")
        if variables is None:
            _refuse_integers(self._names, self._arrays, floating)
            self._chosen = list(range(len(self._arrays)))
        else:
            self._chosen = chosen(variables, self._arrays, self._names, "params")
        self.leaves = Leaves(
            [self._arrays[at] for at in self._chosen], [self._names[at] for at in self._chosen]
        )
        self._held = sorted(set(range(len(self._arrays))) - set(self._chosen))

    def constants(self) -> list[jax.Array]:
        """See `BoundModel`."""
        return [self._arrays[at] for at in self._held]

    @contextmanager
    def bound(self, weights: Arrays, constants: Arrays) -> Iterator[Any]:
        """See `BoundModel`."""
        pairs = [*zip(self._chosen, weights, strict=True), *zip(self._held, constants, strict=True)]
        yield jax.tree.unflatten(self._structure, [array for _, array in sorted(pairs, key=_first)])

    def everything(self) -> dict[str, Any]:
        """See `BoundModel`."""
        found = dict(zip(self._names, self._arrays, strict=True))
        return found | dict(zip(self.leaves.names, self.leaves.current(), strict=True))

    def groups(self) -> dict[str, list[int]]:
        """See `BoundModel`: leaves under one path belong together."""
        found: dict[str, list[int]] = {}
        for position, name in enumerate(self.leaves.names):
            found.setdefault(name.rpartition("/")[0] or name, []).append(position)
        return found

    def positions(self, item: Any) -> set[int]:
        """See `BoundModel`."""
        wanted = set(chosen(item, self._arrays, self._names, "params"))
        return {position for position, at in enumerate(self._chosen) if at in wanted}


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def path_of(keys: Sequence[Any]) -> str:
    """Return a path such as `dense_1/kernel`."""
    return "/".join(_key(key) for key in keys) or "params"


def _key(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _checked(name: str, leaf: Any) -> Any:
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return leaf
    if isinstance(leaf, (bool, int, float, complex)):
        return np.asarray(leaf, np.float32) if isinstance(leaf, float) else np.asarray(leaf)
    raise TypeError(
        f"leaf {name!r} of params is a {type(leaf).__name__}, and no array. Keep functions and "
        "options out of params: split a model into its arrays and the rest (equinox.partition, "
        "flax.nnx.split) and join them in the loss."
    )


def _refuse_integers(names: list[str], arrays: list[Any], floating: list[bool]) -> None:
    others = [
        f"{name} ({array.dtype.name})"
        for name, array, is_floating in zip(names, arrays, floating, strict=True)
        if not is_floating
    ]
    if others:
        raise ValueError(
            f"params holds leaves that are not floating point: {', '.join(others)}. Choose those "
            "to take derivatives in with variables=, by path or pattern: the others are held "
            "constant."
        )
