"""Curvature as an optimizer sees it: a matrix between the roots of its preconditioner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spectral_density.checkpoint import Workers
from spectral_density.curvature.product_error import measured_product_error
from spectral_density.curvature.symmetric import SymmetricOperator
from spectral_density.engines.layout import Parameters
from spectral_density.engines.optimizers import update_rule_of
from spectral_density.engines.update_rule import ConstantRule, UpdateRule
from spectral_density.linalg.arguments import (
    array_hash,
    as_real_square,
    block_product,
    product_dtype,
    product_error,
    signature,
)

if TYPE_CHECKING:
    from spectral_density.linalg.vectors import Vectors


class PreconditionedOperator(SymmetricOperator):
    r"""The matrix P^-1/2 A P^-1/2, for a positive diagonal matrix P.

    .. math:: P^{-1/2} A\, P^{-1/2}

    Its eigenvalues are those of P^-1 A, and what an optimizer with steps -eta P^-1 m is stable or
    unstable by, see `stability_threshold`. A product takes one with A, in whose coordinates vectors
    stay; loss and parameters are those of A, and the gradient is P^-1/2 g. P is that of the step at
    which the operator was made.

    Attributes:
        operator: A.
        diagonal: of P, (num_params,), float64.
        product_dtype: NumPy dtype that products are computed in.
    """

    def __init__(self, operator: Any, rule: UpdateRule):
        """Read P; see `preconditioned`."""
        self.operator = as_real_square(operator)
        super().__init__(self.operator.shape[0])
        self._rule = rule
        self._step = rule.num_steps
        self.diagonal = _diagonal_of(rule, self.operator)
        self._scales = 1 / np.sqrt(self.diagonal)
        self._on_engine: Any = None
        self._measured: tuple[Any, float] | None = None
        self.product_dtype = np.dtype(product_dtype(self.operator) or np.float64)

    @property
    def parameters(self) -> Parameters | None:
        """The variables as one flat vector; None where the operator does not say."""
        return _parameters_of(self.operator)

    @property
    def product_error(self) -> float:
        """How far products are from those at full precision, relative and by norm.

        Measured as for a `CurvatureOperator`, with the scales of P. Sums and other operators state
        what they do without P.
        """
        sweep = getattr(self.operator, "sweep", None)
        if sweep is None or self.operator.matmul_precision is None:
            return product_error(self.operator)
        state = self.operator.hash_of_variables()
        if self._measured is None or self._measured[0] != state:
            self._measured = state, measured_product_error(sweep, self._scales)
        return self._measured[1]

    @property
    def vectors(self) -> Vectors | None:
        """Where algorithms keep their vectors: where the operator has them."""
        return getattr(self.operator, "vectors", None)

    def products_of(self, rows: Any) -> Any:
        """Return the products with vectors of the engine, (k, num_params), as `vectors` has them.

        Raises:
            FloatingPointError: naming the batch where a product is not finite.
            ValueError: if the optimizer has made a step since.
        """
        self._check_step()
        if self._on_engine is None:
            if self.vectors is None:
                raise ValueError("this operator has its vectors on the host: multiply by A @ v.")
            self._on_engine = self.vectors.to_engine(self._scales)
        return self.operator.products_of(rows * self._on_engine) * self._on_engine

    def _products(self, block: np.ndarray) -> np.ndarray:
        self._check_step()
        scales = self._scales[:, np.newaxis]
        return block_product(self.operator, block * scales) * scales

    def _check_step(self) -> None:
        now = self._rule.num_steps
        if now != self._step:
            raise ValueError(
                f"P is that of step {self._step}, and {self._rule.name} is at step {now}: make the "
                "operator again, preconditioned(operator, optimizer), after training goes on."
            )

    # What it has of the matrix -------------------------------------------------------------------

    @property
    def workers(self) -> Workers | None:
        """The processes that this matrix is computed by, None for this one alone."""
        return getattr(self.operator, "workers", None)

    def __getattr__(self, name: str) -> Any:
        """Return what the matrix has beside its products: derivatives, batches, num_passes."""
        if name in _OF_THE_MATRIX and "operator" in self.__dict__:
            return getattr(self.operator, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def gradient(self) -> np.ndarray:
        """Return P^-1/2 g, the gradient in the coordinates P^1/2 w, (num_params,), float64.

        Raises:
            ValueError: if the optimizer has made a step since.
        """
        self._check_step()
        return self._scales * self.operator.gradient()

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this matrix from another: that of A, and a hash of P."""
        return {**signature(self.operator), "preconditioner": array_hash(self.diagonal)}

    def __repr__(self) -> str:
        """Say what it is."""
        step = "" if self._step is None else f" at step {self._step:,}"
        return f"PreconditionedOperator({self.operator!r}, {self._rule.name}{step})"


_OF_THE_MATRIX = {
    "batches",
    "check",
    "derivatives",
    "hash_of_variables",
    "loss",
    "matmul_precision",
    "model_state",
    "num_passes",
}


