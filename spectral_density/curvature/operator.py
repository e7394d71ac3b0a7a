"""The common part of every curvature matrix: one sweep over the data for each product."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.curvature.batches import (
    HASHES,
    Batches,
    batch_hash,
    count_examples,
    examples_hash,
    form_of,
)
from spectral_density.curvature.class_weights import check_class_weight, with_class_weights
from spectral_density.curvature.finite import all_finite, cause, check_penalty
from spectral_density.curvature.frameworks import (
    check_backend,
    check_eager,
    tf_variable,
    variable_name,
)
from spectral_density.curvature.graph_state import GraphState
from spectral_density.curvature.half_precision import (
    compute_dtype,
    is_half,
    moderated_product,
    scaled_product,
)
from spectral_density.curvature.losses import Objective
from spectral_density.curvature.merging import (
    MIN_EXAMPLES,
    examples_are_separate,
    examples_at_once,
)
from spectral_density.curvature.parameters import Parameters
from spectral_density.curvature.products import (
    MAX_WIDTH,
    Products,
    Residuals,
    compiled,
    width_of_chunks,
)
from spectral_density.curvature.refusals import gradients_explained, refuse_without_derivatives
from spectral_density.curvature.replicas import Adding, Replicas, checksum, replicas_of
from spectral_density.curvature.scopes import layers_of
from spectral_density.curvature.traced import note

if TYPE_CHECKING:
    from typing_extensions import Self

    from spectral_density.curvature.preflight import PreflightReport

_LAYERS_SHOWN = 6  # by name, in notebooks

# Batches of so many shapes are traced without a word.
_MANY_SHAPES = 8


class CurvatureOperator(LinearOperator):
    """A symmetric matrix of second derivatives, given by its products with vectors.

    It is a `scipy.sparse.linalg.LinearOperator` of shape (num_params, num_params): vectors and
    products are float64 whatever the model's dtype, and sums over batches are float64; the products
    of one batch are computed in the dtype of the model. A very small or large vector, and in half
    precision each, is scaled by a power of two first: products neither vanish nor overflow. A
    block of vectors takes one pass over the data. What does not depend on the vectors is kept from
    one product to the next where there is room, and computed again when a variable has changed.
    Where the variables are mirrored over the replicas of a `tf.distribute` strategy, all of them
    compute, and every worker has to make the same calls. A subclass writes `_batch_products`.

    Attributes:
        parameters: the variables as one flat vector.
        batches: the dataset, surveyed.
        objective: the loss in one form.
        product_dtype: NumPy dtype that products are computed in: the coarsest that what depends on
            the variables is computed in, float16 under Keras's policy mixed_float16.
        num_passes: how many passes over the data were made so far.
        num_traces: how many graphs of products were built, one for each form of batches computed
            at once and width; operators made by `with_dataset` share them, and the count.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        dataset: Any,
        *,
        batch_weight: Callable[[Any], float] | None = None,
        memory_share: float = 0.25,
        class_weight: Mapping[int, float] | None = None,
    ):
        """Pass once over the dataset: count it, check it, keep it where it fits.

        Args:
            objective: what is differentiated.
            parameters: with respect to what.
            dataset: see `Batches`.
            batch_weight: weight of a batch, default its number of examples.
            memory_share: share of the free memory that kept batches may take, and once more what
                their products leave behind.
            class_weight: weight of the examples of each class, see `HessianOperator`.
        """
        check_backend()
        super().__init__(dtype=np.dtype(np.float64), shape=(parameters.size, parameters.size))
        self.objective = objective
        self.parameters = parameters
        self.product_dtype = parameters.dtype
        self._replicas = replicas_of(parameters.variables)
        self._products = Products(self._traced_products, objective)
        # TensorFlow warns of a function that is traced often: each replica has its own.
        self._local = 0
        replicas = range(1 if self._replicas is None else len(self._replicas.ids))
        self._gradient_fns = [compiled(self._traced_gradient, objective) for _ in replicas]
        self._loss_fns = [compiled(self._batch_value, objective) for _ in replicas]
        self._sums_fn = compiled(self._traced_sums, objective)
        self._denominators_fn = compiled(self._traced_denominators, objective)
        self._is_tried = False  # whether the loss was computed for a dataset before
        self._at_once: dict[str, int] = {}  # examples of each form to compute together
        self._penalty_products_fn = compiled(self._penalty_products, objective)
        self._penalized = False
        self._state: list[Any] = []  # variables that the loss writes
        self._graphs = GraphState(parameters.variables, parameters.names, objective.model)
        self._batch_weight = batch_weight
        self._class_weight = check_class_weight(class_weight, objective)
        self._memory_share = memory_share
        self._read(dataset)

    def with_dataset(self, dataset: Any) -> Self:
        """Return the same matrix over other data.

        Graphs are shared with this operator, and traced only for batches of a new form: training
        makes one such operator a step. The dataset is passed over once, to be counted; what is
        wrong with its labels shows in the first product.

        Args:
            dataset: as for this operator.

        Raises:
            ValueError: if it is empty, infinite or used up after one pass.
        """
        other = copy(self)
        other._is_tried = True
        other._read(dataset)
        return other

    @property
    def num_traces(self) -> int:
        """Return how many graphs of products were built so far."""
        return self._products.num_traces

    @property
    def _depends(self) -> bool:
        return self._products.depends

    @property
    def numbers_examples(self) -> bool:
        """Return whether the matrix depends on the places of examples in the dataset."""
        return False

    def _read(self, dataset: Any) -> None:
        """Pass once over the dataset, and settle what is computed at once."""
        dataset = with_class_weights(dataset, self._class_weight)
        self.num_passes = 0
        self._weights: list[tf.Tensor] = []
        self._denominators: np.ndarray = np.zeros(())
        if self._replicas is None:
            self._survey_all(dataset)
        else:
            with self._replicas.alone():
                self._replicas.together(lambda: self._survey_all(dataset), self._hash_of_weights)
            self._denominators = self._replicas.add(self._denominators)
            self.batches.add_up()
        if any(self._at_once.values()) and self.batches.num_examples >= MIN_EXAMPLES:
            self.batches.merge(self._at_once)
            self._weights = [
                tf.add_n(self._weights[numbers.start : numbers.stop])
                for numbers in self.batches.parcels
            ]
        self._residuals = self._no_residuals()
        self._set_scales()

    def _survey_all(self, dataset: Any) -> None:
        self.batches = Batches(
            dataset,
            batch_weight=self._batch_weight,
            memory_share=self._memory_share,
            visit=self._survey,
            replicas=self._replicas,
        )
        if not self._weights and self.batches.sample is not None:
            # None of the batches is computed here: one shows what the loss is made of.
            self._survey(self.batches.sample, 0.0)
            self._weights.clear()
            self._denominators = np.zeros_like(self._denominators)

    def _hash_of_weights(self, _: None) -> int:
        """Return what every worker must have in common: the weights."""
        if self._replicas is None or self._replicas.num_workers == 1:
            return 0
        return int(batch_hash(self.parameters.variables)[:8], 16)

    @property
    def workers(self) -> Replicas | None:
        """Return the processes that this matrix is computed by, None for this one alone."""
        several = self._replicas is not None and self._replicas.num_workers > 1
        return self._replicas if several else None

    # What a subclass writes ----------------------------------------------------------------------

    @abstractmethod
    def _batch_products(
        self, batch: Any, weight: tf.Tensor, scales: tf.Tensor, vectors: list[list[tf.Tensor]]
    ) -> tuple[list[list[Any]], list[Any]]:
        """Return the products of one batch with each vector, and the gradient, as tensors.

        Vectors, products and gradient are lists of one tensor for each variable; None is zero.
        """

    # What users call -----------------------------------------------------------------------------

    def loss(self) -> float:
        """Return the loss over the dataset, with the matrix's own reduction."""

        def begin(local: int) -> Adding:
            def add(batch: Any, weight: tf.Tensor, sums: list[Any]) -> list[Any]:
                return [sums[0] + float(self._loss_fns[local](batch, weight, self._scales))]

            return add, [0.0]

        with self._pass():
            (total,) = self._summed(begin, [()], "loss")
            penalty = self.objective.penalty()
        value = float(total) / self._divisor
        return value if penalty is None else value + float(penalty)

    def gradient(self) -> np.ndarray:
        """Return the gradient of the loss, shape (num_params,), float64."""
        n = self.parameters.size

        def begin(local: int) -> Adding:
            def add(batch: Any, weight: tf.Tensor, sums: list[Any]) -> list[Any]:
                sums[0] += np.asarray(self._gradient_fns[local](batch, weight, self._scales))
                return sums

            return add, [np.zeros(n)]

        with self._pass():
            (total,) = self._summed(begin, [(n,)], "gradient")
            self._check_dependence()
            self._check_finite(total, "gradient", self._gradient_fns[0])
            total /= self._divisor
            if self._penalized:
                nothing = self._rows(np.zeros((1, n)))
                added = self._penalty_products_fn(nothing)[1]
                check_penalty(added, "gradient")
                total += np.asarray(added)
        return total

    def product_and_gradient(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the product with `vector` and the gradient, each (num_params,), from one pass.

        Raises:
            ValueError: if the vector is complex, not finite, or of another shape.
        """
        vector = self._check_vectors(vector)
        if vector.ndim != 1:
            raise ValueError(f"expected one vector, got a block of shape {vector.shape}.")
        product, gradient = self._sweep(vector.reshape(-1, 1), with_gradient=True)
        return product[:, 0], gradient

    def to_dense(self, progress: bool | None = False) -> np.ndarray:
        """Return the matrix itself, shape (num_params, num_params), float64.

        Args:
            progress: show a bar; None for only in interactive runs.

        Raises:
            MemoryError: if the matrix does not fit into the free memory.
        """
        n = self.parameters.size
        needed, free = 8 * n * n, psutil.virtual_memory().available
        if needed > free:
            raise MemoryError(
                f"the dense matrix of {n:,} parameters takes {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free. Choose fewer with variables=, or use products."
            )
        dense = np.empty((n, n))
        with progress_bar(n, "columns", progress) as bar:
            width = min(MAX_WIDTH, n)
            for start in range(0, n, width):
                # The last block overlaps the one before it: another width would be another graph.
                first = min(start, n - width)
                dense[:, first : first + width] = self.matmat(np.eye(n, width, -first))
                bar.update(first + width - start)
        return dense

    def check(self, *, seed: int = 0, derivative: bool = True) -> PreflightReport:
        """Raise unless this is one fixed, symmetric, finite matrix, and the right derivative.

        It takes two passes over the data, and six gradients and one product of the first batch, see
        `preflight`. The report is remembered while the variables that the loss reads stay as they
        are, so asking again costs nothing.

        Args:
            seed: of the vectors.
            derivative: whether product and gradient are compared with differences of the first
                batch: six gradients and one product of it.

        Raises:
            PreflightError: a `ValueError` that names what is unsound, with its figure.

        Warns:
            UserWarning: what is doubtful, once for each operator.
        """
        from spectral_density.curvature.preflight import check

        return check(self, seed=seed, derivative=derivative)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this matrix from another: loss, variables, weights and data.

        Weights and data are hashed, which takes a pass over the data without any computation.
        """
        hashed = self._hashed()
        class_weight = self._class_weight
        return {
            # The sums are the same on any number of replicas, but for rounding.
            "matrix": repr(self).removesuffix(f"{self._where()})") + ")",
            "loss": self.objective.settings(),
            # Keras numbers names as models are made: the same model made again has others.
            "shapes": [list(shape) for shape in self.parameters.shapes],
            "weights": batch_hash(self._own_variables()),
            "other variables": self._graphs.hash_of_others(),
            "graph": self._graphs.hash_of_graph(),
            "class weights": class_weight and {str(k): v for k, v in class_weight.items()},
            "data": batch_hash([data for _, data, _, _ in hashed]),
            "batch weights": batch_hash([weight for _, _, weight, _ in hashed]),
            # The same in any order of the examples, where that is the same matrix.
            "examples": None
            if self.numbers_examples
            else f"{sum(examples for *_, examples in hashed) % HASHES:032x}",
        }

    def variables_hash(self) -> str:
        """Return a hash of all variables that the matrix depends on, those of the loss included."""
        return batch_hash(self._own_variables()) + self._graphs.hash_of_others()

    def _own_variables(self) -> list[tf.Variable]:
        model_variables = getattr(self.objective.model, "variables", ())
        return [*self.parameters.variables, *map(tf_variable, model_variables)]

    def _hashed(self) -> list[tuple[int, str, float, int]]:
        """Return number, hash, weight and examples' hash of what is computed at once, in order."""

        def here() -> list[tuple[int, str, float, int]]:
            entries = zip(
                self.batches.parcels, self.batches.in_parcels(), self._weights, strict=True
            )
            return [
                (numbers.start, batch_hash(batch), float(weight), self._hash_of(batch, weight))
                for numbers, batch, weight in entries
            ]

        if self._replicas is None:
            return here()
        of_workers = self._replicas.gather(self._replicas.together(here))
        return sorted(entry for entries in of_workers for entry in entries)

    def _hash_of(self, batch: Any, weight: tf.Tensor) -> int:
        """Return the sum of the hashes of a batch's examples."""
        if self._batch_weight is None:
            return examples_hash(batch)
        # A weight of the user's belongs to the batch as a whole.
        return int(batch_hash((batch, weight))[:32], 16)

    def matvec(self, x: np.ndarray) -> np.ndarray:
        """Return the product with a vector of shape (num_params,) or (num_params, 1)."""
        return super().matvec(self._check_vectors(x))

    def matmat(self, X: np.ndarray) -> np.ndarray:
        """Return the product with a block of shape (num_params, k), in one pass over the data."""
        return super().matmat(self._check_vectors(X))

    def __repr__(self) -> str:
        """Say what it is: parameters, batches, dtype."""
        return (
            f"{type(self).__name__}({self.objective.description}, "
            f"{_count(self.parameters.size, 'parameter', 'parameters')}, "
            f"{_count(len(self.batches), 'batch', 'batches')}, {self.product_dtype.name}"
            f"{self._where()})"
        )

    def _where(self) -> str:
        return "" if self._replicas is None else f", {self._replicas!r}"

    def _repr_html_(self) -> str:
        """Show what it is in a notebook, with the blocks of its layers; computes nothing."""
        from spectral_density._html import block_diagram, card
        from spectral_density.curvature.blocks import layer_indices

        layers = {name: len(indices) for name, indices in layer_indices(self).items()}
        shown = list(layers.items())[:_LAYERS_SHOWN]
        more = len(layers) - len(shown)
        n = self.parameters.size
        rows = [
            ("loss", self.objective.description),
            ("size", f"{n:,} x {n:,}"),
            ("layers", ", ".join(f"{name} {size:,}" for name, size in shown)),
            (
                "data",
                f"{self.batches.num_examples:,.10g} in "
                f"{_count(len(self.batches), 'batch', 'batches')}",
            ),
            ("passes", f"{self.num_passes:,} over the data so far"),
            ("products", f"in {self.product_dtype.name}"),
        ]
        if more:
            rows[2] = ("layers", f"{rows[2][1]}, and {more:,} more")
        return card(type(self).__name__, rows, block_diagram(layers.values(), layers))

    # SciPy's side --------------------------------------------------------------------------------

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._sweep(x.reshape(-1, 1))[0][:, 0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        if not X.shape[1]:
            return np.zeros(X.shape)
        return self._sweep(X)[0]

    def _adjoint(self) -> CurvatureOperator:
        return self

    def _transpose(self) -> CurvatureOperator:
        return self

    # One pass over the data ----------------------------------------------------------------------

    def _sweep(self, block: np.ndarray, with_gradient: bool = False) -> list[np.ndarray]:
        """Return the products with a block (num_params, k) from one pass; the gradient on request.

        In half precision a column whose product overflows takes another pass, or two.
        """
        if not is_half(self.product_dtype):
            return moderated_product(
                lambda moderate: self._sweep_once(moderate, with_gradient), block
            )
        return scaled_product(
            lambda scaled, finite: self._sweep_once(scaled, with_gradient, finite), block
        )

    def _sweep_once(
        self, block: np.ndarray, with_gradient: bool, finite: bool = True
    ) -> list[np.ndarray]:
        """Return the products from one pass, which have to be `finite`; the gradient on request.

        Sums over batches are made in the graph: adding there costs half of what it costs outside.
        """
        n = self.parameters.size
        chunks = [
            self._rows(block[:, start : start + self._width].T)
            for start in range(0, block.shape[1], self._width)
        ]
        shapes = [tuple(chunk.shape) for chunk in chunks]

        def begin(local: int) -> Adding:
            # On the device of the replica.
            rows = chunks if self._replicas is None else [tf.identity(chunk) for chunk in chunks]
            sums: list[list[Any]] = [[tf.zeros(shape, tf.float64)] for shape in shapes]
            if with_gradient:
                sums[0].append(tf.zeros([n], tf.float64))

            def add(batch: Any, weight: tf.Tensor, sums: list[list[Any]]) -> list[list[Any]]:
                fixed = batch, weight, self._scales
                if self._replicas is None:
                    self._products.add(self._residuals, fixed, next(places), rows, sums)
                    return sums
                return [
                    self._product_fn(part.shape[0], local)(*fixed, part, *before)
                    for part, before in zip(rows, sums, strict=True)
                ]

            places = count()
            return add, sums

        with self._pass():
            self._residuals.forget_if_weights_changed()
            all_shapes = [shapes[0], *([(n,)] if with_gradient else []), *shapes[1:]]
            totals = self._summed(begin, all_shapes, "product", block)
            self._check_dependence()
            gradient = [totals.pop(1) / self._divisor] if with_gradient else []
            products = np.empty(block.shape[::-1])
            start = 0
            for chunk in chunks:
                # A block is the largest thing there is: its parts are not kept beside it.
                total = totals.pop(0)
                if finite:
                    self._check_finite(total, "product", partial(self._product_of_batch, chunk))
                rows = products[start : start + len(total)]
                start += len(total)
                np.divide(total, self._divisor, out=rows)
                if self._penalized:
                    added, added_gradient = self._penalty_products_fn(chunk)
                    check_penalty(added, "product")
                    rows += np.asarray(added)
            if self._penalized:
                for total in gradient:
                    total += np.asarray(added_gradient)
        return [products.T, *gradient]

    def _of_replicas(self) -> list[Self]:
        """Return, for each replica of this process, the operator over the batches dealt to it.

        Each is one to look into on this process alone: nothing is added over the replicas.
        """
        if self._replicas is None:
            return [self]
        numbers = [parcel.start for parcel in self.batches.parcels]
        found = []
        for local, replica in enumerate(self._replicas.ids):
            places = [i for i, n in enumerate(numbers) if self._replicas.owner(n) == replica]
            other = copy(self)
            other._local, other._replicas = local, None
            other._take(self.batches.of_replica(replica, places), places)
            found.append(other)
        return found

    def _take(self, batches: Batches, places: Sequence[int]) -> None:
        """Go on with some of the batches, those at these places."""
        self.batches = batches
        self._weights = [self._weights[place] for place in places]
        self._residuals = self._no_residuals()

    def _no_residuals(self) -> Residuals:
        """Return room for what products with the batches kept leave behind."""
        free = psutil.virtual_memory().available
        return Residuals(
            len(self.batches.parcels), self._memory_share * free if self.batches.kept else 0
        )

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
        entries = self._weighted_batches()
        if self._replicas is None:
            add, sums = begin(0)
            for batch, weight in entries:
                sums = add(batch, weight, sums)
            return [np.asarray(part) for part in tf.nest.flatten(sums)]
        vectors = np.zeros(0) if block is None else np.ascontiguousarray(block.T)
        token = checksum(vectors, what) if self._replicas.num_workers > 1 else 0
        numbers = (numbers.start for numbers in self.batches.parcels)
        numbered = zip(numbers, entries, strict=True)
        sums, depends = self._replicas.sums(
            numbered, begin, shapes, token, lambda: self._products.depends
        )
        # Known to those that have a batch.
        self._products.depends |= depends
        return sums

    def _product_fn(self, width: int, local: int | None = None) -> Any:
        """Return the compiled products of a batch with blocks of a width."""
        return self._products.whole(width, self._local if local is None else local)

    def _product_of_batch(
        self, rows: tf.Tensor, batch: Any, weight: tf.Tensor, scales: tf.Tensor
    ) -> tf.Tensor:
        zeros = tf.zeros(rows.shape, tf.float64)
        return self._product_fn(rows.shape[0])(batch, weight, scales, rows, zeros)

    def _rows(self, rows: np.ndarray) -> tf.Tensor:
        """Return vectors as the rows of a tensor in the dtype of the variables."""
        return tf.convert_to_tensor(np.ascontiguousarray(rows, dtype=self.parameters.dtype))

    def _weighted_batches(self) -> Iterator[tuple[Any, tf.Tensor]]:
        """Yield what is computed at once, with its weight."""
        return zip(self.batches.in_parcels(), self._weights, strict=True)

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """Count a pass over the data, and put back what it wrote to the model."""
        check_eager()
        self.num_passes += 1
        with self._put_back():
            yield

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        with nullcontext() if self._replicas is None else self._replicas.alone():
            before = [tf.identity(variable.value()) for variable in self._state]
            try:
                yield
            finally:
                for variable, value in zip(self._state, before, strict=True):
                    variable.assign(value)

    def _survey(self, batch: Any, weight: float) -> None:
        """Check the first batch; try the loss of each, and add up the denominators."""
        weight = tf.constant(weight, tf.float64)
        self._trace(batch, weight)
        with self._put_back():
            if self._is_tried:
                denominators = self._denominators_fn(batch, weight)
            else:
                _, form = form_of(batch)
                if form and form not in self._at_once:
                    self._at_once[form] = self._examples_at_once(batch, weight)
                denominators = self._sums_fn(batch, weight)[1]
        self._weights.append(weight)
        self._denominators = self._denominators + np.asarray(denominators, np.float64)

    def _trace(self, batch: Any, weight: tf.Tensor) -> None:
        """Trace the loss of a batch, and look into a graph that is new before any of it runs."""
        function = self._denominators_fn if self._is_tried else self._sums_fn
        if not self._graphs.num_graphs:
            self.objective.validate(batch)
            self._refuse_penalty()
        graph = function.get_concrete_function(batch, weight).graph
        if self._graphs.knows(graph):
            return
        if not self._graphs.num_graphs:
            self._width = width_of_chunks(graph)
            self.product_dtype = compute_dtype(graph, self.parameters.variables)
        self._graphs.add(graph)
        self._state = list(self._graphs.written)
        if self._state and self._replicas is not None:
            # The handles are those of one replica, and the model's variables those of all.
            self._state = [*self.objective.state(), *self._graphs.written_elsewhere()]
        if self._graphs.num_graphs == _MANY_SHAPES + 1:
            warnings.warn(
                f"the batches have more than {_MANY_SHAPES} shapes ({len(self._weights) + 1} "
                "batches were seen so far), and each shape builds graphs of its own, which takes "
                "most of the time. Pad or bucket: pad sequences to one length (or a few), with a "
                "mask, and give all batches the same number of examples.",
                UserWarning,
                stacklevel=2,
            )

    def _refuse_penalty(self) -> None:
        """Raise if what is added once to the loss lacks a derivative that products need."""

        def trace() -> None:
            penalty = self.objective.penalty()
            layers = layers_of(self.objective.model)
            if penalty is not None:
                refuse_without_derivatives(self.parameters.variables, [penalty], layers, order=2)

        compiled(trace, self.objective).get_concrete_function()

    def _examples_at_once(self, batch: Any, weight: tf.Tensor) -> int:
        """Return how many examples like these to compute together; 0 for batches as they are."""
        # What is dealt to replicas stays as it is: of few parcels most would get none.
        if self._replicas is not None or self._batch_weight is not None:
            return 0
        if not examples_are_separate(self.objective):
            return 0
        graph = self._sums_fn.get_concrete_function(batch, weight).graph
        return examples_at_once(graph, count_examples(batch), self.objective.model)

    def _set_scales(self) -> None:
        """Fix the factor of each term: c_k / D_k, as a mean over batches times their number.

        A batch's loss then has its ordinary size, which half precision needs.
        """
        averaged = self.objective.averaged
        denominators = np.where(averaged, self._denominators, 1.0)
        if np.any(denominators <= 0):
            raise ValueError(
                "the weights of the dataset sum to zero (all sample weights or masks are 0): "
                "there is no mean to take."
            )
        count = len(self._weights if self._replicas is None else self.batches)
        self._divisor = float(count) if averaged.all() else 1.0
        self._scales = tf.constant(self.objective.coefficients * self._divisor / denominators)
        self._penalized = self.objective.penalty() is not None

    # In the graph --------------------------------------------------------------------------------

    def _batch_value(self, batch: Any, weight: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        """Return the share of a batch in the loss, times the divisor, as a scalar."""
        sums, _ = self.objective.sums(batch, weight)
        return note("loss", tf.reduce_sum(sums * tf.cast(scales, sums.dtype)))

    def _traced_sums(self, batch: Any, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return `Objective.sums`; raise if they lack a derivative that products need."""
        sums, denominators = self.objective.sums(batch, weight)
        layers = layers_of(self.objective.model)
        refuse_without_derivatives(self.parameters.variables, [sums], layers, order=2)
        return sums, denominators

    def _traced_denominators(self, batch: Any, weight: tf.Tensor) -> tf.Tensor:
        """Return the denominators alone: TensorFlow leaves out what they do not depend on."""
        return self.objective.sums(batch, weight)[1]

    def _traced_products(
        self, batch: Any, weight: tf.Tensor, scales: tf.Tensor, rows: tf.Tensor, *sums: tf.Tensor
    ) -> list[tf.Tensor]:
        """Add the products of a batch, and its gradient, to the sums: one of them or both."""
        vectors = [self.parameters.split(row) for row in tf.unstack(rows)]
        products, gradient = self._batch_products(batch, weight, scales, vectors)
        self._products.depends |= any(part is not None for part in gradient)
        added = (self.parameters.stack(products), self.parameters.join(gradient))
        note("product", added[0])
        note("gradient", added[1])
        # The gradient is not computed where no sum of it was passed.
        return [total + tf.cast(new, tf.float64) for total, new in zip(sums, added, strict=False)]

    def _traced_gradient(self, batch: Any, weight: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        variables = self.parameters.variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = self._batch_value(batch, weight, scales)
        gradient = tape.gradient(value, variables)
        self._products.depends |= any(part is not None for part in gradient)
        return self.parameters.join(gradient)

    def _penalty_products(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the products and the gradient of what is added once to the loss."""
        vectors = [self.parameters.split(row) for row in tf.unstack(rows)]
        layers = layers_of(self.objective.model)
        products, gradient = hessian_products(
            self.objective.penalty, self.parameters.variables, vectors, layers
        )
        return self.parameters.stack(products), self.parameters.join(gradient)

    # Checks --------------------------------------------------------------------------------------

    def _check_vectors(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors)
        n = self.parameters.size
        if np.iscomplexobj(vectors):
            raise ValueError("the matrix is real, and the vector is complex: pass its parts.")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != n:
            raise ValueError(
                f"expected a vector of shape ({n},) or a block of shape ({n}, k), one row for each "
                f"parameter, got shape {vectors.shape}."
            )
        vectors = vectors.astype(np.float64, copy=False)
        if not np.isfinite(vectors).all():
            raise ValueError("the vector to multiply with holds NaN or infinity.")
        return vectors

    def _check_dependence(self) -> None:
        if not self._products.depends:
            raise ValueError(
                "the loss does not depend on the variables chosen: no gradient reaches any of "
                f"{', '.join(self.parameters.names)}. Does loss_fn use the model it is given?"
            )

    def _check_finite(
        self, total: np.ndarray, what: str, function: Callable[..., Any], *arguments: Any
    ) -> None:
        """Raise and name the batch if `total` holds a NaN or infinity."""
        if np.isfinite(total).all():
            return
        in_half = ""
        if is_half(self.product_dtype):
            in_half = (
                f" The model computes in half precision ({self.product_dtype.name}), which may "
                "overflow: compute in float32 or float64."
            )
        found = self._first_not_finite(what, function, *arguments)
        if self._replicas is not None:
            found = min(filter(None, self._replicas.gather(found)), default=None)
        if found is not None:
            number, why = found
            raise FloatingPointError(
                f"the {what} is not finite in batch {number} of {len(self.batches)} "
                f"(counted from 0). {why}{in_half}"
            )
        if not self.batches.kept:
            raise FloatingPointError(
                f"the {what} is not finite, and no batch says why when the data is iterated again: "
                "a pass gave other data, or the sum over the batches overflows. "
                "dataset.cache() fixes the data."
            )
        raise FloatingPointError(f"the {what} overflows when summed over the batches.{in_half}")

    def _first_not_finite(
        self, what: str, function: Callable[..., Any], *arguments: Any
    ) -> tuple[int, str] | None:
        """Return the first batch computed here whose result is not finite, and why it is not."""

        def result(entry: Any, weight: tf.Tensor) -> Any:
            found = function(entry, weight, self._scales, *arguments)
            return tf.nest.flatten(found)[0]

        for numbers, (entry, weight) in zip(
            self.batches.parcels, self._weighted_batches(), strict=True
        ):
            if all_finite(result(entry, weight)):
                continue
            if len(numbers) == 1:
                return numbers.start, self._why_not_finite(what, entry, weight)
            # Of batches computed together each is tried alone.
            for number, batch in zip(numbers, self.batches.apart(entry, numbers), strict=True):
                weight = tf.constant(count_examples(batch), tf.float64)
                if not all_finite(result(batch, weight)):
                    return number, self._why_not_finite(what, batch, weight)
            return numbers.start, (
                f"It is so only where batches {numbers.start} to {numbers.stop - 1} are computed "
                "together: look for an overflow."
            )
        return None

    def _why_not_finite(self, what: str, entry: Any, weight: tf.Tensor) -> str:
        parameters = self.parameters
        weights = dict(zip(parameters.names, parameters.variables, strict=True))
        model = self.objective.model
        # Those of Keras without the states of metrics; a `tf.Module` has variables alone.
        for variable in getattr(model, "weights", getattr(model, "variables", ())):
            weights.setdefault(variable_name(variable), tf_variable(variable))
        fixed = entry, weight, self._scales
        steps = {
            "loss": lambda: self._loss_fns[self._local](*fixed),
            "gradient": lambda: self._gradient_fns[self._local](*fixed),
        }
        return cause(what, self._plain(entry), weights, steps)

    def _plain(self, entry: Any) -> Any:
        """Return the batch of an entry of `_weighted_batches`."""
        return entry


def hessian_products(
    value: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
    vectors: list[list[tf.Tensor]],
    layers: Sequence[Any] = (),
) -> tuple[list[list[Any]], list[Any]]:
    """Return the products of the Hessian of `value()` with each vector, and its gradient.

    Reverse over reverse: the gradient g, then the gradient of <g, v> for each v. The vectors share
    the primal pass and the first gradient (Pearlmutter 1994, Neural Computation 6:147, in reverse
    mode: it goes through every operation that has a gradient, loops included).

    Raises:
        ValueError: if an operation lacks a derivative, naming it and its layer among `layers`.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
        outer.watch(variables)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(variables)
            scalar = value()
        refuse_without_derivatives(variables, [scalar], layers, order=2)
        with gradients_explained():
            gradient = [
                None if part is None else tf.convert_to_tensor(part)
                for part in inner.gradient(scalar, variables)
            ]
    used = [position for position, part in enumerate(gradient) if part is not None]
    if not used:
        return [[None] * len(gradient) for _ in vectors], gradient
    parts = [gradient[position] for position in used]
    refuse_without_derivatives(variables, parts, layers, order=1)
    with gradients_explained():
        products = [
            outer.gradient(
                parts, variables, output_gradients=[vector[position] for position in used]
            )
            for vector in vectors
        ]
    return products, gradient


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
