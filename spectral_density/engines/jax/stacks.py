"""Equal batches in one array each, taken one after another in a compiled loop, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp

from spectral_density.engines.data import BatchInput
from spectral_density.engines.jax.batches import form_of, nbytes
from spectral_density.engines.jax.loss_functions import LossFunctions

# All that is kept for the batches of one operator.
MAX_BYTES = 2**30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stack:
    """One batch, or several equal ones, each array of which has one axis more in front."""

    at: BatchInput
    size: int = field(metadata={"static": True})  # 0 for one batch alone

    @classmethod
    def of_one(cls, at: BatchInput) -> Stack:
        """Return a batch alone."""
        return cls(at, 0)

    @classmethod
    def of(cls, inputs: list[BatchInput]) -> Stack:
        """Return equal batches together."""
        if len(inputs) == 1:
            return cls.of_one(inputs[0])
        together = BatchInput(
            batch=jax.tree.map(lambda *parts: jnp.stack(parts), *[at.batch for at in inputs]),
            first_example=jnp.asarray([at.first_example for at in inputs]),
            weight=jnp.asarray([at.weight for at in inputs]),
            scales=inputs[0].scales,
        )
        return cls(together, len(inputs))

    def fold(self, function: Callable[..., Any], start: Any, *more: Any) -> Any:
        """Return `function(result, batch, ...)` after the last batch, in a trace.

        Args:
            function: of the result before a batch, the batch, and what is its own in `more`.
            start: the result before the first.
            more: for one batch what is its own, for several with an axis in front.
        """
        if not self.size:
            return function(start, self.at, *more)

        def step(before: Any, own: Any) -> tuple[Any, None]:
            return function(before, self._one(own[0]), *own[1:]), None

        return jax.lax.scan(step, start, (self._own(), *more))[0]

    def map(self, function: Callable[[BatchInput], Any]) -> Any:
        """Return what a function gives for each batch, with an axis in front, in a trace."""
        if not self.size:
            return function(self.at)
        return jax.lax.map(lambda own: function(self._one(own)), self._own())

    def _own(self) -> tuple[Any, ...]:
        return self.at.batch, self.at.first_example, self.at.weight

    def _one(self, own: tuple[Any, ...]) -> BatchInput:
        batch, first_example, weight = own
        return BatchInput(batch, first_example, weight, self.at.scales)


class PassCache:
    """What one pass over a dataset leaves to the next.

    Equal batches are put together once, where they are kept in memory and there is room for them
    twice. What the vectors do not touch is kept of all batches or of none, while the weights stay.

    Attributes:
        nbytes: of what the vectors do not touch, as far as it is kept.
    """

    def __init__(self, functions: LossFunctions, num_batches: int, room: float, linearize: bool):
        """Keep nothing yet.

        Args:
            functions: of the loss.
            num_batches: of the dataset.
            room: bytes, 0 where the batches themselves are not kept.
            linearize: whether what no vector touches is kept.
        """
        self._functions = functions
        self._num_batches = num_batches
        self._room = room
        self._linearize = linearize
        self.nbytes = 0
        self._stacks: list[Stack] | None = None
        self._fits: bool | None = None
        self._kept: dict[int, Any] = {}
        self._weights: list[Any] = []

    def __len__(self) -> int:
        """Return of how many batches, put together or alone, something is kept."""
        return len(self._kept)

    def stacks(self, inputs: Iterable[BatchInput]) -> Iterator[Stack]:
        """Yield the batches of a pass, equal ones that follow each other together."""
        if self._stacks is not None:
            yield from self._stacks
            return
        if not self._room:
            yield from map(Stack.of_one, inputs)
            return
        batches = list(inputs)
        if sum(nbytes(at.batch) for at in batches) > self._room:
            self._stacks = list(map(Stack.of_one, batches))
        else:
            groups = groupby(batches, lambda at: form_of(at.batch) if len(batches) > 1 else None)
            self._stacks = [
                stack for form, group in groups for stack in _together(form, list(group))
            ]
        yield from self._stacks

    def kept(self, number: int, stack: Stack, keep: Callable[..., Any]) -> Any:
        """Return what no vector touches of a stack; None where nothing is kept.

        Args:
            number: of the stack in the pass.
            stack: the batches.
            keep: computes it, from weights, constants and the stack.
        """
        if not self._linearize or not self._room:
            return None
        arrays = self._functions.arrays()
        self._check_fit(arrays, keep)
        if not self._fits:
            return None
        if number not in self._kept:
            self._weights = [*arrays[0], *arrays[1]]
            self._kept[number] = keep(*arrays, stack)
        return self._kept[number]

    def fits_if_like(self, stack: Stack, keep: Callable[..., Any]) -> bool:
        """Tell whether there is room for what is kept if all batches are like this one."""
        if not self._linearize or not self._room or self._fits is False:
            return False
        nbytes = _nbytes(jax.eval_shape(keep, *self._functions.arrays(), stack))
        return nbytes * self._num_batches <= min(self._room, MAX_BYTES)

    def refresh(self) -> None:
        """Drop all that is kept unless every array is the one that it was computed with."""
        weights, constants = self._functions.arrays()
        now = [*weights, *constants]
        same = len(now) == len(self._weights) and all(
            a is b for a, b in zip(now, self._weights, strict=True)
        )
        if not same:
            self._kept.clear()
            self._weights = []

    def _check_fit(self, arrays: tuple[Any, Any], keep: Callable[..., Any]) -> None:
        """Find out, once, whether what is kept of all batches fits."""
        if self._fits is None and self._stacks is not None:
            shapes = [jax.eval_shape(keep, *arrays, stack) for stack in self._stacks]
            self.nbytes = _nbytes(shapes)
            self._fits = self.nbytes <= min(self._room, MAX_BYTES)


def _nbytes(shapes: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _together(form: Any, group: list[BatchInput]) -> list[Stack]:
    """Return one stack of batches of one form, or each alone where it has none."""
    return [Stack.of(group)] if form and form[0] else list(map(Stack.of_one, group))
