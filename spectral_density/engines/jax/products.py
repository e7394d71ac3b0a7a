"""Products of a curvature matrix: compiled functions of a batch, or of equal batches in a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BatchProducts, Composition
from spectral_density.engines.jax.arrays import (
    Sum,
    add,
    add_sum,
    joined,
    to_array,
    to_rows,
    zero_sum,
)
from spectral_density.engines.jax.jaxprs import has_loop
from spectral_density.engines.jax.loss_functions import LossFunctions
from spectral_density.engines.jax.precision import compiled, exactly
from spectral_density.engines.jax.sharding import as_dealt, of_one
from spectral_density.engines.jax.stacks import PassCache, Stack
from spectral_density.engines.jax.verbs import Block, Kept, TracedBatch

# Vectors multiplied together. Wider blocks are cut, still within one pass over the data.
MAX_WIDTH = 16

# Arrays of the forward pass, times vectors: they may all be alive at once. On a CPU they are to
# stay in its cache; what a loop computes in each of its steps is small, and costs less for several.
_MAX_BYTES_AT_ONCE = 2**28
_MAX_BYTES_IN_CACHE = 2**20


def width_of_chunks(jaxpr: Any) -> int:
    """Return how many vectors to multiply together, from the jaxpr of the first batch's loss.

    It does not depend on the memory that is free: another width has other bits.
    """
    arrays = [var.aval for eqn in jaxpr.eqns for var in eqn.outvars]
    nbytes = sum(a.size * a.dtype.itemsize for a in arrays if hasattr(a, "size")) or 1
    on_cpu = jax.default_backend() == "cpu" and not has_loop(jaxpr)
    limit = _MAX_BYTES_IN_CACHE if on_cpu else _MAX_BYTES_AT_ONCE
    return int(min(MAX_WIDTH, max(1, limit // nbytes)))


class JaxProducts(BatchProducts):
    """See `BatchProducts`: each function is compiled once for a form of batches and a width."""

    def __init__(
        self, functions: LossFunctions, matrix: Composition, matmul_precision: str | None = None
    ):
        """Compile nothing yet.

        Args:
            functions: of the loss.
            matrix: what the products are made of.
            matmul_precision: below the full one, as JAX names it; None for that.
        """
        self._functions = functions
        self.composition = matrix
        self.matmul_precision = matmul_precision
        self._exact = None if matmul_precision is None else JaxProducts(functions, matrix)
        self.num_traces = 0
        self.depends = False  # known to the derivatives, from the first batch

        def made(function: Callable[..., Any]) -> Any:
            return compiled(function, matmul_precision)

        self._add_whole = made(self._traced_whole)
        self._keep_whole = made(self._traced_kept)
        self._add_kept = made(self._traced_from_kept)
        devices = functions.devices
        if devices.count > 1:
            on_each = devices.on_each
            self._add_dealt = made(on_each(self._traced_dealt, (False, False, True, False, True)))
            self._keep_dealt = made(on_each(self._traced_kept, (False, False, True)))
            self._add_kept_dealt = made(
                on_each(self._traced_from_kept_dealt, (True, False, True, False, True))
            )
            self._total = compiled(devices.total)

    @property
    def exact(self) -> JaxProducts:
        """See `BatchProducts`."""
        return self if self._exact is None else self._exact

    def cache(self, num_batches: int, room: float, linearize: bool) -> PassCache:
        """See `BatchProducts`: all processes have come as far as this."""
        self._functions.check_agreement()
        return PassCache(self._functions, num_batches, room, linearize)

    def check_context(self) -> None:
        """See `BatchProducts`: a trace of JAX's fails by itself where arrays become NumPy's."""
        return

    def rows(self, block: np.ndarray, width: int) -> list[jax.Array]:
        """See `BatchProducts`."""
        processes = self._functions.devices.processes
        if processes is not None:
            processes.agree(crc32(np.ascontiguousarray(block).tobytes()), "vectors")
        dtype = self._functions.parameters.dtype
        parts = (block[:, start : start + width] for start in range(0, block.shape[1], width))
        return [to_rows(part.T, dtype) for part in parts]

    def zeros(self, rows: Sequence[jax.Array], with_gradient: bool) -> list[list[Sum]]:
        """See `BatchProducts`."""
        sums = [[zero_sum(chunk.shape)] for chunk in rows]
        if with_gradient:
            sums[0].append(zero_sum(rows[0].shape[1:]))
        return sums

    def add_all(
        self,
        cache: PassCache,
        inputs: Iterable[BatchInput],
        rows: Sequence[jax.Array],
        sums: list[list[Sum]],
    ) -> list[list[Sum]]:
        """See `BatchProducts`."""
        devices = self._functions.devices
        arrays = self._functions.arrays_everywhere()
        rows = [devices.everywhere(chunk) for chunk in rows]
        # With the gradient what is kept would be of use once: training moves on.
        linearize = len(sums[0]) == 1
        dealt: list[list[Sum]] = []
        for number, stack in enumerate(cache.stacks(inputs)):
            kept = cache.kept(number, stack, self._keep) if linearize else None
            if stack.is_dealt and not dealt:
                dealt = [devices.zeros(each) for each in sums]
            into = dealt if stack.is_dealt else sums
            for place, chunk in enumerate(rows):
                into[place] = self._added(arrays, kept, stack, chunk, into[place])
        for place, each in enumerate(dealt):
            pairs = zip(sums[place], self._total(each), strict=True)
            sums[place] = [add_sum(before, new) for before, new in pairs]
        return sums

    def _added(
        self, arrays: Any, kept: Kept | None, stack: Stack, chunk: jax.Array, before: list[Sum]
    ) -> list[Sum]:
        """Return sums with the products of a stack added to them."""
        if kept is None:
            add = self._add_dealt if stack.is_dealt else self._add_whole
            return add(*arrays, stack, chunk, before)
        add = self._add_kept_dealt if stack.is_dealt else self._add_kept
        return add(kept, arrays, stack, chunk, before)

    def _keep(self, weights: Any, constants: Any, stack: Stack) -> Kept:
        """Return what no vector touches of the batches of a stack."""
        keep = self._keep_dealt if stack.is_dealt else self._keep_whole
        return keep(weights, constants, stack)

    def add_on(
        self, local: int, at: BatchInput, rows: Sequence[jax.Array], sums: list[list[Sum]]
    ) -> list[list[Sum]]:
        """See `BatchProducts`."""
        arrays, stack = self._functions.arrays(), Stack.of_one(at)
        return [
            self._add_whole(*arrays, stack, chunk, before)
            for chunk, before in zip(rows, sums, strict=True)
        ]

    def linearized(self, cache: PassCache, at: BatchInput, rows: Any) -> np.ndarray | None:
        """See `BatchProducts`."""
        stack = Stack.of_one(at)
        if not cache.fits_if_like(stack, self._keep):
            return None
        arrays = self._functions.arrays_everywhere()
        kept = self._keep(*arrays, stack)
        (found,) = self._add_kept(kept, arrays, stack, rows, [zero_sum(rows.shape)])
        return to_array(found)

    def of_batch(self, at: BatchInput, rows: Any, local: int = 0) -> np.ndarray:
        """See `BatchProducts`."""
        arrays = self._functions.arrays()
        (found,) = self._add_whole(*arrays, Stack.of_one(at), rows, [zero_sum(rows.shape)])
        return to_array(found)

    # Traces --------------------------------------------------------------------------------------

    def _traced_whole(
        self, weights: Any, constants: Any, stack: Stack, rows: jax.Array, sums: list[Sum]
    ) -> list[Sum]:
        self.num_traces += 1

        def with_one(before: list[Sum], at: BatchInput) -> list[Sum]:
            batch = self._functions.verbs(weights, constants, at)
            new = self._multiplied(batch, rows)
            if len(sums) > 1:
                new = [*new, *(part[None] for part in exactly(batch.gradient)())]
            return [add(total, each) for total, each in zip(before, new, strict=True)]

        parts = stack.fold(with_one, self._zeros(len(rows), len(sums) > 1))
        return self._with(sums, parts)

    def _traced_kept(self, weights: Any, constants: Any, stack: Stack) -> Kept:
        """Return what no vector touches: what products with a vector compute on their way."""
        parameters = self._functions.parameters
        nothing = jnp.zeros((1, parameters.size), parameters.dtype)

        def of_one(at: BatchInput) -> Kept:
            batch = self._functions.verbs(weights, constants, at)
            self._multiplied(batch, nothing)
            return batch.kept

        return stack.map(of_one)

    def _traced_from_kept(
        self, kept: Kept, arrays: tuple[Any, Any], stack: Stack, rows: jax.Array, sums: list[Sum]
    ) -> list[Sum]:
        self.num_traces += 1

        def with_one(before: list[Sum], at: BatchInput, kept: Kept) -> list[Sum]:
            batch: TracedBatch = self._functions.verbs(*arrays, at, kept=kept)
            new = self._multiplied(batch, rows)
            return [add(total, each) for total, each in zip(before, new, strict=True)]

        return self._with(sums, stack.fold(with_one, self._zeros(len(rows)), kept))

    def _traced_dealt(
        self, weights: Any, constants: Any, stack: Stack, rows: jax.Array, sums: list[Sum]
    ) -> list[Sum]:
        """Add on one of several devices what is dealt to it."""
        return as_dealt(self._traced_whole(weights, constants, stack, rows, of_one(sums)))

    def _traced_from_kept_dealt(
        self, kept: Kept, arrays: tuple[Any, Any], stack: Stack, rows: jax.Array, sums: list[Sum]
    ) -> list[Sum]:
        return as_dealt(self._traced_from_kept(kept, arrays, stack, rows, of_one(sums)))

    def _multiplied(self, batch: TracedBatch, rows: jax.Array) -> Block:
        return list(self.composition(batch, self._functions.parameters.split(rows)))

    def _zeros(self, width: int, with_gradient: bool = False) -> list[Sum]:
        """Return sums leaf by leaf, which spares a copy of the products of each batch."""
        shapes = self._functions.parameters.shapes
        zeros = [zero_sum((width, *shape)) for shape in shapes]
        return zeros + [zero_sum((1, *shape)) for shape in shapes] * with_gradient

    def _with(self, sums: list[Sum], parts: list[Sum]) -> list[Sum]:
        """Return sums of vectors with what was summed leaf by leaf."""
        parameters = self._functions.parameters
        count = len(parameters.shapes)
        found = [add_sum(sums[0], joined(parts[:count], parameters.join))]
        for before in sums[1:]:
            found.append(
                add_sum(before, joined(parts[count:], lambda part: parameters.join(part)[0]))
            )
        return found
