"""Vectors of Krylov methods where an engine keeps them: the contract, and its NumPy form.

An operator may have an attribute `vectors`, a `Vectors` of its engine, and with it a method
`products_of(rows)`: from k vectors as one array of the engine, shape (k, n), to their products,
shape (k, n), in the dtype of the vectors. The methods of this package then leave the vectors
there, and only scalars come to the host. Other operators have NumPy's float64 vectors, and
multiply by `A @ v`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg import orthogonalization
from spectral_density.linalg.arguments import not_finite, product_precision, row_products
from spectral_density.linalg.memory import check_memory, free_memory
from spectral_density.linalg.norms import vector_norm
from spectral_density.linalg.threads import blas_threads, each_in_a_thread

# Rows that an engine multiplies together, see `Vectors.block_rows`.
_BLOCK_ROWS = 16
# Powers of two by which any dtype multiplies without leaving its range.
_SAFE_EXPONENT = 100


class Vectors(ABC):
    """Vectors of length `size` where an engine keeps them, and what is computed with them.

    A vector is an array of the engine, shape (n,). Whoever calls `subtract`, `divided` or
    `Rows.orthogonalize` gives the vector away and goes on with the one returned.

    Attributes:
        size: n.
        dtype: NumPy's name for the dtype of the vectors: float64, or float32.
        place: where they are, for messages and checkpoints, such as "gpu (JAX)".
    """

    size: int
    dtype: np.dtype
    place: str

    @abstractmethod
    def to_engine(self, array: np.ndarray) -> Any:
        """Return an array of the host as one of the engine, cast to `dtype`."""

    @abstractmethod
    def to_host(self, array: Any) -> np.ndarray:
        """Return an array of the engine as one of NumPy, in its dtype."""

    @abstractmethod
    def stack(self, vectors: Sequence[Any]) -> Any:
        """Return vectors as one array, shape (k, n)."""

    @abstractmethod
    def unstack(self, rows: Any) -> list[Any]:
        """Return the rows of an array of shape (k, n), each a vector of its own."""

    @abstractmethod
    def inner(self, left: Any, right: Any) -> float:
        """Return left'right as accurately as by a float64 sum, whatever `dtype` is."""

    @abstractmethod
    def subtract(self, vector: Any, factor: float, other: Any) -> Any:
        """Return vector - factor * other, rounded once an entry."""

    @abstractmethod
    def scaled(self, vector: Any, factor: float) -> Any:
        """Return vector * factor, rounded once an entry."""

    @abstractmethod
    def largest(self, rows: Any) -> np.ndarray:
        """Return the largest magnitude in each row, shape (k,); not finite if an entry is not."""

    @abstractmethod
    def rows(self, capacity: int, dtype: Any = None) -> Rows:
        """Return room for vectors; `dtype` of their storage, None for that of the vectors."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return the memory that is free where the vectors are; None where it is not known."""

    @property
    def eps(self) -> float:
        """Relative spacing of the dtype."""
        return float(np.finfo(self.dtype).eps)

    @staticmethod
    def block_rows(capacity: int) -> int:
        """Return the number of rows that are in one array of the engine.

        All arrays have as many, zeros where none is written, so that sums are grouped alike and a
        run has the same bits in a larger basis. Two where there are no more, as there are without
        reorthogonalization.
        """
        return _BLOCK_ROWS if capacity > 2 else capacity

    def allocated(self, capacity: int) -> int:
        """Return for how many rows `rows` takes memory."""
        length = self.block_rows(capacity)
        return -(-capacity // length) * length

    def copy(self, vector: Any) -> Any:
        """Return a vector that may be given away while this one stays."""
        return vector  # an engine's arrays do not change

    def norm(self, vector: Any) -> float:
        """Return the Euclidean norm."""
        return float(np.sqrt(self.inner(vector, vector)))

    def divided(self, vector: Any, divisor: float) -> Any:
        """Return vector / divisor."""
        exponent = int(np.frexp(divisor)[1])
        if abs(exponent) > _SAFE_EXPONENT:
            vector = self.times_power(vector, -exponent)
            divisor = float(np.ldexp(divisor, -exponent))
        return self.scaled(vector, 1 / divisor)

    def times_power(self, vector: Any, exponent: int) -> Any:
        """Return vector * 2**exponent."""
        while exponent:
            step = max(-_SAFE_EXPONENT, min(_SAFE_EXPONENT, exponent))
            vector = self.scaled(vector, 2.0**step)
            exponent -= step
        return vector

    def peak(self, vectors: Sequence[Any]) -> float:
        """Return the largest magnitude in vectors."""
        return float(max(self.largest(self.stack([vector]))[0] for vector in vectors))

    def inners(self, left: Sequence[Any], right: Sequence[Any]) -> np.ndarray:
        """Return the inner product of each vector with its counterpart."""
        return np.array([self.inner(*pair) for pair in zip(left, right, strict=True)])

    def norms(self, vectors: Sequence[Any]) -> np.ndarray:
        """Return the norm of each vector."""
        return np.array([self.norm(vector) for vector in vectors])

    def products(
        self,
        operator: LinearOperator,
        vectors: Sequence[Any],
        where: str | Callable[[int], str] = "",
    ) -> tuple[Any, float]:
        """Return the products with vectors, one by one, and their relative rounding.

        See `row_products` for the arguments.

        Raises:
            FloatingPointError: if they are not finite.
        """
        rows = operator.products_of(self.stack(vectors))
        for index, largest in enumerate(self.largest(rows)):
            if not np.isfinite(largest):
                raise not_finite(where(index) if callable(where) else where)
        return self.unstack(rows), rounding_of(operator, self)

    def each(self, work: Callable[..., None], *arguments: Iterable[Any]) -> None:
        """Call `work` with each of the arguments, which touch different vectors."""
        for values in zip(*arguments, strict=True):
            work(*values)

    def bases(self, count: int, capacity: int, dtype: Any = None) -> Bases:
        """Return room for the vectors of `count` runs, `capacity` each."""
        return Bases([self.rows(capacity, dtype) for _ in range(count)])


class Rows(ABC):
    """Vectors that are kept, such as an orthonormal basis, numbered from zero.

    Attributes:
        vectors: what is computed with them.
        capacity: how many there is room for.
        dtype: of their storage.
    """

    vectors: Vectors
    capacity: int
    dtype: np.dtype

    @abstractmethod
    def read(self, index: int) -> Any:
        """Return a vector, in the dtype of `vectors`."""

    @abstractmethod
    def write(self, index: int, vector: Any) -> None:
        """Store a vector."""

    @abstractmethod
    def project(self, vector: Any, count: int) -> np.ndarray:
        """Return inner products with the first `count`, one or more, on the host, (count,).

        The basis is as far from orthogonal as they are wrong, however often it is orthogonalized:
        float32 products must not be one plain sum.
        """

    @abstractmethod
    def combine(self, weights: np.ndarray, first: int = 0) -> Any:
        """Return the sum of weights[i] times the vector first + i, in their dtype."""

    def rotate(self, weights: np.ndarray, first: int) -> None:
        """Replace vectors by combinations of vectors; takes memory for the new ones.

        Args:
            weights: shape (k, m), m at most k; the vectors first, ..., first + m - 1 become the
                combinations, by its columns, of first, ..., first + k - 1.
            first: number of the first of them.
        """
        rotated = [self.combine(column, first) for column in weights.T]
        for index, vector in enumerate(rotated, first):
            self.write(index, vector)

    def orthogonalize(self, vector: Any, count: int) -> tuple[Any, np.ndarray]:
        """Remove from a vector what lies along the first `count`, which are orthonormal.

        Classical Gram-Schmidt, two passes at least where the rows are float32: the first leaves
        the rounding of what it removes.

        Returns:
            The vector, and the coefficients along the rows, shape (count,).

        References:
            Daniel, Gragg, Kaufman, Stewart (1976), Math. Comp. 30:772.
        """
        coarse = self.dtype != np.float64
        removed = np.zeros(count)
        if not count:
            return vector, removed
        norm = self.vectors.norm(vector)
        for number in range(orthogonalization.MAX_PASSES):
            along = self.project(vector, count)
            removed += along
            vector = self.vectors.subtract(vector, 1.0, self.combine(along))
            last, norm = norm, self.vectors.norm(vector)
            if norm > orthogonalization.KEPT_SHARE * last and not (coarse and number == 0):
                break
        return vector, removed

    def orthonormalize(self, count: int) -> None:
        """Make the first `count`, orthonormal but for rounding, so to the last digit."""
        for index in range(count):
            vector, _ = self.orthogonalize(self.read(index), index)
            self.write(index, self.vectors.divided(vector, self.vectors.norm(vector)))

    def grown(self, capacity: int, count: int) -> Rows:
        """Return rows with room for more, and the first `count` of these."""
        rows = self.vectors.rows(capacity, self.dtype)
        for index in range(count):
            rows.write(index, self.read(index))
        return rows

    def to_host(self, count: int, first: int = 0) -> np.ndarray:
        """Return vectors as an array of NumPy, shape (count, n), in the dtype of their storage."""
        result = np.empty((count, self.vectors.size), self.dtype)
        for index, row in enumerate(result, first):
            row[:] = self.vectors.to_host(self.read(index))
        return result


class Bases:
    """The vectors of several runs, the rows of each."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts

    def to_host(self, count: int) -> np.ndarray:
        """Return the first vectors of all runs, shape (runs, count, n)."""
        return np.stack([rows.to_host(count) for rows in self.parts])


class HostVectors(Vectors):
    """Vectors of NumPy, float64. They are changed in place where they are given away."""

    place = "host"
    dtype = np.dtype(np.float64)
    eps = float(np.finfo(np.float64).eps)

    def __init__(self, size: int) -> None:
        self.size = size

    def to_engine(self, array: np.ndarray) -> np.ndarray:
        """Return the array as float64, itself where it is."""
        return np.asarray(array, dtype=np.float64)

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def copy(self, vector: np.ndarray) -> np.ndarray:
        """Return a copy."""
        return vector.copy()

    def stack(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """Return rows; no copy is made of one vector, or of rows."""
        if isinstance(vectors, np.ndarray):
            return vectors
        return vectors[0][np.newaxis] if len(vectors) == 1 else np.stack(vectors)

    def unstack(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return views of the rows."""
        return list(rows)

    def inner(self, left: np.ndarray, right: np.ndarray) -> float:
        """Return left'right."""
        return left @ right

    def norm(self, vector: np.ndarray) -> float:
        """Return the Euclidean norm, also where squares over- or underflow."""
        return vector_norm(vector)

    def inners(self, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
        """Return inner products, the sums by NumPy and not by BLAS."""
        return np.einsum("kn,kn->k", self.stack(left), self.stack(right))

    def norms(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """Return norms, the sums by NumPy and not by BLAS."""
        rows = [vector[np.newaxis] for vector in vectors]
        return np.array([np.linalg.norm(row, axis=1)[0] for row in rows])

    def subtract(self, vector: np.ndarray, factor: float, other: np.ndarray) -> np.ndarray:
        """Subtract in place."""
        vector -= factor * other
        return vector

    def scaled(self, vector: np.ndarray, factor: float) -> np.ndarray:
        """Multiply in place."""
        vector *= factor
        return vector

    def divided(self, vector: np.ndarray, divisor: float) -> np.ndarray:
        """Divide in place."""
        vector /= divisor
        return vector

    def times_power(self, vector: np.ndarray, exponent: int) -> np.ndarray:
        """Multiply in place."""
        return np.ldexp(vector, exponent, out=vector)

    def largest(self, rows: np.ndarray) -> np.ndarray:
        """Return the largest magnitude in each row."""
        return np.abs(rows).max(axis=1)

    def allocated(self, capacity: int) -> int:
        """Return the number of rows."""
        return capacity

    def free_bytes(self) -> int:
        """Return the free memory of the host."""
        return free_memory()

    def products(
        self,
        operator: LinearOperator,
        vectors: Sequence[np.ndarray],
        where: str | Callable[[int], str] = "",
    ) -> tuple[np.ndarray, float]:
        """Return the products with vectors as float64 rows; see `row_products`."""
        return row_products(operator, self.stack(vectors), where)

    def each(self, work: Callable[..., None], *arguments: Iterable[Any]) -> None:
        """Call `work` with each of the arguments, in threads where that is faster."""
        tasks = list(zip(*arguments, strict=True))
        if len(tasks) == 1:
            with blas_threads(self.size):
                work(*tasks[0])
        else:
            each_in_a_thread(work, self.size, *zip(*tasks, strict=True))

    def rows(self, capacity: int, dtype: Any = None) -> HostRows:
        """Return rows in memory."""
        # Not zeroed: a page of memory is taken only when its row is written.
        return HostRows(np.empty((capacity, self.size), dtype or self.dtype))

    def bases(self, count: int, capacity: int, dtype: Any = None) -> HostBases:
        """Return the rows of all runs as one array."""
        return HostBases(np.empty((count, capacity, self.size), dtype or self.dtype))


class HostRows(Rows):
    """The rows of an array of NumPy, float64 or float32, in memory or mapped from a file."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.vectors = HostVectors(array.shape[1])
        self.capacity = len(array)
        self.dtype = array.dtype

    def read(self, index: int) -> np.ndarray:
        """Return a row: a view of one that is float64, and else a copy."""
        return self.array[index].astype(np.float64, copy=False)

    def write(self, index: int, vector: np.ndarray) -> None:
        """Copy a vector into the array."""
        self.array[index] = vector

    def project(self, vector: np.ndarray, count: int) -> np.ndarray:
        """Return the inner products with the first rows."""
        return orthogonalization.project(self.array[:count], vector)

    def combine(self, weights: np.ndarray, first: int = 0) -> np.ndarray:
        """Return a combination of rows."""
        return weights @ self.array[first : first + len(weights)]

    def rotate(self, weights: np.ndarray, first: int) -> None:
        """Rotate the rows in place."""
        orthogonalization.rotate(self.array[first : first + len(weights)], weights)

    def orthogonalize(self, vector: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Remove from a vector, in place, what lies along the first rows."""
        return vector, orthogonalization.orthogonalize(vector, self.array[:count])

    def orthonormalize(self, count: int) -> None:
        """Orthonormalize the first rows in place."""
        orthogonalization.orthonormalize(self.array[:count])

    def to_host(self, count: int, first: int = 0) -> np.ndarray:
        """Return a view of rows."""
        return self.array[first : first + count]


class HostBases(Bases):
    """One array of the vectors of several runs, shape (runs, capacity, n)."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__([HostRows(rows) for rows in array])
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the array once, and not the views of it."""
        return HostBases, (self.array,)

    def to_host(self, count: int) -> np.ndarray:
        """Return a view."""
        return self.array[:, :count]


def check_memory_of(vectors: Vectors, needed: Mapping[str, int], ways_out: str) -> None:
    """Raise if the bytes that a run needs are more than are free where its vectors are.

    Raises:
        MemoryError: see `check_memory`.
    """
    free = vectors.free_bytes()
    if free is not None:
        place = "" if isinstance(vectors, HostVectors) else f" on {vectors.place}"
        check_memory(needed, ways_out, free=free, place=place)


def identity_of(vectors: Vectors) -> dict[str, str]:
    """Return what a checkpoint records of vectors that are not NumPy's: their own rounding."""
    if isinstance(vectors, HostVectors):
        return {}
    return {"vectors": f"{vectors.dtype.name} on {vectors.place}"}


def rounding_of(operator: Any, vectors: Vectors) -> float:
    """Return the relative rounding of products with vectors: theirs, or that of the products."""
    return max(product_precision(operator), vectors.eps)


def vectors_of(operator: Any) -> Vectors:
    """Return the vectors that an operator multiplies: its own, or those of NumPy.

    Raises:
        ValueError: if those that it hands over have another length.
    """
    own = getattr(operator, "vectors", None)
    size = operator.shape[0]
    if not isinstance(own, Vectors):  # an operator of a user may call something else so
        return HostVectors(size)
    if own.size != size:
        raise ValueError(f"The operator has {size} rows, and its vectors {own.size} entries.")
    return own
