"""The contract of an engine: the derivatives of one loss on one batch, in a framework of its own.

Above it nothing knows a framework: an operator passes over a dataset and adds up what an engine
computes of each batch. What an engine offers of one batch are verbs (`BatchVerbs`), and a matrix is
a composition of them, traced as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from spectral_density.checkpoint import Workers
from spectral_density.engines.data import BatchFunctions, BatchInput, Replicas, Tensors
from spectral_density.engines.layout import Parameters
from spectral_density.linalg.vectors import Vectors

Block = Any
"""Vectors, tangents, cotangents or products of one batch, in an engine's own form."""

Composition = Callable[["BatchVerbs", Block], Block]
"""A matrix: what it makes of the verbs of a batch and of vectors, the products."""


@dataclass(frozen=True)
class Needs:
    """What a matrix needs of a loss, beside its gradient."""

    outputs: bool = False
    """That model and loss are apart: J, and matrices at the outputs."""

    logits: bool = False
    """That the outputs are logits: a warning where they are not."""

    example_losses: str = ""
    """One loss for each example, by the name of the option that needs it."""

    distribution: str = ""
    """The distribution of the labels, by the name of the option that needs it."""

    positive_weights: bool = False
    """That no example and no output has a negative weight."""


class BatchVerbs(ABC):
    """Derivatives of the loss of one batch, with a block of vectors.

    J is the Jacobian of the model's outputs. Tangents and cotangents have the shapes of the
    outputs.
    """

    @abstractmethod
    def hessian_products(self, vectors: Block) -> Block:
        """Return H v for each vector, H the Hessian of the loss."""

    @abstractmethod
    def jacobian_products(self, vectors: Block) -> Block:
        """Return the tangents J v."""

    @abstractmethod
    def transposed_jacobian_products(self, cotangents: Block) -> Block:
        """Return the products J' u."""

    @abstractmethod
    def output_hessian_products(self, tangents: Block) -> Block:
        """Return the cotangents B t, B the Hessian of the loss in the outputs."""

    @abstractmethod
    def example_gradients(self) -> Block:
        """Return the gradients, in the outputs, of the loss of each example."""

    @abstractmethod
    def sampled_gradients(self, num_samples: int, seed: int) -> Block:
        """Return the same with labels drawn from the model's own distribution."""

    @abstractmethod
    def outer_products(self, gradients: Block, tangents: Block) -> Block:
        """Return the cotangents sum_i g_i (g_i' t) over the examples, a mean over samples."""

    @abstractmethod
    def sampled_labels(self, num_samples: int, seed: int) -> list[Any]:
        """Return the labels that `sampled_gradients` draws, one array for each output."""


class BatchProducts(ABC):
    """The compiled products of one matrix, batch by batch."""

    num_traces: int
    """How many graphs were built so far."""

    depends: bool
    """Whether a gradient reaches any variable; known when a graph was built."""

    matmul_precision: str | None = None
    """What matrices are multiplied in, as the framework names it, where that is below the dtype."""

    @property
    def exact(self) -> BatchProducts:
        """The same products at the full precision of their dtype."""
        return self

    @abstractmethod
    def cache(self, num_batches: int, room: float, linearize: bool) -> Any:
        """Return room for what one pass over a dataset leaves to the next; None for nothing.

        Args:
            num_batches: of the dataset.
            room: bytes, 0 where the batches themselves are not kept.
            linearize: whether what no vector touches is kept.
        """

    @abstractmethod
    def check_context(self) -> None:
        """Raise where nothing can be computed: while a graph is being traced."""

    @abstractmethod
    def rows(self, block: np.ndarray, width: int) -> list[Any]:
        """Return vectors, (num_params, k), as rows of the framework, at most `width` together.

        In the dtype of the variables.
        """

    @abstractmethod
    def zeros(self, rows: Sequence[Any], with_gradient: bool) -> list[Any]:
        """Return sums to begin with, one for each chunk of vectors, and one of the gradient."""

    @abstractmethod
    def add_all(
        self, cache: Any, inputs: Iterable[BatchInput], rows: Sequence[Any], sums: list[Any]
    ) -> list[Any]:
        """Add the products of all batches with each chunk of vectors to its sums.

        Args:
            cache: of the dataset; None to compute everything anew.
            inputs: the batches, in their order.
            rows: chunks of vectors, each (width, num_params).
            sums: for each chunk that of its products, and if wanted that of the gradient.
        """

    @abstractmethod
    def add_on(self, local: int, at: BatchInput, rows: Sequence[Any], sums: list[Any]) -> list[Any]:
        """Add the products of a batch on a replica, whose device is current, to the sums."""

    @abstractmethod
    def linearized(self, cache: Any, at: BatchInput, rows: Any) -> np.ndarray | None:
        """Return the products of the first batch, (width, num_params), from what is kept of it.

        None where nothing is: where the graph runs as a whole each time.
        """

    @abstractmethod
    def of_batch(self, at: BatchInput, rows: Any, local: int = 0) -> np.ndarray:
        """Return the products of one batch with vectors, (width, num_params), float64."""


