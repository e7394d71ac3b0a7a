"""Is this operator really one fixed, symmetric, finite matrix? Two passes over the data tell."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import tensorflow as tf

from spectral_density.curvature.batches import batch_hash
from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.frameworks import keras_module, tf_variable
from spectral_density.curvature.losses import FunctionObjective, KerasObjective
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.outputs import standard_loss
from spectral_density.curvature.replicas import Replicas
from spectral_density.linalg.arguments import integer, stream

Status = Literal["passed", "doubtful", "failed", "skipped"]

# Relative differences that are rounding, by the coarsest dtype a model computes in. Another kernel
# for another batch size, or another order of summing, gives 4e-7 in float32.
_ROUNDING = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}
# Less than this, and without a cause to be found in the model, is a doubt and no proof.
_DOUBT = 1e-3
# Rounding as measured (what of a product does not scale) is known within this factor.
_MEASURED = 10.0
_PART = 1 << 20

_RANDOM_OPS = (
    *("Random", "Multinomial", "TruncatedNormal", "ParameterizedTruncatedNormal"),
    *("StatelessRandom", "StatelessMultinomial", "StatelessTruncatedNormal"),
    *("StatelessShuffle", "StatelessParameterizedTruncatedNormal"),
    *("StatefulRandom", "StatefulStandardNormal", "StatefulTruncatedNormal", "StatefulUniform"),
)
_WRITING_OPS = ("Assign", "ResourceScatter")

_PACKAGE = __name__.partition(".")[0] + "."

# The doubts that a user knows of, and the state in which an operator was found to be no worse.
_warned: WeakKeyDictionary[CurvatureOperator, set[str]] = WeakKeyDictionary()
_checked: WeakKeyDictionary[CurvatureOperator, tuple[tuple[int, str], PreflightReport]] = (
    WeakKeyDictionary()
)


class PreflightError(ValueError):
    """An operator is no fixed, symmetric, finite matrix; `report` has every check."""

    def __init__(self, report: PreflightReport):
        """Say what failed."""
        self.report = report
        failed = "\n".join(f"- {check.message}" for check in report.failed)
        super().__init__(
            f"preflight found that this is not one fixed symmetric matrix:\n{failed}\n"
            "The results of an algorithm on it would mean nothing. check=False skips this test."
        )


@dataclass(frozen=True)
class Check:
    """One question to the operator and its answer."""

    name: str
    status: Status
    figure: float | None  # what was measured, relative unless the message says otherwise
    message: str

    def __str__(self) -> str:
        """Show the answer in a line."""
        figure = "" if self.figure is None else f" ({self.figure:.2g})"
        return f"{self.status:8} {self.name}{figure}: {self.message}"


@dataclass(frozen=True)
class PreflightReport:
    """What preflight found out about an operator."""

    operator: str  # its repr
    checks: tuple[Check, ...]
    unused_variables: tuple[str, ...]  # names of those that the loss does not depend on
    num_products: float  # what it cost, in products of one vector with the whole dataset

    @property
    def failed(self) -> tuple[Check, ...]:
        """Return the checks that make the operator unsound."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def doubtful(self) -> tuple[Check, ...]:
        """Return the checks that leave a doubt."""
        return tuple(check for check in self.checks if check.status == "doubtful")

    @property
    def verdict(self) -> Literal["sound", "doubtful", "unsound"]:
        """Return what the checks say together."""
        return "unsound" if self.failed else "doubtful" if self.doubtful else "sound"

    def __getitem__(self, name: str) -> Check:
        """Return the check of that name.

        Raises:
            KeyError: if there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check is named {name!r}; there are {[c.name for c in self.checks]}.")

    def __str__(self) -> str:
        """List all checks, one a line."""
        lines = [f"{self.operator}: {self.verdict}", *(f"  {check}" for check in self.checks)]
        return "\n".join([*lines, f"  cost: {self.num_products:.3g} products with one vector"])


def preflight(operator: CurvatureOperator, /, *, seed: int = 0) -> PreflightReport:
    r"""Find out whether an operator is one fixed, symmetric, finite matrix.

    Two passes over the data with a random vector u. The second goes on in the state that the first
    left (seed generators have moved on), over the dataset iterated afresh, with its first batch
    cut in halves; a product of one half with another vector v is all that is added. Only where
    something differs are there more products with the first batch, to find out why.

    - finite: variables and products hold no NaN or infinity.
    - data: the dataset iterated again gives the same batches. Where it does not and the batches
      are kept in memory, the matrix is fixed all the same, and another one for the next operator:
      a doubt. Where they stream it fails, unless the product is the same (shuffled only), or the
      batches are and the pipeline does not promise it (`deterministic=False`): a doubt too.
    - repeatable: the second pass has the product of the first.
    - split: the first batch has the product that its two halves have together.
    - symmetric: u'Av = v'Au on a part of the first batch; the figure estimates
      ||A - A'||_F / ||A||_F, which is sqrt(n) times the gap relative to ||Au|| ||v||.
    - outputs: a loss of probabilities gets no logits, one of logits no probabilities. A doubt.
    - variables: which variables the loss does not depend on. Fails only where that is all of them.

    Differences are relative norms; rounding is 1e-5 in float32, 1e-11 in float64, more in half
    precision or where products cancel, which is then measured.

    Args:
        operator: Hessian, Gauss-Newton or Fisher operator.
        seed: of the two vectors.

    Returns:
        The report; nothing is raised or warned of, see `CurvatureOperator.check`.

    Raises:
        TypeError: if the operator is of another kind.
    """
    if not isinstance(operator, CurvatureOperator):
        raise TypeError(
            "preflight looks into a model, a loss and a dataset, so it takes a HessianOperator, "
            f"GaussNewtonOperator or FisherOperator, got {type(operator).__name__}."
        )
    seed = integer(seed, "seed", 0)
    with operator._put_back():
        if operator._replicas is not None:
            return _of_all_replicas(operator, operator._replicas, seed)
        return _Flight(operator, seed).report()


def _of_all_replicas(operator: CurvatureOperator, replicas: Replicas, seed: int) -> PreflightReport:
    """Look into the batches of each replica where it is, and put the reports together."""
    parts = operator._of_replicas()

    def report(local: int) -> tuple[float, PreflightReport] | None:
        count = len(parts[local].batches.parcels)
        return (count, _Flight(parts[local], seed).report()) if count else None

    # Models that write a state share it.
    one_by_one = bool(operator._state)
    found = replicas.gather(replicas.together(lambda: replicas.each(report, one_by_one)))
    counted = [entry for entries in found for entry in entries if entry is not None]
    reports = [report for _, report in counted]
    worst: Sequence[Status] = ("failed", "doubtful", "passed", "skipped")
    names = dict.fromkeys(check.name for report in reports for check in report.checks)
    checks = []
    for name in names:
        same = [check for report in reports for check in report.checks if check.name == name]
        first = min(same, key=lambda check: worst.index(check.status))
        figures = [check.figure for check in same if check.figure is not None]
        checks.append(replace(first, figure=max(figures, default=None)))
    unused = set.intersection(*(set(report.unused_variables) for report in reports))
    cost = sum(count * report.num_products for count, report in counted) / len(operator.batches)
    in_order = tuple(name for name in operator.parameters.names if name in unused)
    return PreflightReport(repr(operator), tuple(checks), in_order, round(cost, 3))


def check(operator: CurvatureOperator, /, *, seed: int = 0) -> PreflightReport:
    """Raise if an operator is unsound; warn, once for each operator, if it is doubtful.

    An operator that was found sound, or doubtful, is not looked into again while the weights of its
    model stay as they are: algorithms that check it one after the other pay once. `preflight`
    always looks afresh.

    Args:
        operator: see `preflight`.
        seed: see `preflight`.

    Raises:
        PreflightError: naming what failed, with its figure.

    Warns:
        UserWarning: naming the doubts.
    """
    seed = integer(seed, "seed", 0)
    state = seed, _weights_hash(operator)
    if operator in _checked and _checked[operator][0] == state:
        return _checked[operator][1]
    report = preflight(operator, seed=seed)
    if report.failed:
        raise PreflightError(report)
    _checked[operator] = state, report
    already = _warned.setdefault(operator, set())
    new = [doubt for doubt in report.doubtful if doubt.name not in already]
    if new:
        already.update(doubt.name for doubt in new)
        text = "\n".join(f"- {doubt.message}" for doubt in new)
        level = _level_of_caller()
        warnings.warn(f"preflight leaves a doubt:\n{text}", UserWarning, stacklevel=level)
    return report


def _weights_hash(operator: CurvatureOperator) -> str:
    model_variables = getattr(operator.objective.model, "variables", ())
    return batch_hash([*operator.parameters.variables, *map(tf_variable, model_variables)])


def _level_of_caller() -> int:
    """Return the stack level, as seen by the caller of this, of the first frame that is a user's.

    Algorithms check their operators, and a warning should show the line that started them.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


