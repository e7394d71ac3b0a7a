"""How much memory do the runs of `speed.py` take at their peak, beside the peers?

    python benchmarks/peak_memory.py [mlp] [cnn] [transformer] [lstm] [--quick]

Each run is a process of its own: it loads the problem, does what is done once before, and makes
the steps. In brackets is what it takes above the peak of its imports, since the frameworks differ
there. How fast the machine is makes no difference.
"""

from __future__ import annotations

import argparse

from peers.runner import (
    OURS,
    AnswerError,
    Child,
    Implementation,
    NotOfferedError,
    at_work,
    chosen,
    machine,
    progress,
    table,
    written,
)
from speed import CASES

MB = 1e6


def peak(
    implementation: Implementation, path: str, matrix: str, order: int, draws: int
) -> tuple[float, float] | None:
    """Return the peak, and what is above the imports, in MB; None where it cannot be done."""
    ways = ""
    for last in (False, True):
        child = Child(implementation)
        try:
            child.ask("load", problem=path, matrix=matrix)
            if last and ways:
                child.ask("use", draws=draws, ways=ways)
            # Trying which way is the fastest takes memory of its own: that is another process.
            ways = child.ask("warm", order=order, draws=draws)["ways"]
            if last or not ways:
                child.ask("lanczos", order=order, draws=draws)
                found = child.ask("peak")
                return found["peak"] / MB, (found["peak"] - found["imported"]) / MB
        except NotOfferedError:
            return None
        except AnswerError as error:
            progress(f"{implementation.name}: {error}")
            return None
        finally:
            child.close()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(CASES), metavar="NETWORK")
    parser.add_argument("--matrices", nargs="+", default=["hessian"])
    parser.add_argument("--only", nargs="+", default=[], help="names of implementations")
    parser.add_argument("--quick", action="store_true", help="few examples")
    options = parser.parse_args()
    implementations = chosen(options.only)
    rows = []
    for name in options.networks:
        case = CASES[name]
        for draws, order, examples in case.runs:
            examples = case.few if options.quick else examples
            problem = case.make() if examples is None else case.make(examples)
            with written(problem) as path:
                for matrix in options.matrices:
                    progress(f"{case.title}, {matrix}, {draws} draws")
                    peaks = [peak(i, path, matrix, order, draws) for i in implementations]
                    own, others = None, []
                    for implementation, found in zip(implementations, peaks, strict=True):
                        if implementation is OURS:
                            own = found
                        elif found is not None:
                            others.append(found)
                    ratio = "-"
                    if own is not None and others:
                        whole = own[0] / min(other[0] for other in others)
                        above = own[1] / min(other[1] for other in others)
                        ratio = f"{whole:.2f} ({above:.2f})"
                    cells = ["-" if p is None else f"{p[0]:.0f} ({p[1]:.0f})" for p in peaks]
                    rows.append([case.title, matrix, f"{order} x {draws}", *cells, ratio])
    with at_work(implementations) as children:
        about = machine(children)
    names = [implementation.name for implementation in implementations]
    print(f"{about}\n\nMB at the peak, in brackets above the imports:\n")
    print(table(["network", "matrix", "steps x draws", *names, "ours / leanest peer"], rows))


if __name__ == "__main__":
    main()
