"""Do the second-order methods train at least as well as Adam, for the same passes over the data?

    python benchmarks/training.py [--problem cnn|autoencoder] [--output DIRECTORY]

Two networks on MNIST, three seeds each, which set the first weights and the order of the data: the
digit-classification CNN (86,282 parameters, cross-entropy) and an autoencoder, 784-32-784
(50,992 parameters, mean squared error). SGD, RMSprop and Adam have the best of five learning rates,
by validation accuracy or final loss with the first seed; the second-order methods have their
defaults. Gradient and matrix are of 128 examples, or as the brackets say: 512 and 64.

All have the same work: a data pass is the gradient of every training example once, and a Hessian
product counts as two gradients of its examples (`sd.training.Work`). Blocks of products are
cheaper than that, in seconds. Evaluation is in neither passes nor seconds.

Overhead is what a step takes beyond gradients, losses and products, relative to them, from the
third step on. `--output` keeps curves and figures as CSV, and runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow_datasets as tfds
from keras import layers

from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.training import (
    LowRankSaddleFreeNewton,
    NewtonCG,
    NewtonGMRES,
    NewtonMINRES,
    SecondOrderMethod,
    SecondOrderModel,
)
from spectral_density.training.batch_problem import BatchProblem

FIRST_ORDER = {
    "SGD": keras.optimizers.SGD,
    "RMSprop": keras.optimizers.RMSprop,
    "Adam": keras.optimizers.Adam,
}
# By name: the method, and how many examples its gradient and its matrix are made of.
SECOND_ORDER: dict[str, tuple[Callable[..., SecondOrderMethod], dict[str, Any], int, int]] = {
    "saddle-free": (LowRankSaddleFreeNewton, {}, 128, 128),
    "saddle-free, adaptive": (LowRankSaddleFreeNewton, {"range_finder": "adaptive"}, 128, 128),
    "Newton-CG": (NewtonCG, {}, 128, 128),
    "Newton-CG [512/64]": (NewtonCG, {}, 512, 64),
    "Newton-MINRES": (NewtonMINRES, {}, 128, 128),
    "Newton-GMRES": (NewtonGMRES, {}, 128, 128),
}
BATCH = 128
UNTIMED_STEPS = 2  # which trace and compile


@dataclass(frozen=True)
class Problem:
    """A network with its data, and how it is judged."""

    name: str
    network: Callable[[], keras.Model]
    loss: Any
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    metrics: list[str]
    passes: float
    learning_rates: dict[str, list[float]]
    judged: int  # training images of the loss in the table


@dataclass
class Run:
    """What one run measured."""

    problem: str
    method: str
    seed: int
    learning_rate: float  # NaN for second-order methods
    settings: str
    limit: float  # passes at which it was to end
    steps: int = 0
    rejected: int = 0  # steps that left the weights where they were
    products: int = 0
    traces: int = 0  # graphs of products
    late_traces: int = 0  # of these, after the second step
    overhead: float = np.nan
    curve: list[tuple[float, ...]] = field(default_factory=list)  # see CURVE

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same run."""
        return (self.problem, self.method, self.seed, self.settings, self.limit)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the curve."""
        return np.array([point[CURVE.index(name)] for point in self.curve])


CURVE = ["passes", "seconds", "core_seconds", "loss", "validation_loss", "validation_accuracy"]
FIGURES = [f.name for f in fields(Run) if f.name != "curve"]


def digit_cnn() -> keras.Model:
    def leaky() -> keras.Layer:
        return layers.LeakyReLU(negative_slope=0.01)

    return keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            layers.Conv2D(32, 5),
            layers.MaxPooling2D(),
            leaky(),
            layers.Conv2D(64, 5),
            layers.MaxPooling2D(),
            leaky(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128),
            leaky(),
            layers.Dense(10),
            leaky(),
        ]
    )


def autoencoder() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input([784]),
            layers.Dense(32, activation="softplus"),
            layers.Dense(784, activation="sigmoid"),
        ]
    )


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    data = tfds.load("mnist", split=split, as_supervised=True).batch(100_000)
    images, labels = next(iter(tfds.as_numpy(data)))
    return (images / 255).astype(np.float32), labels


def problems(passes: float | None, quick: bool) -> dict[str, Problem]:
    train, test = load("train"), load("test")
    flat, flat_test = (images.reshape(-1, 784) for images, _ in (train, test))
    doubled = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    halved = [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    cnn = Problem(
        "cnn",
        digit_cnn,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        train,
        test,
        ["accuracy"],
        passes or 20.0,
        {"SGD": [0.05, 0.1, 0.2, 0.4, 0.8], "RMSprop": halved, "Adam": doubled},
        judged=2000,
    )
    coder = Problem(
        "autoencoder",
        autoencoder,
        "mse",
        (flat, flat),
        (flat_test, flat_test),
        [],
        passes or 40.0,
        {
            "SGD": [5.0, 10.0, 20.0, 40.0, 80.0],
            "RMSprop": [1e-3, 2e-3, 4e-3, 8e-3, 16e-3],
            "Adam": doubled,
        },
        judged=len(flat),
    )
    if quick:
        cnn, coder = (
            replace(
                p,
                train=(p.train[0][:1024], p.train[1][:1024]),
                passes=passes or 2.0,
                learning_rates={k: rates[1:3] for k, rates in p.learning_rates.items()},
            )
            for p in (cnn, coder)
        )
    return {p.name: p for p in (cnn, coder)}


class Stopwatch:
    """Seconds within the functions that were wrapped, nested calls counted once."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds = 0.0
        self._depth = 0

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        return timed


