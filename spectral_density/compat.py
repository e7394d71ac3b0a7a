"""Functions of the original package: V and T of a Hessian, and densities on a grid.

Those of its directory `tf2/` take models of Keras and TensorFlow, those of `jax/` functions of
pytrees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._arguments import explained
from spectral_density._warnings import warn
from spectral_density.engines import engine_name
from spectral_density.linalg.arguments import integer
from spectral_density.linalg.memory import check_memory
from spectral_density.linalg.tridiagonalization import Tridiagonalization, lanczos
from spectral_density.spectrum.density import eigv_to_density, tridiag_to_density, tridiag_to_eigv

if TYPE_CHECKING:
    import jax
    import tensorflow as tf

__all__ = [
    "approximate_hessian",
    "eigv_to_density",
    "full_hessian",
    "get_hvp_fn",
    "hvp",
    "lanczos_alg",
    "lanczos_algorithm",
    "tridiag_to_density",
    "tridiag_to_eigv",
]

_ALIGNMENT = 64  # bytes, EIGEN_MAX_ALIGN_BYTES of TensorFlow's builds


@explained
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
) -> tuple[tf.Tensor, tf.Tensor] | tuple[np.ndarray, np.ndarray]:
    """Approximate the Hessian of a model's loss as V T V'.

    Args:
        model: Keras model, `tf.Module`, or pytree of JAX arrays.
        loss_fn: `loss_fn(model, batch) -> scalar`, or with a Keras model a Keras loss; see
            `HessianOperator`. A function that returns one loss per example is summed over the
            whole dataset, with a warning: `reduce_op="SUM"`.
        dataset: batches that can be iterated again and again.
        order: number of Lanczos steps; the number of parameters for the exact matrix.
        reduce_op: "MEAN" or "SUM" over the data: what `loss_fn` is over its batch.
        random_seed: seed of the start vector.
        only_gpu: accepted for compatibility: with a GPU, False orthogonalized on the CPU to spare
            its memory. Here the orthogonalization runs where the Hessian has its vectors, see
            `lanczos`.
        variables: which variables, see `HessianOperator`.
        class_weight: with a Keras loss, as in `fit`, see `HessianOperator`.
        checkpoint: a directory in which each step is made durable, see `lanczos`.
        check: first verify that the Hessian is one fixed, symmetric, finite matrix and the right
            derivative: see `CurvatureOperator.check`.
        progress: show a bar; None for only in interactive runs.

    Returns:
        (V, T), float64, of shapes (num_params, order), orthonormal columns, and (order, order),
        tridiagonal: TensorFlow's tensors, or NumPy arrays where JAX computes.

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
    reduction = reductions[reduce_op]
    of_jax = engine_name(model) == "jax"
    shape_of_loss = _shape_in_jax if of_jax else _shape_in_tensorflow
    shape = shape_of_loss(model, loss_fn, dataset, variables)
    if shape:
        loss_fn, reduction = _summed(loss_fn, shape, of_jax), "sum"
    hessian = HessianOperator(
        model,
        loss_fn,
        dataset,
        variables=variables,
        reduction=reduction,
        class_weight=class_weight,
    )
    order = integer(order, "order", 1)
    nbytes = 8 * order * hessian.shape[0]
    check_memory(
        {"Lanczos vectors": nbytes, "V, their transpose": nbytes},
        "Use a lower order, fewer parameters with variables=, or estimate_spectrum, which returns "
        "no V and has reorthogonalize='none', basis='disk' and basis_dtype='float32'.",
    )
    result = lanczos(
        hessian, order, seed=random_seed, checkpoint=checkpoint, check=check, progress=progress
    )
    if of_jax:
        # Where the vectors are float32, on a device, a copy.
        return np.asarray(_rows(result), np.float64).T, result.tridiagonal()
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
        return _checked_product("mvp_fn", result, (dim, 1))

    return _as_tensors(lanczos(_operator(product, dim, np.float32), order, seed=random_seed))


# Of the directory jax/ ---------------------------------------------------------------------------


