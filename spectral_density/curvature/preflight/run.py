"""Whether an operator is one fixed, symmetric, finite matrix, and the right derivative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from spectral_density._warnings import warn
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preflight.data import (
    Comparison,
    compare_passes,
    judge,
    of_all,
)
from spectral_density.curvature.preflight.examination import Examination
from spectral_density.curvature.preflight.report import (
    PreflightError,
    PreflightReport,
    Status,
)
from spectral_density.engines.data import Replicas
from spectral_density.linalg.arguments import integer

# The doubts that a user knows of, and the state in which an operator was found to be no worse.
_warned: WeakKeyDictionary[CurvatureOperator, set[str]] = WeakKeyDictionary()
_warned_of_data: WeakSet[Any] = WeakSet()
_checked: WeakKeyDictionary[CurvatureOperator, tuple[tuple[int, bool, str], PreflightReport]] = (
    WeakKeyDictionary()
)


def preflight(
    operator: CurvatureOperator, /, *, seed: int = 0, derivative: bool = True
) -> PreflightReport:
    r"""Find out whether an operator is one fixed, symmetric, finite matrix, and the right one.

    Two passes over the data with a random vector u. The second goes on in the state that the first
    left (seed generators have moved on), over the dataset iterated afresh, with its first batch
    cut in halves; a product of one half with another vector v is added, and what "derivative" and
    "gradient" take. Only where something differs are there more products with the first batch, to
    find out why, and in which layer.

    - finite: variables and products hold no NaN or infinity.
    - data: the dataset iterated again gives the same examples. In another order they are the same
      data where "split" passes, and results differ by rounding. Where they are others, or examples
      depend on their batch or (Monte Carlo labels) on their place, a matrix whose batches are kept
      in memory is fixed all the same, and another one for the next operator: a doubt. Where they
      stream it fails, unless the product is the same: a doubt too.
    - precision: how far the products are from those at full precision, where `matmul_precision`
      asks for less; asked then only. More than a tenth is a doubt.
    - repeatable: the second pass has the product of the first.
    - linearized: the product is the same with and without what is kept from one product to the
      next.
    - split: the first batch has the product that its two halves have together.
    - symmetric: u'Av = v'Au on a part of the first batch; the figure estimates
      ||A - A'||_F / ||A||_F, which is sqrt(n) times the gap relative to ||Au|| ||v||.
    - outputs: a loss of probabilities gets no logits, one of logits no probabilities. A doubt.
    - surrogate: no model or loss stops a gradient itself (`tf.stop_gradient`). Where one does, the
      matrix is that of the loss with the stopped values as constants: a doubt.
    - variables: which variables the loss does not depend on. Fails only where that is all of them.
    - derivative: the product of the first batch, at full precision, is the derivative that central
      differences show, layer by layer: for a Hessian of the gradient; for a matrix J'BJ, J of the
      outputs and B of the loss in the outputs (of the loss of each example, labels fixed, for the
      empirical and Monte Carlo Fisher matrix).
    - gradient: the gradient of the first batch has the slopes of its loss.

    "derivative" and "gradient" compare with the truth: what TensorFlow's tape gives may be wrong,
    and symmetric all the same. They take five gradients and one product of the first batch, two
    steps to either side along a direction that the matrix acts on. Active sets (ReLU, max-pooling,
    comparisons) and values that a loss of the user's stops gradients at are held, so that
    differences converge. A check fails where two step lengths agree with each other and not with
    the product by more than the rounding that the values show explains; where rounding hides the
    answer (half precision, a cross-entropy near zero, products that vanish) it is "skipped".

    Differences are relative norms; rounding is 1e-5 in float32, 1e-11 in float64, more in half
    precision or where products cancel, which is then measured, and by twice the figure of
    "precision" where that was asked.

    Args:
        operator: Hessian, Gauss-Newton or Fisher operator.
        seed: of the vectors.
        derivative: whether to ask "derivative" and "gradient"; recorded as skipped if not.

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
    with operator.derivatives.state.unchanged():
        if operator.sweep.replicas is not None:
            return _of_all_replicas(operator, operator.sweep.replicas, seed, derivative)
        examination = Examination(operator, operator.sweep, seed)
        examination.make_passes()
        examination.compare(derivative)
        return examination.report()


