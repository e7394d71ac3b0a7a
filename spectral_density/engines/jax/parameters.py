"""The leaves that derivatives are taken in: of a pytree, or the variables of a Keras model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.jax.arrays import has_float64
from spectral_density.engines.layout import (
    NOTHING_CHOSEN,
    Parameters,
    as_list,
    listing,
    named_pairs,
)


class Leaves(Parameters):
    """Arrays laid end to end as one vector, in traces too.

    Attributes:
        arrays: those that are computed with where the weights are moved, None where they are not.
    """

    arrays: list[jax.Array] | None

    def __init__(self, variables: Sequence[Any], names: Sequence[str]):
        """Lay out arrays, or what has a `value` that is one, in the order given.

        Raises:
            ValueError: if there are none, one is not floating point, or is float64 where JAX has
                none.
        """
        if not variables:
            raise ValueError(NOTHING_CHOSEN)
        for name, variable in zip(names, variables, strict=True):
            _check_leaf(name, variable)
        shapes = [tuple(map(int, variable.shape)) for variable in variables]
        super().__init__(variables, names, shapes, [np.dtype(v.dtype) for v in variables])
        self.arrays = None

    def current(self) -> list[jax.Array]:
        """Return the arrays as they are now, or as they were moved."""
        if self.arrays is not None:
            return self.arrays
        return [jnp.asarray(getattr(v, "value", v)) for v in self.variables]

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """Cut vectors, (k, size), into an array (k, *shape) for each leaf, of its dtype."""
        return [
            rows[:, where].reshape(-1, *shape).astype(variable.dtype)
            for where, shape, variable in zip(self.slices, self.shapes, self.variables, strict=True)
        ]

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Join arrays (k, *shape), one for each leaf, to vectors (k, size)."""
        return jnp.concatenate(
            [part.reshape(len(part), -1).astype(self.dtype) for part in parts], axis=1
        )


def _check_leaf(name: str, leaf: Any) -> None:
    dtype = np.dtype(leaf.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"variable {name!r} is {dtype.name}, not floating point.")
    if dtype == np.float64 and not has_float64():
        raise ValueError(
            f"{name!r} is float64, and JAX computes in float32 unless it is told otherwise: call "
            'jax.config.update("jax_enable_x64", True) before any array is made, or pass float32.'
        )


def chosen(variables: Any, leaves: list[Any], names: list[str], what: str) -> list[int]:
    """Return the positions of the leaves that a selection means, in the order of the leaves.

    Args:
        variables: the exact name of a group of leaves or of one, `re.compile(...)`, or a list.
        leaves: all there are.
        names: their paths.
        what: they are of, for messages.

    Raises:
        ValueError: if a name is unknown or ambiguous, or a pattern matches nothing.
        TypeError: if something else is named.
    """
    positions: set[int] = set()
    numbered = list(zip(range(len(names)), names, strict=True))
    for item in as_list(variables):
        if isinstance(item, re.Pattern):
            found = [at for at, name in numbered if item.search(name)]
            if not found:
                raise ValueError(f"no variable matches {item.pattern!r}. {listing(names)}")
        elif isinstance(item, str):
            found = [at for at, _ in named_pairs(item, numbered, names)]
        else:
            found = [at for at, leaf in enumerate(leaves) if leaf is item]
            if not found:
                raise TypeError(
                    f"variables= takes paths, patterns or leaves of {what}, got a "
                    f"{type(item).__name__} that is none of them. {listing(names)}"
                )
        positions.update(found)
    return sorted(positions)
