"""Problems of second-order methods: a cost, its gradient, its matrix, and the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.engines.data import BatchFunctions
from spectral_density.linalg.arguments import product_dtype, product_error, product_precision
from spectral_density.training.steps import Work

# Parts of the Hessian's data across which the spread of a Rayleigh quotient is taken.
NUM_PARTS = 4
# Columns that one graph multiplies, where all products have to come from the same few graphs.
BLOCK_WIDTH = 8


class HeldWeights(Protocol):
    """Values of the weights, to restore them or to move them from there."""

    @property
    def vector(self) -> np.ndarray:
        """All of them, (size,), float64."""


class Weights(Protocol):
    """The variables as one vector that can be held, moved, and restored bit for bit."""

    @property
    def size(self) -> int:
        """Number of weights."""

    def hold(self) -> Any:
        """Return the values of now, for `restore` and `move`: `HeldWeights`."""

    def restore(self, held: Any) -> None:
        """Set the weights to values that were held, bit for bit."""

    def move(self, held: Any, displacement: np.ndarray) -> None:
        """Set the weights to values that were held plus a displacement, shape (size,)."""


class CountedOperator(LinearOperator):
    """A matrix plus `shift` times the identity, whose products are counted as work.

    With `in_blocks`, products with several vectors are made in blocks of `BLOCK_WIDTH` columns
    whatever their number, so that no other width is traced during the training.
    """

    def __init__(
        self,
        operator: LinearOperator,
        work: Work,
        num_examples: float,
        shift: float,
        in_blocks: bool = False,
    ):
        """Take the matrix, the work to count in, and the number of examples of its products."""
        super().__init__(dtype=np.dtype(np.float64), shape=operator.shape)
        self.operator = operator
        self.product_dtype = product_dtype(operator)
        self.num_examples = num_examples
        self._work = work
        self._shift = shift
        self._in_blocks = in_blocks

    @property
    def product_error(self) -> float:
        """How far products are from those at full precision, as for `operator`."""
        return product_error(self.operator)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        # Counted before: a product that fails takes its time, too.
        self._work.num_products += X.shape[1]
        self._work.product_examples += X.shape[1] * self.num_examples
        product = self._blocks(X) if self._in_blocks else self.operator.matmat(X)
        return product + self._shift * X if self._shift else product

    def _blocks(self, X: np.ndarray) -> np.ndarray:
        count = X.shape[1]
        if count == 1:
            return self.operator.matmat(X)
        if count < BLOCK_WIDTH:
            return self.operator.matmat(np.pad(X, ((0, 0), (0, BLOCK_WIDTH - count))))[:, :count]
        # Products come column by column: they are written, and read again, as they come.
        products = np.empty(X.shape, order="F")
        for start in range(0, count, BLOCK_WIDTH):
            # The last block overlaps the one before it.
            first = min(start, count - BLOCK_WIDTH)
            block = slice(first, first + BLOCK_WIDTH)
            products[:, block] = self.operator.matmat(X[:, block])
        return products

    def _adjoint(self) -> CountedOperator:
        return self

    def _transpose(self) -> CountedOperator:
        return self


class Problem(ABC):
    """The cost of one step, its gradient and its curvature, with the work of them counted.

    Attributes:
        weights: the variables that are minimized over.
        work: computed so far.
        rounding: of the cost, relative to it.
    """

    weights: Weights
    work: Work
    rounding: float = float(np.finfo(np.float64).eps)

    @abstractmethod
    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """Return the cost at the weights, and its gradient, shape (num_params,)."""

    @abstractmethod
    def loss(self) -> float:
        """Return the cost at the weights alone."""

    @abstractmethod
    def curvature(self) -> CountedOperator:
        """Return the matrix of the step, over the Hessian's data."""

    @abstractmethod
    def parts(self) -> list[CountedOperator]:
        """Return the same matrix over disjoint parts of its data; empty where it has one only."""


class OperatorProblem(Problem):
    """The loss, the gradient and the matrix of a curvature operator, all over its whole dataset."""

    def __init__(self, operator: CurvatureOperator, weights: Weights):
        """Take the operator, and its weights, which will move."""
        self.operator = operator
        self.weights = weights
        self.num_examples = float(operator.batches.num_examples)
        self.work = Work(self.num_examples)
        # The loss of a batch is computed in the dtype of the variables, and added up in float64.
        self.rounding = product_precision(operator)

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """See `Problem`: two passes of the operator, counted as one gradient."""
        self.work.gradient_examples += self.num_examples
        loss = self.operator.loss()
        if not np.isfinite(loss):
            return loss, np.full(self.weights.size, np.nan)
        try:
            return loss, self.operator.gradient()
        except FloatingPointError:
            return loss, np.full(self.weights.size, np.nan)

    def loss(self) -> float:
        """See `Problem`."""
        self.work.loss_examples += self.num_examples
        return self.operator.loss()

    def curvature(self) -> CountedOperator:
        """See `Problem`."""
        return CountedOperator(self.operator, self.work, self.num_examples, 0.0)

    def parts(self) -> list[CountedOperator]:
        """See `Problem`: every fourth batch each, or the rows of the only one."""
        return counted_parts(self.operator, self.work, 0.0)

    def params(self) -> Any | None:
        """Return the weights of now as a pytree like the operator's; None where they are variables.

        Variables hold them themselves.
        """
        if self.operator.derivatives.framework != "jax":
            return None
        from spectral_density.engines.jax.weights import params_of

        return params_of(self.operator.derivatives)


def problem_of(operator: CurvatureOperator) -> OperatorProblem:
    """Return the problem of an operator, with weights of the framework that it computes with."""
    if operator.derivatives.framework == "jax":
        from spectral_density.engines.jax.weights import weights_of

        return OperatorProblem(operator, weights_of(operator.derivatives))
    from spectral_density.engines.tensorflow import weights

    return OperatorProblem(operator, weights.Weights(operator.parameters))


def counted_parts(
    operator: CurvatureOperator, work: Work, shift: float, in_blocks: bool = False
) -> list[CountedOperator]:
    """Return an operator over disjoint parts of its data; none where they cannot be divided."""
    batches = list(operator.batches)
    if len(batches) == 1:
        batches = rows_in_parts(operator.derivatives.functions, batches[0], NUM_PARTS)
    num_parts = min(NUM_PARTS, len(batches))
    if num_parts < 2:
        return []
    operators = [operator.with_dataset(batches[part::num_parts]) for part in range(num_parts)]
    return [
        CountedOperator(o, work, float(o.batches.num_examples), shift, in_blocks) for o in operators
    ]


def rows_in_parts(functions: BatchFunctions, batch: Any, num_parts: int) -> list[Any]:
    """Divide a batch of dense tensors into parts of equal size, leaving out the remainder.

    Equal sizes take one graph. A batch that cannot be divided by rows is one part.

    Args:
        functions: of the engine whose tensors it holds.
        batch: in tensors.
        num_parts: how many.
    """
    size = functions.form_of(batch)[0] // num_parts
    return list(functions.split(batch, [size] * num_parts)) if size else [batch]
