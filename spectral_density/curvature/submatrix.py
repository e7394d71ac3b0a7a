"""Blocks of a curvature matrix: of a layer, between two layers, of any parameters."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import psutil
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from spectral_density._progress import progress_bar
from spectral_density.engines.layout import Parameters, as_list, indices_of
from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    product_dtype,
    product_error,
)

# Columns of a dense block that are multiplied at once: vectors as long as the matrix itself.
_WIDTH = 16


class SubmatrixOperator(LinearOperator):
    r"""The block A[rows, columns] of a symmetric matrix given by its products.

    .. math:: B = P_{rows}\, A\, P_{columns}'

    It is a `scipy.sparse.linalg.LinearOperator` of shape (len(rows), len(columns)), float64. A
    product with it is one with A: vectors are filled up with zeros, and the rows wanted are read
    off. A block of vectors is one block product, of a curvature operator one pass over the data.

    Attributes:
        operator: the matrix the block is cut from.
        rows: indices of its rows, (num_rows,).
        columns: indices of its columns, (num_columns,).
        product_dtype: NumPy dtype that products are computed in.

    Example:
        >>> block = SubmatrixOperator(hessian, "dense_1")                # doctest: +SKIP
        >>> coupling = SubmatrixOperator(hessian, "dense_1", "dense_2")  # doctest: +SKIP
    """

    def __init__(self, operator: Any, rows: Any, columns: Any = None):
        """Choose the block.

        Args:
            operator: symmetric `LinearOperator`, array or sparse matrix, shape (n, n). The
                adjoint of the block takes the same products; of an array or sparse matrix, which
                may be any, those of its transpose.
            rows: a slice, an array of indices, a boolean mask of shape (n,), or, of a curvature
                operator (sums and multiples of one included), the exact name of a layer or
                variable, `re.compile(...)`, a variable, a layer, or a list of these. Indices
                keep their order, names have the operator's own.
            columns: the same; None for those of `rows`, a diagonal block.

        Raises:
            ValueError: if the operator is not square, a name is unknown (the message lists those
                there are), nothing is chosen, or an index is out of range or stands twice.
            TypeError: if a selection is none of these.
        """
        self.operator = as_real_square(operator)
        self.rows = selected_indices(self.operator, rows, "rows")
        self.columns = (
            self.rows.copy()
            if columns is None
            else selected_indices(self.operator, columns, "columns")
        )
        self._flipped = operator.T if _is_explicit(operator) else self.operator
        self.product_dtype = np.dtype(product_dtype(self.operator) or np.float64)
        super().__init__(dtype=np.dtype(np.float64), shape=(len(self.rows), len(self.columns)))

    @property
    def product_error(self) -> float:
        """How far products are from those at full precision, as for `operator`."""
        return product_error(self.operator)

    def to_dense(self, progress: bool | None = False) -> np.ndarray:
        """Return the block itself, shape (num_rows, num_columns), float64.

        It takes as many products as the shorter side is long.

        Args:
            progress: show a bar; None for only in interactive runs.

        Raises:
            MemoryError: if the block does not fit into the free memory.
        """
        needed = 8 * self.shape[0] * self.shape[1]
        free = psutil.virtual_memory().available
        if needed > free:
            raise MemoryError(
                f"the dense block of shape {self.shape} takes {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free. Choose fewer rows, or use products."
            )
        num_rows, num_columns = self.shape
        wide = num_rows < num_columns
        product = self.rmatmat if wide else self.matmat
        short, long = sorted(self.shape)
        dense = np.empty((long, short))
        with progress_bar(short, "columns", progress) as bar:
            for start in range(0, short, _WIDTH):
                width = min(_WIDTH, short - start)
                block = np.zeros((short, width))
                block[start + np.arange(width), np.arange(width)] = 1.0
                dense[:, start : start + width] = product(block)
                bar.update(width)
        return dense.T if wide else dense

    def __repr__(self) -> str:
        """Say what it is a block of."""
        num_rows, num_columns = self.shape
        return f"SubmatrixOperator({num_rows:,} x {num_columns:,} of {self.operator!r})"

    # SciPy's side --------------------------------------------------------------------------------

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return _cut(self.operator, self.columns, x.reshape(-1), self.rows)

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return _cut(self.operator, self.columns, X, self.rows)

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return _cut(aslinearoperator(self._flipped), self.rows, x.reshape(-1), self.columns)

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return _cut(aslinearoperator(self._flipped), self.rows, X, self.columns)


def layer_operators(operator: Any) -> dict[str, SubmatrixOperator]:
    """Return the diagonal block of each layer of a curvature operator, in the model's order.

    A layer is what the model lists as one; a model used as a layer is taken apart. Of anything
    but a Keras model the variables go by the path of their names: `encoder/w` and `encoder/b` are
    one block. A product with a block costs one with the whole operator, and traces no graph of its
    own; for many products with one layer, an operator made with `variables="layer"` costs less.

    Args:
        operator: a `CurvatureOperator`, or a sum or multiple of such, `hessian - ggn`.

    Returns:
        Block of each layer that owns variables of the operator, by its name; where two layers have
        one name, that of the model inside which it is goes before it. A variable that two layers
        share belongs to the first, what no layer owns to the model itself. A variable from outside
        the model is a block of its own, by its name. The sizes add up to that of the operator.

    Raises:
        TypeError: if the operator says nothing about its parameters.
    """
    return {
        name: SubmatrixOperator(operator, rows) for name, rows in layer_indices(operator).items()
    }


def layer_indices(
    operator: Any, otherwise: str = "choose indices with SubmatrixOperator"
) -> dict[str, np.ndarray]:
    """Return the indices of each layer's parameters, as `layer_operators` takes them.

    Args:
        operator: a `CurvatureOperator`, or a sum or multiple of such.
        otherwise: what to do with another one, said in the error.

    Raises:
        TypeError: if the operator says nothing about its parameters.
    """
    source = _source(operator)
    if source is None:
        raise TypeError(
            f"a {type(operator).__name__} does not say which parameters its rows are. Pass a "
            f"CurvatureOperator, or {otherwise}."
        )
    layers = source.derivatives.inspection.layers()
    return {name: indices_of(source.parameters, positions) for name, positions in layers.items()}


# Selections --------------------------------------------------------------------------------------


def selected_indices(operator: LinearOperator, selection: Any, what: str) -> np.ndarray:
    """Return the indices of a selection, checked: in range, each once, at least one.

    Args:
        operator: whose rows are meant.
        selection: see `SubmatrixOperator`.
        what: name of the argument, said in errors.
    """
    n = operator.shape[0]
    if isinstance(selection, slice):
        found = np.arange(n, dtype=np.intp)[selection]
    elif _names_something(selection):
        found = _named_indices(operator, selection, what)
    else:
        found = _index_array(selection, n, what)
    if not len(found):
        raise ValueError(f"{what} is empty: choose at least one of the {n:,} there are.")
    values, counts = np.unique(found, return_counts=True)
    if values[0] < 0 or values[-1] >= n:
        wrong = values[0] if values[0] < 0 else values[-1]
        raise ValueError(f"{what} has the index {wrong}, out of range for {n:,} parameters.")
    if len(values) < len(found):
        raise ValueError(f"{what} has the index {values[counts > 1][0]} more than once.")
    return found


def _index_array(selection: Any, n: int, what: str) -> np.ndarray:
    array = np.asarray(selection)
    if array.ndim == 1 and not array.size:
        return np.zeros(0, dtype=np.intp)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise TypeError(
            f"{what} must be a slice, a one-dimensional array of indices, a boolean mask, or names "
            f"of layers or variables, got {selection!r}."
        )
    if array.dtype.kind == "b":
        if array.shape != (n,):
            raise ValueError(f"the mask {what} has shape {array.shape}, expected ({n},).")
        return np.flatnonzero(array)
    # Before the cast, which would fold what an int64 cannot hold.
    if array.max() >= n or array.min() < -n:
        wrong = array.max() if array.max() >= n else array.min()
        raise ValueError(f"{what} has the index {wrong}, out of range for {n:,} parameters.")
    indices = array.astype(np.intp)
    # Counted from the end, as NumPy has it.
    return np.where(indices < 0, indices + n, indices)


def _names_something(selection: Any) -> bool:
    """Tell names, patterns, layers and variables from indices."""
    if isinstance(selection, (list, tuple)):
        return any(_names_something(item) for item in selection)
    # Variables of every framework are assigned to, layers have variables.
    return isinstance(selection, (str, re.Pattern)) or any(
        hasattr(selection, name) for name in ("assign", "trainable_variables")
    )


def _named_indices(operator: Any, selection: Any, what: str) -> np.ndarray:
    """Resolve names as `variables=` does, among the variables that the operator has."""
    source = _source(operator)
    if source is None:
        raise TypeError(
            f"{what} has names, and a {type(operator).__name__} does not say which parameters its "
            "rows are. Pass indices, or a CurvatureOperator."
        )
    parameters: Parameters = source.parameters
    chosen: set[int] = set()
    for item in as_list(selection):
        if not _names_something(item):
            raise TypeError(f"{what} mixes names and indices: {item!r}. Pass one or the other.")
        found = source.derivatives.inspection.positions(item)
        if not found:
            shown = repr(item) if isinstance(item, str) else getattr(item, "name", repr(item))
            raise ValueError(
                f"{what}: {shown} has none of the operator's variables. There are: "
                f"{', '.join(parameters.names)}."
            )
        chosen |= found
    return indices_of(parameters, sorted(chosen))


# Operators ---------------------------------------------------------------------------------------


def _source(operator: Any) -> Any:
    """Return the curvature operator that says which parameters the rows are, or None.

    SciPy's sums, differences and multiples keep what they are made of in `args`.
    """
    if isinstance(getattr(operator, "parameters", None), Parameters):
        return operator
    found = [_source(part) for part in getattr(operator, "args", ())]
    sources = [source for source in found if source is not None]
    if not sources:
        return None
    first = sources[0].parameters.variables
    for source in sources[1:]:
        other = source.parameters.variables
        if len(first) != len(other) or any(a is not b for a, b in zip(first, other, strict=True)):
            raise ValueError(
                "the operators of this sum have different variables, so that names of layers do "
                "not say which rows are meant. Pass indices."
            )
    return sources[0]


def _is_explicit(operator: Any) -> bool:
    return issparse(operator) or isinstance(operator, np.ndarray)


def _cut(
    operator: LinearOperator, columns: np.ndarray, vectors: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return `operator[rows, columns] @ vectors`, for one vector or a block."""
    if np.iscomplexobj(vectors):
        raise ValueError("the matrix is real, and the vector is complex: pass its parts.")
    if not np.isfinite(vectors).all():
        raise ValueError("the vector to multiply with holds NaN or infinity.")
    filled = np.zeros((operator.shape[0], *vectors.shape[1:]))
    filled[columns] = vectors
    if not filled.size:
        return np.zeros((len(rows), *vectors.shape[1:]))
    return block_product(operator, filled)[rows]
