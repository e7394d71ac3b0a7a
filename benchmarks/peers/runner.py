"""Starts every implementation in its environment, and asks it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.problems import Problem

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache"
THREADS = int(os.environ.get("BENCHMARK_THREADS", "2"))


@dataclass(frozen=True)
class Implementation:
    """A package to compare, and how it is started."""

    name: str
    script: str
    environment: str | None  # folder of its virtual environment; None is this one
    arguments: tuple[str, ...] = ()


OURS = Implementation("spectral_density", "ours.py", None)
OURS_ON_JAX = Implementation("spectral_density (JAX)", "ours_jax.py", None)
PEERS = (
    Implementation("curvlinops", "torch_peers.py", "torch", ("curvlinops-for-pytorch",)),
    Implementation("hessian-eigenthings", "torch_peers.py", "torch", ("hessian-eigenthings",)),
    Implementation("PyHessian", "torch_peers.py", "torch", ("PyHessian",)),
    Implementation("matfree", "jax_peer.py", "jax"),
)
EVERYBODY = (OURS, *PEERS)


class AnswerError(Exception):
    """The implementation raised something, died, or took too long."""


class NotOfferedError(Exception):
    """The implementation has no documented way to do what was asked."""


def environments() -> Path:
    """Return the folder of the peers' virtual environments."""
    return Path(os.environ.get("SPECTRAL_DENSITY_PEERS", HERE.parent / ".environments"))


def python_of(environment: str) -> Path:
    python = environments() / environment / "bin" / "python"
    if not python.exists():
        raise SystemExit(
            f"There is no {python}. Make the peers' environments with "
            "`python benchmarks/environments.py`, or name the folder that has them in "
            "SPECTRAL_DENSITY_PEERS."
        )
    return python


def limit_processors() -> None:
    """Leave this process as many processors as it shall have threads, before a library counts."""
    if hasattr(os, "sched_setaffinity") and THREADS > 1:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


class Child:
    """An implementation at work in a process of its own."""

    def __init__(self, implementation: Implementation):
        self.name = implementation.name
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TF_CPP_MIN_LOG_LEVEL": "3"}
        python = sys.executable
        if implementation.environment is not None:
            python = str(python_of(implementation.environment))
            environment.pop("PYTHONPATH", None)  # what is there is for this environment
        self.process = subprocess.Popen(
            [python, str(HERE / implementation.script), *implementation.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            preexec_fn=limit_processors,
        )

    def ask(self, do: str, *, limit: float = 1200.0, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a request, and wait `limit` seconds at most for it."""
        if self.process.stdin is None or self.process.stdout is None:
            raise AnswerError("it has no standard input and output")
        alarm = threading.Timer(limit, self.process.kill)
        alarm.start()
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            raise AnswerError(f"died with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise AnswerError(answer["error"])
        if "not offered" in answer:
            raise NotOfferedError
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def at_work(implementations: tuple[Implementation, ...] = EVERYBODY) -> Iterator[list[Child]]:
    """Start the implementations, and end them."""
    with ExitStack() as stack:
        children = []
        for implementation in implementations:
            children.append(Child(implementation))
            stack.callback(children[-1].close)
        yield children


@contextmanager
def written(problem: Problem) -> Iterator[str]:
    """Write a problem to a file for the time it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(problem.save(Path(folder) / "problem.npz"))


def progress(text: str) -> None:
    """Say what is being done, where it is no part of the table."""
    print(text, file=sys.stderr, flush=True)


def chosen(names: list[str]) -> tuple[Implementation, ...]:
    """Return the implementations of these names, both engines and all peers for none."""
    everybody = (OURS, OURS_ON_JAX, *PEERS)
    unknown = set(names) - {implementation.name for implementation in everybody}
    if unknown:
        raise SystemExit(f"No implementation is called {', '.join(sorted(unknown))}.")
    return tuple(i for i in everybody if not names or i.name in names)


# What is printed ---------------------------------------------------------------------------------


def machine(children: list[Child]) -> str:
    """Return a line that names the machine and everybody's versions."""
    versions: dict[str, str] = {}
    for child in children:
        for name, version in child.ask("versions").items():
            versions.setdefault(name, version)
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
                break
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{model}, {THREADS} thread{'s' * (THREADS > 1)}; {names}."


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown, its columns as wide as what is in them."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]

    def text(cells: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(headings), rule, *(text(row) for row in rows)])


def figure(value: float) -> str:
    """Return a number with two or three digits that count."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    return f"{value:.1e}"