@contextmanager
def timed_work() -> Iterator[Stopwatch]:
    """Time gradients, losses and products, whoever asks for them."""
    watch = Stopwatch()
    parts = [
        (BatchProblem, "loss_and_gradient"),
        (BatchProblem, "loss"),
        (CurvatureOperator, "matmat"),
        (CurvatureOperator, "matvec"),
    ]
    own = [(owner, name, owner.__dict__.get(name)) for owner, name in parts]
    for owner, name in parts:
        setattr(owner, name, watch.wrapped(getattr(owner, name)))
    try:
        yield watch
    finally:
        for owner, name, function in own:
            if function is None:
                delattr(owner, name)
            else:
                setattr(owner, name, function)


class Recorder(keras.callbacks.Callback):
    """Evaluate about once a pass, and stop at the limit."""

    def __init__(self, problem: Problem, run: Run, model: keras.Model, watch: Stopwatch):
        """Take what is evaluated and where it is written."""
        super().__init__()
        self._problem, self._run, self._judge, self._watch = problem, run, model, watch
        self._seconds = self._core_seconds = self._timed = self._worked = 0.0
        self._next = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Evaluate the first weights."""
        self._record(0.0)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Start the clocks."""
        self._begun, self._watched = time.perf_counter(), self._watch.seconds
        self._begun_cores = time.process_time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the step, and evaluate once a pass."""
        seconds = time.perf_counter() - self._begun
        run = self._run
        run.steps += 1
        self._seconds += seconds
        self._core_seconds += time.process_time() - self._begun_cores
        if isinstance(self.model, SecondOrderModel):
            step = self.model.last_step
            passes = step.data_passes
            run.products = step.num_products
            run.rejected += not step.accepted
            run.traces = self.model.problem.num_traces
            if run.steps <= UNTIMED_STEPS:
                self._early_traces = run.traces
            else:
                self._timed += seconds
                self._worked += self._watch.seconds - self._watched
                run.overhead = self._timed / self._worked - 1
            run.late_traces = run.traces - self._early_traces
        else:
            passes = run.steps / self.params["steps"]
        last = passes >= self._problem.passes
        if last or passes >= self._next:
            self._record(passes)
        if last:
            self.model.stop_training = True

    def _record(self, passes: float) -> None:
        problem = self._problem
        self._next = np.floor(passes) + 1
        loss, _ = evaluate(self._judge, problem, problem.train, problem.judged)
        validation = evaluate(self._judge, problem, problem.validation)
        self._run.curve.append((passes, self._seconds, self._core_seconds, loss, *validation))


def evaluate(
    model: keras.Model, problem: Problem, data: tuple[np.ndarray, np.ndarray], count: int = 10**9
) -> tuple[float, float]:
    """Return mean loss and accuracy, NaN where there is none, without Keras's own bookkeeping."""
    losses, hits, total = 0.0, 0.0, 0
    loss = keras.losses.get(problem.loss)
    for start in range(0, min(count, len(data[0])), 1000):
        x, y = (part[start : min(start + 1000, count)] for part in data)
        outputs = model(x, training=False)
        losses += len(x) * float(keras.ops.mean(loss(y, outputs)))
        total += len(x)
        if problem.metrics:
            hits += float(np.sum(np.argmax(outputs, axis=1) == y))
    return losses / total, hits / total if problem.metrics else np.nan


def first_order(problem: Problem, method: str, seed: int, rate: float) -> tuple[Run, Any, int]:
    run = Run(problem.name, method, seed, rate, f"{method}({rate:g})", problem.passes)
    return run, FIRST_ORDER[method](rate), BATCH


