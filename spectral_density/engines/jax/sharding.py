"""Devices that share a pass over the data: what lies on all of them, and what is dealt to them.

Whole batches are dealt, each device adds up its own, and nothing is communicated before the one
reduction at the end. So the sum is that of one device for losses that couple the examples of a
batch, too, and the same devices give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_density.engines.jax.arrays import Sum, add_sum
from spectral_density.engines.jax.processes import JaxProcesses

_AXIS = "devices"
_EVERYWHERE, _DEALT = PartitionSpec(), PartitionSpec(_AXIS)


class Devices:
    """The devices that products are computed on.

    Attributes:
        all: the devices, of all processes.
        count: how many there are.
        processes: those they belong to, None for this one alone.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        """Take the devices, in an order that all processes have in common."""
        self.all = list(devices)
        self.count = len(self.all)
        several = any(device.process_index != jax.process_index() for device in self.all)
        self.processes = JaxProcesses() if several else None
        self._mesh = Mesh(np.array(self.all), (_AXIS,))
        self._everywhere = NamedSharding(self._mesh, _EVERYWHERE)
        self._dealt = NamedSharding(self._mesh, _DEALT)

    def __repr__(self) -> str:
        """Say how many there are and of what kind, or which one of several."""
        kind = self.all[0].platform
        if self.count == 1:
            return f"device {kind}:{self.all[0].id}" if jax.device_count() > 1 else ""
        number = len({device.process_index for device in self.all})
        return f"{self.count} devices ({kind})" + f" of {number} processes" * (number > 1)

    @property
    def sharding(self) -> NamedSharding | None:
        """Where vectors lie: on all devices, None for where JAX puts them."""
        return self._everywhere if self.count > 1 else None

    def room(self, room: float) -> float:
        """Return how many bytes may be kept: on the devices where they have memory of their own.

        Args:
            room: bytes of the host.
        """
        here = [device for device in self.all if device.process_index == jax.process_index()]
        found = [device.memory_stats() for device in here]
        if not room or here[0].platform == "cpu" or None in found:
            return room
        free = min(each["bytes_limit"] - each["bytes_in_use"] for each in found if each)
        return self.count * free / 2

    def everywhere(self, tree: Any) -> Any:
        """Return arrays as they are needed: on all devices, each with the whole of them."""
        if self.count == 1:
            # Arrays of JAX follow the weights by themselves.
            return jax.tree.map(_on_device, tree)
        return jax.tree.map(lambda array: _placed(array, self._everywhere), tree)

    def dealt(self, tree: Any) -> Any:
        """Return arrays of which each device has its part of the first axis."""
        return jax.tree.map(lambda array: _placed(array, self._dealt), tree)

    def by_examples(self, tree: Any) -> Any:
        """Return a batch of which each device has some examples where they come out even."""
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(tree)}
        if len(sizes) != 1 or 0 in sizes or sizes.pop() % self.count:
            return self.everywhere(tree)
        return self.dealt(tree)

    def on_each(self, function: Callable[..., Any], deals: Sequence[bool]) -> Callable[..., Any]:
        """Return a function that runs on each device with what is dealt to it.

        Args:
            function: what it returns is of this device alone.
            deals: which arguments are dealt; each device has the whole of the others.
        """
        return jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=tuple(_DEALT if dealt else _EVERYWHERE for dealt in deals),
            out_specs=_DEALT,
            check_vma=False,
        )

    def zeros(self, sums: list[Sum]) -> list[Sum]:
        """Return a sum like each of these for each device, to begin with."""

        def zero(array: Any) -> Any:
            return np.zeros((self.count, *array.shape), array.dtype)

        return self.dealt(jax.tree.map(zero, sums))

    def total(self, sums: list[Sum]) -> list[Sum]:
        """Return the sums of all devices, added in their order, in a trace.

        Each device adds a part of the entries, so that none holds the sums of all the others.
        """
        return jax.shard_map(
            lambda each: [self._total(of_one(part)) for part in each],
            mesh=self._mesh,
            in_specs=(_DEALT,),
            out_specs=_EVERYWHERE,
            check_vma=False,
        )(sums)

    def _total(self, own: Sum) -> Sum:
        shape = jax.tree.leaves(own)[0].shape
        size = int(np.prod(shape))

        def exchanged(array: jax.Array) -> jax.Array:
            padded = jnp.pad(array.reshape(-1), (0, -size % self.count))
            return lax.all_to_all(padded.reshape(self.count, -1), _AXIS, 0, 0, tiled=True)

        def gathered(array: jax.Array) -> jax.Array:
            return lax.all_gather(array, _AXIS, tiled=True)[:size].reshape(shape)

        parts = jax.tree.map(exchanged, own)
        of_devices = [jax.tree.map(lambda part, i=i: part[i], parts) for i in range(self.count)]
        return jax.tree.map(gathered, reduce(add_sum, of_devices))


def of_one(sums: Any) -> Any:
    """Return the sums that a device holds, of those that are dealt, in a trace."""
    return jax.tree.map(lambda array: array[0], sums)


def as_dealt(sums: Any) -> Any:
    """Return what a device holds as its part of what is dealt, in a trace."""
    return jax.tree.map(lambda array: array[None], sums)


def devices_of(arrays: Iterable[jax.Array]) -> Devices:
    """Return the devices to compute on: those that the weights were put on, or else all there are.

    Raises:
        ValueError: if a device has a part of an array alone.
    """
    arrays = list(arrays)
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        # Within a transformation of the user's, who says where it runs.
        return Devices(jax.devices()[:1])
    placed = [array for array in arrays if getattr(array, "committed", False)]
    for array in placed:
        if not array.sharding.is_fully_replicated:
            raise ValueError(
                f"the weights are cut over devices ({array.sharding}), and products are made where "
                "each device has all of them: the data are what is dealt to devices. Put the "
                "weights on all of them (keras.distribution.DataParallel, or PartitionSpec())."
            )
    several = [array.sharding.device_set for array in placed]
    if several:
        chosen = max(several, key=len)
    elif getattr(jax.config, "jax_default_device", None) is not None:
        return Devices([jnp.zeros(()).devices().pop()])
    else:
        chosen = set(jax.devices())
    return Devices(sorted(chosen, key=lambda device: device.id))


def _on_device(array: Any) -> jax.Array:
    return array if isinstance(array, jax.Array) else jax.device_put(array)


def _placed(array: Any, sharding: NamedSharding) -> jax.Array:
    is_key = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if sharding.is_fully_addressable or is_key:
        return jax.device_put(array, sharding)
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda where: host[where])
