"""What does making each Lanczos step durable cost, and does a killed run end with the same bits?

    python benchmarks/checkpoint.py [overhead] [kills] [--kills 25]

Overhead: a convolutional network of 2,367,434 parameters, steps with and without a checkpoint in
turn. Kills: a small network in a process of its own, killed with SIGKILL at random moments and
started again until it ends, held against an undisturbed run in another process.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def overhead(rounds: int, order: int) -> None:
    from lanczos_step import cnn, make_operator

    import spectral_density as sd

    hessian = make_operator(*cnn((28, 28, 1)))
    sd.lanczos(hessian, 2)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        for name, times in seconds.items():
            with tempfile.TemporaryDirectory() as directory:
                options = {"checkpoint": Path(directory) / "run"} if name == "with" else {}
                marks: list[float] = []

                def mark(step: object, marks: list[float] = marks) -> None:
                    marks.append(time.perf_counter())

                sd.lanczos(hessian, order, callback=mark, **options)
                times.append((marks[-1] - marks[0]) / (len(marks) - 1))
    plain, durable = (statistics.median(times) for times in seconds.values())
    ratios = [d / p - 1 for p, d in zip(*seconds.values(), strict=True)]
    print(
        f"overhead: {hessian.parameters.size:,} parameters, 512 images: {plain:.2f} s a step, "
        f"{durable:.2f} s with a checkpoint, {100 * (durable / plain - 1):.1f} % more "
        f"(rounds {100 * min(ratios):.1f} to {100 * max(ratios):.1f} %)"
    )


def child(directory: str, output: str) -> None:
    """Run to the end, from wherever the directory says, and keep the result."""
    import keras

    import spectral_density as sd

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(48, "relu"), keras.layers.Dense(10)]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2048, 64)).astype(np.float32), rng.integers(0, 10, 2048)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hessian = sd.HessianOperator(model, loss, [(x[:1024], y[:1024]), (x[1024:], y[1024:])])
    result = sd.lanczos(hessian, 300, checkpoint=directory or None)
    np.savez(output, alpha=result.alpha, beta=result.beta, basis=result.basis)


def kills(count: int) -> None:
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def start(directory: Path | str, output: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, "--child", str(directory), str(output)]
            return subprocess.Popen(command, stderr=subprocess.DEVNULL)

        start("", folder / "undisturbed.npz").wait()
        killed, steps = 0, []
        while killed < count:
            process = start(folder / "run", folder / "resumed.npz")
            log = folder / "run" / "draws-0-1" / "state.npz"
            before = log.stat().st_mtime_ns if log.exists() else None
            # The interesting moments come once it writes; loading TensorFlow takes seconds.
            while process.poll() is None and (not log.exists() or log.stat().st_mtime_ns == before):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.4))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
            with np.load(log) as state:
                steps.append(state["alpha"].shape[1])
            if steps[-1] == 300 and killed < count:
                compare(folder)
                for path in sorted((folder / "run").rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
        start(folder / "run", folder / "resumed.npz").wait()
        compare(folder)
        print(f"kills: {killed} at steps {steps}; every run that ended had the same bits")


def compare(folder: Path) -> None:
    if not (folder / "resumed.npz").exists():
        return
    with np.load(folder / "undisturbed.npz") as a, np.load(folder / "resumed.npz") as b:
        for name in a.files:
            if not np.array_equal(a[name], b[name]):
                raise SystemExit(f"kills: {name} differs by {np.abs(a[name] - b[name]).max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["overhead", "kills"])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--order", type=int, default=8)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    if "overhead" in options.parts:
        overhead(options.rounds, options.order)
    if "kills" in options.parts:
        kills(options.kills)


if __name__ == "__main__":
    main()
