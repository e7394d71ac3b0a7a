"""Equal batches in one array each, taken one after another in a compiled loop, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.data import BatchInput
from spectral_density.engines.jax.batches import form_of, nbytes
from spectral_density.engines.jax.loss_functions import LossFunctions, same_arrays
from spectral_density.engines.jax.sharding import Devices

# All that is kept for the batches of one operator.
MAX_BYTES = 2**30

_NO_FORM = (0, "")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stack:
    """One batch, or several equal ones, each array of which has one axis more in front."""

    at: BatchInput
    size: int = field(metadata={"static": True})  # on each device; 0 for one batch alone
    is_dealt: bool = field(default=False, metadata={"static": True})  # to several devices

    @classmethod
    def of_one(cls, at: BatchInput) -> Stack:
        """Return a batch alone."""
        return cls(at, 0)

    @classmethod
    def of(cls, inputs: list[BatchInput], devices: Devices) -> Stack:
        """Return equal batches together, dealt to the devices if there are several.

        What is missing to a number that comes out even is filled up with a batch of scale zero.
        """
        if len(inputs) == 1:
            return cls.of_one(inputs[0])
        nothing = inputs[-1]._replace(scales=jnp.zeros_like(inputs[-1].scales))
        inputs = [*inputs, *[nothing] * (-len(inputs) % devices.count)]
        # Only the parts that go there are put on a device.
        stack = jnp.stack if devices.count == 1 else _on_host
        together = BatchInput(
            batch=jax.tree.map(lambda *parts: stack(parts), *[at.batch for at in inputs]),
            first_example=stack([jnp.asarray(at.first_example) for at in inputs]),
            weight=stack([jnp.asarray(at.weight) for at in inputs]),
            scales=stack([at.scales for at in inputs]),
        )
        if devices.count == 1:
            return cls(together, len(inputs))
        return cls(devices.dealt(together), len(inputs) // devices.count, is_dealt=True)

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
            return function(before, *own), None

        return jax.lax.scan(step, start, (self.at, *more))[0]

    def map(self, function: Callable[[BatchInput], Any]) -> Any:
        """Return what a function gives for each batch, with an axis in front, in a trace."""
        if not self.size:
            return function(self.at)
        return jax.lax.map(function, self.at)


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
        self._devices = functions.devices
        self._num_batches = num_batches
        self._room = self._devices.room(room)
        self._max_bytes = MAX_BYTES if self._room == room else self._room
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
            yield from self._streamed(inputs)
            return
        batches = list(inputs)
        fits = sum(nbytes(at.batch) for at in batches) <= self._room
        if not fits and self._devices.count > 1:
            yield from self._streamed(batches)
            return
        groups = groupby(batches, _form) if fits else ((_NO_FORM, [at]) for at in batches)
        self._stacks = [
            stack for form, group in groups for stack in self._together(form, list(group))
        ]
        yield from self._stacks

    def _streamed(self, inputs: Iterable[BatchInput]) -> Iterator[Stack]:
        """Yield batches as they come, of several devices one for each of them."""
        count = self._devices.count
        if count == 1:
            yield from map(Stack.of_one, inputs)
            return
        for form, group in groupby(inputs, _form):
            while row := list(islice(group, count)):
                yield from self._together(form, row)

    def _together(self, form: tuple[int, str], group: list[BatchInput]) -> list[Stack]:
        """Return one stack of batches of one form, or each alone where it has none."""
        devices = self._devices
        if devices.count > 1 and self._num_batches < devices.count:
            # Too few to be dealt as they are.
            return [Stack.of_one(_with_batch(at, devices.by_examples)) for at in group]
        if form[0] and len(group) > 1:
            return [Stack.of(group, devices)]
        return [Stack.of_one(_with_batch(at, devices.everywhere)) for at in group]

    def kept(self, number: int, stack: Stack, keep: Callable[..., Any]) -> Any:
        """Return what no vector touches of a stack; None where nothing is kept.

        Args:
            number: of the stack in the pass.
            stack: the batches.
            keep: computes it, from weights, constants and the stack.
        """
        if not self._linearize or not self._room:
            return None
        self._check_fit(keep)
        if not self._fits:
            return None
        if number not in self._kept:
            self._weights = self._now()
            self._kept[number] = keep(*self._functions.arrays_everywhere(), stack)
        return self._kept[number]

    def fits_if_like(self, stack: Stack, keep: Callable[..., Any]) -> bool:
        """Tell whether there is room for what is kept if all batches are like this one."""
        if not self._linearize or not self._room or self._fits is False:
            return False
        nbytes = _nbytes(jax.eval_shape(keep, *self._functions.arrays_everywhere(), stack))
        return nbytes * self._num_batches <= min(self._room, self._max_bytes)

    def refresh(self) -> None:
        """Drop all that is kept unless every array is the one that it was computed with."""
        if not same_arrays(self._now(), self._weights):
            self._kept.clear()
            self._weights = []

    def _now(self) -> list[jax.Array]:
        weights, constants = self._functions.arrays()
        return [*weights, *constants]

    def _check_fit(self, keep: Callable[..., Any]) -> None:
        """Find out, once, whether what is kept of all batches fits."""
        if self._fits is None and self._stacks is not None:
            arrays = self._functions.arrays_everywhere()
            shapes = [jax.eval_shape(keep, *arrays, stack) for stack in self._stacks]
            self.nbytes = _nbytes(shapes)
            self._fits = self.nbytes <= min(self._room, self._max_bytes)


def _nbytes(shapes: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _form(at: BatchInput) -> tuple[int, str]:
    return form_of(at.batch)


def _with_batch(at: BatchInput, place: Callable[[Any], Any]) -> BatchInput:
    return at._replace(batch=place(at.batch))


def _on_host(parts: Sequence[Any]) -> np.ndarray:
    return np.stack([np.asarray(part) for part in parts])
