"""Argument checks, checked products with an operator, random streams, and operator identity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import isfinite
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

_STREAMS = 0x73706563  # apart from the spawn keys 0, 1, 2, ... of `SeedSequence.spawn`


def as_real_square(operator: Any) -> LinearOperator:
    """Return an operator, array or sparse matrix as a real, square `LinearOperator`.

    Raises:
        ValueError: if it is not square.
        TypeError: if it is not real, or none of these.
    """
    shape = getattr(operator, "shape", None)
    if shape is not None and (len(shape) != 2 or shape[0] != shape[1]):
        raise ValueError(f"The operator must be square, got shape {tuple(shape)}.")
    try:
        linear = aslinearoperator(operator)
    except TypeError as error:
        raise TypeError(
            "The operator must be a LinearOperator, a NumPy array or a SciPy sparse matrix, got "
            f"{type(operator).__name__}.{_advice(operator)}"
        ) from error
    return _refuse_complex(linear)


def _advice(operator: Any) -> str:
    """Return how an operator is made of what was passed for one, as the end of a message."""
    if hasattr(operator, "trainable_variables"):
        return " Of a model pass its operator: HessianOperator(model, loss, dataset)."
    if callable(operator):
        return " Of a function pass scipy.sparse.linalg.LinearOperator((n, n), matvec=function)."
    return ""


def as_real_operator(operator: Any, symmetric: Any) -> tuple[LinearOperator, bool]:
    """Return an operator of any shape as a real `LinearOperator`, and whether it is symmetric.

    Args:
        operator: `LinearOperator`, array or sparse matrix.
        symmetric: None looks at the entries where there are any, and takes a square operator
            without entries to be symmetric.

    Raises:
        TypeError: if it is not real, or none of these.
        ValueError: if it is stated to be symmetric and is not square.
    """
    if not (symmetric is None or isinstance(symmetric, (bool, np.bool_))):
        raise TypeError(f"symmetric must be True, False or None, got {symmetric!r}.")
    shape: tuple[int, ...] = getattr(operator, "shape", ())
    if len(shape) == 2 and shape[0] != shape[1]:
        if symmetric:
            raise ValueError(f"An operator of shape {tuple(shape)} is not symmetric.")
        return _refuse_complex(aslinearoperator(operator)), False
    linear = as_real_square(operator)
    if symmetric is None:
        has_entries = isinstance(operator, np.ndarray) or scipy.sparse.issparse(operator)
        return linear, not has_entries or _has_symmetric_entries(operator)
    return linear, bool(symmetric)


def _refuse_complex(linear: LinearOperator) -> LinearOperator:
    if linear.dtype is not None and np.dtype(linear.dtype).kind not in "fiubV":
        raise TypeError(f"The operator must be real, got dtype {linear.dtype}.")
    return linear


def _has_symmetric_entries(matrix: Any) -> bool:
    """Whether a square array or sparse matrix is its own transpose but for rounding."""
    if not matrix.shape[0]:
        return True
    eps = product_precision(matrix)
    matrix = matrix.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the products will say what is not finite
        return bool(abs(matrix - matrix.T).max() <= 100 * eps * abs(matrix).max())


def check_operator(operator: Any, check: bool) -> None:
    """Have an operator find out whether it is sound, if it can and the caller wants it."""
    examine = getattr(operator, "check", None)
    if check and callable(examine):
        examine()


def has_adjoint(operator: LinearOperator) -> bool:
    """Whether the adjoint can multiply; SciPy reports it missing as one error or another."""
    try:
        operator.rmatvec(np.zeros(operator.shape[0]))
    except NotImplementedError:
        return False
    return True


def rank_within(rank: Any, operator: LinearOperator, name: str = "rank") -> int:
    """Return a rank that an operator can have.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is less than 1 or more than the operator has rows or columns.
    """
    rank = integer(rank, name, 1)
    most = min(operator.shape)
    if rank > most:
        raise ValueError(
            f"{name} is {rank}, but an operator of shape {tuple(operator.shape)} has no rank above "
            f"{most}. Use {name} <= {most}."
        )
    return rank


def integer(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Return a whole number within its range.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is less than `least` or more than `most`.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}.")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}.")
    return number


def number(value: Any, name: str, *, above: float | None = None, least: float = -np.inf) -> float:
    """Return a finite real number, greater than `above` or not less than `least`.

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is not finite or out of its range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.number)):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    result = float(value)
    if not isfinite(result):
        raise ValueError(f"{name} must be finite, got {value!r}.")
    if above is not None and not result > above:
        raise ValueError(f"{name} must be greater than {above:g}, got {value!r}.")
    if result < least:
        raise ValueError(f"{name} must be at least {least:g}, got {value!r}.")
    return result


def block_product(operator: LinearOperator, block: np.ndarray, where: str = "") -> np.ndarray:
    """Return `operator @ block` as float64, shape (n, k), checked; one call for all columns.

    Args:
        operator: what multiplies.
        block: (n, k), or (n,) for one vector, whose product has that shape.
        where: said in errors, such as "at step 3".

    Raises:
        TypeError: if the products are complex.
        FloatingPointError: if they are not finite.
    """
    product = np.asarray(_real_product(operator, block), dtype=np.float64)
    _require_finite(product, where)
    return product