def _of_all_replicas(
    operator: CurvatureOperator, replicas: Replicas, seed: int, derivative: bool
) -> PreflightReport:
    """Look into the batches of each replica where it is, and put the reports together."""
    examinations = [
        Examination(operator, part, seed) if part.batches.parcels else None
        for part in operator.sweep.of_replicas()
    ]

    def make_passes(local: int) -> None:
        examination = examinations[local]
        if examination is not None:
            examination.make_passes()

    def here() -> list[tuple[float, PreflightReport, Comparison | None] | None]:
        # Models that write a state share it.
        replicas.each(make_passes, one_by_one=operator.derivatives.state.is_written)
        # The first batch is that of the first replica. The others wait: weights are moved.
        for local, examination in enumerate(examinations):
            if examination is not None and replicas.ids[local] == 0:
                with replicas.alone(local, on_device=True):
                    examination.compare(derivative)
        return [
            None
            if each is None
            else (len(each.sweep.batches.parcels), each.report(), each.comparison)
            for each in examinations
        ]

    found = replicas.gather(replicas.together(here))
    counted = [entry for entries in found for entry in entries if entry is not None]
    reports = [report for _, report, _ in counted]
    compared = [comparison for _, _, comparison in counted if comparison is not None]
    differences = [comparison.difference for comparison in compared]
    if any(differences):
        # A shuffle gives each replica a pass of its own: their parts are none of one dataset.
        whole = replicas.together(
            lambda: compare_passes(operator.batches, operator.derivatives.functions)
        )
        differences = replicas.gather(whole)
    worst: Sequence[Status] = ("failed", "doubtful", "passed", "skipped")
    names = dict.fromkeys(check.name for report in reports for check in report.checks)
    checks = []
    for name in names:
        same = [check for report in reports for check in report.checks if check.name == name]
        first = min(same, key=lambda check: worst.index(check.status))
        figures = [check.figure for check in same if check.figure is not None]
        if name == "data" and len(compared) == len(counted):
            checks.append(judge(of_all(compared, differences)))
        else:
            checks.append(replace(first, figure=max(figures, default=None)))
    unused = set.intersection(*(set(report.unused_variables) for report in reports))
    cost = sum(count * report.num_products for count, report, _ in counted) / len(operator.batches)
    in_order = tuple(name for name in operator.parameters.names if name in unused)
    return PreflightReport(repr(operator), tuple(checks), in_order, round(cost, 3))


def check(
    operator: CurvatureOperator, /, *, seed: int = 0, derivative: bool = True
) -> PreflightReport:
    """Raise if an operator is unsound; warn, once for each operator, if it is doubtful.

    Of a dataset whose examples change it warns once for all operators over it.

    An operator that was found sound, or doubtful, is not looked into again while the variables that
    its loss reads stay as they are: algorithms that check it one after the other pay once.
    `preflight` always looks afresh.

    Args:
        operator: see `preflight`.
        seed: see `preflight`.
        derivative: see `preflight`.

    Raises:
        PreflightError: naming what failed, with its figure.

    Warns:
        UserWarning: naming the doubts.
    """
    seed = integer(seed, "seed", 0)
    state = seed, bool(derivative), operator.hash_of_variables()
    if operator in _checked and _checked[operator][0] == state:
        return _checked[operator][1]
    report = preflight(operator, seed=seed, derivative=derivative)
    if report.failed:
        raise PreflightError(report)
    _checked[operator] = state, report
    already = _warned.setdefault(operator, set())
    new = [doubt for doubt in report.doubtful if doubt.name not in already]
    if any(doubt.name == "data" for doubt in new) and not _is_unwarned(operator.batches.dataset):
        already.add("data")
        new = [doubt for doubt in new if doubt.name != "data"]
    if new:
        already.update(doubt.name for doubt in new)
        text = "\n".join(f"- {doubt.message}" for doubt in new)
        warn(f"preflight leaves a doubt:\n{text}")
    return report


def _is_unwarned(dataset: Any) -> bool:
    """Tell whether a doubt about a dataset was not warned of yet, by whatever operator."""
    try:
        unwarned = dataset not in _warned_of_data
        _warned_of_data.add(dataset)
    except TypeError:  # a list or another iterable that cannot be remembered
        return True
    return unwarned
