"""One pass over a dataset: what an engine computes of each batch, added up over all devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from spectral_density.curvature.data import Batches
from spectral_density.curvature.finite import check_penalty, raise_not_finite
from spectral_density.engines.data import BatchInput, Replicas
from spectral_density.engines.engine import BatchProducts, Derivatives
from spectral_density.linalg.vectors import Vectors

# A dataset of fewer examples is as quick in the batches that it comes in.
MIN_EXAMPLES = 256

Adding = tuple[Callable[[BatchInput, list[Any]], list[Any]], list[Any]]
"""A function that adds what a batch gives to sums, and the sums it begins with."""


@dataclass(frozen=True)
class SweepOptions:
    """How a dataset is passed over."""

    batch_weight: Callable[[Any], float] | None = None
    memory_share: float = 0.25
    class_weight: Mapping[int, float] | None = None
    linearize: bool = True  # keep what no vector touches from one product to the next
    join_batches: bool = True  # compute small batches together, where that is known to be the same
    matmul_precision: str | None = None  # that products multiply matrices in, None for the full


class Sweep:
    """A dataset, and sums over it.

    Attributes:
        batches: the dataset, surveyed.
        divisor: what sums over batches are divided by.
        scales: factor of each term of the loss, (num_terms,), as a tensor.
        local: number of the replica of this process that computes, if it is one alone.
        num_passes: how many passes over the data were made so far.
    """

    def __init__(
        self,
        derivatives: Derivatives,
        products: BatchProducts,
        dataset: Any,
        options: SweepOptions,
        earlier: Sweep | None = None,
    ):
        """Pass once over the dataset, and settle what is computed together.

        Args:
            derivatives: of the loss.
            products: of the matrix.
            dataset: see `Batches`.
            options: how it is passed over.
            earlier: over another dataset, with the same derivatives; None for the first: it
                computes the loss of each batch, and settles which forms are computed together.
        """
        self.derivatives = derivatives
        self.matrix = products
        self.options = options
        self.replicas = derivatives.replicas
        self.local = 0
        self.num_passes = 0
        self._is_first = earlier is None
        self.weights: list[float] = []  # of what is computed together
        self._first_examples: list[int] = []
        self._num_labels = 0
        # Examples of each form to compute together.
        self.together: dict[str, int] = {} if earlier is None else earlier.together
        self._denominators: np.ndarray = np.zeros(())
        dataset = derivatives.with_class_weight(dataset, options.class_weight)
        if self.replicas is None:
            self._survey_all(dataset)
        else:
            replicas = self.replicas
            with replicas.alone():
                replicas.together(lambda: self._survey_all(dataset), self._hash_of_weights)
            self._denominators = replicas.add(self._denominators)
            self.batches.add_up()
            self._number_among_all(replicas)
        if any(self.together.values()) and self.batches.num_examples >= MIN_EXAMPLES:
            self._join_batches()
        self._set_scales()
        self._inputs = [self._fixed(place) for place in range(len(self.batches.parcels))]
        self.cache = self._new_cache()

    # The first pass ------------------------------------------------------------------------------

    def _survey_all(self, dataset: Any) -> None:
        derivatives = self.derivatives
        self.batches = Batches(
            dataset,
            derivatives.functions,
            batch_weight=self.options.batch_weight,
            memory_share=self.options.memory_share,
            visit=self._survey,
            replicas=self.replicas,
        )
        if not self.weights and self.batches.sample is not None:
            # None of the batches is computed here: one shows what the loss is made of.
            self._survey(self.batches.sample, 0.0)
            self.weights.clear()
            self._first_examples.clear()
            self._num_labels = 0
            self._denominators = np.zeros_like(self._denominators)

    def _survey(self, batch: Any, weight: float) -> None:
        """Check a batch, number its examples, and add up the denominators."""
        derivatives, options = self.derivatives, self.options
        number = derivatives.tensors.number(weight)
        found = derivatives.survey(batch, number, self._is_first)
        if self._is_first and options.join_batches and options.batch_weight is None:
            _, form = derivatives.functions.form_of(batch)
            if form and form not in self.together:
                self.together[form] = derivatives.examples_together(batch, number)
        self.weights.append(weight)
        self._first_examples.append(self._num_labels)
        self._num_labels += derivatives.num_labels(batch)
        self._denominators = self._denominators + found

    def _hash_of_weights(self, _: None) -> int:
        """Return what every worker must have in common: the weights."""
        if self.replicas is None or self.replicas.num_workers == 1:
            return 0
        derivatives = self.derivatives
        variables = list(derivatives.parameters.variables)
        return int(derivatives.functions.batch_hash(variables)[:8], 16)

    def _number_among_all(self, replicas: Replicas) -> None:
        """Count the examples before each batch, those of other replicas included."""
        places = [parcel.start for parcel in self.batches.parcels]
        ends = [*self._first_examples[1:], self._num_labels]
        sizes = [end - start for start, end in zip(self._first_examples, ends, strict=False)]
        here = list(zip(places, sizes, strict=True))
        rows = dict(sorted(entry for each in replicas.gather(here) for entry in each))
        after = dict(zip(rows, np.cumsum(list(rows.values())).tolist(), strict=True))
        self._first_examples = [after[place] - rows[place] for place in places]

    def _join_batches(self) -> None:
        self.batches.merge(self.together)
        parcels = self.batches.parcels
        self.weights = [sum(self.weights[parcel.start : parcel.stop]) for parcel in parcels]
        self._first_examples = [self._first_examples[parcel.start] for parcel in parcels]

    def _set_scales(self) -> None:
        """Fix the factor of each term: c_k / D_k, as a mean over batches times their number.

        A batch's loss then has its ordinary size, which half precision needs.
        """
        derivatives = self.derivatives
        averaged = derivatives.averaged
        denominators = np.where(averaged, self._denominators, 1.0)
        if np.any(denominators <= 0):
            raise ValueError(
                "the weights of the dataset sum to zero (all sample weights or masks are 0): "
                "there is no mean to take."
            )
        number = len(self.weights if self.replicas is None else self.batches)
        self.divisor = float(number) if averaged.all() else 1.0
        scales = derivatives.coefficients * self.divisor / denominators
        self.scales = derivatives.tensors.to_rows(scales, np.float64)

    def _fixed(self, place: int) -> BatchInput:
        """Return what is fixed of a batch, without its tensors."""
        derivatives = self.derivatives
        first = derivatives.tensors.integer(self._first_examples[place])
        return BatchInput(None, first, derivatives.tensors.number(self.weights[place]), self.scales)

    def _new_cache(self) -> Any:
        """Return room for what products with the batches kept leave behind."""
        free = psutil.virtual_memory().available
        room = self.options.memory_share * free if self.batches.kept else 0
        return self.matrix.cache(len(self.batches.parcels), room, self.options.linearize)

    # Batches -------------------------------------------------------------------------------------

    def inputs(self) -> Iterator[BatchInput]:
        """Yield what is computed together, with its weight, number and scales."""
        for batch, fixed in zip(self.batches.in_parcels(), self._inputs, strict=True):
            yield fixed._replace(batch=batch)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Count a pass over the data, and restore what it writes to the model."""
        self.matrix.check_context()
        self.num_passes += 1
        state = self.derivatives.state
        with state.unchanged() if state.is_written or self.replicas else nullcontext():
            yield

    # Sums ----------------------------------------------------------------------------------------

    def loss(self) -> float:
        """Return the loss over the dataset, without what is added once."""

        def begin(local: int) -> Adding:
            def add(at: BatchInput, sums: list[Any]) -> list[Any]:
                return [sums[0] + self.derivatives.loss(at, local)]

            return add, [0.0]

        (total,) = self._summed(begin, [()], "loss")
        return float(total) / self.divisor

    def gradient(self) -> np.ndarray:
        """Return the gradient over the dataset, (num_params,), without that of the penalty."""
        n = self.derivatives.parameters.size

        def begin(local: int) -> Adding:
            def add(at: BatchInput, sums: list[Any]) -> list[Any]:
                sums[0] += self.derivatives.gradient(at, local)
                return sums

            return add, [np.zeros(n)]

        (total,) = self._summed(begin, [(n,)], "gradient")
        self.check_dependence()
        if not np.isfinite(total).all():
            raise_not_finite(self, "gradient", self.derivatives.gradient)
        total /= self.divisor
        return total

    def products(
        self, block: np.ndarray, with_gradient: bool, finite: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the products with a block (num_params, k) from one pass; the gradient on request.

        Sums over batches are made in the graph: adding there costs half of what it costs outside.

        Args:
            block: finite vectors as columns.
            with_gradient: whether the gradient is computed too.
            finite: whether an error is raised where a product is not finite.
        """
        derivatives = self.derivatives
        n = block.shape[0]
        chunks = self.matrix.rows(block, derivatives.width)

        def begin(local: int) -> Adding:
            rows = derivatives.tensors.on_device(chunks)

            def add(at: BatchInput, sums: list[Any]) -> list[Any]:
                return self.matrix.add_on(local, at, rows, sums)

            return add, self.matrix.zeros(rows, with_gradient)

        if self.cache is not None:
            self.cache.refresh()
        shapes = [tuple(chunk.shape) for chunk in chunks]
        all_shapes = [shapes[0], *([(n,)] if with_gradient else []), *shapes[1:]]
        if self.replicas is None:
            zeros = self.matrix.zeros(chunks, with_gradient)
            sums = self.matrix.add_all(self.cache, self.inputs(), chunks, zeros)
            totals = [np.asarray(part) for part in _flat(sums)]
        else:
            totals = self._summed(begin, all_shapes, "product", block)
        self.check_dependence()
        gradient = totals.pop(1) / self.divisor if with_gradient else None
        products = np.empty(block.shape[::-1])
        start = 0
        for chunk in chunks:
            # A block is the largest thing there is: its parts are not kept beside it.
            total = totals.pop(0)
            if finite:
                self.check_product(total, chunk)
            rows = products[start : start + len(total)]
            start += len(total)
            np.divide(total, self.divisor, out=rows)
            if derivatives.penalized:
                added, added_gradient = map(np.asarray, derivatives.penalty_products(chunk))
                check_penalty(added, "product")
                rows += added
        if gradient is not None and derivatives.penalized:
            gradient += added_gradient
        return products.T, gradient

    def products_on_engine(self, rows: Any, vectors: Vectors) -> Any:
        """Return the products with vectors, (k, num_params), where the engine keeps them.

        Nothing but whether they are finite comes to the host.
        """
        derivatives = self.derivatives
        width = derivatives.width
        chunks = [rows[start : start + width] for start in range(0, len(rows), width)]
        if self.cache is not None:
            self.cache.refresh()
        zeros = self.matrix.zeros(chunks, with_gradient=False)
        sums = self.matrix.add_all(self.cache, self.inputs(), chunks, zeros)
        self.check_dependence()
        added = derivatives.penalty_products(rows)[0] if derivatives.penalized else None
        found = derivatives.on_engine(sums, self.divisor, added)
        if not np.isfinite(vectors.largest(found)).all():
            for chunk, (total,) in zip(chunks, sums, strict=True):
                self.check_product(np.asarray(total), chunk)
            check_penalty(np.asarray(added if derivatives.penalized else found), "product")
        return found

    def _summed(
        self,
        begin: Callable[[int], Adding],
        shapes: Sequence[tuple[int, ...]],
        what: str,
        block: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Return sums over the dataset, over all replicas if there are several, to be read only.

        Args:
            begin: called with the number of a replica of this process: how a batch is added to
                its sums, and the sums to begin with.
            shapes: of the sums.
            what: they are of.
            block: what is multiplied, the same on every worker.
        """
        if self.replicas is None:
            add, sums = begin(self.local)
            for at in self.inputs():
                sums = add(at, sums)
            return [np.asarray(part) for part in _flat(sums)]
        vectors = np.zeros(0) if block is None else np.ascontiguousarray(block.T)
        several = self.replicas.num_workers > 1
        token = self.replicas.checksum(vectors, what) if several else 0
        numbers = (numbers.start for numbers in self.batches.parcels)
        sums, depends = self.replicas.sums(
            zip(numbers, self.inputs(), strict=True), begin, shapes, token, lambda: self.depends
        )
        # Known to those that have a batch.
        self.matrix.depends |= depends
        return sums

    # Parts of the dataset ------------------------------------------------------------------------

    def of_replicas(self) -> list[Sweep]:
        """Return, for each replica of this process, the sweep over the batches dealt to it.

        Each is one to look into on this process alone: nothing is added over the replicas.
        """
        if self.replicas is None:
            return [self]
        numbers = [parcel.start for parcel in self.batches.parcels]
        found = []
        for local, replica in enumerate(self.replicas.ids):
            places = [i for i, n in enumerate(numbers) if self.replicas.owner(n) == replica]
            other = copy(self)
            other.restrict(local, self.batches.of_replica(replica, places), places)
            found.append(other)
        return found

    def restrict(self, local: int, batches: Batches, places: Sequence[int]) -> None:
        """Go on with some of the batches, on one replica of this process alone.

        Args:
            local: number of the replica.
            batches: those at these places.
            places: of the batches among the ones of here.
        """
        self.local, self.replicas = local, None
        self.batches = batches
        self._inputs = [self._inputs[place] for place in places]
        self.weights = [self.weights[place] for place in places]
        self.cache = self._new_cache()

    # Checks --------------------------------------------------------------------------------------

    @property
    def depends(self) -> bool:
        """Whether a gradient reaches any variable, as far as one was traced."""
        return self.matrix.depends or self.derivatives.depends

    def check_dependence(self) -> None:
        """Raise if no gradient reaches any variable."""
        if not self.depends:
            raise ValueError(
                "the loss does not depend on the variables chosen: no gradient reaches any of "
                f"{', '.join(self.derivatives.parameters.names)}. Does loss_fn use the model it "
                "is given?"
            )

    def check_product(self, total: np.ndarray, rows: Any) -> None:
        """Raise and name the batch if products with vectors hold a NaN or infinity."""
        if np.isfinite(total).all():
            return

        def products(at: BatchInput, local: int) -> np.ndarray:
            return self.matrix.of_batch(at, rows, local)

        raise_not_finite(self, "product", products)


def _flat(sums: list[Any]) -> list[Any]:
    return [part for each in sums for part in (each if isinstance(each, list) else [each])]
