"""Functions of the original package: V and T of a Hessian, and densities on a grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._warnings import warn
from spectral_density.linalg.arguments import integer
from spectral_density.linalg.memory import check_memory
from spectral_density.linalg.tridiagonalization import Tridiagonalization, lanczos
from spectral_density.spectrum.density import eigv_to_density, tridiag_to_density, tridiag_to_eigv

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = [
    "approximate_hessian",
    "eigv_to_density",
    "lanczos_algorithm",
    "tridiag_to_density",
    "tridiag_to_eigv",
]

_ALIGNMENT = 64  # bytes, EIGEN_MAX_ALIGN_BYTES of TensorFlow's builds


def approximate_hessian(  # noqa: PLR0917 (the order of the original)
    model: Any,
    loss_fn: Any,
    dataset: Any,
    order: int,
    reduce_op: str = "MEAN",
    random_seed: int = 0,
    only_gpu: bool = True,
    *,
    variables: Any = None,
    class_weight: Mapping[int, float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    check: bool = True,
    progress: bool | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Approximate the Hessian of a model's loss as V T V'.

    Args:
        model: Keras model or `tf.Module`.
        loss_fn: `loss_fn(model, batch) -> scalar`, or a Keras loss; see `HessianOperator`. A
            function that returns one loss per example is summed over the whole dataset, with a
            warning: `reduce_op="SUM"`.
        dataset: batches that can be iterated again and again.
        order: number of Lanczos steps; the number of parameters for the exact matrix.
        reduce_op: "MEAN" or "SUM" over the data: what `loss_fn` is over its batch.
        random_seed: seed of the start vector.
        only_gpu: accepted for compatibility: with a GPU, False orthogonalized on the CPU to spare
            its memory. Here the orthogonalization always runs on the CPU, in float64.
        variables: which variables, see `HessianOperator`.
        class_weight: with a Keras loss, as in `fit`, see `HessianOperator`.
        checkpoint: a directory in which each step is made durable, see `lanczos`.
        check: first verify that the Hessian is one fixed, symmetric, finite matrix and the right
            derivative: see `CurvatureOperator.check`.
        progress: show a bar; None for only in interactive runs.

    Returns:
        (V, T), float64 tensors of shapes (num_params, order), orthonormal columns, and
        (order, order), tridiagonal.

    Raises:
        ValueError: see `HessianOperator` and `lanczos`, or if the check fails (`PreflightError`).
        MemoryError: if V and its transpose would not fit into the free memory.
        CheckpointError: see `lanczos`.
    """
    from spectral_density.curvature import HessianOperator

    del only_gpu
    reductions = {"MEAN": "mean", "SUM": "sum"}
    if reduce_op not in reductions:
        raise ValueError(f'reduce_op must be "MEAN" or "SUM", got {reduce_op!r}.')
    loss_fn, reduction = _summed_if_per_example(model, loss_fn, dataset, reductions[reduce_op])
    hessian = HessianOperator(
        model,
        loss_fn,
        dataset,
        variables=variables,
        reduction=reduction,
        class_weight=class_weight,
    )
    order = integer(order, "order", 1)
    row = 8 * hessian.shape[0]
    check_memory(
        {"Lanczos vectors": order * row, "V, their transpose": order * row},
        "Use a lower order, fewer parameters with variables=, or estimate_spectrum, which returns "
        "no V and has reorthogonalize='none', basis='disk' and basis_dtype='float32'.",
    )
    result = lanczos(
        hessian, order, seed=random_seed, checkpoint=checkpoint, check=check, progress=progress
    )
    return _as_tensors(result)


def lanczos_algorithm(
    mvp_fn: Callable[[tf.Tensor], tf.Tensor],
    dim: int,
    order: int,
    random_seed: int = 0,
    only_gpu: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Approximate a symmetric matrix, given as a function, as V T V'.

    Args:
        mvp_fn: product with the matrix, from a float32 tensor of shape (dim, 1) to a tensor of
            that shape.
        dim: number of rows of the matrix.
        order: number of Lanczos steps, one call of `mvp_fn` each.
        random_seed: seed of the start vector.
        only_gpu: accepted for compatibility, see `approximate_hessian`.

    Returns:
        (V, T), float64 tensors of shapes (dim, order) and (order, order).

    Raises:
        ValueError: if `mvp_fn` returns another shape, or order < 1 or > dim.
    """
    import tensorflow as tf

    del only_gpu

    def product(vector: np.ndarray) -> np.ndarray:
        result = mvp_fn(tf.constant(vector.reshape(-1, 1), tf.float32))
        if tuple(result.shape) != (dim, 1):
            raise ValueError(f"mvp_fn must return shape ({dim}, 1), got {tuple(result.shape)}.")
        return np.asarray(result, dtype=np.float64)[:, 0]

    operator = LinearOperator((dim, dim), matvec=product, dtype=np.float64)
    operator.product_dtype = np.dtype(np.float32)
    return _as_tensors(lanczos(operator, order, seed=random_seed))


def _summed_if_per_example(
    model: Any, loss_fn: Any, dataset: Any, reduction: str
) -> tuple[Any, str]:
    """Replace a function that returns one loss per example by its sum, with a warning."""
    import tensorflow as tf

    from spectral_density.engines.tensorflow.frameworks import check_backend, trainable_variables
    from spectral_density.engines.tensorflow.keras_objective import KerasObjective
    from spectral_density.engines.tensorflow.losses import is_batch_function, traced_loss

    check_backend()
    trainable_variables(model)  # before the function calls a model that was never built
    if not is_batch_function(loss_fn):
        return loss_fn, reduction
    shape, _ = traced_loss(model, loss_fn, dataset, KerasObjective(model, loss_fn))
    if shape is None or shape.rank == 0:
        return loss_fn, reduction
    warn(
        f"loss_fn returned one loss per example (shape {tuple(shape.as_list())}), not a scalar: "
        'they are summed over the whole data set, as reduce_op="SUM". '
        "Return their mean or sum to choose."
    )
    return lambda model, batch: tf.reduce_sum(loss_fn(model, batch)), "sum"


def _as_tensors(result: Tridiagonalization) -> tuple[tf.Tensor, tf.Tensor]:
    """Return V and T; V shares its array with the result instead of copying it."""
    import tensorflow as tf

    tridiagonal = tf.constant(result.tridiagonal())
    rows = cast(np.ndarray, result.basis)[0]
    columns = _aligned_empty(rows.T.shape)
    columns[...] = rows.T
    # DLPack shares the array with TensorFlow, where tf.constant would copy it.
    return tf.experimental.dlpack.from_dlpack(columns.__dlpack__()), tridiagonal


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Return a float64 array at an address TensorFlow can compute from.

    NumPy aligns to 16 bytes. TensorFlow accepts such an array by DLPack without an error, and the
    first operation on it ends the process.
    """
    nbytes = 8 * prod(shape)
    buffer = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(np.float64).reshape(shape)
