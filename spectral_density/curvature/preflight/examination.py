"""What two passes over the data say: one judgement for each question."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.curvature.finite import check_penalty
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preflight.data import Comparison, judge
from spectral_density.curvature.preflight.first_batch import compare_with_differences
from spectral_density.curvature.preflight.halves import Halves
from spectral_density.curvature.preflight.passes import Passes, difference
from spectral_density.curvature.preflight.report import Check, PreflightReport, Status
from spectral_density.curvature.preflight.surrogate import surrogate
from spectral_density.curvature.sweep import Sweep

# Less than this, and without a cause to be found in the model, is a doubt and no proof.
_DOUBT = 1e-3

# Products that are further off full precision say little.
_IMPRECISE = 0.1


class Examination:
    """The questions to one operator, asked in turn."""

    def __init__(self, operator: CurvatureOperator, sweep: Sweep, seed: int):
        self.operator = operator
        self.sweep = sweep  # over all of its data, or over what one replica computes
        self.derivatives = operator.derivatives
        self._seed = seed
        self._repeats: bool | None = None  # not known where it was stopped before
        self.passes = Passes(sweep, seed)
        self.checks: list[Check] = []
        self.unused: tuple[str, ...] = ()
        self.comparison: Comparison | None = None  # of the data of both passes

    @property
    def limit(self) -> float:
        """What is more than a doubt."""
        return max(_DOUBT, 3 * self.passes.rounding)

    def make_passes(self) -> None:
        """Make the passes, as far as there is a point in it, and judge them."""
        if self._variables_finite() and self._first_pass() and self._depends():
            self._judge_precision()
            self.passes.make_second()
            self._judge()

    def report(self) -> PreflightReport:
        """Return what was found so far."""
        cost = round(self.passes.num_products, 3)
        return PreflightReport(repr(self.operator), tuple(self.checks), self.unused, cost)

    def _first_pass(self) -> bool:
        passes = self.passes
        passes.make_first()
        if passes.stopped:
            self._add("data", "failed", None, f"the data changes: {passes.stopped}")
            return False
        return self._products_finite()

    def _judge(self) -> None:
        passes = self.passes
        again = passes.along_u if passes.halves is None else sum(passes.halves.products)
        split_figure = difference(again, passes.first)
        figure = 0.0 if passes.halves else split_figure
        streams = not self.sweep.batches.kept
        # On a stream of other data the rest is the product with another matrix.
        if not (streams and (passes.changed or passes.stopped)):
            figure = max(figure, difference(passes.rest_again, passes.rest))
        random: list[str] = []
        writers: list[str] = []
        if max(figure, split_figure) > passes.rounding:
            passes.measure_rounding()
        if max(figure, split_figure) > passes.rounding:
            random, writers = self.derivatives.inspection.random_and_writing(passes.at.batch)
            figure = max(figure, passes.unrepeated())
        repeats = self._repeats = figure <= passes.rounding
        self._judge_repeat(figure, random, writers)
        self._judge_linearized(repeats)
        self._judge_split(split_figure, repeats, random, writers)
        self._judge_data(repeats)
        self._judge_symmetry(repeats)
        self._judge_loss()
        self._list_variables()

    def _status(self, figure: float, cause: bool) -> Status:
        if figure <= self.passes.rounding:
            return "passed"
        return "failed" if cause or figure > self.limit else "doubtful"

    def _judge_data(self, repeats: bool) -> None:
        """Compare the data of the passes; what another order means follows from "split"."""
        passes, batches = self.passes, self.sweep.batches
        figure = None
        if passes.data and not batches.kept:
            figure = difference(passes.fresh_first + passes.rest_again, passes.first + passes.rest)
        self.comparison = Comparison(
            num_batches=len(batches),
            difference=passes.data,
            kept=batches.kept,
            stages=batches.unsteady,
            coupling=self._coupling(),
            numbered=self.operator.numbers_examples,
            repeats=repeats,
            figure=figure,
            rounding=passes.rounding,
            limit=self.limit,
        )
        # Listed behind "finite".
        self.checks.insert(1, judge(self.comparison))

    def _coupling(self) -> str:
        """Return why examples may not change their places, "" where nothing speaks against it."""
        if self.operator.numbers_examples:
            return "the labels of a Monte Carlo Fisher matrix are drawn by the places of examples"
        split = next(check for check in self.checks if check.name == "split")
        if split.status == "skipped":
            return "it is not known whether the loss is a sum over examples"
        if split.status != "passed":
            return "the loss of an example depends on its batch"
        if not self.passes.weights_add_up:
            return "batch_weight of a batch is not the sum of that of its halves"
        return ""

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
                "No random operation was found in the graph: look for a Python function, or for "
                "operations that are not deterministic (with TensorFlow, tf.config.experimental."
                "enable_op_determinism)."
            )
        self._add("repeatable", status, figure, message)

    def _judge_precision(self) -> None:
        """State how far products are from those at full precision, where less was asked for."""
        lower, figure = self.operator.matmul_precision, self.operator.product_error
        if lower is None:
            return
        passes = self.passes
        passes.num_products += 2 / len(self.sweep.batches.parcels)
        # Two products that should be the same may be off to either side.
        passes.rounding += 2 * figure
        message = (
            f"products in {lower} are {figure:.2g} of their norm off those at full precision, "
            "which bounds of results count."
            if figure
            else f"products in {lower} are those at full precision: this device has nothing less."
        )
        if figure <= _IMPRECISE:
            self._add("precision", "passed", figure, message)
        else:
            advice = f"{message} Leave matmul_precision out."
            self._add("precision", "doubtful", figure, advice)

    def _judge_linearized(self, repeats: bool) -> None:
        """Compare the product with that from what is kept between products."""
        linearized = self.passes.linearized() if repeats else None
        if linearized is None:
            why = "nothing is kept between products" if repeats else "the product does not repeat"
            self._add("linearized", "skipped", None, f"not judged: {why}.")
            return
        figure = difference(linearized, self.passes.first)
        if figure <= self.passes.rounding:
            message = "the product from what is kept of a batch is the same."
            self._add("linearized", "passed", figure, message)
            return
        message = (
            f"what is kept of a batch between products gives another product, {figure:.2g} off: "
            "pass linearize=False, and report the model."
        )
        self._add("linearized", "failed", figure, message)

    def _judge_split(
        self, figure: float, repeats: bool, random: list[str], writers: list[str]
    ) -> None:
        passes = self.passes
        if passes.halves is None or not repeats:
            why = passes.why_whole or "the product does not repeat"
            self._add("split", "skipped", None, f"not judged: {why}.")
            return
        status = self._status(figure, bool(writers))
        if status == "passed":
            self._add("split", status, figure, "a batch has the product of its two halves.")
            return
        message = f"cutting a batch in halves changes its product by {figure:.2g} of its norm. "
        self._add(
            "split",
            status,
            figure,
            message + _why_not_split(passes, passes.halves, random, writers),
        )

    def _judge_symmetry(self, repeats: bool) -> None:
        passes = self.passes
        if not repeats:
            self._add("symmetric", "skipped", None, "not judged: the product does not repeat.")
            return
        products = [
            np.asarray(product, np.float64) / self.sweep.divisor
            for product in (passes.along_u, passes.along_v)
        ]
        if self.derivatives.penalized:
            for product, vectors in zip(products, (passes.u, passes.v), strict=True):
                product += np.asarray(self.derivatives.penalty_products(self._rows(vectors))[0])[0]
        u, v = (np.asarray(vectors, np.float64)[0] for vectors in (passes.u, passes.v))
        scale = max(float(np.linalg.norm(product)) for product in products)
        gap = abs(float(v @ products[0] - u @ products[1]))
        # Of unit vectors at random the gap is ||A - A'||_F / n, and ||Au|| is ||A||_F / sqrt(n).
        figure = gap / scale * len(u) ** 0.5 if scale else 0.0
        if figure > passes.rounding:
            passes.measure_rounding()
        status = self._status(figure, cause=False)
        message = (
            "u'Av = v'Au."
            if status == "passed"
            else f"u'Av and v'Au differ: A - A' is about {figure:.2g} of A by norm. Look for "
            "a custom gradient, a stopped gradient or a Python function: the gradient of a "
            "gradient is no second derivative then."
        )
        self._add("symmetric", status, figure, message)

    def compare(self, derivative: bool = True) -> None:
        """Compare product and gradient of the first batch with differences, if asked for.

        Weights are moved meanwhile: nothing else may compute with them.
        """
        if self._repeats is None:
            return
        if not derivative:
            why = "not asked for"
        elif not self._repeats:
            why = "not judged: the product does not repeat"
        else:
            found = compare_with_differences(self.operator, self.passes, self._seed)
            for name, finding in found.items():
                self._add(name, *finding)
            return
        for name in ("derivative", "gradient"):
            self._add(name, "skipped", None, f"{why}.")

    def _rows(self, vectors: np.ndarray) -> Any:
        return self.derivatives.tensors.to_rows(vectors, self.derivatives.parameters.dtype)

    def _judge_loss(self) -> None:
        """Judge what the loss takes for outputs, and whether gradients are stopped on purpose."""
        batch = self.passes.at.batch
        mistaken = self.derivatives.inspection.mistaken_outputs(batch)
        if mistaken is not None:
            doubts, worst = mistaken
            if doubts:
                self._add("outputs", "doubtful", worst, " ".join(doubts))
            else:
                self._add("outputs", "passed", None, "the outputs are what the loss expects.")
        self.checks.append(surrogate(self.derivatives.inspection.stopped_gradients(batch)))

    def _variables_finite(self) -> bool:
        names = self.derivatives.inspection.nonfinite_variables()
        if names:
            message = f"NaN or infinity in the weights: {', '.join(names)}."
            self._add("finite", "failed", None, message)
        return not names

    def _products_finite(self) -> bool:
        passes, derivatives = self.passes, self.derivatives
        rows = self._rows(passes.u)
        try:
            for total in (passes.first, passes.rest):
                self.sweep.check_product(total, rows)
            if derivatives.penalized:
                check_penalty(np.asarray(derivatives.penalty_products(rows)[0]), "product")
        except FloatingPointError as error:
            self._add("finite", "failed", None, str(error))
            return False
        self._add("finite", "passed", None, "variables and products are finite.")
        return True

    def _depends(self) -> bool:
        depends = self.sweep.depends
        if not depends:
            self.unused = self.derivatives.parameters.names
            self._add(
                "variables",
                "failed",
                None,
                "the loss does not depend on any of the variables chosen: "
                f"{', '.join(self.unused)}. Does loss_fn use the model it is given?",
            )
        return depends

    def _list_variables(self) -> None:
        """List the variables without a gradient; only those without a product need a look."""
        passes = self.passes
        parameters = self.derivatives.parameters
        silent = [
            i
            for i, where in enumerate(parameters.slices)
            if not (passes.first[where].any() or passes.rest[where].any())
        ]
        if silent:
            has = self.derivatives.inspection.reaches(passes.at, silent)
            pairs = zip(silent, has, strict=True)
            self.unused = tuple(parameters.names[i] for i, reached in pairs if not reached)
        message = (
            f"the loss does not use {', '.join(self.unused)}; their rows are zero."
            if self.unused
            else "the loss uses every variable."
        )
        self.checks.append(Check("variables", "passed", None, message, noted=bool(self.unused)))

    def _add(self, name: str, status: Status, figure: float | None, message: str) -> None:
        self.checks.append(Check(name, status, figure, message))


def _why_not_split(passes: Passes, halves: Halves, random: list[str], writers: list[str]) -> str:
    (a, b), (share_a, share_b) = halves
    if passes.sweep.derivatives.is_function:
        if difference(share_a * a + share_b * b, passes.first) <= passes.rounding:
            return 'The loss is a mean over the batch, declared as a sum: pass reduction="mean".'
        if difference(a / share_a + b / share_b, passes.first) <= passes.rounding:
            return 'The loss is a sum over the batch, declared as a mean: pass reduction="sum".'
    if random:
        return f"Random numbers depend on the place in the batch: {', '.join(random)}."
    if writers:
        return (
            f"Examples depend on the others in their batch through {', '.join(writers)} in "
            "training mode: call the model with training=False."
        )
    norms = passes.sweep.derivatives.inspection.batch_normalizations()
    hint = f" The model holds {', '.join(norms)}: in training mode?" if norms else ""
    return (
        "The loss of an example depends on the others in its batch (batch statistics, "
        "contrastive losses), or it is neither a mean nor a sum over examples, or batch_weight "
        f"is not the weight of a batch.{hint}"
    )
