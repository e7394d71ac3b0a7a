"""The drivers a notebook calls: a spectrum, or V and T, from an operator or a model."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import as_real_square, integer, product_precision
from spectral_density.linalg.lanczos import (
    LanczosStep,
    Tridiagonalization,
    lanczos,
    lockstep_groups,
    start_vector,
)
from spectral_density.linalg.memory import foresee
from spectral_density.linalg.quadrature import (
    gauss_quadrature,
    ritz_overlaps,
    simple_candidates,
    simple_nodes,
)
from spectral_density.spectrum import Spectrum

if TYPE_CHECKING:
    import tensorflow as tf

_ALIGNMENT = 64  # bytes, EIGEN_MAX_ALIGN_BYTES of TensorFlow's builds


def estimate_spectrum(
    operator: Any,
    /,
    order: int = 90,
    num_draws: int = 10,
    *,
    seed: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    draws_at_once: int | None = None,
    basis_dtype: Any = "float64",
    basis: Literal["memory", "disk"] = "memory",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    callback: Callable[[LanczosStep], None] | None = None,
) -> Spectrum:
    """Estimate the eigenvalue density of a symmetric operator by stochastic Lanczos quadrature.

    Args:
        operator: symmetric, shape (n, n): any `LinearOperator`, array or sparse matrix.
        order: Lanczos steps a draw, at most n. The extreme eigenvalues and the resolution of the
            density depend on it.
        num_draws: start vectors. The error band narrows with their square root.
        seed: seed of the start vectors.
        reorthogonalize: "full", or "none" for three vectors of memory a draw.
        draws_at_once: draws that share each pass over the data; None follows from the size.
        basis_dtype: "float64", or "float32" for half the memory, see `lanczos`.
        basis: "memory", or "disk" for the basis in a temporary file, see `lanczos`.
        checkpoint: a directory in which each step is made durable, see `lanczos`: a run that was
            killed goes on where it was, and steps or draws can be added to one that ended.
        progress: show a bar; None for only in interactive runs.
        callback: called after each step, see `lanczos`.

    Returns:
        Spectrum of `num_draws` quadratures. With two draws or more (and reorthogonalization), the
        outliers that are converged and simple are known to weigh 1/n each.

    Raises:
        ValueError: if order < 1 or order > n, or an argument is out of range.
        MemoryError: if the run would not fit into the free memory; the message has the figures.
        CheckpointError: if the checkpoint is of another problem, damaged, in use or unwritable.

    References:
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
        Chen, Trogdon, Ubaru (2021), arXiv 2105.06595.
    """
    size = as_real_square(operator).shape[0]
    order, num_draws = integer(order, "order", 1), integer(num_draws, "num_draws", 1)
    groups = lockstep_groups(
        size,
        order,
        num_draws=num_draws,
        draws_at_once=draws_at_once,
        reorthogonalize=reorthogonalize,
        basis_dtype=basis_dtype,
        checkpoint=checkpoint,
    )
    parts: list[Tridiagonalization] = []
    candidates, overlaps = np.zeros(0, int), np.zeros((0, 0))

    with progress_bar(order * num_draws, "Lanczos", progress) as bar:

        def on_step(step: LanczosStep) -> None:
            bar.update(order * step.draws.start + step.step * len(step.draws) - bar.n)
            if callback is not None:
                callback(step)

        for draws in groups:
            part = lanczos(
                operator,
                order,
                num_draws=len(draws),
                seed=seed,
                first_draw=draws.start,
                reorthogonalize=reorthogonalize,
                draws_at_once=len(draws),
                basis_dtype=basis_dtype,
                basis=basis,
                checkpoint=checkpoint,
                progress=False,
                callback=on_step,
            )
            if not parts and num_draws > 1 and part.basis is not None:
                quadrature = gauss_quadrature(part.alpha[0], part.beta[0])
                candidates = simple_candidates(quadrature, part.residual_norms[0])
                starts = (start_vector(size, seed, draw) for draw in range(num_draws))
                overlaps = ritz_overlaps(part.basis[0], quadrature, candidates, starts)
            # The basis is the largest array by far: it goes before the next group's is made.
            parts.append(_without_basis(part))
            del part
        bar.update(order * num_draws - bar.n)
    alpha = np.concatenate([part.alpha for part in parts])
    beta = np.concatenate([part.beta for part in parts])
    residual_norms = np.concatenate([part.residual_norms for part in parts])
    quadratures = [gauss_quadrature(a, b) for a, b in zip(alpha, beta, strict=True)]
    simple = simple_nodes(quadratures, residual_norms, overlaps, candidates, size)
    return Spectrum(
        alpha,
        beta,
        residual_norms,
        size,
        simple,
        seed=seed,
        description=_describe(operator),
        precision=product_precision(operator),
    )


def approximate_hessian(
    model: Any,
    loss_fn: Any,
    dataset: Any,
    order: int,
    reduce_op: str = "MEAN",
    random_seed: int = 0,
    only_gpu: bool = True,
    *,
    variables: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
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
        checkpoint: a directory in which each step is made durable, see `lanczos`.
        progress: show a bar; None for only in interactive runs.

    Returns:
        (V, T), float64 tensors of shapes (num_params, order), orthonormal columns, and
        (order, order), tridiagonal.

    Raises:
        ValueError: see `HessianOperator` and `lanczos`.
        MemoryError: if V and its transpose would not fit into the free memory.
        CheckpointError: see `lanczos`.
    """
    from spectral_density.curvature import HessianOperator

    del only_gpu
    reductions = {"MEAN": "mean", "SUM": "sum"}
    if reduce_op not in reductions:
        raise ValueError(f'reduce_op must be "MEAN" or "SUM", got {reduce_op!r}.')
    loss_fn, reduction = _summed_if_per_example(model, loss_fn, dataset, reductions[reduce_op])
    hessian = HessianOperator(model, loss_fn, dataset, variables=variables, reduction=reduction)
    order = integer(order, "order", 1)
    row = 8 * hessian.shape[0]
    foresee(
        {"Lanczos vectors": order * row, "V, their transpose": order * row},
        "Use a lower order, fewer parameters with variables=, or estimate_spectrum, which returns "
        "no V and has reorthogonalize='none', basis='disk' and basis_dtype='float32'.",
    )
    return _as_tensors(
        lanczos(hessian, order, seed=random_seed, checkpoint=checkpoint, progress=progress)
    )


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
    """Turn a function that returns one loss per example into its sum, and say so."""
    import tensorflow as tf

    from spectral_density.curvature.batches import first_batch
    from spectral_density.curvature.frameworks import check_backend, trainable_variables
    from spectral_density.curvature.losses import is_batch_function, loss_shape

    check_backend()
    trainable_variables(model)  # before the function calls a model that was never built
    if not is_batch_function(loss_fn):
        return loss_fn, reduction
    shape = loss_shape(lambda batch: loss_fn(model, batch), first_batch(dataset))
    if shape.rank == 0:
        return loss_fn, reduction
    warnings.warn(
        f"loss_fn returned one loss per example (shape {tuple(shape.as_list())}), not a scalar: "
        'they are summed over the whole data set, as reduce_op="SUM". '
        "Return their mean or sum to choose.",
        stacklevel=3,
    )
    return lambda model, batch: tf.reduce_sum(loss_fn(model, batch)), "sum"


def _as_tensors(result: Tridiagonalization) -> tuple[tf.Tensor, tf.Tensor]:
    """Return V and T; V takes over its array instead of copying it."""
    import tensorflow as tf

    tridiagonal = tf.constant(result.tridiagonal())
    rows = cast(np.ndarray, result.basis)[0]
    columns = _aligned_empty(rows.T.shape)
    columns[...] = rows.T
    # DLPack hands the array to TensorFlow as it is, where tf.constant would keep another.
    return tf.experimental.dlpack.from_dlpack(columns.__dlpack__()), tridiagonal


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """Return a float64 array at an address TensorFlow can compute from.

    NumPy aligns to 16 bytes. TensorFlow takes such an array by DLPack without a word, and the
    first operation on it ends the process.
    """
    nbytes = 8 * math.prod(shape)
    buffer = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(np.float64).reshape(shape)


def _without_basis(part: Tridiagonalization) -> Tridiagonalization:
    return replace(part, basis=None)


def _describe(operator: Any) -> str:
    text = repr(operator)
    return text if len(text) <= 200 and "\n" not in text else type(operator).__name__
