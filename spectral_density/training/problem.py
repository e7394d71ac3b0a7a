"""What a method sees of a model: a cost with its gradient, a matrix, and weights that move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator

from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.engines.layout import Parameters
from spectral_density.linalg.arguments import product_dtype
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.training.steps import Work

# Parts of the Hessian's data across which the spread of a Rayleigh quotient is taken.
NUM_PARTS = 4
# Columns that one graph multiplies, where all products have to come from the same few graphs.
BLOCK_WIDTH = 8


@dataclass(frozen=True, eq=False)
class Held:
    """What the variables were, to put them back or to move them from there."""

    values: list[tf.Tensor]  # of each variable, of its dtype
    vector: np.ndarray  # (size,), all of them, float64

    @property
    def norm(self) -> float:
        """The length of the vector of all weights."""
        return euclidean_norm(self.vector)


class Weights:
    """The variables as one vector that can be moved, held, and put back bit for bit.

    Each variable is read and assigned by an operation of its own, which runs at once: a graph of
    them waits for threads, on a busy machine longer than the gradient of a small network takes.
    """

    def __init__(self, parameters: Parameters):
        """Take the variables."""
        self.parameters = parameters

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.parameters.size

    def hold(self) -> Held:
        """Return what the variables are, for `put_back` and `move`."""
        # Not copied: what assigns to a variable whose value is held elsewhere leaves that as it is.
        values = [variable.value() for variable in self.parameters.variables]
        return Held(values, self.parameters.flatten(values))

    def put_back(self, held: Held) -> None:
        """Put the variables back as they were held, bit for bit."""
        for variable, value in zip(self.parameters.variables, held.values, strict=True):
            _assign(variable, value)

    def move(self, held: Held, displacement: np.ndarray) -> None:
        """Put the variables to what was held plus a displacement, shape (size,)."""
        moved = self.parameters.unflatten(held.vector + displacement)
        for variable, value in zip(self.parameters.variables, moved, strict=True):
            # The sum is rounded once, to the dtype of the variable.
            _assign(variable, value.astype(variable.dtype.as_numpy_dtype))


def _assign(variable: tf.Variable, value: Any) -> None:
    if isinstance(variable, tf.distribute.DistributedValues):
        variable.assign(value)
    else:
        # What `assign` comes to, at half its time.
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


class CountedOperator(LinearOperator):
    """A matrix plus `shift` times the identity, whose products are counted as work.

    With `in_blocks`, products with several vectors are made in blocks of `BLOCK_WIDTH` columns
    whatever their number, so that no width is traced anew in the midst of training.
    """

    def __init__(
        self,
        operator: LinearOperator,
        work: Work,
        num_examples: float,
        shift: float,
        in_blocks: bool = False,
    ):
        """Take the matrix, where to count, and of how many examples its products are."""
        super().__init__(dtype=np.dtype(np.float64), shape=operator.shape)
        self.operator = operator
        self.product_dtype = product_dtype(operator)
        self.num_examples = num_examples
        self._work = work
        self._shift = shift
        self._in_blocks = in_blocks

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        # Counted before: a product that fails was computed as well.
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
        weights: what moves.
        work: what was computed so far.
    """

    weights: Weights
    work: Work

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

    def __init__(self, operator: CurvatureOperator):
        """Take the operator; its weights will move."""
        self.operator = operator
        self.weights = Weights(operator.parameters)
        self.num_examples = float(operator.batches.num_examples)
        self.work = Work(self.num_examples)

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
        """See `Problem`: the batches, dealt out in turn, or the rows of the only one."""
        return counted_parts(self.operator, self.work, 0.0)


def counted_parts(
    operator: CurvatureOperator, work: Work, shift: float, in_blocks: bool = False
) -> list[CountedOperator]:
    """Return an operator over disjoint parts of its data, none where they cannot be parted."""
    batches = list(operator.batches)
    if len(batches) == 1:
        batches = rows_in_parts(batches[0], NUM_PARTS)
    num_parts = min(NUM_PARTS, len(batches))
    if num_parts < 2:
        return []
    operators = [operator.with_dataset(batches[part::num_parts]) for part in range(num_parts)]
    return [
        CountedOperator(o, work, float(o.batches.num_examples), shift, in_blocks) for o in operators
    ]


def rows_in_parts(batch: Any, num_parts: int) -> list[Any]:
    """Cut a batch of dense tensors into parts of one size, leaving out what is over.

    One size means one graph. A batch that has no rows to cut is one part.
    """
    tensors = [tensor for tensor in tf.nest.flatten(batch) if tensor is not None]
    if not tensors or not all(isinstance(t, tf.Tensor) and t.shape.rank for t in tensors):
        return [batch]
    sizes = {int(tensor.shape[0]) for tensor in tensors}
    size = sizes.pop() // num_parts
    if sizes or not size:
        return [batch]
    return [rows_of(batch, part * size, size) for part in range(num_parts)]


def rows_of(batch: Any, start: int, count: int) -> Any:
    """Return `count` rows of each tensor of a batch."""
    return tf.nest.map_structure(
        lambda tensor: None if tensor is None else tensor[start : start + count], batch
    )
