"""Records of training steps: status, numbers, and the work that they took."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from spectral_density.linalg.solvers import Status

# Work in units of one gradient of the same examples, as O'Leary-Roseberry, Alger and Ghattas count
# sweeps over the data: a gradient is a forward and a backward pass, a loss the forward half of it,
# and a Hessian product a second pair of passes over the first.
LOSS_COST, GRADIENT_COST, PRODUCT_COST = 0.5, 1.0, 2.0


class TrainingStatus(Enum):
    """How a step, or a run of them, ended; the value is a message that says what to do."""

    ACCEPTED = "The step was taken."
    NEGATIVE_CURVATURE = (
        "The matrix has negative curvature, and the step that was taken goes down along it."
    )
    CONVERGED = "The norm of the gradient is within the tolerance: no step is needed."
    NOT_DESCENT = (
        "The direction is not a descent direction, so no step was taken. The matrix is indefinite, "
        "or its batch too small: use LowRankSaddleFreeNewton or NewtonCG, the Gauss-Newton matrix, "
        "or more damping."
    )
    LINE_SEARCH_FAILED = (
        "No step length tried lowers the loss enough, so no step was taken: rounding hides what "
        "is left to gain, or the direction is poor. Raise the damping or max_backtracks."
    )
    REJECTED = (
        "The loss did not fall as the quadratic model predicts, so the weights are those before "
        "the step, and the trust region is smaller now."
    )
    LOSS_NOT_FINITE = (
        "The loss is NaN or infinite. The weights are those of the last accepted step. Look for "
        "NaN in the data; lower learning_rate, raise the damping, or search with "
        "ArmijoBacktracking or TrustRegion, which refuse such steps."
    )
    GRADIENT_NOT_FINITE = (
        "The gradient is NaN or infinite where the loss is finite, so no step was taken. Look for "
        "operations without a derivative at this point, such as the root of 0."
    )
    CURVATURE_NOT_FINITE = (
        "A product with the matrix is NaN or infinite, so no step was taken. Look for NaN in "
        "hessian_data, or operations without a second derivative at this point."
    )
    INTERRUPTED = "The step was interrupted. The weights are those of the last accepted step."
    MAX_STEPS = (
        "All steps were made and the gradient is above the tolerance: allow more, or look at "
        "step lengths and statuses for what slows the method down."
    )
    UNBOUNDED = (
        "The loss falls without end: there is no minimum in this direction. Add regularization, "
        "such as l2, or bound the variables."
    )
    STALLED = (
        "The steps became too short to change the loss: rounding hides what is left to gain, or "
        "the loss is not smooth here."
    )

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value

    @property
    def is_step(self) -> bool:
        """Whether the weights moved."""
        return self in (TrainingStatus.ACCEPTED, TrainingStatus.NEGATIVE_CURVATURE)


@dataclass(frozen=True)
class TrainingStep:
    """One step: loss and gradient before it, its length, and the work of all steps so far.

    Numbers that a method or a globalization does not have are NaN, the rank is 0.
    """

    number: int  # from 1
    status: TrainingStatus
    loss: float  # of the gradient batch at the start, regularization included
    gradient_norm: float  # ||g|| there
    slope: float  # g'd, the derivative of the loss along the direction d
    step_length: float  # t of the step t d; 0 where none was taken
    step_norm: float  # t ||d||
    damping: float  # gamma
    radius: float  # of the trust region after the step
    rank: int  # number of eigenpairs in use
    smallest_eigenvalue: float  # among these eigenpairs
    largest_eigenvalue: float
    solver_status: Status | None  # of the linear system, None where there was none
    num_products: int  # Hessian products with single vectors so far
    data_passes: float  # work so far, see `Work`

    @property
    def accepted(self) -> bool:
        """Whether the weights moved."""
        return self.status.is_step


@dataclass
class Work:
    r"""Work so far, in examples and in passes over the data.

    A data pass is the work of the gradient of every training example once:

    .. math:: passes = (n_{gradient} + 2 n_{product} + 1/2 n_{loss}) / num\_examples

    with the numbers of examples of the gradients, of the Hessian products with one vector, and of
    the losses alone. So an epoch of SGD or Adam is one pass, a product with k vectors of a batch of
    b examples is 2 k b / num_examples, and a trial of a line search half a gradient. Validation and
    metrics are not counted. Blocks are in fact cheaper: their vectors share the forward pass.

    References:
        O'Leary-Roseberry, Alger, Ghattas (2020), arXiv 2002.02881.
    """

    num_examples: float  # of the training set
    gradient_examples: float = 0.0
    product_examples: float = 0.0
    loss_examples: float = 0.0
    num_products: int = 0
    earlier_passes: float = 0.0  # over training sets before this one

    @property
    def data_passes(self) -> float:
        """The work in passes over the training set."""
        examples = (
            GRADIENT_COST * self.gradient_examples
            + PRODUCT_COST * self.product_examples
            + LOSS_COST * self.loss_examples
        )
        return self.earlier_passes + examples / self.num_examples

    def go_on_with_other_data(self) -> None:
        """Keep the passes made so far, whatever the number of examples is from here on."""
        self.earlier_passes = self.data_passes
        self.gradient_examples = self.product_examples = self.loss_examples = 0.0
