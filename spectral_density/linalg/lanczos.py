"""Lanczos tridiagonalization of a symmetric operator, several random start vectors in lockstep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.checkpoint import CheckpointError, VectorLog, Workers, open_run, workers_of
from spectral_density.linalg.arguments import (
    array_hash,
    as_real_square,
    block_product,
    identifies,
    integer,
    is_same_form,
    precision,
    product_precision,
    rounding_share,
    signature,
)
from spectral_density.linalg.memory import foresee, on_disk
from spectral_density.linalg.orthogonalization import orthogonalize
from spectral_density.linalg.start_vectors import as_starts, new_direction, start_vector
from spectral_density.linalg.threads import blas_threads, each_in_a_thread

GROUP_BYTES = 2 * 1024**3
"""Bytes that the Lanczos vectors of draws advancing in lockstep may take by default."""

GROUP_DRAWS = 16
"""Draws that advance in lockstep at most by default."""

_WAYS_OUT = (
    "basis_dtype='float32' halves the basis, basis='disk' keeps it in a file, fewer draws_at_once "
    "and keep_basis=False hold fewer vectors, reorthogonalize='none' holds two a draw and is right "
    "for densities; or choose a lower order, or fewer parameters with variables=."
)
# Share of ||A|| by which u'Av and v'Au may differ; low precision has more.
_ASYMMETRY = 1e-3


@dataclass(frozen=True)
class LanczosStep:
    """What the callback sees after a step of a group of draws; the arrays are read-only views."""

    step: int  # finished steps of this group, 1 to order
    order: int
    draws: range  # the k draws of this group
    alpha: np.ndarray = field(repr=False)  # (k, step)
    beta: np.ndarray = field(repr=False)  # (k, step - 1)
    residual_norms: np.ndarray = field(repr=False)  # (k,), the beta after this step


@dataclass(frozen=True, repr=False, eq=False)
class Tridiagonalization:
    """Lanczos tridiagonal matrices T of a symmetric A, one a draw, with A V = V T + residual.

    `basis[d].T` is V of draw d: n rows, orthonormal columns, the start vector first.
    """

    alpha: np.ndarray  # (num_draws, order), diagonals of T, float64
    beta: np.ndarray  # (num_draws, order - 1), off-diagonals of T, not negative, float64
    residual_norms: np.ndarray  # (num_draws,), ||A V - V T||, the beta after the last step
    basis: np.ndarray | None  # (num_draws, order, n), or None where it was not kept
    size: int  # n
    seed: int
    first_draw: int
    draws_at_once: int
    reorthogonalize: str

    @property
    def num_draws(self) -> int:
        """Number of start vectors."""
        return self.alpha.shape[0]

    @property
    def order(self) -> int:
        """Number of steps, the size of T."""
        return self.alpha.shape[1]

    def tridiagonal(self, draw: int = 0) -> np.ndarray:
        """Return T of one draw as a dense array, shape (order, order)."""
        beta = self.beta[draw]
        return np.diag(self.alpha[draw]) + np.diag(beta, 1) + np.diag(beta, -1)

    def __repr__(self) -> str:
        """Name the shape, never the arrays."""
        kept = "no basis" if self.basis is None else f"{self.basis.dtype} basis"
        draws = f"{self.num_draws} draw{'s' if self.num_draws != 1 else ''}"
        return f"Tridiagonalization(n={self.size:,}, order={self.order}, {draws}, {kept})"


def lanczos(
    operator: Any,
    /,
    order: int,
    *,
    num_draws: int = 1,
    seed: int = 0,
    first_draw: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    draws_at_once: int | None = None,
    basis_dtype: Any = "float64",
    basis: Literal["memory", "disk"] = "memory",
    keep_basis: bool = True,
    start: np.ndarray | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    callback: Callable[[LanczosStep], None] | None = None,
    until: Callable[[LanczosStep], bool] | None = None,
    check: bool = True,
) -> Tridiagonalization:
    """Tridiagonalize a symmetric operator from random start vectors.

    Every vector is made orthogonal to all before it. An invariant subspace is not an error: the
    recurrence goes on in its complement, so the basis stays orthonormal, `order == n` recovers A
    exactly, and the quadrature of the start vector is untouched. The recurrence is float64
    whatever the precision of the products.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
            An attribute `product_dtype` states the precision of its products where this is
            lower than its `dtype`.
        order: number of steps, 1 to n; one product with the operator each.
        num_draws: number of start vectors.
        seed: seed of the random streams, which are keyed by (seed, draw, step).
        first_draw: number of the first draw; draws 0-4 and 5-9 together are draws 0-9.
        reorthogonalize: "full", or "none" for three vectors of memory a draw: right for
            densities and moments, wrong for counting eigenvalues, which then appear repeatedly.
        draws_at_once: draws advanced in lockstep, with one block product a step. None follows
            from the size of the problem alone, see `default_draws_at_once`.
        basis_dtype: "float64", or "float32" for half the memory and orthogonality to 1e-6.
        basis: "memory", or "disk" for rows in a temporary file, in the directory of the
            checkpoint if there is one; each step then reads all of them.
        keep_basis: whether the result has the basis; without, a group's is freed when it ends.
        start: start vectors instead of random ones, shape (n,) or (n, num_draws).
        checkpoint: a directory in which each step is made durable. A run that finds its own steps
            there goes on after them, and ends with the bits of an undisturbed run wherever the
            products repeat to the bit; with more steps or draws than before it computes those only,
            and one product to make sure that the operator is the same.
        progress: show a progress bar; None shows it in terminals and notebooks only.
        callback: called with a `LanczosStep` after each step of each group of draws, those found
            in a checkpoint excepted.
        until: asked after each step of the first group, those found in a checkpoint included;
            where it returns True, that step is the last of this group and of all after it.
        check: let an operator that can (`CurvatureOperator.check`) first find out whether it is
            one fixed, symmetric, finite matrix and the right derivative: two passes over the data
            and six gradients of a batch, once for its weights.

    Returns:
        Tridiagonalization with `alpha`, `beta`, `residual_norms` and `basis`.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square or not symmetric, an argument is out of its
            range, or the check fails (`PreflightError`).
        FloatingPointError: if a product with the operator is not finite.
        MemoryError: if the run would not fit into the free memory; the message has the figures.
        CheckpointError: if the checkpoint is of another problem, damaged, in use or unwritable.

    References:
        Paige (1976), J. Inst. Maths Applics 18:341 (the order of the subtractions).
        Daniel, Gragg, Kaufman, Stewart (1976), Math. Comp. 30:772 (when to orthogonalize again).
        Golub, Meurant (2010), Matrices, Moments and Quadrature (T as a quadrature rule).
    """
    operator = as_real_square(operator)
    size = operator.shape[0]
    order = integer(order, "order", 1)
    if order > size:
        raise ValueError(
            f"order is {order}, but the operator has n = {size} rows and no more than n Lanczos "
            f"steps exist. Use order <= {size}."
        )
    num_draws = integer(num_draws, "num_draws", 1)
    seed = integer(seed, "seed", 0)
    first_draw = integer(first_draw, "first_draw", 0)
    if reorthogonalize not in ("full", "none"):
        raise ValueError(f"reorthogonalize must be 'full' or 'none', got {reorthogonalize!r}.")
    dtype = _basis_dtype(basis_dtype)
    if basis not in ("memory", "disk"):
        raise ValueError(f"basis must be 'memory' or 'disk', got {basis!r}.")
    full = reorthogonalize == "full"
    num_rows = order if full else 2
    starts = None if start is None else as_starts(start, size, num_draws)
    groups = lockstep_groups(
        size,
        order,
        num_draws=num_draws,
        first_draw=first_draw,
        draws_at_once=draws_at_once,
        reorthogonalize=reorthogonalize,
        basis_dtype=dtype,
        checkpoint=checkpoint,
        workers=workers_of(operator),
    )

    width = max(map(len, groups))
    foresee(
        memory_needed(
            size,
            order,
            num_draws=num_draws,
            draws_at_once=width,
            reorthogonalize=reorthogonalize,
            basis_dtype=dtype,
            basis=basis,
            keep_basis=keep_basis,
        ),
        _WAYS_OUT,
    )
    check_operator(operator, check)
    alpha = np.zeros((num_draws, order))
    beta = np.zeros((num_draws, order))

    def allocate(draws: int) -> np.ndarray:
        # Not zeroed: a page of memory is taken only when its row is written.
        shape = (draws, num_rows, size)
        return np.empty(shape, dtype) if basis == "memory" else on_disk(shape, dtype, checkpoint)

    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(order * num_draws, "Lanczos", progress))
        run = None
        if checkpoint is not None:
            problem = {
                "algorithm": "lanczos",
                "operator": signature(operator),
                "seed": seed,
                "start": None if starts is None else array_hash(starts),
                "reorthogonalize": reorthogonalize,
                "basis_dtype": dtype.name,
            }
            run = stack.enter_context(open_run(checkpoint, problem, workers_of(operator)))
        all_rows = allocate(num_draws) if keep_basis and full else None
        for draws in groups:
            members = slice(draws.start - first_draw, draws.stop - first_draw)
            rows = allocate(len(draws)) if all_rows is None else all_rows[members]
            group = []
            for i, draw in enumerate(draws):
                k = members.start + i
                first = start_vector(size, seed, draw) if starts is None else starts[:, k]
                key = (seed, draw)
                group.append(_Draw(rows[i], first, alpha[k], beta[k], key, full, run is not None))
            log = None
            if run is not None:
                # Without reorthogonalization a step needs the last two vectors, and the one that
                # is being written must not be one of them.
                name = f"draws-{draws.start}-{draws.stop}"
                log = run.log(name, size, dtype, None if full else 3 * len(draws))
                stack.callback(log.close)
                _restore(group, log, operator)

            asked = until if draws is groups[0] else None
            seen = partial(_step_seen, alpha[members], beta[members], order, draws)
            bar.update(group[0].step * len(group))
            # Steps made before are asked about too: a run resumed ends where one undisturbed does.
            stop = _first_true(asked, map(seen, range(1, group[0].step + 1)))
            while stop is None and group[0].step < order:
                _advance(operator, group)
                step = group[0].step
                if log is not None:
                    _save(group, log)
                bar.update(len(group))
                if callback is not None:
                    callback(seen(step))
                stop = _first_true(asked, iter([seen(step)]))
            order = order if stop is None else stop
            # The vectors of a group go before those of the next are made.
            del group, rows
    if order < alpha.shape[1]:
        alpha, beta = alpha[:, :order].copy(), beta[:, :order].copy()
        all_rows = None if all_rows is None else all_rows[:, :order]
    return Tridiagonalization(
        alpha=alpha,
        beta=beta[:, :-1].copy(),
        residual_norms=beta[:, -1].copy(),
        basis=all_rows,
        size=size,
        seed=seed,
        first_draw=first_draw,
        draws_at_once=len(groups[0]),
        reorthogonalize=reorthogonalize,
    )


def memory_needed(
    size: int,
    order: int,
    *,
    num_draws: int = 1,
    draws_at_once: int = 1,
    reorthogonalize: str = "full",
    basis_dtype: Any = "float64",
    basis: str = "memory",
    keep_basis: bool = True,
) -> dict[str, int]:
    """Return the bytes that `lanczos` holds between two products, by name."""
    full = reorthogonalize == "full"
    kept = num_draws if keep_basis and full else draws_at_once
    row = size * np.dtype(basis_dtype).itemsize
    return {
        "basis": kept * (order if full else 2) * row if basis == "memory" else 0,
        # The vectors, their products, and a copy of these in float64 rows.
        "block": 3 * draws_at_once * size * 8,
    }


def check_operator(operator: Any, check: bool) -> None:
    """Have an operator find out whether it is sound, if it can and the caller wants it."""
    examine = getattr(operator, "check", None)
    if check and callable(examine):
        examine()


def _step_seen(
    alpha: np.ndarray, beta: np.ndarray, order: int, draws: range, step: int
) -> LanczosStep:
    arrays = alpha[:, :step], beta[:, : step - 1], beta[:, step - 1]
    return LanczosStep(step, order, draws, *map(_read_only, arrays))


def _first_true(
    until: Callable[[LanczosStep], bool] | None, steps: Iterator[LanczosStep]
) -> int | None:
    """Return the first step at which a run was to end, None for none of them."""
    if until is None:
        return None
    return next((step.step for step in steps if until(step)), None)


def lockstep_groups(
    size: int,
    order: int,
    *,
    num_draws: int,
    first_draw: int = 0,
    draws_at_once: int | None = None,
    reorthogonalize: str = "full",
    basis_dtype: Any = "float64",
    checkpoint: str | os.PathLike[str] | None = None,
    workers: Workers | None = None,
) -> list[range]:
    """Return the draws that advance together, group by group; see `lanczos` for the arguments.

    Groups that a checkpoint has begun stay as they are. Of `workers` that compute a run together
    the chief alone looks for them, and all must call this.

    Raises:
        ValueError: if the last of the draws is in the middle of a group begun.
    """
    if draws_at_once is None:
        draws_at_once = default_draws_at_once(
            size, order, reorthogonalize=reorthogonalize, basis_dtype=basis_dtype
        )
    draws_at_once = integer(draws_at_once, "draws_at_once", 1)
    begun = groups_begun(checkpoint, workers)
    groups, draw, end = [], first_draw, first_draw + num_draws
    while draw < end:
        ahead = min((first for first in begun if first > draw), default=end)
        stop = begun.get(draw, min(draw + draws_at_once, end, ahead))
        if stop > end:
            raise ValueError(
                f"the checkpoint advances draws {draw} to {stop - 1} together, and {num_draws} "
                f"draws from {first_draw} end among them. Ask for num_draws={stop - first_draw}, "
                "or use another directory."
            )
        groups.append(range(draw, stop))
        draw = stop
    return groups


def groups_begun(
    path: str | os.PathLike[str] | None, workers: Workers | None = None
) -> dict[int, int]:
    """Return the groups of a checkpoint: the first draw to the one after the last.

    Of several workers only the chief may have the directory: it tells the others.
    """
    if path is None:
        return {}
    folder = Path(path)

    def here() -> dict[int, int]:
        found = (entry.name.split("-") for entry in folder.glob("draws-*-*"))
        return {int(first): int(end) for _, first, end in found}

    return here() if workers is None else workers.on_chief(here)


def default_draws_at_once(
    size: int, order: int, *, reorthogonalize: str = "full", basis_dtype: Any = "float64"
) -> int:
    """Return how many draws advance in lockstep unless told otherwise.

    As many as keep their Lanczos vectors under `GROUP_BYTES`, at most `GROUP_DRAWS`, at least
    one. It depends on the problem alone, never on the memory that is free, so that results repeat.
    """
    num_rows = order if reorthogonalize == "full" else 2
    row_bytes = np.dtype(basis_dtype).itemsize * size
    return max(1, min(GROUP_DRAWS, GROUP_BYTES // (num_rows * row_bytes)))


class _Draw:
    """The recurrence of one start vector; writes its coefficients into `alpha` and `beta`.

    With `full`, `rows` has a row for every step. Without, it has two that are used in turn, and
    vectors are made orthogonal to their two predecessors only.
    """

    def __init__(
        self,
        rows: np.ndarray,
        first: np.ndarray,
        alpha: np.ndarray,
        beta: np.ndarray,
        key: tuple[int, int],
        full: bool,
        extendable: bool,
    ) -> None:
        self.rows = rows
        self.full = full
        self.extendable = extendable  # whether the vector after the last step is wanted
        self.alpha = alpha
        self.beta = beta
        self.key = key
        self.step = 0
        self.norm = 0.0  # of T so far, its largest absolute row sum
        self.asymmetry = 0.0  # largest |u'Av - v'Au| met, u and v neighbours in the basis
        self.following: np.ndarray | None = None  # the vector of the step after this
        rows[0] = first

    @property
    def current(self) -> np.ndarray:
        """The newest Lanczos vector, float64."""
        return self._row(self.step)

    def _row(self, step: int) -> np.ndarray:
        return self.rows[step % len(self.rows)].astype(np.float64, copy=False)

    def advance(self, w: np.ndarray, eps: float) -> None:
        """Take the product `w` of the operator and the newest vector; overwrites it."""
        j = self.step
        q = self.current
        before = self.beta[j - 1] if j else 0.0
        if before:
            previous = self._row(j - 1)
            # q'Aw and w'Aq, one of them from the step before: equal if A is symmetric.
            self.asymmetry = max(self.asymmetry, abs(float(previous @ w) - before))
            w -= before * previous
        alpha = q @ w
        w -= alpha * q
        # Without reorthogonalization these are the last two vectors. The recurrence alone does not
        # free a small w of them, and the comparison of the next step is that of A only for
        # neighbours that are orthogonal.
        alpha += orthogonalize(w, self.rows[: j + 1])[j % len(self.rows)]
        beta = np.linalg.norm(w)
        self.norm = max(self.norm, before + abs(alpha) + beta)
        broken_down = beta <= 10 * eps * self.norm
        self.alpha[j] = alpha
        self.beta[j] = 0.0 if broken_down else beta
        self.step = j + 1
        last = self.step == len(self.alpha)
        if self.step == len(w) or (last and not self.extendable):
            return
        # A small beta is kept, honest or not: what follows a true breakdown then carries no
        # weight. Only where the vector is rounding and nothing else does a random one replace it.
        if broken_down:
            w = self._restart()
        else:
            w /= beta
        if self.extendable:
            self.following = w
        if not last:
            self.rows[self.step % len(self.rows)] = w

    def restore(
        self, alpha: np.ndarray, beta: np.ndarray, norm: float, read: Callable[[int], np.ndarray]
    ) -> None:
        """Take the place after steps that were made before; `read(j)` is what followed step j."""
        done = min(len(alpha), len(self.alpha))
        self.alpha[:done], self.beta[:done], self.norm = alpha[:done], beta[:done], norm
        self.step = done
        wanted = range(1, len(self.rows)) if self.full else range(max(1, done - 1), done + 1)
        if self.full or done < len(self.alpha):
            for step in wanted:
                if step <= done:
                    self.rows[step % len(self.rows)] = read(step - 1)

    def _restart(self) -> np.ndarray:
        w = new_direction(len(self.rows[0]), *self.key, self.step)
        orthogonalize(w, self.rows[: self.step])
        w /= np.linalg.norm(w)
        return w


def _advance(operator: LinearOperator, group: list[_Draw]) -> None:
    """Advance every draw of the group by one step, with one product."""
    if len(group) == 1:
        product = operator.matvec(group[0].current)
    else:
        product = operator.matmat(np.stack([draw.current for draw in group]).T)
    if np.iscomplexobj(product):
        raise TypeError("The operator's products are complex; it must be real and symmetric.")
    eps = max(product_precision(operator), precision(product.dtype))
    # Always a copy: the operator may have returned its argument, or a buffer of its own.
    columns = np.array(product.T, dtype=np.float64, order="C", ndmin=2)
    del product
    for draw, column in zip(group, columns, strict=True):
        if not np.isfinite(column).all():
            raise FloatingPointError(
                f"The product with the operator is not finite at step {draw.step + 1} of draw "
                f"{draw.key[1]}. Check that the operator's own entries are finite."
            )
    if len(group) == 1:
        with blas_threads(len(columns[0])):
            group[0].advance(columns[0], eps)
    else:
        each_in_a_thread(
            lambda draw, column: draw.advance(column, eps), columns.shape[1], group, columns
        )
    _check_symmetry(operator, max(group, key=lambda draw: draw.asymmetry), eps)


def _check_symmetry(operator: LinearOperator, draw: _Draw, eps: float) -> None:
    share = draw.asymmetry / draw.norm if draw.norm else 0.0
    if share <= max(_ASYMMETRY, 100 * eps):
        return
    # A difference of matrices that are equal on paper is rounding, and not symmetric.
    if share > 10 * rounding_share(operator, draw.current):
        raise ValueError(
            f"The operator is not symmetric: u'Av and v'Au differ by {share:.1e} of ||A|| for unit "
            "vectors u and v. Pass a symmetric one, such as (A + A') / 2."
        )


def _save(group: list[_Draw], log: VectorLog) -> None:
    """Make the step just finished durable."""
    step, size = group[0].step, len(group[0].rows[0])
    nothing = np.zeros(size)
    log.append(
        [nothing if draw.following is None else draw.following for draw in group],
        {
            "alpha": np.stack([draw.alpha[:step] for draw in group]),
            "beta": np.stack([draw.beta[:step] for draw in group]),
            "norms": np.array([draw.norm for draw in group]),
        },
    )


def _restore(group: list[_Draw], log: VectorLog, operator: LinearOperator) -> None:
    """Take up the steps that a log holds, if they are of this operator."""
    if not log.num_vectors:
        return
    saved = log.arrays
    if not identifies(signature(operator)):
        # What it computes is not known: one product tells it from another.
        first = group[0].current
        alpha = first @ block_product(operator, first)
        expected, norm = float(saved["alpha"][0, 0]), float(saved["norms"][0])
        if not is_same_form(alpha, expected, norm, product_precision(operator)):
            raise CheckpointError(
                f"the checkpoint {log.path} is of another operator: the first coefficient of T is "
                f"{alpha:.9g} and was {expected:.9g}. Use another directory."
            )
    for i, draw in enumerate(group):
        draw.restore(
            saved["alpha"][i],
            saved["beta"][i],
            float(saved["norms"][i]),
            lambda step, i=i: log.read(step * len(group) + i),  # type: ignore[misc]
        )


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _basis_dtype(dtype: Any) -> np.dtype:
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if result not in (np.float32, np.float64):
        raise ValueError(f"basis_dtype must be 'float64' or 'float32', got {dtype!r}.")
    return result
