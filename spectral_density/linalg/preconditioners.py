"""Low-rank preconditioners from a few eigenpairs, randomized Nystrom among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import number
from spectral_density.linalg.low_rank import multiply_low_rank
from spectral_density.linalg.nystrom_approximation import nystrom
from spectral_density.linalg.threads import blas_threads

# How far from orthonormal columns may be: float32 eigenvectors pass, raw random blocks do not.
_ORTHONORMAL = 1e-3
# Share of the largest eigenvalue below which M would be indefinite by its own rounding.
_SMALLEST = 1e-14


class LowRankPreconditioner(LinearOperator):
    """M = U diag((|lambda_r| + mu) / (|lambda_i| + mu)) U' + (I - U U'), positive definite.

    lambda_r is the eigenvalue of smallest magnitude among these. M / (|lambda_r| + mu) is
    the inverse of |A| + mu I on the span of U, and takes the rest of A to be as large as
    |lambda_r|. The factor changes nothing in CG, MINRES and GMRES.

    Attributes:
        values: (r,), lambda.
        vectors: (n, r), U.
        damping: mu.
        num_products: with the operator, to make it; 0 where they were made elsewhere.

    References:
        Frangella, Tropp, Udell (2021), arXiv 2110.02820, equation (1.3).
    """

    def __init__(self, values: Any, vectors: Any, damping: float, *, num_products: int = 0):
        """Check the eigenpairs and keep them.

        Args:
            values: eigenvalues, shape (r,), of either sign.
            vectors: their orthonormal eigenvectors as columns, shape (n, r).
            damping: what is added to the diagonal of the matrix, not negative.
            num_products: products with the operator that the eigenpairs took, for the record.

        Raises:
            TypeError: if an argument has a wrong type or is complex.
            ValueError: if shapes do not match, entries are not finite, columns are not
                orthonormal, or the smallest value and the damping are both zero to rounding.
        """
        if np.iscomplexobj(values) or np.iscomplexobj(vectors):
            raise TypeError("The eigenpairs must be real, got complex numbers.")
        values = np.asarray(values, dtype=np.float64)
        vectors = np.asarray(vectors)
        if vectors.dtype.kind != "f":
            vectors = vectors.astype(np.float64)
        if values.ndim != 1 or vectors.ndim != 2 or vectors.shape[1] != len(values):
            raise ValueError(
                "The eigenpairs must be values of shape (r,) and vectors of shape (n, r), got "
                f"{values.shape} and {vectors.shape}."
            )
        if not (np.isfinite(values).all() and np.isfinite(vectors).all()):
            raise ValueError("The eigenpairs must be finite; they hold NaN or infinity.")
        damping = number(damping, "damping", least=0.0)
        with blas_threads(len(vectors)):
            defect = np.abs(vectors.T @ vectors - np.eye(len(values))).max(initial=0.0)
        if defect > _ORTHONORMAL:
            raise ValueError(
                f"The columns of vectors must be orthonormal: U'U is {defect:.2g} away from the "
                "identity. Orthonormalize them, and take the eigenvalues in their span."
            )
        magnitudes = np.abs(values) + damping
        rest = magnitudes.min(initial=np.inf)
        if rest <= _SMALLEST * magnitudes.max(initial=0.0):
            raise ValueError(
                f"The smallest eigenvalue in magnitude plus damping, {rest:.3g}, is nothing beside "
                f"the largest, {magnitudes.max():.3g}, so that rounding decides over the rest of "
                "the space. Use more damping, or only the eigenpairs that are not zero."
            )
        super().__init__(dtype=np.dtype(np.float64), shape=(len(vectors), len(vectors)))
        self.values = values
        self.vectors = vectors
        self.damping = damping
        self.num_products = num_products
        # M = I + U diag(shares) U', so that a product needs no projection of its own.
        self._shares = rest / magnitudes - 1

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        with blas_threads(len(X)):
            return X + multiply_low_rank(self.vectors, self._shares, X)

    def _adjoint(self) -> LowRankPreconditioner:
        return self

    def _transpose(self) -> LowRankPreconditioner:
        return self

    def __repr__(self) -> str:
        """Say what it is and what it took."""
        return (
            f"{type(self).__name__}(n={self.shape[0]:,}, rank={len(self.values)}, "
            f"damping={self.damping:.3g}, {self.num_products:,} products)"
        )


class NystromPreconditioner(LowRankPreconditioner):
    """The randomized Nystrom preconditioner of a positive semidefinite operator plus damping.

    With a rank of twice the effective dimension at the damping, the preconditioned matrix has a
    condition number that no longer depends on that of the operator, so CG takes a fixed number of
    steps (theorem 5.1 of the paper).
    """

    def __init__(self, values: Any, vectors: Any, damping: float, *, num_products: int = 0):
        """As for `LowRankPreconditioner`, with values that are not negative."""
        super().__init__(values, vectors, damping, num_products=num_products)
        if (self.values < 0).any():
            raise ValueError(
                "A Nystrom approximation has no negative eigenvalues, got "
                f"{self.values.min():.3g}. Use low_rank_preconditioner for those of either sign."
            )

    @classmethod
    def from_operator(
        cls, operator: Any, /, rank: int, damping: float, *, seed: int = 0
    ) -> NystromPreconditioner:
        """Make it from products with a positive semidefinite operator.

        Args:
            operator: A, symmetric positive semidefinite, shape (n, n).
            rank: number of eigenpairs of the approximation; 10 products more are made than that.
            damping: mu of A + mu I.
            seed: seed of the random test vectors.

        Returns:
            NystromPreconditioner, with `num_products` counted.

        Raises:
            ValueError: if an argument is out of its range, or the operator is not square or
                turns out to be indefinite.
        """
        damping = number(damping, "damping", least=0.0)
        return nystrom_preconditioner(nystrom(operator, rank, num_probes=0, seed=seed), damping)


def nystrom_preconditioner(approximation: Any, /, damping: float) -> NystromPreconditioner:
    """Return the preconditioner of A + damping I from a Nystrom approximation of A.

    Args:
        approximation: what `nystrom` returned, or a pair (values, vectors) of shapes (r,), (n, r).
        damping: as passed to `solve`; one approximation serves any number of dampings.
    """
    values, vectors, num_products = _eigenpairs(approximation)
    return NystromPreconditioner(values, vectors, damping, num_products=num_products)


def low_rank_preconditioner(eigenpairs: Any, /, damping: float) -> LowRankPreconditioner:
    """Return the preconditioner of A + damping I from signed eigenpairs of A.

    Magnitudes of eigenvalues are used, so that it is positive definite as CG and MINRES need it:
    negative eigenvalues of A are sent to about -1, and CG still reports them.

    Args:
        eigenpairs: what `randomized_eigh` or `top_eigenpairs` returned, or a pair
            (values, vectors) of shapes (r,), (n, r).
        damping: as passed to `solve`.
    """
    values, vectors, num_products = _eigenpairs(eigenpairs)
    return LowRankPreconditioner(values, vectors, damping, num_products=num_products)


def _eigenpairs(result: Any) -> tuple[Any, Any, int]:
    if hasattr(result, "values") and hasattr(result, "vectors"):
        return result.values, result.vectors, getattr(result, "num_products", 0)
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return result[0], result[1], 0
    raise TypeError(
        "Expected a result with fields values and vectors, or a pair (values, vectors), got "
        f"{type(result).__name__}."
    )
