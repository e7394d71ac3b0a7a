"""What does a newcomer wait for: an operator, its first product, the second, and the check?

    python benchmarks/first_product.py [resnet] [blocks] [--rounds 3] [--against CHECKOUT]

Each figure is in seconds, the median of processes of their own, since graphs are traced once a
process; what is imported is imported before. With `--against` another checkout of this package
takes turns with this one. The networks are Keras's ResNet-50 on 32 images of 64 x 64, and a
transformer of six blocks of width 256 on 32 sequences of length 32, in two batches each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from check_time import HERE, Clock, compare, resnet

STEPS = ("construct", "first product", "second product", "check")


def blocks() -> tuple[Any, Any, Any]:
    sys.path[:0] = [str(HERE), str(HERE / "peers")]
    import keras
    import numpy as np
    from peers import ours

    keras.utils.set_random_seed(0)
    model = ours.transformer(vocabulary=1000, length=32, width=256, heads=4, layers=6)
    tokens = np.random.default_rng(0).integers(0, 1000, (2, 32, 32))
    batches = [(tokens[0, half], tokens[1, half]) for half in (slice(16), slice(16, None))]
    return model, ours.LOSSES["cross-entropy"], batches


def measure(network: Callable[[], tuple[Any, Any, Any]]) -> None:
    """Print the seconds of each step, as one line of JSON."""
    import numpy as np

    import spectral_density as sd

    kind = sd.HessianOperator  # loaded when it is first asked for
    arguments = network()
    clock = Clock()
    operator = kind(*arguments)
    clock.lap()
    vector = np.random.default_rng(0).standard_normal(operator.shape[0])
    for _ in range(2):
        operator @ vector
        clock.lap()
    verdict = operator.check().verdict
    clock.lap()
    clock.report(verdict)


if __name__ == "__main__":
    compare(
        __file__,
        (__doc__ or "").splitlines()[0],
        {"resnet": partial(measure, resnet), "blocks": partial(measure, blocks)},
        STEPS,
    )