class Derivatives(ABC):
    """The derivatives of one loss in one set of variables, batch by batch."""

    framework: str  # its name: "tensorflow" or "jax"
    parameters: Parameters
    functions: BatchFunctions
    tensors: Tensors
    replicas: Replicas | None
    inspection: Inspection
    state: State
    needs: Needs  # of the matrix
    description: str  # of the loss, in a word or two
    coefficients: np.ndarray  # weight of each term of the loss, (num_terms,)
    averaged: np.ndarray  # whether a term is divided by its denominator, (num_terms,)
    depends: bool  # whether a gradient reaches any variable; known when one was traced
    product_dtype: np.dtype  # the coarsest that products are computed in
    width: int  # vectors to multiply in one graph
    is_function: bool  # whether the loss is a function of the user's, a mean or sum as declared
    penalized: bool  # whether something is added once to the loss, not once a batch

    # Batches -------------------------------------------------------------------------------------

    @abstractmethod
    def survey(self, batch: Any, weight: Any, is_first_dataset: bool) -> np.ndarray:
        """Check a batch, build its graph, and return its denominators, (num_terms,)."""

    @abstractmethod
    def num_labels(self, batch: Any) -> int:
        """Return by how many examples the numbering of a dataset goes on after a batch."""

    @abstractmethod
    def examples_together(self, batch: Any, weight: Any) -> int:
        """Return how many examples like these may be computed together, 0 for none but these."""

    @abstractmethod
    def with_class_weight(self, dataset: Any, class_weight: Mapping[int, float] | None) -> Any:
        """Return a dataset with the weight of its class in the weight of each example."""

    @abstractmethod
    def check_class_weight(self, class_weight: Any) -> dict[int, float] | None:
        """Return weights of classes, checked."""

    # Derivatives ---------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, at: BatchInput, local: int = 0) -> float:
        """Return the share of a batch in the loss, times the scales."""

    @abstractmethod
    def gradient(self, at: BatchInput, local: int = 0) -> np.ndarray:
        """Return the gradient of that, (num_params,), float64."""

    @abstractmethod
    def products(self, matrix: Composition, matmul_precision: str | None = None) -> BatchProducts:
        """Return the products of a matrix.

        Args:
            matrix: what they are made of.
            matmul_precision: that they multiply matrices in, None for full precision.

        Raises:
            ValueError: if the engine has no such precision.
        """

    @abstractmethod
    def evaluate(self, function: Callable[[BatchVerbs], Any]) -> Callable[[BatchInput], Any]:
        """Return a function of the verbs of a batch, compiled, with arrays for tensors."""

    @abstractmethod
    def penalty(self) -> float | None:
        """Return what is added once to the loss, None for nothing."""

    @abstractmethod
    def penalty_products(self, rows: Any) -> tuple[Any, Any]:
        """Return the products (k, num_params) and the gradient (num_params,) of the penalty.

        As arrays of the framework.
        """

    @property
    def devices(self) -> str:
        """Which devices compute, in a word or two; nothing for the one that the framework takes."""
        return ""

    @property
    def workers(self) -> Workers | None:
        """The processes that compute together, None for this one alone."""
        return None

    @property
    def vectors(self) -> Vectors | None:
        """Where algorithms keep their vectors; None for float64 on the host."""
        return None

    def on_engine(self, sums: Any, divisor: float, added: Any) -> Any:
        """Return sums of products, over a divisor and with others added, in the form of `vectors`.

        Args:
            sums: of `BatchProducts.add_all`.
            divisor: of the sums.
            added: products to add, None for none.
        """
        raise NotImplementedError

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what the loss depends on beside variables and data, as text and numbers."""


class State(ABC):
    """The variables around a loss: weights that are moved, and what the loss reads and writes."""

    is_written: bool
    """Whether the loss writes variables."""

    @abstractmethod
    def unchanged(self) -> AbstractContextManager[None]:
        """Restore every variable that the loss writes, at the end."""

    @abstractmethod
    def moved(self) -> AbstractContextManager[Callable[[np.ndarray], None]]:
        """Yield a function that sets the weights to w + d; w is restored at the end."""

    @abstractmethod
    def read(self) -> np.ndarray:
        """Return the weights as one vector, (num_params,), float64."""

    @abstractmethod
    def hash_of_weights(self) -> str:
        """Return a hash of all variables of the model, the weights included."""

    @abstractmethod
    def hash_of_other_variables(self) -> str:
        """Return a hash of the variables outside of the model that the loss reads."""

    @abstractmethod
    def hash_of_graph(self) -> str:
        """Return a hash of what the loss computes: operations and constants, no names."""


class Precision(NamedTuple):
    """What derivatives of a batch are computed in."""

    products: str  # "float32" or "float64"
    saturation: float  # roundings in derivatives, where a cross-entropy is all but zero
    crosses_kinks: bool  # whether differences may cross kinks
    differences: str  # what differences are computed in, if in another precision


class BesideWeights(ABC):
    """The loss of one batch at weights w + d, with the active sets held that it has at w."""

    num_gradients: int
    in_float64: bool

    @abstractmethod
    def at(self, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient, and behind it the outputs, and the loss, (1,), at w + d."""

    @abstractmethod
    def precision(self, num_examples: float) -> Precision | None:
        """Return what is computed in; None in half precision."""

    @abstractmethod
    def product(self, rows: Any) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Return the product with a row, what it gives at the outputs, and the matrix there."""

    @abstractmethod
    def at_outputs(self, what: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        """Return what a graph computes at the outputs as a function of these."""

    @abstractmethod
    def knows(self, what: str) -> bool:
        """Tell whether a graph computes something of that name."""


class Inspection(ABC):
    """What an engine can say of a model and its loss, to name layers and causes."""

    @abstractmethod
    def layers(self) -> dict[str, list[int]]:
        """Return the positions of the variables of each layer, by its name."""

    @abstractmethod
    def positions(self, item: Any) -> set[int]:
        """Return the positions of the variables that a name, pattern, layer or variable means."""

    @abstractmethod
    def filter_axes(self) -> list[tuple[int, ...]]:
        """Return for each variable the axes that number its filters, () where it has none.

        Of a layer that is not known the last one of several.
        """

    @abstractmethod
    def why_not_finite(self, what: str, at: BatchInput, local: int = 0) -> str:
        """Return in a sentence why something is not finite in a batch, and what to do."""

    @abstractmethod
    def nonfinite_variables(self) -> list[str]:
        """Return the names of the variables that hold NaN or infinity."""

    @abstractmethod
    def random_and_writing(self, batch: Any) -> tuple[list[str], list[str]]:
        """Return the layers (or operations) that draw random numbers, and those that write."""

    @abstractmethod
    def stopped_gradients(self, batch: Any) -> list[tuple[str, str]]:
        """Return the operations that stop a gradient on purpose, each with its place."""

    @abstractmethod
    def batch_normalizations(self) -> list[str]:
        """Return the batch normalizations of the model, by kind and name."""

    @abstractmethod
    def mistaken_outputs(self, batch: Any) -> tuple[list[str], float | None] | None:
        """Return what looks like logits where probabilities belong, or the reverse.

        None where the loss is not known to take one or the other.
        """

    @abstractmethod
    def correctly_classified(self, batch: Any) -> tuple[int, int] | None:
        """Return how many labels of a batch the model predicts, of how many.

        None where the loss is not one of a classifier with a single output.
        """

    @abstractmethod
    def reaches(self, at: BatchInput, positions: Sequence[int]) -> list[bool]:
        """Tell which variables a gradient of the loss reaches."""

    @abstractmethod
    def beside_weights(
        self, products: Any, at: BatchInput, rows: Any, move: Callable[[np.ndarray], None]
    ) -> BesideWeights:
        """Return the loss of a batch beside the weights, from the graph of its products."""

    tracing_errors: tuple[type[Exception], ...]
    """What a model or loss raises that takes no part of a batch."""

    computing_errors: tuple[type[Exception], ...]
    """What a graph raises that cannot be computed as it is asked for."""
