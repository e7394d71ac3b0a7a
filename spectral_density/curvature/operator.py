"""Curvature matrices as SciPy linear operators: what users call."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spectral_density.checkpoint import Workers
from spectral_density.curvature.fingerprint import identity
from spectral_density.curvature.finite import check_penalty
from spectral_density.curvature.model_state import ModelState, model_state
from spectral_density.curvature.product_error import measured_product_error
from spectral_density.curvature.sweep import Sweep, SweepOptions
from spectral_density.curvature.symmetric import (
    SymmetricOperator,
    is_half,
    moderated_product,
    scaled_product,
)
from spectral_density.engines.engine import BatchVerbs, Block, Derivatives, Needs

if TYPE_CHECKING:
    from typing_extensions import Self

    from spectral_density.curvature.data import Batches
    from spectral_density.curvature.preflight import PreflightReport
    from spectral_density.linalg.vectors import Vectors

_LAYERS_SHOWN = 6  # by name, in notebooks


class CurvatureOperator(SymmetricOperator):
    """A symmetric matrix of second derivatives, given by its products with vectors.

    It is a `scipy.sparse.linalg.LinearOperator` of shape (num_params, num_params): vectors and
    products are float64 whatever the model's dtype, and sums over batches are float64; the products
    of one batch are computed in the dtype of the model. A very small or large vector, and in half
    precision each, is scaled by a power of two first: products neither vanish nor overflow. A
    block of vectors takes one pass over the data. What does not depend on the vectors is kept from
    one product to the next where there is room, and computed again when a variable has changed.
    Where the variables are mirrored over the replicas of a `tf.distribute` strategy, all of them
    compute, and every worker has to make the same calls. A subclass writes `batch_products`.

    Attributes:
        parameters: the variables as one flat vector.
        derivatives: the loss and its derivatives, batch by batch.
        sweep: the dataset, and sums over it.
        matrix: the compiled products.
        needs: what the matrix needs of a loss.
        numbers_examples: whether the matrix depends on the places of examples in the dataset.
        definition: what the preflight compares products with: "hessian" for differences of the
            gradient, "outputs" for J'BJ with differences of outputs and loss, None for nothing.
    """

    needs: Needs = Needs()
    numbers_examples = False
    definition: Literal["hessian", "outputs"] | None = None
    _measured: tuple[Any, float] | None = None  # data and hash of variables; the product error

    def __init__(self, derivatives: Derivatives, dataset: Any, options: SweepOptions):
        """Pass once over the dataset: count it, check it, keep it where it fits.

        Args:
            derivatives: of the loss in a set of variables, see `engines.engine_of`.
            dataset: see `Batches`.
            options: how it is passed over.
        """
        parameters = derivatives.parameters
        super().__init__(parameters.size)
        self.derivatives = derivatives
        self.parameters = parameters
        self.matrix = derivatives.products(self.batch_products, options.matmul_precision)
        class_weight = derivatives.check_class_weight(options.class_weight)
        self._options = replace(options, class_weight=class_weight)
        self.sweep = Sweep(derivatives, self.matrix, dataset, self._options)

    @classmethod
    def from_derivatives(
        cls, derivatives: Derivatives, dataset: Any, options: SweepOptions
    ) -> Self:
        """Return this matrix for a loss whose derivatives are there already.

        Args:
            derivatives: with the class's own `needs`.
            dataset: see `Batches`.
            options: how it is passed over.
        """
        operator = cls.__new__(cls)
        CurvatureOperator.__init__(operator, derivatives, dataset, options)
        return operator

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
        other.sweep = Sweep(
            self.derivatives, self.matrix, dataset, self._options, earlier=self.sweep
        )
        return other

    # What a subclass writes ----------------------------------------------------------------------

    @abstractmethod
    def batch_products(self, batch: BatchVerbs, vectors: Block) -> Block:
        """Return the products of one batch with vectors, composed of the verbs of the batch."""

    # What it is ----------------------------------------------------------------------------------

    @property
    def batches(self) -> Batches:
        """The dataset, surveyed."""
        return self.sweep.batches

    @property
    def product_dtype(self) -> np.dtype:
        """The coarsest dtype that what depends on the variables is computed in.

        float16 under Keras's policy mixed_float16.
        """
        return self.derivatives.product_dtype

    @property
    def matmul_precision(self) -> str | None:
        """What products multiply matrices in, where it is below that of `product_dtype`."""
        return self.matrix.matmul_precision

    @property
    def product_error(self) -> float:
        """How far products are from those at full precision, relative and by norm; 0.0 at that.

        Measured where `matmul_precision` asks for less: by the check, or when it is first asked
        for, with one product of the first batch at either precision, and again once the variables
        have changed. Bounds of results count it.
        """
        if self.matmul_precision is None:
            return 0.0
        state = self.sweep, self.hash_of_variables()
        if self._measured is None or self._measured[0] != state:
            self._measured = state, measured_product_error(self.sweep)
        return self._measured[1]

    @property
    def vectors(self) -> Vectors | None:
        """Where algorithms keep their vectors; None for float64 on the host.

        In half precision vectors are scaled on the host, see `scaled_product`.
        """
        return None if is_half(self.product_dtype) else self.derivatives.vectors

    def products_of(self, rows: Any) -> Any:
        """Return the products with vectors of the engine, (k, num_params), as `vectors` has them.

        Raises:
            FloatingPointError: naming the batch where a product is not finite.
        """
        vectors = self.vectors
        if vectors is None:
            raise ValueError("this operator has its vectors on the host: multiply by A @ v.")
        with self.sweep.one_pass():
            return self.sweep.products_on_engine(rows, vectors)

    @property
    def num_passes(self) -> int:
        """How many passes over the data were made so far."""
        return self.sweep.num_passes

    @property
    def num_traces(self) -> int:
        """How many graphs of products were built so far.

        One for each form of batches computed together and width. Operators made by `with_dataset`
        share them, and the count.
        """
        return self.matrix.num_traces

    @property
    def workers(self) -> Workers | None:
        """The processes that this matrix is computed by, None for this one alone."""
        return self.derivatives.workers

    # What users call -----------------------------------------------------------------------------

    def loss(self) -> float:
        """Return the loss over the dataset, with the matrix's own reduction."""
        with self.sweep.one_pass():
            value = self.sweep.loss()
            penalty = self.derivatives.penalty()
        return value if penalty is None else value + penalty

    def gradient(self) -> np.ndarray:
        """Return the gradient of the loss, shape (num_params,), float64."""
        with self.sweep.one_pass():
            total = self.sweep.gradient()
            if self.derivatives.penalized:
                parameters = self.parameters
                nothing = self.derivatives.tensors.to_rows(
                    np.zeros((1, parameters.size)), parameters.dtype
                )
                added = np.asarray(self.derivatives.penalty_products(nothing)[1])
                check_penalty(added, "gradient")
                total += added
        return total

    def model_state(self) -> ModelState:
        """Return loss, gradient norm and, of a classifier, accuracy: three passes over the data.

        Raises:
            FloatingPointError: if the loss or the gradient is not finite.
        """
        return model_state(self)

    def product_and_gradient(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the product with `vector` and the gradient, each (num_params,), from one pass.

        Raises:
            ValueError: if the vector is complex, not finite, or of another shape.
        """
        vector = self.check_vectors(vector)
        if vector.ndim != 1:
            raise ValueError(f"expected one vector, got a block of shape {vector.shape}.")
        product, gradient = self._multiply(vector.reshape(-1, 1), with_gradient=True)
        return product[:, 0], gradient

    def check(self, *, seed: int = 0, derivative: bool = True) -> PreflightReport:
        """Raise unless this is one fixed, symmetric, finite matrix, and the right derivative.

        It takes two passes over the data, five gradients and one product of the first batch, see
        `preflight`. The report is remembered while the variables that the loss reads stay as they
        are, so asking again costs nothing.

        Args:
            seed: of the vectors.
            derivative: whether product and gradient are compared with differences of the first
                batch: five gradients and one product of it.

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
        found = {"matrix": {"kind": type(self).__name__, **self.settings()}, **identity(self.sweep)}
        # Where the places of examples count, another order is another matrix.
        return found | ({"examples": None} if self.numbers_examples else {})

    def hash_of_variables(self) -> str:
        """Return a hash of all variables that the loss reads, as they are."""
        state = self.derivatives.state
        return state.hash_of_weights() + state.hash_of_other_variables()

    def _words(self) -> list[str]:
        """Return the options of the matrix as `repr` says them."""
        return []

    def settings(self) -> dict[str, Any]:
        """Return the options of the matrix beside its loss, as text and numbers."""
        return {}

    def __repr__(self) -> str:
        """Say what it is: parameters, batches, dtype."""
        parts = [
            *self._words(),
            self.derivatives.description,
            _count(self.parameters.size, "parameter", "parameters"),
            _count(len(self.batches), "batch", "batches"),
            self.product_dtype.name,
            *([] if self.matmul_precision is None else [f"products in {self.matmul_precision}"]),
            *filter(None, [self.derivatives.devices]),
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Show what it is in a notebook, with the blocks of its layers; computes nothing."""
        from spectral_density._html import block_diagram, card
        from spectral_density.curvature.submatrix import layer_indices

        layers = {name: len(indices) for name, indices in layer_indices(self).items()}
        shown = list(layers.items())[:_LAYERS_SHOWN]
        more = len(layers) - len(shown)
        n = self.parameters.size
        rows = [
            ("loss", self.derivatives.description),
            ("size", f"{n:,} x {n:,}"),
            ("layers", ", ".join(f"{name} {size:,}" for name, size in shown)),
            (
                "data",
                f"{self.batches.num_examples:,.10g} in "
                f"{_count(len(self.batches), 'batch', 'batches')}",
            ),
            ("passes", f"{self.num_passes:,} over the data so far"),
            ("products", self._precision_in_words()),
            *[("devices", devices) for devices in filter(None, [self.derivatives.devices])],
        ]
        if more:
            rows[2] = ("layers", f"{rows[2][1]}, and {more:,} more")
        return card(type(self).__name__, rows, block_diagram(layers.values(), layers))

    def _precision_in_words(self) -> str:
        lower = self.matmul_precision
        if lower is None:
            return f"in {self.product_dtype.name}"
        off = "" if self._measured is None else f", {self._measured[1]:.2g} off full precision"
        return f"in {self.product_dtype.name}, matrices multiplied in {lower}{off}"

    def _products(self, block: np.ndarray) -> np.ndarray:
        return self._multiply(block)[0]

    def _multiply(self, block: np.ndarray, with_gradient: bool = False) -> list[Any]:
        """Return the products with a block (num_params, k), and the gradient or None.

        In half precision a column whose product overflows takes another pass, or two.
        """

        def multiply(scaled: np.ndarray, finite: bool = True) -> list[Any]:
            with self.sweep.one_pass():
                return list(self.sweep.products(scaled, with_gradient, finite))

        scale = scaled_product if is_half(self.product_dtype) else moderated_product
        return scale(multiply, block)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