def second_order(problem: Problem, method: str, seed: int) -> tuple[Run, Any, int]:
    make, options, batch, hessian_batch = SECOND_ORDER[method]
    optimizer = make(hessian_batch_size=hessian_batch, **options)
    run = Run(problem.name, method, seed, np.nan, repr(optimizer), problem.passes)
    return run, optimizer, batch


def train(problem: Problem, run: Run, optimizer: Any, batch: int) -> None:
    """Fill in a run."""
    keras.utils.set_random_seed(run.seed)
    model = problem.network()
    with timed_work() as watch:
        trainer = SecondOrderModel(model) if isinstance(optimizer, SecondOrderMethod) else model
        trainer.compile(optimizer, loss=problem.loss, metrics=problem.metrics)
        recorder = Recorder(problem, run, model, watch)
        trainer.fit(
            *problem.train, batch_size=batch, epochs=10_000, verbose=0, callbacks=[recorder]
        )
    keras.backend.clear_session()
    gc.collect()


class Results:
    """All runs, kept on disk as they come."""

    def __init__(self, directory: Path | None):
        """Read what the directory holds."""
        self._directory = directory
        self._runs: dict[tuple[Any, ...], Run] = {}
        if directory is None or not (directory / "runs.csv").exists():
            return
        numbers = {"seed": int, "steps": int, "rejected": int, "products": int}
        numbers |= {"traces": int, "late_traces": int}
        numbers |= {"learning_rate": float, "limit": float, "overhead": float}
        with open(directory / "runs.csv", newline="") as file:
            runs = [
                Run(**{k: numbers.get(k, str)(v) for k, v in row.items()})
                for row in csv.DictReader(file)
            ]
        with open(directory / "curves.csv", newline="") as file:
            for row in csv.DictReader(file):
                runs[int(row["run"])].curve.append(tuple(float(row[name]) for name in CURVE))
        self._runs = {run.key: run for run in runs}

    def get(self, problem: Problem, run: Run, optimizer: Any, batch: int) -> Run:
        """Return the run, trained now unless it was before."""
        if run.key not in self._runs:
            train(problem, run, optimizer, batch)
            self._runs[run.key] = run
            self._write()
            print(summary(run), flush=True)
        return self._runs[run.key]

    def _write(self) -> None:
        if self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        with open(self._directory / "runs.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, FIGURES)
            writer.writeheader()
            for run in self._runs.values():
                writer.writerow({k: v for k, v in asdict(run).items() if k in FIGURES})
        with open(self._directory / "curves.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["run", "problem", "method", "seed", *CURVE])
            for number, run in enumerate(self._runs.values()):
                for point in run.curve:
                    rows.writerow([number, run.problem, run.method, run.seed, *point])


def summary(run: Run) -> str:
    rate = "" if np.isnan(run.learning_rate) else f" {run.learning_rate:g}"
    last = dict(zip(CURVE, run.curve[-1], strict=True))
    return (
        f"{run.problem}, {run.method}{rate}, seed {run.seed}: loss {last['loss']:.5f}, "
        f"validation loss {last['validation_loss']:.5f}, accuracy "
        f"{last['validation_accuracy']:.4f} (best "
        f"{np.max(run.column('validation_accuracy')):.4f}) after {last['passes']:.1f} passes, "
        f"{run.steps} steps, {last['seconds']:.0f} s, {last['core_seconds']:.0f} core seconds"
    )


def score(run: Run) -> float:
    """What a learning rate is chosen by: the larger the better."""
    values = run.column("validation_accuracy")
    if np.isnan(values).all():
        final = run.column("loss")[-1]
        return -final if np.isfinite(final) else -np.inf
    return float(np.nanmax(values))


def best_rate(problem: Problem, method: str, seed: int, results: Results) -> float:
    """Return the learning rate that did best with one seed."""
    rates = problem.learning_rates[method]
    scores = [
        score(results.get(problem, *first_order(problem, method, seed, rate))) for rate in rates
    ]
    return rates[int(np.argmax(scores))]


def passes_to(run: Run, level: float) -> float:
    """Return the passes after which the loss stayed at a level or below, infinite for never."""
    above = np.flatnonzero(~(run.column("loss") <= level))
    after = above[-1] + 1 if len(above) else 0
    passes = run.column("passes")
    return passes[after] if after < len(passes) else np.inf


def spread(values: list[float], form: str) -> str:
    """Mean over the seeds, with the smallest and the largest."""
    if not np.all(np.isfinite(values)):
        reached = [v for v in values if np.isfinite(v)]
        return f"{len(reached)} of {len(values)}" if reached else "never"
    mean = format(np.mean(values), form)
    if len(values) == 1 or min(values) == max(values):
        return mean
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def table(problem: Problem, runs: dict[str, list[Run]]) -> str:
    """Return a Markdown table, a row for each method; means and ranges over the seeds."""
    classifies = bool(problem.metrics)
    judged = (
        ["best accuracy", "final accuracy", "best against Adam"]
        if classifies
        else ["final validation loss", "passes to Adam's final loss", "share of Adam's"]
    )
    headings = [
        *["method", "rate", "final loss", *judged, "seconds", "core seconds"],
        *["steps", "rejected", "products", "overhead", "late traces"],
    ]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    adam = runs.get("Adam")
    for name, group in runs.items():
        final = [run.column("loss")[-1] for run in group]
        cells = [name, "default" if np.isnan(group[0].learning_rate) else ""]
        cells[1] = cells[1] or f"{group[0].learning_rate:g}"
        cells.append(spread(final, ".4f" if classifies else ".5f"))
        if classifies:
            best = [100 * np.max(run.column("validation_accuracy")) for run in group]
            last = [100 * run.column("validation_accuracy")[-1] for run in group]
            cells += [f"{spread(best, '.2f')} %", f"{spread(last, '.2f')} %"]
            if adam is None:
                cells.append("-")
            else:
                of_adam = {
                    run.seed: 100 * np.max(run.column("validation_accuracy")) for run in adam
                }
                apart = [
                    value - of_adam[run.seed]
                    for value, run in zip(best, group, strict=True)
                    if run.seed in of_adam
                ]
                cells.append(f"{spread(apart, '+.2f')} %")
        else:
            cells.append(spread([run.column("validation_loss")[-1] for run in group], ".5f"))
            if adam is None:
                cells += ["-", "-"]
            else:
                of_adam = {run.seed: run for run in adam}
                pairs = [(run, of_adam[run.seed]) for run in group if run.seed in of_adam]
                to = [passes_to(run, other.column("loss")[-1]) for run, other in pairs]
                share = [
                    passes / other.column("passes")[-1]
                    for passes, (_, other) in zip(to, pairs, strict=True)
                ]
                cells += [spread(to, ".1f"), spread(share, ".2f")]
        for column in ["seconds", "core_seconds"]:
            cells.append(spread([run.column(column)[-1] for run in group], ".0f"))
        cells.append(f"{np.mean([run.steps for run in group]):.0f}")
        if group[0].traces:
            cells.append(f"{np.mean([run.rejected for run in group]):.0f}")
            cells.append(f"{np.mean([run.products for run in group]):.0f}")
            overheads = [100 * run.overhead for run in group if np.isfinite(run.overhead)]
            cells.append(f"{spread(overheads, '.1f')} %" if overheads else "-")
            cells.append(f"{max(run.late_traces for run in group)}")
        else:
            cells += ["-"] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=["cnn", "autoencoder"], help="default both")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--passes", type=float, help="default 20 for the CNN, 40 for the other")
    parser.add_argument("--methods", nargs="+", choices=[*FIRST_ORDER, *SECOND_ORDER])
    parser.add_argument("--output", type=Path, help="directory for curves.csv and runs.csv")
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    arguments = parser.parse_args()
    seeds = range(1 if arguments.quick else arguments.seeds)
    methods = arguments.methods or [*FIRST_ORDER, *SECOND_ORDER]
    results = Results(arguments.output)
    for problem in problems(arguments.passes, arguments.quick).values():
        if arguments.problem not in (None, problem.name):
            continue
        runs: dict[str, list[Run]] = {}
        for method in methods:
            if method in FIRST_ORDER:
                rate = best_rate(problem, method, seeds[0], results)
                made = [first_order(problem, method, seed, rate) for seed in seeds]
            else:
                made = [second_order(problem, method, seed) for seed in seeds]
            runs[method] = [results.get(problem, *parts) for parts in made]
        judged = min(problem.judged, len(problem.train[0]))
        print(
            f"\n{problem.name}: {problem.network().count_params():,} parameters, "
            f"{len(problem.train[0]):,} training and {len(problem.validation[0]):,} validation "
            f"images, {problem.passes:g} data passes, {len(seeds)} seeds (mean, and range); "
            f"loss of {judged:,} training images\n"
        )
        print(table(problem, runs), flush=True)


if __name__ == "__main__":
    main()