def row_products(
    operator: LinearOperator, rows: np.ndarray, where: str | Callable[[int], str] = ""
) -> tuple[np.ndarray, float]:
    """Return the products with rows as float64 rows, checked, and their relative rounding.

    Args:
        operator: what multiplies, by `matvec` for one row and in one call for several.
        rows: (k, n).
        where: said in errors, of the first row that is not finite if it is a function of its index.

    Returns:
        Products, shape (k, n), always a copy: an operator may return its argument, or a buffer of
        its own. And the eps of their dtype, or of that which the operator states if it is coarser.

    Raises:
        TypeError: if the products are complex.
        FloatingPointError: if they are not finite.
    """
    product = _real_product(operator, rows[0] if len(rows) == 1 else rows.T)
    eps = max(product_precision(operator), precision(product.dtype))
    products = np.array(product.T, dtype=np.float64, order="C", ndmin=2)
    del product
    for i, row in enumerate(products):
        _require_finite(row, where(i) if callable(where) else where)
    return products, eps


def _real_product(operator: LinearOperator, block: np.ndarray) -> np.ndarray:
    product = operator.matvec(block) if block.ndim == 1 else operator.matmat(block)
    if np.iscomplexobj(product):
        raise TypeError("The operator's products are complex; it must be real and symmetric.")
    return product


def not_finite(where: str) -> FloatingPointError:
    """Return the error of a product that is not finite; `where` as in `block_product`."""
    return FloatingPointError(
        f"The product with the operator is not finite{' ' if where else ''}{where}. "
        "Check that the operator's own entries are finite."
    )


def _require_finite(product: np.ndarray, where: str) -> None:
    if not np.isfinite(product).all():
        raise not_finite(where)


def product_precision(operator: Any) -> float:
    """Return the relative rounding of an operator's products: the eps of their dtype."""
    return precision(product_dtype(operator))


def product_error(operator: Any) -> float:
    """Return how far an operator's products are from those of the matrix that is meant.

    Relative to these, by norm: what the operator states as its own `product_error`, the largest of
    its parts for a sum or multiple, and else 0. It is beside rounding, and counted into bounds.
    """
    stated = getattr(operator, "product_error", None)
    if stated is not None:
        return float(stated)
    parts = [part for part in getattr(operator, "args", ()) if isinstance(part, LinearOperator)]
    return max(map(product_error, parts), default=0.0)


def product_dtype(operator: Any) -> Any:
    """Return the dtype that an operator's products are computed in, None where it is not known.

    That is its own `product_dtype` where it states one, the coarsest of its parts for a sum or
    multiple, and else its `dtype`.
    """
    stated = getattr(operator, "product_dtype", None)
    if stated is not None:
        return stated
    parts = [part for part in getattr(operator, "args", ()) if isinstance(part, LinearOperator)]
    if parts:
        return max(map(product_dtype, parts), key=precision)
    return getattr(operator, "dtype", None)


def precision(dtype: Any) -> float:
    """Return the relative spacing of a dtype; that of float64 for integers and None."""
    if dtype is None:
        return float(np.finfo(np.float64).eps)
    if "bfloat16" in str(dtype):  # known to NumPy only where another package registered it
        return 2.0**-7
    dtype = np.dtype(dtype)
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)


def rounding_share(operator: LinearOperator, vector: np.ndarray) -> float:
    """Return how much of a product is rounding, from 0 to about 1, by two products.

    A linear operator multiplies v / 3 to a third of what it multiplies v to. What does not scale
    is rounding, which may be all there is in a difference of matrices that are equal on paper.
    """
    product = block_product(operator, vector)
    size = float(np.linalg.norm(product))
    if not size:
        return 0.0
    return float(np.linalg.norm(3 * block_product(operator, vector / 3) - product)) / size


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random stream of a key: the same numbers for the same key.

    NumPy pads short seeds with zeros: `default_rng([seed, 0])` is `default_rng(seed)`, which data
    are often made with. A spawn key of this package's own, with the length of the key in it, makes
    streams that are independent of those, and of each other where keys differ by a zero.

    Args:
        seed: the user's, not negative.
        key: what the numbers are for, and which of them; not negative.
    """
    spawn_key = (_STREAMS, len(key), *key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


def random_direction(size: int, seed: int, *key: int) -> np.ndarray:
    """Return a random unit vector of a key, see `stream`: uniform on the sphere, shape (size,)."""
    vector = stream(seed, *key).standard_normal(size)
    vector /= np.linalg.norm(vector)
    return vector


def signature(operator: LinearOperator) -> dict[str, Any]:
    """Return what identifies an operator, as text and numbers.

    An operator's own `fingerprint()`, or a hash of a matrix; of any other operator only its shape,
    dtype and kind are known.
    """
    if hasattr(operator, "fingerprint"):
        return operator.fingerprint()
    known = {"shape": list(operator.shape), "dtype": str(operator.dtype)}
    matrix = getattr(operator, "A", None)
    if matrix is None:
        return known | {"kind": type(operator).__name__}
    if isinstance(matrix, np.ndarray):
        return known | {"hash": array_hash(matrix)}
    rows, columns, entries = scipy.sparse.find(matrix)
    return known | {"hash": array_hash(rows, columns, entries)}


def identifies(signature_: dict[str, Any]) -> bool:
    """Return whether a signature determines the matrix, as the hash of its entries does.

    What a user's function computes has no hash: an operator may have a fingerprint of all else.
    """
    return set(signature_) == {"shape", "dtype", "hash"}


def is_same_form(value: float, expected: float, norm: float, rounding: float) -> bool:
    """Return whether a quadratic form of a matrix of that norm is as expected, but for rounding."""
    return abs(value - expected) <= 100 * max(rounding, 1e-12) * norm


def array_hash(*arrays: np.ndarray) -> str:
    """Return a hash of the entries of arrays, their shapes and dtypes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