class _Halves(NamedTuple):
    """The first batch in two parts."""

    products: list[np.ndarray]  # of each part with u, shape (n,)
    shares: list[float]  # of the examples


class _Flight:
    """The passes over the data, and what they showed.

    Products of one batch are held in the dtype they were computed in: they are many, and long.
    """

    def __init__(self, operator: CurvatureOperator, seed: int):
        self.operator = operator
        self.checks: list[Check] = []
        self.num_products = 0.0
        self.unused: tuple[str, ...] = ()
        self.changed = 0  # batches that are others on the second pass
        self.stopped = ""  # what ended a pass early
        self.rounding = _rounding(operator)
        self.limit = max(_DOUBT, 3 * self.rounding)
        normals = [stream(seed, k).normal(size=operator.parameters.size) for k in range(2)]
        self.u, self.v = (operator._rows(v[None] / np.linalg.norm(v)) for v in normals)

    def report(self) -> PreflightReport:
        if self._variables_finite() and self._first_pass() and self._depends():
            self._second_pass()
            self._judge()
        cost = round(self.num_products, 3)
        return PreflightReport(repr(self.operator), tuple(self.checks), self.unused, cost)

    # The two passes ------------------------------------------------------------------------------

    def _first_pass(self) -> bool:
        operator = self.operator
        operator.num_passes += 1
        self.hashes: list[str] = []
        rest = self._zeros()
        for position, (entry, weight) in enumerate(self._entries()):
            if not operator.batches.kept:
                self.hashes.append(batch_hash(entry))
            if position == 0:
                self.entry, self.weight = entry, weight
                self.first = self._product(entry, weight, self.u)
            else:
                rest = self._added(entry, weight, rest)
        self.rest = np.array(rest)[0]
        if self.stopped:
            self._add("data", "failed", None, f"the data changes: {self.stopped}")
            return False
        return self._products_finite()

    def _second_pass(self) -> None:
        """Multiply again, the first batch in halves, and look at the data iterated afresh."""
        operator = self.operator
        operator.num_passes += 1
        self.halves = self._in_halves()
        if self.halves is None:
            # Both vectors in one state of the model.
            with operator._put_back():
                self.along_u = self._product(self.entry, self.weight, self.u)
            self.along_v = self._product(self.entry, self.weight, self.v)
        # A first batch that is another one on a stream: what the product would be with it.
        self.fresh_first = self.first
        rest = self._zeros()
        for position, (entry, weight) in enumerate(self._entries()):
            if not operator.batches.kept:
                same = batch_hash(entry) == self.hashes[position]
                self.changed += not same
                if position == 0 and not same:
                    self.fresh_first = self._product(entry, weight, self.u)
            if position:
                rest = self._added(entry, weight, rest)
        self.rest_again = np.array(rest)[0]
        if operator.batches.kept:
            self._compare_with_kept()

    def _entries(self) -> Iterator[tuple[Any, tf.Tensor]]:
        entries = iter(self.operator._weighted_batches())
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except ValueError as error:  # another number of batches than before
                self.stopped = str(error)
                return
            yield entry

    def _compare_with_kept(self) -> None:
        """Count the batches of the dataset, iterated afresh, that are not the kept ones."""
        batches = self.operator.batches
        kept = [batch_hash(batch) for batch in batches]
        fresh = [batch_hash(batch) for batch in islice(batches._stream(), len(kept) + 1)]
        self.changed = sum(a != b for a, b in zip(fresh, kept, strict=False))
        if len(fresh) != len(kept):
            found = f"more than {len(kept)}" if len(fresh) > len(kept) else str(len(fresh))
            self.stopped = f"the dataset gave {found} batches on this pass and {len(kept)} before."

    def _in_halves(self) -> _Halves | None:
        """Multiply the halves of the first batch with u; the first, in the same state, with v."""
        self.why_whole = ""
        try:
            cut = _cut(self.operator, self.entry, self.weight)
            if cut is None:
                self.why_whole = "the first batch has one example, or none that can be told apart"
                return None
            (a, b), shares = cut
            with self.operator._put_back():
                self.along_u = self._product(*a, self.u, share=shares[0])
            self.along_v = self._product(*a, self.v, share=shares[0])
            other = self._product(*b, self.u, share=shares[1])
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            # Models of a fixed batch size take no halves.
            self.why_whole = f"the model or loss takes no half of a batch ({_line(error)})"
            return None
        return _Halves([self.along_u, other], shares)

    # Products ------------------------------------------------------------------------------------

    def _zeros(self) -> tf.Tensor:
        return tf.zeros(self.u.shape, tf.float64)

    def _added(self, entry: Any, weight: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
        operator = self.operator
        self.num_products += 1 / len(operator.batches.parcels)
        return operator._product_fn(1)(entry, weight, operator._scales, self.u, total)[0]

    def _product(
        self, entry: Any, weight: tf.Tensor, rows: tf.Tensor, share: float = 1.0
    ) -> np.ndarray:
        """Return the product of one batch with vectors, (k, n), or (n,) for one of them."""
        operator = self.operator
        self.num_products += share * len(rows) / len(operator.batches.parcels)
        zeros = tf.zeros(rows.shape, tf.float64)
        multiply = operator._product_fn(len(rows))
        products = multiply(entry, weight, operator._scales, rows, zeros)[0]
        found = np.array(tf.cast(products, operator.product_dtype))
        return found[0] if len(found) == 1 else found

    # What they mean ------------------------------------------------------------------------------

    def _judge(self) -> None:
        again = self.along_u if self.halves is None else sum(self.halves.products)
        split_figure = _difference(again, self.first)
        figure = 0.0 if self.halves else split_figure
        streams = not self.operator.batches.kept
        # On a stream of other data the rest is the product with another matrix.
        if not (streams and (self.changed or self.stopped)):
            figure = max(figure, _difference(self.rest_again, self.rest))
        random: list[str] = []
        writers: list[str] = []
        if max(figure, split_figure) > self.rounding:
            self._measure_rounding()
        if max(figure, split_figure) > self.rounding:
            random, writers = _culprits(self.operator, self.entry)
            figure = max(figure, self._unrepeated())
        repeats = figure <= self.rounding
        self._judge_data(repeats)
        self._judge_repeat(figure, random, writers)
        self._judge_split(split_figure, repeats, random, writers)
        self._judge_symmetry(repeats)
        self._judge_outputs()
        self._list_variables()

    def _measure_rounding(self) -> None:
        """Take what does not scale with the vector for rounding: two columns of one graph."""
        rows = tf.concat([self.u, self.u / 3], axis=0)
        product, third = self._product(self.entry, self.weight, rows)
        self.rounding = max(self.rounding, _MEASURED * _difference(3 * third, product))

    def _unrepeated(self) -> float:
        """Return how far products of the first batch differ, in one state and in a later one."""
        once, twice = self._at_rest(), self._at_rest()
        return max(_difference(twice, once), _difference(once, self.first))

    def _at_rest(self) -> np.ndarray:
        with self.operator._put_back():
            return self._product(self.entry, self.weight, self.u)

    def _status(self, figure: float, cause: bool) -> Status:
        if figure <= self.rounding:
            return "passed"
        return "failed" if cause or figure > self.limit else "doubtful"

    def _judge_data(self, repeats: bool) -> None:
        batches = self.operator.batches
        # A shuffle that gave the same batches twice has a single one, or a single order.
        unsteady = [stage for stage in batches.unsteady if "shuffle" not in stage]
        if not (self.changed or self.stopped):
            message = "the dataset gives the same batches again."
            if unsteady and not batches.kept:
                message = (
                    f"the dataset gave the same batches again, and need not: {'; '.join(unsteady)}"
                    " lets them come in another order, so that runs do not repeat to the bit."
                )
            status: Status = "doubtful" if unsteady and not batches.kept else "passed"
            self._add("data", status, 0.0, message)
            return
        found = f"{self.changed} of {len(batches)} batches are others when iterated afresh"
        if self.stopped:
            found = f"{self.stopped.rstrip('.')}; {found}"
        fixed = (
            "Is it shuffled (fix the order: reshuffle_each_iteration=False, or no shuffle), are "
            "examples drawn at random or dropped by drop_remainder, augmented at random, or made "
            "by a generator with a state of its own?"
        )
        if batches.unsteady:
            fixed = f"The pipeline has {'; '.join(batches.unsteady)}. {fixed}"
        share = self.changed / len(batches)
        if batches.kept:
            self._add(
                "data",
                "doubtful",
                share,
                f"the data changes: {found}. This operator keeps the batches it saw and is a fixed "
                f"matrix; the next operator, or one that streams, is another. {fixed}",
            )
            return
        figure = _difference(self.fresh_first + self.rest_again, self.first + self.rest)
        same = figure <= self.rounding and not self.stopped
        effect = (
            f"and the product is the same to {figure:.1g}: the same examples in another order."
            if same
            else f"and the product changes by {figure:.2g}: each pass is another matrix."
        )
        # Where the model is random there is no telling what the data adds.
        self._add(
            "data",
            "doubtful" if same or (not repeats and not self.stopped) else "failed",
            figure,
            f"the data changes: {found}, {effect} {fixed}",
        )

    def _judge_repeat(self, figure: float, random: list[str], writers: list[str]) -> None:
        status = self._status(figure, bool(random))
        if status == "passed":
            self._add("repeatable", "passed", figure, "the same product twice is the same.")
            return
        message = f"the same product twice differs by {figure:.2g} of its norm. "
        if random:
            message += (
                f"It is random: {', '.join(random)}. Call the model with training=False, or take "
                "the randomness out."
            )
        elif writers:
            message += (
                f"It depends on a state that each call changes: {', '.join(writers)}. Call the "
                "model with training=False."
            )
        else:
            message += (
                "No random operation was found in the graph: look for py_function, or for "
                "operations that are not deterministic (tf.config.experimental."
                "enable_op_determinism)."
            )
        self._add("repeatable", status, figure, message)

    def _judge_split(
        self, figure: float, repeats: bool, random: list[str], writers: list[str]
    ) -> None:
        if self.halves is None or not repeats:
            why = self.why_whole or "the product does not repeat"
            self._add("split", "skipped", None, f"not judged: {why}.")
            return
        status = self._status(figure, bool(writers))
        if status == "passed":
            self._add("split", status, figure, "a batch has the product of its two halves.")
            return
        message = f"cutting a batch in halves changes its product by {figure:.2g} of its norm. "
        self._add(
            "split", status, figure, message + self._why_not_split(self.halves, random, writers)
        )

    def _why_not_split(self, halves: _Halves, random: list[str], writers: list[str]) -> str:
        (a, b), (share_a, share_b) = halves
        if isinstance(self.operator.objective, FunctionObjective):
            if _difference(share_a * a + share_b * b, self.first) <= self.rounding:
                return (
                    'The loss is a mean over the batch, declared as a sum: pass reduction="mean".'
                )
            if _difference(a / share_a + b / share_b, self.first) <= self.rounding:
                return 'The loss is a sum over the batch, declared as a mean: pass reduction="sum".'
        if random:
            return f"Random numbers depend on the place in the batch: {', '.join(random)}."
        if writers:
            return (
                f"Examples depend on the others in their batch through {', '.join(writers)} in "
                "training mode: call the model with training=False."
            )
        norms = _batch_norms(self.operator.objective.model)
        hint = f" The model holds {', '.join(norms)}: in training mode?" if norms else ""
        return (
            "The loss of an example depends on the others in its batch (batch statistics, "
            "contrastive losses), or it is neither a mean nor a sum over examples, or batch_weight "
            f"is not the weight of a batch.{hint}"
        )

    def _judge_symmetry(self, repeats: bool) -> None:
        if not repeats:
            self._add("symmetric", "skipped", None, "not judged: the product does not repeat.")
            return
        operator = self.operator
        products = [
            np.asarray(product, np.float64) / operator._divisor
            for product in (self.along_u, self.along_v)
        ]
        if operator._penalized:
            for product, rows in zip(products, (self.u, self.v), strict=True):
                product += np.array(operator._penalty_products_fn(rows)[0])[0]
        u, v = (np.array(rows, np.float64)[0] for rows in (self.u, self.v))
        scale = max(float(np.linalg.norm(product)) for product in products)
        gap = abs(float(v @ products[0] - u @ products[1]))
        # Of unit vectors at random the gap is ||A - A'||_F / n, and ||Au|| is ||A||_F / sqrt(n).
        figure = gap / scale * len(u) ** 0.5 if scale else 0.0
        if figure > self.rounding:
            self._measure_rounding()
        status = self._status(figure, cause=False)
        message = (
            "u'Av = v'Au."
            if status == "passed"
            else f"u'Av and v'Au differ: A - A' is about {figure:.2g} of A by norm. Look for "
            "tf.custom_gradient, tf.stop_gradient or py_function: the gradient of a gradient is "
            "no second derivative then."
        )
        self._add("symmetric", status, figure, message)

    def _judge_outputs(self) -> None:
        objective = self.operator.objective
        if not isinstance(objective, KerasObjective):
            return
        doubts, worst = _mistaken_outputs(objective, _plain(self.operator, self.entry))
        if doubts:
            self._add("outputs", "doubtful", worst, " ".join(doubts))
        else:
            self._add("outputs", "passed", None, "the outputs are what the loss expects.")

    # Numbers and variables -----------------------------------------------------------------------

    def _variables_finite(self) -> bool:
        parameters = self.operator.parameters
        spoiled = [
            name
            for name, variable in zip(parameters.names, parameters.variables, strict=True)
            if not np.isfinite(np.asarray(tf.cast(variable, tf.float64))).all()
        ]
        if spoiled:
            self._add(
                "finite", "failed", None, f"NaN or infinity in the weights: {', '.join(spoiled)}."
            )
        return not spoiled

    def _products_finite(self) -> bool:
        operator = self.operator
        arguments = ("product", operator._product_fn(1), self.u, self._zeros())
        try:
            for total in (self.first, self.rest):
                operator._check_finite(total, *arguments)
        except FloatingPointError as error:
            self._add("finite", "failed", None, str(error))
            return False
        self._add("finite", "passed", None, "variables and products are finite.")
        return True

    def _depends(self) -> bool:
        if not self.operator._depends:
            self.unused = self.operator.parameters.names
            self._add(
                "variables",
                "failed",
                None,
                "the loss does not depend on any of the variables chosen: "
                f"{', '.join(self.unused)}. Does loss_fn use the model it is given?",
            )
        return self.operator._depends

    def _list_variables(self) -> None:
        """List the variables without a gradient; only those without a product need a look."""
        operator = self.operator
        parameters = operator.parameters
        silent = [
            i
            for i, where in enumerate(parameters.slices)
            if not (self.first[where].any() or self.rest[where].any())
        ]
        if silent:
            variables = [parameters.variables[i] for i in silent]
            has = _gradient_reaches(operator, self.entry, self.weight, variables)
            pairs = zip(silent, has, strict=True)
            self.unused = tuple(parameters.names[i] for i, reached in pairs if not reached)
        message = (
            f"the loss does not use {', '.join(self.unused)}; their rows are zero."
            if self.unused
            else "the loss uses every variable."
        )
        self._add("variables", "passed", None, message)

    def _add(self, name: str, status: Status, figure: float | None, message: str) -> None:
        self.checks.append(Check(name, status, figure, message))


# Numbers -----------------------------------------------------------------------------------------


def _difference(found: Any, expected: np.ndarray) -> float:
    """Return the norm of the difference relative to the larger norm; infinity where not finite."""
    squares = np.zeros(3)
    found, expected = found.reshape(-1), expected.reshape(-1)
    # In parts: no float64 copy of a whole.
    for start in range(0, len(expected), _PART):
        a = np.asarray(found[start : start + _PART], np.float64)
        b = np.asarray(expected[start : start + _PART], np.float64)
        squares += [np.sum((a - b) ** 2), np.sum(a**2), np.sum(b**2)]
    gap, *norms = np.sqrt(squares).tolist()
    if not np.isfinite(gap):
        return np.inf
    return gap / max(norms) if gap else 0.0


def _rounding(operator: CurvatureOperator) -> float:
    """Return the relative rounding of products in the coarsest dtype that a layer computes in."""
    dtypes = {operator.product_dtype.name}
    dtypes |= {v.dtype.name for v in operator.parameters.variables}
    dtypes |= {str(getattr(layer, "compute_dtype", "")) for layer in _layers(operator)}
    return max(_ROUNDING[dtype] for dtype in dtypes if dtype in _ROUNDING)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


# A batch in two parts ----------------------------------------------------------------------------


def _plain(operator: CurvatureOperator, entry: Any) -> Any:
    """Return what the dataset gave: a Fisher operator adds the number of the first example."""
    return entry[0] if isinstance(operator, FisherOperator) else entry


def _cut(
    operator: CurvatureOperator, entry: Any, weight: tf.Tensor
) -> tuple[list[tuple[Any, tf.Tensor]], list[float]] | None:
    """Return two parts of a batch with their weights, and their shares of the examples."""
    batch = _plain(operator, entry)
    leaves = [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]
    sizes = {leaf.shape[0] for leaf in leaves if leaf.shape.rank}
    sparse = any(isinstance(leaf, tf.SparseTensor) for leaf in leaves)
    if sparse or len(sizes) != 1 or None in sizes or min(sizes) < 2:
        return None
    size = sizes.pop()
    middle = size // 2
    bounds = [(0, middle), (middle, size)]

    def part(start: int, stop: int) -> Any:
        def cut(leaf: Any) -> Any:
            return leaf if leaf is None or not leaf.shape.rank else leaf[start:stop]

        return tf.nest.map_structure(cut, batch)

    parts = [part(*bound) for bound in bounds]
    shares = [(stop - start) / size for start, stop in bounds]
    # Weights that a user gives need not add up: one for each batch, say.
    weights = [operator.batches._weight(half) for half in parts]
    if not np.isclose(sum(weights), float(weight), rtol=1e-6):
        weights = [float(weight) * share for share in shares]
    entries = parts
    if isinstance(operator, FisherOperator):
        entries = [(half, entry[1] + start) for half, (start, _) in zip(parts, bounds, strict=True)]
    tensors = [tf.constant(w, tf.float64) for w in weights]
    return list(zip(entries, tensors, strict=True)), shares


# The model ---------------------------------------------------------------------------------------


def _layers(operator: CurvatureOperator) -> list[Any]:
    model = operator.objective.model
    if keras_module(model) is not None:
        return list(model._flatten_layers())
    return [model, *getattr(model, "submodules", ())] if model is not None else []


def _batch_norms(model: Any) -> list[str]:
    if keras_module(model) is None:
        return []
    return [
        f"{type(layer).__name__} {layer.name!r}"
        for layer in model._flatten_layers()
        if "BatchNorm" in type(layer).__name__
    ]


def _culprits(operator: CurvatureOperator, entry: Any) -> tuple[list[str], list[str]]:
    """Return the layers (or operations) of the forward pass that draw numbers, and that write.

    The graph knows what is switched on: dropout in inference draws nothing.
    """
    batch = _plain(operator, entry)
    weight = tf.constant(1.0, tf.float64)
    definition = operator._sums_fn.get_concrete_function(batch, weight).graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    random = [node for node in nodes if node.op.startswith(_RANDOM_OPS)]
    random = [node for node in random if "GetKeyCounter" not in node.op and "GetAlg" not in node.op]
    writing = [node for node in nodes if node.op.startswith(_WRITING_OPS)]
    layers = {layer.name: layer for layer in _layers(operator) if getattr(layer, "name", None)}
    drawing = _named(random, layers)
    return drawing, [name for name in _named(writing, layers) if name not in drawing]


def _named(nodes: list[Any], layers: dict[str, Any]) -> list[str]:
    """Return the innermost layers in whose scopes nodes lie, or else the operations."""
    found: Counter[str] = Counter()
    for node in nodes:
        inside = [
            layer for scope in node.name.split("/")[:-1] if (layer := _of_scope(scope, layers))
        ]
        if inside:
            found[f"{type(inside[-1]).__name__} {inside[-1].name!r}"] += 1
        else:
            found[f"the operation {node.op} ({node.name})"] += 1
    # Operations without a layer say no more where layers are known (copies in loops, seeds).
    named = [name for name in found if not name.startswith("the operation")]
    return named or list(found)[:3]


def _of_scope(scope: str, layers: dict[str, Any]) -> Any:
    """Return the layer that a name scope belongs to, or None.

    Keras 3 enters a scope once for itself and once for the layer, so that the second ends in _1,
    further calls in _2 and so on.
    """
    stem = re.sub(r"_\d+$", "", scope)
    return layers.get(stem if stem != scope and stem in layers else scope)


def _gradient_reaches(
    operator: CurvatureOperator, entry: Any, weight: tf.Tensor, variables: list[tf.Variable]
) -> list[bool]:
    reaches: list[bool] = []

    def trace(entry: Any, weight: tf.Tensor) -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = operator._batch_value(entry, weight, operator._scales)
            penalty = operator.objective.penalty()
            if penalty is not None:
                value += tf.cast(penalty, value.dtype)
        reaches.extend(part is not None for part in tape.gradient(value, variables))

    graph = tf.function(trace, autograph=operator.objective.autograph)
    graph.get_concrete_function(entry, weight)
    return reaches[-len(variables) :]


def _mistaken_outputs(objective: KerasObjective, batch: Any) -> tuple[list[str], float | None]:
    """Return what looks like logits where probabilities belong, or the reverse."""
    suspects = []
    for term in objective._terms:
        name, options = standard_loss(term.loss) if term is not None else (None, {})
        of_probabilities = name is not None and (
            "crossentropy" in name or name in ("kl_divergence",)
        )
        suspects.append((name, options.get("from_logits", False)) if of_probabilities else None)
    if not any(suspects):
        return [], None
    outputs = objective.outputs_of(batch)  # once: tracing would cost more
    doubts: list[str] = []
    worst: float | None = None
    for position, (suspect, output) in enumerate(
        zip(suspects, tf.nest.flatten(outputs), strict=True)
    ):
        if suspect is None:
            continue
        name, from_logits = suspect
        values = np.asarray(tf.cast(output, tf.float64))
        low, high = float(values.min()), float(values.max())
        inside = low >= -1e-3 and high <= 1 + 1e-3
        which = f"output {position}" if len(suspects) > 1 else "the output"
        if not from_logits and not inside:
            worst = max(worst or 0.0, -low, high - 1)
            doubts.append(
                f"{which} lies in [{low:.3g}, {high:.3g}], and {name} expects probabilities: are "
                "these logits? Then pass from_logits=True."
            )
        elif from_logits and "binary" not in str(name) and values.shape[-1] > 1 and inside:
            off = float(np.abs(values.sum(axis=-1) - 1).max())
            if off <= 1e-2:
                worst = max(worst or 0.0, off)
                doubts.append(
                    f"{which} lies in [{low:.3g}, {high:.3g}] and sums to 1 (to {off:.1g}), and "
                    f"{name} expects logits: are these probabilities? Then drop from_logits=True."
                )
    return doubts, worst
