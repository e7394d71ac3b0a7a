"""The data of two passes compared: the same batches, the same examples, or others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from spectral_density.curvature.data import Batches
from spectral_density.curvature.preflight.report import Check, Status
from spectral_density.engines.data import BatchFunctions

# Hashes are added up modulo this number.
_HASHES = 1 << 128

_FIX_ORDER = "Fix the order: reshuffle_each_iteration=False, deterministic=True, or .cache()."
_FIX_EXAMPLES = (
    "Fix the examples: .cache() them behind random augmentation, drop_remainder after a shuffle, "
    "or a generator with a state of its own."
)


@dataclass(frozen=True)
class Contents:
    """What a pass over a dataset gave, whatever its order: sums of hashes modulo 2^128."""

    batches: int = 0
    examples: int = 0

    @classmethod
    def of(cls, batch: Any, functions: BatchFunctions) -> Contents:
        """Return those of one batch."""
        return cls(int(functions.batch_hash(batch)[:32], 16), functions.examples_hash(batch))

    def __add__(self, other: Contents) -> Contents:
        """Return those of both together."""
        return Contents(
            (self.batches + other.batches) % _HASHES, (self.examples + other.examples) % _HASHES
        )


class Difference(NamedTuple):
    """What differs between two passes over a dataset."""

    changed: int = 0  # batches that are others at the same place
    stopped: str = ""  # another number of batches, as a sentence
    # What the batches hold that are others at the same place, or all of them.
    before: Contents = Contents()
    after: Contents = Contents()

    def __bool__(self) -> bool:
        """Tell whether anything does."""
        return bool(self.changed or self.stopped)


def compare(before: Sequence[Any], after: Iterable[Any], functions: BatchFunctions) -> Difference:
    """Compare the batches of a pass with those of another, which may go on and is then left."""
    changed, count = 0, 0
    held, found = Contents(), Contents()
    for count, batch in enumerate(islice(after, len(before) + 1), 1):
        if count > len(before) or functions.batch_hash(batch) == functions.batch_hash(
            before[count - 1]
        ):
            continue
        # What is the same at the same place is the same in any order.
        changed += 1
        held += Contents.of(before[count - 1], functions)
        found += Contents.of(batch, functions)
    return Difference(changed, _another_number(count, len(before)), held, found)


def compare_passes(batches: Batches, functions: BatchFunctions) -> Difference:
    """Compare the batches that are kept with a new pass, or two passes over a stream."""
    if batches.kept:
        return compare(list(batches), batches.afresh(), functions)
    first, second = (
        [(functions.batch_hash(batch), Contents.of(batch, functions)) for batch in batches.afresh()]
        for _ in range(2)
    )
    return Difference(
        sum(a != b for (a, _), (b, _) in zip(first, second, strict=False)),
        _another_number(len(second), len(first)),
        sum((contents for _, contents in first), Contents()),
        sum((contents for _, contents in second), Contents()),
    )


def _another_number(count: int, expected: int) -> str:
    if count == expected:
        return ""
    found = f"more than {expected}" if count > expected else str(count)
    return f"the dataset gave {found} batches on this pass and {expected} before."


@dataclass(frozen=True)
class Comparison:
    """Two passes over a dataset, and what a difference between them would mean."""

    num_batches: int  # of the whole dataset
    difference: Difference
    kept: bool  # in memory, so that one operator is one matrix
    stages: tuple[str, ...]  # of the pipeline that let the order differ
    coupling: str  # why examples may not change their batch, or ""
    numbered: bool  # whether the place of an example in the dataset counts
    repeats: bool  # whether the product of the same batch is the same
    figure: float | None  # relative change of the product, where it was measured
    rounding: float  # what of it is none
    limit: float  # what of it is rounding where the examples are known to be the same

    @property
    def same_examples(self) -> bool:
        """Whether both passes gave the same examples, in whatever order."""
        _, stopped, before, after = self.difference
        return not stopped and before.examples == after.examples

    @property
    def same_sum(self) -> bool:
        """Whether both passes give the same sum on paper: it has another order at most."""
        if not self.same_examples or self.numbered:
            return False
        return not self.coupling or self.difference.before.batches == self.difference.after.batches

    @property
    def same_product(self) -> bool:
        """Whether the product was measured, and is the same to rounding."""
        return self.figure is not None and self.figure <= self.rounding


def of_all(parts: Sequence[Comparison], differences: Sequence[Difference]) -> Comparison:
    """Return the comparison of a whole dataset from those of replicas and processes.

    Examples that moved from one replica to another change the product of both, so that of several
    there is no figure.

    Args:
        parts: of the replicas.
        differences: of the processes, whose passes give their replicas all that they compute.
    """
    total = parts[0]
    for part in parts[1:]:
        total = replace(
            total,
            coupling=total.coupling or part.coupling,
            repeats=total.repeats and part.repeats,
            figure=None,
        )
    difference = Difference(
        sum(each.changed for each in differences),
        next((each.stopped for each in differences if each.stopped), ""),
        sum((each.before for each in differences), Contents()),
        sum((each.after for each in differences), Contents()),
    )
    return replace(total, difference=difference)


def judge(found: Comparison) -> Check:
    """Answer the question "data"."""
    changed = found.difference.changed
    # A shuffle that gave the same batches twice has a single one, or a single order.
    stages = [stage for stage in found.stages if found.difference or "shuffle" not in stage]
    via = f" ({'; '.join(stages)})" if stages else ""
    if not found.difference:
        if not via or found.kept:
            return Check("data", "passed", 0.0, "the dataset gives the same batches again.")
        again = f"the dataset gave the same batches again, and need not{via}"
        if found.coupling or found.numbered:
            message = f"{again}: {found.coupling}. {_FIX_ORDER}"
            return Check("data", "doubtful", 0.0, message)
        message = f"{again}: results differ by rounding then."
        return Check("data", "passed", 0.0, message, noted=True)
    figure = changed / found.num_batches if found.kept else found.figure
    if found.same_sum and (found.figure is None or found.figure <= found.limit):
        message = "the same examples in another order; results differ by rounding."
        return Check("data", "passed", found.figure or 0.0, message, noted=True)
    return Check("data", _status(found), figure, _message(found, via))


def _status(found: Comparison) -> Status:
    # Where the model is random there is no telling what the data adds.
    excused = not found.difference.stopped and (found.same_product or not found.repeats)
    return "doubtful" if found.kept or excused else "failed"


def _message(found: Comparison, via: str) -> str:
    """Say in a sentence what differs and what that makes of the matrix, and in another what to do.

    With the figure where one was measured.
    """
    change = "" if found.figure is None else f" (the product changes by {found.figure:.2g})"
    effect = (
        "the next operator is another matrix"
        if found.kept
        else f"each pass is another matrix{change}"
    )
    if found.same_examples:
        why = found.coupling or "the loss depends on it"
        return f"the same examples come in another order{via}, and {why}: {effect}. {_FIX_ORDER}"
    changed, stopped, *_ = found.difference
    what = f"{changed} of {found.num_batches} batches are others when iterated afresh"
    what = stopped.rstrip(".") if stopped else what
    return f"the data changes: {what}{via}; {effect}. {_FIX_EXAMPLES}"
