"""What do Hessian products and Lanczos steps cost on a GPU: ours, bare JAX's and PyTorch's?

    python benchmarks/gpu.py [resnet] [gpt] [--precision float32 tensorfloat32] [--rounds 11]
    python benchmarks/gpu.py --small     # half a minute on a CPU: does everything work here?

Needs this package and JAX, and measures PyTorch, curvlinops, hessian-eigenthings and PyHessian in
the same process where they are installed. The networks are ResNet-18 in its form for CIFAR, 512
images in one batch, and a GPT of six layers of width 512, 32 sequences of 256 tokens. Batch
normalization is in inference form in both frameworks; images are (height, width, channels) in JAX
and (channels, height, width) in PyTorch, as is usual in each.

All products are held against those of bare JAX at full precision before a clock starts. Then all
take turns: the tables have medians and quartiles of the rounds, in milliseconds a vector, each
call timed until the device is done. A step of Lanczos is a whole one, of a run that stands there.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import jax
import numpy as np
from peers import problems
from peers.gpu_forms import (
    BARE,
    BLOCKS,
    OURS,
    PRECISIONS,
    STEPS,
    Case,
    Form,
    bare_forms,
    our_forms,
    torch_forms,
)
from peers.problems import Problem
from peers.runner import progress, table

import spectral_density as sd

NETWORKS: dict[str, tuple[str, Callable[[], Problem], Callable[[], Problem]]] = {
    "resnet": ("ResNet-18", problems.resnet, partial(problems.resnet, 4, (4, 8), 1, size=8)),
    "gpt": (
        "GPT",
        problems.gpt,
        partial(problems.gpt, 4, vocabulary=20, length=8, width=16, heads=2, layers=1),
    ),
}
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
TOLERANCE = {"float32": 1e-2, "tensorfloat32": 1e-1}  # kinks of rectifiers count in both
# On ResNet-18: ours over the fastest of PyTorch; a step over the linearized product.
TARGETS = {
    "float32": {"product": 0.65, "block": 0.5, "step": 1.1},
    "tensorfloat32": {"product": 0.5, "block": 0.45, "step": 1.3},
}


def compared(forms: Iterator[Form], precision: str) -> tuple[list[Form], list[str]]:
    """Return the forms that run, and what the others raise; end where one computes another matrix.

    Raises:
        SystemExit: if a product is not that of bare JAX at full precision.
    """
    running, notes = [], []
    for form in forms:
        progress(form.name)
        # Whatever a form raises is its answer: too little memory, an operation without derivative.
        try:
            form.compare()
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes.append(f"{form.name}: {type(error).__name__}: {text[:200]}")
            continue
        if form.distance is not None and not form.distance < TOLERANCE[precision]:
            raise SystemExit(f"{form.name} is {form.distance:.1e} off: not the same matrix.")
        running.append(form)
    return running, notes


def quartiles(values: Any, scale: float = 1.0) -> str:
    low, middle, high = np.quantile(np.asarray(values) * scale, (0.25, 0.5, 0.75))
    return f"{middle:.4g} ({low:.4g} - {high:.4g})"


def ratios(forms: list[Form], targets: dict[str, float]) -> list[str]:
    """Return lines on ours against the fastest of PyTorch and bare JAX, round by round."""
    by_name = {form.name: form for form in forms}

    def fastest(who: Callable[[str], bool], widest: int) -> Form | None:
        fitting = [
            form
            for form in forms
            if who(form.who) and form.vectors <= widest and form.what != "gradient"
        ]
        return min(fitting, key=lambda form: np.median(form.seconds), default=None)

    def line(form: Form | None, other: Form | None, target: str) -> Iterator[str]:
        if form is not None and other is not None:
            values = np.divide(form.seconds, other.seconds)
            aim = f", target {targets[target]}" if target in targets else ""
            yield f"- {form.name} / {other.name}: {quartiles(values)}{aim}"

    lines = []
    product = by_name.get(f"{OURS}, linearized product")
    block = by_name.get(f"{OURS}, block of {BLOCKS[0]}, linearized")
    for form, widest, target in ((product, 1, "product"), (block, max(BLOCKS), "block")):
        lines += line(form, fastest(lambda who: who not in (OURS, BARE), widest), target)
        lines += line(form, fastest(lambda who: who == BARE, form.vectors if form else 1), "")
    for step in STEPS:
        target = "step" if step == STEPS[-1] else ""
        lines += line(by_name.get(f"{OURS}, Lanczos step {step}"), product, target)
    return lines


def measure(case: Case, precision: str, rounds: int, targets: dict[str, float]) -> str:
    """Return the table of a problem at a precision."""
    sides = [bare_forms(case, precision), our_forms(case, precision, rounds)]
    if importlib.util.find_spec("torch") is not None:
        sides.append(torch_forms(case, precision))
    forms, notes = compared(chain.from_iterable(sides), precision)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for form in forms:
            form.measure()
    gradient = next(form for form in forms if form.what == "gradient")
    rows = []
    for form in forms:
        off = "-" if form.distance is None else f"{form.distance:.1e}"
        share = np.median(np.divide(form.seconds, gradient.seconds))
        rows.append([form.who, form.what, quartiles(form.seconds, 1e3), f"{share:.2f}", off])
    headings = ["by", "what", "milliseconds a vector", "gradients of JAX", "off by"]
    lines = [table(headings, rows), "", *ratios(forms, targets)]
    lines += [f"- {form.name}: {form.remark()}" for form in forms if form.remark is not None]
    return "\n".join([*lines, *(f"- not measured: {note}" for note in notes)])


def machine() -> str:
    """Return a line with the devices and versions."""
    device = jax.devices()[0]
    parts = [
        f"JAX {jax.__version__} on {device.platform}: {device.device_kind}",
        f"spectral-density {sd.__version__}",
        f"Python {platform.python_version()}",
    ]
    if importlib.util.find_spec("torch") is not None:
        import torch

        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        parts.insert(1, f"PyTorch {torch.__version__} on {card}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[], metavar="NETWORK", help="resnet or gpt")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, help="both on a GPU, else float32"
    )
    parser.add_argument("--rounds", type=int, default=None, help="11, with --small 3")
    parser.add_argument("--small", action="store_true", help="tiny networks")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too
    if options.small:
        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"no network is called {', '.join(sorted(unknown))}: {', '.join(NETWORKS)}")
    on_gpu = jax.default_backend() == "gpu"
    precisions = options.precision or (list(PRECISIONS) if on_gpu else ["float32"])
    rounds = options.rounds or (3 if options.small else 11)
    print(f"{machine()}; {rounds} rounds")
    for name in options.networks or NETWORKS:
        title, large, small = NETWORKS[name]
        case = Case.of((small if options.small else large)())
        x = case.problem.x
        for precision in precisions:
            described = (
                f"{title}, {case.size:,} parameters, a batch of {'x'.join(map(str, x.shape))}"
            )
            print(f"\n{described}, {precision}:\n", flush=True)
            targets = TARGETS[precision] if name == "resnet" and not options.small else {}
            print(measure(case, precision, rounds, targets), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
