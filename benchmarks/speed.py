"""What does a Lanczos step cost, beside the peers, on the same network, weights and batches?

    python benchmarks/speed.py [mlp] [cnn] [transformer] [lstm] [--quick] [--rounds 3]

Seconds per step and draw, medians of rounds in which the implementations take turns. What is done
once before (tracing, compilation, checks) is not in them. The products are compared before the
clock starts. Of ten draws, only ours and matfree's share passes over the data; the others take one
draw after another, so that one draw says what each costs. Ours on JAX is compared with matfree
round by round: the median of the ratios, and their quartiles. curvlinops can multiply a block at
least, though none of its spectral functions does: where that is faster, it is what counts. "x %
off" says that u'Av of two fixed vectors differs from what most implementations have.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from peers import problems
from peers.problems import Problem
from peers.runner import (
    AnswerError,
    Child,
    NotOfferedError,
    at_work,
    chosen,
    figure,
    machine,
    progress,
    table,
    written,
)

TARGETS = {1: 0.7, 10: 0.45}
TARGETS_ON_JAX = {1: 0.95, 10: 0.90}
OURS, MATFREE = "spectral_density", "matfree"
OURS_ON_JAX = "spectral_density (JAX)"
SHARING = (OURS, OURS_ON_JAX, MATFREE)
SAME = 1e-4  # what single precision may differ by


@dataclass(frozen=True)
class Case:
    """A network, and what is timed: draws, steps a run, and examples where not all."""

    title: str
    make: Callable[..., Problem]
    runs: tuple[tuple[int, int, int | None], ...]
    few: int  # examples of a quick run


CASES = {
    "mlp": Case("MLP 784-128-64-10", problems.mlp, ((1, 20, None), (10, 6, None)), 1024),
    "cnn": Case("CIFAR CNN", problems.cnn, ((1, 2, None), (10, 1, 128)), 64),
    "transformer": Case("transformer", problems.transformer, ((1, 4, None), (10, 2, None)), 16),
    "lstm": Case("LSTM", problems.lstm, ((1, 8, None), (10, 3, None)), 64),
}


@dataclass
class Cell:
    """What was measured of one implementation."""

    seconds: list[float] = field(default_factory=list)
    differs: float = 0.0  # relative difference of u'Av from what most implementations have
    before: str = "-"  # seconds before the first step, and the ways that were chosen
    remark: str = "-"  # why there is nothing

    @property
    def median(self) -> float:
        """Median of the rounds, infinite where there are none."""
        return statistics.median(self.seconds) if self.seconds else float("inf")

    def __str__(self) -> str:
        """Seconds, marked where the product is another one, or why there are none."""
        if not self.seconds:
            return self.remark
        return figure(self.median) + (f" ({self.differs:.2%} off)" * (self.differs > SAME))


def measure(
    children: list[Child], path: str, matrix: str, order: int, draws: int, rounds: int
) -> dict[str, Cell]:
    """Return what was measured, by implementation."""
    cells = {child.name: Cell() for child in children}
    values: dict[str, float] = {}
    ready = []
    for child in children:
        cell = cells[child.name]
        together = draws if child.name in SHARING else 1
        try:
            child.ask("load", problem=path, matrix=matrix)
            values[child.name] = child.ask("form")["value"]
            answer = child.ask("warm", order=order, draws=together)
            ways = f" ({answer['ways']})" if answer["ways"] else ""
            cell.before = figure(answer["seconds"]) + ways
            ready.append((child, together))
        except NotOfferedError:
            pass
        except AnswerError as error:
            progress(f"  {child.name}: {error}")
            cell.remark = "raises"
    most = statistics.median(values.values())
    for name, value in values.items():
        cells[name].differs = abs(value - most) / abs(most)
    progress("  u'Av: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
    blocks: list[float] = []
    for turn in range(rounds):
        for child, together in ready:
            answer = child.ask("lanczos", order=order, draws=together, seed=turn)
            cells[child.name].seconds.append(answer["seconds"] / order / together)
            if draws > 1 and child.name == "curvlinops":
                blocks.append(child.ask("block", draws=draws)["seconds"] / draws)
    if blocks and statistics.median(blocks) < cells["curvlinops"].median:
        cells["curvlinops"].seconds = blocks
        cells["curvlinops"].before += " (block)"
    for name, cell in cells.items():
        progress(f"  {name}: {cell} {cell.seconds}, before: {cell.before}")
    return cells


def bare(children: list[Child], rounds: int) -> list[str]:
    """Return what a product costs, and what its graphs cost alone."""
    ours = next(child for child in children if child.name == OURS)
    answer = ours.ask("bare", rounds=5 * rounds)
    product, alone = answer["product"], answer["bare"]
    return [figure(product), figure(alone), f"{product / alone:.2f}"]


def ratio_on_jax(cells: dict[str, Cell]) -> str:
    """Return the median of the rounds' ratios to matfree, with their quartiles."""
    pair = [cells[name].seconds for name in (OURS_ON_JAX, MATFREE) if name in cells]
    if len(pair) < 2 or not all(pair):
        return "-"
    ratios = [ours / theirs for ours, theirs in zip(*pair, strict=True)]
    lower, upper = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
    return f"{statistics.median(ratios):.2f} [{lower:.2f}, {upper:.2f}]"


def ratio(cells: dict[str, Cell]) -> str:
    peers = [cell.median for name, cell in cells.items() if name not in (OURS, OURS_ON_JAX)]
    if OURS not in cells or not peers or min(peers) == float("inf"):
        return "-"
    return f"{cells[OURS].median / min(peers):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(CASES), metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few examples, one round")
    parser.add_argument("--matrices", nargs="+", default=["hessian", "ggn"])
    parser.add_argument("--only", nargs="+", default=[], help="names of implementations")
    options = parser.parse_args()
    implementations = chosen(options.only)
    rows, before, overhead = [], [], []
    with at_work(implementations) as children:
        about = machine(children)
        for name in options.networks:
            case = CASES[name]
            for matrix in options.matrices:
                for draws, order, examples in case.runs:
                    examples = case.few if options.quick else examples
                    problem = case.make() if examples is None else case.make(examples)
                    progress(f"{case.title}, {matrix}, {draws} draws")
                    with written(problem) as path:
                        rounds = 1 if options.quick else options.rounds
                        cells = measure(children, path, matrix, order, draws, rounds)
                        if draws == 1 and OURS in cells:
                            overhead.append([case.title, matrix, *bare(children, rounds)])
                    title = f"{case.title}, {problem.num_parameters:,}"
                    what = [title, f"{len(problem.x):,}", matrix, str(draws)]
                    targets = [
                        f"{ratio(cells)} ({TARGETS[draws]})",
                        f"{ratio_on_jax(cells)} ({TARGETS_ON_JAX[draws]})",
                    ]
                    rows.append([*what, *map(str, cells.values()), *targets])
                    before.append([*what, *(cell.before for cell in cells.values())])
    headings = ["network, parameters", "examples", "matrix", "draws"]
    names = [implementation.name for implementation in implementations]
    print(f"{about}\n\nSeconds per step and draw:\n")
    ratios = ["ours / fastest peer (target)", "on JAX / matfree [quartiles] (target)"]
    print(table([*headings, *names, *ratios], rows))
    print("\nSeconds before the first step (tracing, compilation, checks, one short run):\n")
    print(table([*headings, *names], before))
    print("\nOne product of ours, and its compiled graphs in a bare loop, in seconds:\n")
    print(table(["network", "matrix", "product", "bare loop", "ratio (1.10)"], overhead))


if __name__ == "__main__":
    main()