def preconditioned(
    operator: Any, optimizer: Any, /, **hyperparameters: Any
) -> PreconditionedOperator:
    """Return P^-1/2 A P^-1/2: a curvature matrix as an optimizer sees it.

    P is defined by the update as the optimizer computes it, step = -learning_rate P^-1 m. With bias
    corrections where the method has them, and epsilon where it is added, at step t:

    | optimizer | P |
    |---|---|
    | Keras's SGD | 1 |
    | Keras's Adam, AdamW | (1 - b1^t) / sqrt(1 - b2^t) (sqrt(v) + epsilon) |
    | Keras's Adam, amsgrad | the same with the largest v so far |
    | Keras's RMSprop | sqrt(v + epsilon); centered: sqrt(v - mean^2 + epsilon) |
    | Keras's Adagrad | sqrt(sum + epsilon) |
    | Optax's adam, adamw | (1 - b1^t) (sqrt(v / (1 - b2^t) + eps_root) + eps) |
    | Optax's amsgrad | the same with the largest v / (1 - b2^t) so far |
    | Optax's rmsprop | sqrt(v + eps), or sqrt(v) + eps |
    | Optax's adagrad | sqrt(sum + eps) |

    Args:
        operator: A, symmetric: a `CurvatureOperator`, whose order and selection of variables P has;
            with P by hand any operator, array or sparse matrix.
        optimizer: what has trained the model, at the step whose weights it has: `model.optimizer`
            of Keras 3 (any backend) or tf_keras; a state of Optax, as the last update returned it
            (what keeps no state of its own cannot be told from one: clipped or normalized
            gradients, `sign_sgd` and `fromage` from `sgd`, and `adamax`, `nadam`, `radam`, `yogi`
            and `lamb` from `adam`; nor whether `adagrad`, or `rmsprop` with an `initial_scale`, has
            made a step); or P by hand, a positive vector (num_params,) or one array for each
            variable.
        **hyperparameters: of a state of Optax, which does not hold them, by Optax's names: `b1`,
            `b2`, `eps`; `eps_root`, `eps_in_sqrt` and `decay` (with bias correction) where they are
            not Optax's defaults. A state made by `optax.inject_hyperparams` has the numbers, not
            the switches: of it `eps_in_sqrt` of `rmsprop` and `nesterov` of `adam` have to be said.

    Returns:
        PreconditionedOperator, which `estimate_spectrum`, `top_eigenpairs`, `trace` and all others
        take as they take A. Once the optimizer makes another step its products raise.

    Raises:
        TypeError: if the optimizer or a hyperparameter is unknown.
        ValueError: if the step is not of this form (clipped gradients, Lion, Adafactor, Muon); if
            the optimizer has made no step, or has no state for a variable; or if P is not positive.
        FloatingPointError: if the state of an optimizer is not finite.

    Example:
        >>> seen = sd.preconditioned(hessian, model.optimizer)              # doctest: +SKIP
        >>> sharpness = sd.top_eigenpairs(seen, 1).values[0]                # doctest: +SKIP
        >>> sharpness / sd.stability_threshold(model.optimizer)             # doctest: +SKIP

    References:
        Cohen et al. (2022), arXiv 2207.14484.
    """
    return PreconditionedOperator(operator, update_rule_of(optimizer, hyperparameters))


def _parameters_of(operator: Any) -> Parameters | None:
    found = getattr(operator, "parameters", None)
    return found if isinstance(found, Parameters) else None


def _diagonal_of(rule: UpdateRule, operator: Any) -> np.ndarray:
    """Return the diagonal of P, checked.

    Raises:
        TypeError: if the operator does not say which variables its rows are.
        FloatingPointError: if that of an optimizer is not finite.
        ValueError: if it is no positive vector of its length.
    """
    parameters = _parameters_of(operator)
    size = operator.shape[0]
    if isinstance(rule, ConstantRule):
        found = rule.diagonal(parameters)
    elif parameters is None:
        raise TypeError(
            f"a {type(operator).__name__} does not say which variables its rows are: precondition "
            "the parts of a sum one by one, or pass P by hand, as one vector."
        )
    else:
        found = rule.diagonal(parameters)
        lost = int(np.sum(~np.isfinite(found)))
        if lost:
            raise FloatingPointError(
                f"P of {rule.name} is not finite in {lost:,} of {size:,} entries: the training "
                "has diverged; or the decay of the squares rounds to 1 (0.999 does in bfloat16), "
                "with which steps are zero; or the variance of a centered method has rounded to "
                "below zero, which a larger epsilon helps."
            )
    # NumPy has no kind for the half precision of other packages.
    if found.dtype.kind not in "fiu" and found.dtype.name != "bfloat16":
        raise ValueError(f"P must be real numbers, got dtype {found.dtype}.")
    diagonal = found.astype(np.float64)
    if diagonal.shape != (size,):
        raise ValueError(
            f"P is a vector of shape ({size},), one entry for each parameter, got {diagonal.shape}."
        )
    wrong = ~(np.isfinite(diagonal) & (diagonal > 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"P must be positive, and {int(wrong.sum()):,} of its {size:,} entries are not (entry "
            f"{first} is {diagonal[first]:g}): what has had no gradient has none without an "
            "epsilon. Choose other variables with variables=, or raise epsilon."
        )
    return diagonal
