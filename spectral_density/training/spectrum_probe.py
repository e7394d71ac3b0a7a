"""What a `SpectrumCallback` measures: a spectrum of a curvature matrix on a fixed probe set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.engines import engine_name, engine_of
from spectral_density.estimate import estimate_spectrum
from spectral_density.linalg.arguments import integer
from spectral_density.linalg.lockstep import default_draws_at_once
from spectral_density.spectrum.spectrum import Spectrum


@dataclass(frozen=True)
class SpectrumProbe:
    """The matrix, the probe set and the size of a measurement; see `SpectrumCallback`.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if a number is no integer, or `make_operator` cannot be called.
    """

    dataset: Any
    loss: Any
    make_operator: Callable[..., CurvatureOperator]
    variables: Any
    class_weight: Mapping[int, float] | None
    num_eigenvalues: int
    order: int
    num_draws: int
    seed: int

    def __post_init__(self) -> None:
        """Check the options."""
        k = integer(self.num_eigenvalues, "num_eigenvalues", 1)
        order = integer(self.order, "order", 1)
        if order < k:
            raise ValueError(
                f"order={order} Lanczos steps have no more than {order} eigenvalues, and "
                f"num_eigenvalues is {k}: use order >= num_eigenvalues."
            )
        integer(self.num_draws, "num_draws", 1)
        integer(self.seed, "seed", 0)
        if not callable(self.make_operator):
            raise TypeError(
                "operator must be a class such as HessianOperator, or a function "
                f"(model, loss, dataset, variables=) -> operator, got {self.make_operator!r}. "
                "The callback makes one for the model that is trained."
            )

    @property
    def name(self) -> str:
        """Name of the matrix, such as "gauss_newton"; "curvature" for what a function makes."""
        name = getattr(self.make_operator, "__name__", "")
        if not isinstance(self.make_operator, type) or not name.endswith("Operator"):
            return "curvature"
        words = re.findall(r"[A-Z][a-z0-9]*", name.removesuffix("Operator"))
        return "_".join(words).lower() or "curvature"

    def operator(self, model: Any) -> CurvatureOperator:
        """Make the operator of a model: one pass over the probe set."""
        return self._operator(self.make_operator, model, self.dataset)

    def check_first_batch(self, model: Any) -> None:
        """Raise what is wrong with the arguments, the model or the loss, from one batch.

        The time that a class derived by the user takes is not known: its base class is made.
        """
        make = _class_of_this_package(self.make_operator)
        self._operator(make, model, [_first_batch(model, self.dataset)])

    def check_loss(self, model: Any) -> None:
        """Raise what is wrong with the loss of a model that has no weights yet."""
        make = self.make_operator
        # Under JAX `fit` builds the model before it calls back.
        if engine_name(model) != "jax" and _is_operator_class(make):
            from spectral_density.engines.tensorflow.losses import make_objective

            make_objective(model, self.loss)

    def _operator(self, make: Callable[..., Any], model: Any, dataset: Any) -> Any:
        options = {} if self.class_weight is None else {"class_weight": self.class_weight}
        return make(model, self.loss, dataset, variables=self.variables, **options)

    def plan(self, size: int) -> tuple[int, int]:
        """Return the Lanczos steps for a matrix of that size, and the draws in lockstep.

        All blocks have one width, which takes one compiled product.
        """
        order = min(self.order, size)
        most = min(self.num_draws, default_draws_at_once(size, order))
        return order, max(d for d in range(1, most + 1) if self.num_draws % d == 0)

    def num_block_products(self, size: int) -> int:
        """Return the number of products with a block of vectors that a measurement takes."""
        order, width = self.plan(size)
        return order * (self.num_draws // width)

    def multiply_once(self, operator: CurvatureOperator) -> None:
        """Make one product of a block as wide as those of a measurement."""
        n = operator.shape[0]
        operator.matmat(np.ones((n, self.plan(n)[1])) / np.sqrt(n))

    def measure(self, operator: CurvatureOperator) -> Spectrum:
        """Return the spectrum at the weights of now."""
        order, width = self.plan(operator.shape[0])
        return estimate_spectrum(
            operator,
            order,
            self.num_draws,
            seed=self.seed,
            draws_at_once=width,
            check=False,
            progress=False,
        )


def _is_operator_class(make: Any) -> bool:
    return isinstance(make, type) and issubclass(make, CurvatureOperator)


def _first_batch(model: Any, dataset: Any) -> Any:
    """Return the first batch of a dataset, in tensors of the engine that takes a model."""
    return engine_of(model).first_batch(dataset)


def _class_of_this_package(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return the class of this package that an operator class is derived from, or the operator."""
    kinds = operator.__mro__ if isinstance(operator, type) else ()
    package = __name__.partition(".")[0] + "."
    return next((kind for kind in kinds if kind.__module__.startswith(package)), operator)
