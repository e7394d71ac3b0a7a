"""How much memory does a run take above the peak of its first product, and was it foreseen?

    python benchmarks/memory.py [cnn] [hessian] [resnet] [resnet-none] [stream]

Each line is a process of its own. "Foreseen" is the peak of the first product and what the run
claims before it begins, the basis and the blocks of vectors.

- cnn, hessian: the CIFAR CNN on 28 x 28 x 1 inputs (2,367,434 parameters), 90 steps, one draw, a
  float64 basis, through `estimate_spectrum` and `approximate_hessian`.
- resnet, resnet-none: Keras's ResNet-50 of 1000 classes (25.6 million parameters), random weights,
  64 random images of 64 x 64, 90 steps, one draw: a float32 basis, and none at all.
- stream: 1 GiB of TFRecords where batches may be kept in a quarter of that; products with an MLP
  against a bare loop over the same pipeline that calls the same compiled product.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

GIB = 2**30
PARTS = ("cnn", "hessian", "resnet", "resnet-none", "stream")


def peak() -> int:
    """Return the peak resident size of this process in bytes (Linux counts in KiB)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def small_network() -> tuple[Any, Any]:
    from lanczos_step import cnn, make_operator

    model, shape, *_ = cnn((28, 28, 1))
    return model, make_operator(model, shape, 128, 64)


def resnet() -> tuple[Any, Any]:
    import keras
    import numpy as np

    import spectral_density as sd

    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=1000)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 64, 64, 3)).astype(np.float32)
    y = rng.integers(0, 1000, 64)
    loss = keras.losses.SparseCategoricalCrossentropy()
    return model, sd.HessianOperator(model, loss, [(x, y)])


def run(part: str, order: int) -> None:
    import numpy as np
    from lanczos_step import LOSS

    import spectral_density as sd
    from spectral_density.linalg.lanczos_options import memory_needed

    model, hessian = resnet() if part.startswith("resnet") else small_network()
    size = hessian.shape[0]
    options: dict[str, Any] = {
        "resnet": {"basis_dtype": "float32"},
        "resnet-none": {"reorthogonalize": "none"},
    }.get(part, {})
    foreseen = sum(memory_needed(size, order, **options).values())
    if part == "hessian":
        foreseen += 8 * order * size  # V as a tensor of its own
    v = np.random.default_rng(0).normal(size=size)
    hessian @ (v / np.linalg.norm(v))
    del v
    first = peak()
    marks = [time.perf_counter()]

    def mark(step: object) -> None:
        marks.append(time.perf_counter())

    result: Any
    if part == "hessian":
        result = sd.approximate_hessian(model, LOSS, list(hessian.batches), order)
        marks.append(time.perf_counter())
        seconds = (marks[-1] - marks[0]) / order
    else:
        result = sd.estimate_spectrum(hessian, order, 1, callback=mark, **options)
        seconds = (marks[-1] - marks[1]) / max(1, len(marks) - 2)
    expected = first + foreseen
    print(
        f"{part}: {size:,} parameters, {order} steps, {seconds:.2f} s a step; peak "
        f"{peak() / GIB:.2f} GiB, foreseen {expected / GIB:.2f} (the first product's "
        f"{first / GIB:.2f} and {foreseen / GIB:.2f} for the run), "
        f"{100 * (peak() / expected - 1):+.0f} %; {(peak() - first) / 1e9:.2f} GB above the peak "
        "of the first product",
        flush=True,
    )
    del result


def stream(rounds: int = 5) -> None:
    import tempfile
    from pathlib import Path

    import keras
    import numpy as np
    import psutil
    import tensorflow as tf
    from lanczos_step import LOSS, mlp

    import spectral_density as sd
    from spectral_density.engines.tensorflow.batches import PREFETCH

    keras.utils.set_random_seed(0)
    model, (features,), _, batch = mlp()
    row = 4 * features + 4
    rng = np.random.default_rng(0)
    budget = GIB // 4
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(8):
            paths.append(str(Path(folder) / f"{number}.tfrecord"))
            with tf.io.TFRecordWriter(paths[-1]) as file:
                for _ in range(GIB // 8 // row):
                    x = rng.normal(size=features).astype("<f4")
                    file.write(x.tobytes() + rng.integers(0, 10, 1, "<i4").tobytes())

        def parse(records: Any) -> Any:
            rows = tf.io.decode_raw(tf.strings.substr(records, 0, 4 * features), tf.float32)
            labels = tf.io.decode_raw(tf.strings.substr(records, 4 * features, 4), tf.int32)
            return tf.ensure_shape(rows, [None, features]), labels[:, 0]

        pipeline = tf.data.TFRecordDataset(paths).batch(batch).map(parse, tf.data.AUTOTUNE)
        share = budget / psutil.virtual_memory().available
        before = resident()
        hessian = sd.HessianOperator(model, LOSS, pipeline, memory_share=share)
        if hessian.batches.kept:
            raise SystemExit("stream: the data fits into what is free, and does not stream")
        v = rng.normal(size=hessian.shape[0])
        v /= np.linalg.norm(v)
        hessian @ v
        first = peak()
        multiply = hessian.matrix.whole(1)
        rows = tf.constant(v[None], tf.float32)
        fixed = next(hessian.sweep.inputs())

        def bare(batches: Any) -> float:
            start = time.perf_counter()
            total = tf.zeros(rows.shape, tf.float64)
            for entry in batches:
                weight = tf.constant(float(len(entry[1])), tf.float64)
                at = fixed._replace(batch=entry, weight=weight)
                total = multiply(at, rows, total)[0]
            np.asarray(total)
            return time.perf_counter() - start

        def product() -> float:
            start = time.perf_counter()
            hessian @ v
            return time.perf_counter() - start

        def pipeline_alone() -> float:
            start = time.perf_counter()
            for _ in pipeline:
                pass
            return time.perf_counter() - start

        ways = {
            "pipeline alone": pipeline_alone,
            "bare loop": lambda: bare(pipeline),
            "bare loop with prefetch": lambda: bare(pipeline.prefetch(PREFETCH)),
            "hessian @ v": product,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                seconds[name].append(way())
        print(
            f"stream: {hessian.batches.nbytes / GIB:.2f} GiB in {len(hessian.batches)} batches, "
            f"room to keep {budget / GIB:.2f} GiB; peak after the first product "
            f"{(first - before) / GIB:.2f} GiB above the start, {(peak() - first) / GIB:.2f} GiB "
            f"more after {4 * rounds} passes; a pass (median): "
            + ", ".join(f"{name} {np.median(times):.2f} s" for name, times in seconds.items()),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--order", type=int, default=90)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "stream":
        stream()
    elif options.child:
        run(options.child, options.order)
    else:
        for part in options.parts:
            command = [sys.executable, __file__, "--child", part, "--order", str(options.order)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