def lanczos_alg(
    matrix_vector_product: Callable[[jax.Array], Any], dim: int, order: int, rng_key: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Tridiagonalize a symmetric matrix, given as a function of arrays of JAX.

    The start vector is the one that the original draws with the same key.

    Args:
        matrix_vector_product: product with the matrix, from an array of shape (dim,) to one of
            that shape. Vectors have JAX's default dtype: float32, or float64 with
            `jax_enable_x64`.
        dim: number of rows of the matrix.
        order: number of Lanczos steps, one call of `matrix_vector_product` each.
        rng_key: JAX's key for the start vector.

    Returns:
        (tridiag, vecs), float64 NumPy arrays of shapes (order, order) and (order, dim): the rows of
        `vecs` are the Lanczos vectors, and the matrix is about `vecs.T @ tridiag @ vecs`.

    Raises:
        ValueError: if `matrix_vector_product` returns another shape, or order < 1 or > dim.
    """
    import jax

    start = jax.random.normal(rng_key, (dim,))

    def product(vector: np.ndarray) -> np.ndarray:
        result = matrix_vector_product(jax.numpy.asarray(vector, start.dtype))
        return _checked_product("matrix_vector_product", result, (dim,))

    operator = _operator(product, dim, start.dtype)
    result = lanczos(operator, order, start=np.asarray(start, np.float64))
    return result.tridiagonal(), _rows(result)


def hvp(loss: Callable[[Any, Any], Any], params: Any, batch: Any, v: Any) -> Any:
    """Return the product of the Hessian of the loss on one batch with a vector.

    It may be called within `jax.jit` and other transformations of JAX.

    Args:
        loss: `loss(params, batch) -> scalar`.
        params: pytree of floating-point arrays.
        batch: whatever `loss` takes.
        v: pytree like `params`.

    Returns:
        A pytree like `params`, of JAX arrays.

    Raises:
        TypeError: if the loss is no real floating-point array.
        ValueError: if the loss is no scalar, a leaf of `params` is not floating point, or `v` is
            not like `params`.
    """
    import jax

    from spectral_density.engines.data import BatchInput
    from spectral_density.engines.jax import JaxEngine
    from spectral_density.engines.jax.objectives import check_loss

    functions = JaxEngine().of_function(loss, params, "sum").functions_of_loss
    check_loss(jax.eval_shape(lambda params: loss(params, batch), params), rank=0)
    at = BatchInput(batch, 0, 1.0, np.ones(1))
    weights, constants = functions.arrays()
    pairs = zip(_leaves_like(params, v, "v"), weights, strict=True)
    rows = [jax.numpy.asarray(leaf, weight.dtype)[np.newaxis] for leaf, weight in pairs]
    products = functions.verbs(weights, constants, at).hessian_products(rows)
    return jax.tree.unflatten(jax.tree.structure(params), [product[0] for product in products])


def get_hvp_fn(
    loss: Callable[[Any, Any], Any], params: Any, batches: Callable[[], Iterable[Any]]
) -> tuple[Callable[[Any, Any], np.ndarray], Callable[[Any], Any], int]:
    """Return products with the Hessian of a loss over batches, as a function.

    The products of the batches are added up and divided by the number of batches, whatever their
    sizes: for the mean over examples of unequal batches there is `HessianOperator`.

    Args:
        loss: `loss(params, batch) -> scalar`.
        params: pytree of floating-point arrays.
        batches: returns an iterator of batches, the same at each call. It is called immediately,
            and batches that fit into a quarter of the free memory are kept.

    Returns:
        (hvp_fn, unravel, num_params): `hvp_fn(params, v)` returns the product, (num_params,),
        float64, at parameters like those given, with a vector of that shape, and computes outside
        of `jax.jit`; `unravel(v)` returns a vector as a pytree of JAX arrays like `params`;
        `num_params` is the number of parameters.

    Raises:
        ValueError: if there are no batches, the loss is no scalar or does not depend on the
            parameters, or a leaf of `params` is not floating point. `hvp_fn` and `unravel` raise
            it for arguments of other shapes.
    """
    import jax

    from spectral_density.curvature import HessianOperator
    from spectral_density.engines.jax.parameters import Leaves

    given = jax.tree.map(jax.numpy.asarray, params)
    operator = HessianOperator.from_function(loss, given, batches, batch_weight=lambda batch: 1.0)
    parameters = cast(Leaves, operator.parameters)

    def hvp_fn(params: Any, v: Any) -> np.ndarray:
        leaves = _leaves_like(given, params, "params")
        pairs = zip(leaves, parameters.variables, strict=True)
        # The same arrays as before, where they are: what is kept of them stays of use.
        parameters.arrays = [jax.numpy.asarray(leaf, before.dtype) for leaf, before in pairs]
        return operator @ np.asarray(v, np.float64)

    def unravel(v: Any) -> Any:
        if np.shape(v) != (parameters.size,):
            raise ValueError(f"expected a vector of shape ({parameters.size},), got {np.shape(v)}.")
        parts = parameters.split(jax.numpy.asarray(v)[np.newaxis])
        return jax.tree.unflatten(jax.tree.structure(given), [part[0] for part in parts])

    return hvp_fn, unravel, parameters.size


def full_hessian(loss: Callable[[Any], Any], params: Any) -> np.ndarray:
    """Return the Hessian of a function of parameters as a matrix.

    Args:
        loss: `loss(params) -> scalar`.
        params: pytree of floating-point arrays.

    Returns:
        The matrix, (num_params, num_params), float64.

    Raises:
        MemoryError: if it would not fit into the free memory.
        ValueError: if the loss is no scalar or does not depend on the parameters, or a leaf of
            `params` is not floating point.
    """
    import jax

    from spectral_density.curvature import HessianOperator

    arrays = jax.tree.map(jax.numpy.asarray, params)
    return HessianOperator.from_function(loss, arrays).to_dense()


def _leaves_like(params: Any, tree: Any, name: str) -> list[Any]:
    """Return the leaves of a pytree that must have the structure and shapes of the parameters."""
    import jax

    expected: Any = jax.tree.structure(params)
    found: Any = jax.tree.structure(tree)
    if found != expected:
        raise ValueError(f"{name} must have the structure of params, {expected}, got {found}.")
    leaves = jax.tree.leaves(tree)
    for leaf, like in zip(leaves, jax.tree.leaves(params), strict=True):
        if np.shape(leaf) != np.shape(like):
            raise ValueError(
                f"{name} must have the shapes of params: expected {np.shape(like)}, got "
                f"{np.shape(leaf)}."
            )
    return leaves


# Both --------------------------------------------------------------------------------------------


def _operator(
    product: Callable[[np.ndarray], np.ndarray], dim: int, product_dtype: Any
) -> LinearOperator:
    operator = LinearOperator((dim, dim), matvec=product, dtype=np.float64)
    operator.product_dtype = np.dtype(product_dtype)
    return operator


def _checked_product(name: str, result: Any, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(result) != shape:
        raise ValueError(f"{name} must return shape {shape}, got {np.shape(result)}.")
    return np.asarray(result, dtype=np.float64).reshape(-1)


def _rows(result: Tridiagonalization) -> np.ndarray:
    """Return the Lanczos vectors of the one draw, a row each."""
    return cast(np.ndarray, result.basis)[0]


def _summed(loss_fn: Any, shape: tuple[int, ...], of_jax: bool) -> Any:
    """Replace a function that returns one loss per example by its sum, with a warning."""
    warn(
        f"loss_fn returned one loss per example (shape {shape}), not a scalar: "
        'they are summed over the whole data set, as reduce_op="SUM". '
        "Return their mean or sum to choose."
    )
    if of_jax:
        import jax

        return lambda model, batch: jax.numpy.sum(loss_fn(model, batch))
    import tensorflow as tf

    return lambda model, batch: tf.reduce_sum(loss_fn(model, batch))


def _shape_in_tensorflow(
    model: Any, loss_fn: Any, dataset: Any, variables: Any
) -> tuple[int, ...] | None:
    """Return the shape of what a function `loss_fn(model, batch)` returns; None of other losses."""
    from spectral_density.engines.keras_shared.losses import is_batch_function
    from spectral_density.engines.tensorflow.frameworks import check_backend, trainable_variables
    from spectral_density.engines.tensorflow.keras_objective import KerasObjective
    from spectral_density.engines.tensorflow.losses import traced_loss

    del variables
    check_backend()
    trainable_variables(model)  # before the function calls a model that was never built
    if not is_batch_function(loss_fn):
        return None
    shape, _ = traced_loss(model, loss_fn, dataset, KerasObjective(model, loss_fn))
    return None if shape is None else tuple(shape.as_list())


def _shape_in_jax(model: Any, loss_fn: Any, dataset: Any, variables: Any) -> tuple[int, ...] | None:
    """Return the shape of what a function `loss_fn(model, batch)` returns; None of other losses."""
    from spectral_density.engines.jax.batches import first_batch
    from spectral_density.engines.jax.losses import make_objective
    from spectral_density.engines.jax.objectives import FunctionObjective, shape_of

    objective = make_objective(
        model,
        loss_fn,
        dataset,
        variables=variables,
        reduction=None,
        training=False,
        examples=False,
    )
    if not isinstance(objective, FunctionObjective) or objective.outputs_apart:
        return None
    found = shape_of(objective.value, objective.model, first_batch(dataset))
    return getattr(found, "shape", None)


def _as_tensors(result: Tridiagonalization) -> tuple[tf.Tensor, tf.Tensor]:
    """Return V and T; V shares its array with the result instead of copying it."""
    import tensorflow as tf

    tridiagonal = tf.constant(result.tridiagonal())
    rows = _rows(result)
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
