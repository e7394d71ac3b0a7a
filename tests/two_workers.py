"""Started twice by test_distributed.py: one of two workers on 127.0.0.1; prints figures as JSON.

python two_workers.py compare|spectrum INDEX PORT PORT OUT [CHECKPOINT] [--die-at STEP]
"""

import argparse
import gc
import hashlib
import json
import os
import time
import warnings
from pathlib import Path


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("compare", "spectrum"))
    parser.add_argument("index", type=int)
    parser.add_argument("ports", type=int, nargs=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--die-at", type=int)
    return parser.parse_args()


asked = arguments()
addresses = [f"127.0.0.1:{port}" for port in asked.ports]
task = {"type": "worker", "index": asked.index}
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

# Before any other use of TensorFlow.
strategy = tf.distribute.MultiWorkerMirroredStrategy()

from models import (  # noqa: E402
    NUM_EXAMPLES,
    classification,
    mlp,
    regularized,
    relative_error,
    split,
    vectors,
    weights_of_examples,
)

from spectral_density import (  # noqa: E402
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    approximate_hessian,
    estimate_spectrum,
    top_eigenpairs,
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
DATA = split((*classification(), weights_of_examples()))
PLAIN = split(classification())


def bits(*arrays):
    """Name the bits of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def mean_loss(model, batch):
    return LOSS(batch[1], model(batch[0]))


def sum_loss(model, batch):
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], model(batch[0])))


def compare():
    """Compare what both workers compute with what this one computes alone."""
    alone = mlp("float64")
    with strategy.scope():
        shared = mlp("float64")
    figures = {}
    errors = figures["errors"] = {}
    found = figures["bits"] = {}
    block = vectors(31, 3)

    def both(name, make, everything=False, one=None, scale=1):
        """Compare; what is the same matrix on one device, up to `scale`, is traced there once."""
        one, two = one or make(alone), make(shared)
        product, gradient = two.product_and_gradient(block[:, 0])
        expected, expected_gradient = (
            scale * part for part in one.product_and_gradient(block[:, 0])
        )
        errors[name] = [
            relative_error(product, expected),
            relative_error(gradient, expected_gradient),
        ]
        found[name] = bits(product, gradient)
        if everything:
            products = two @ block
            errors[name] += [
                relative_error(products, one @ block),
                relative_error(two.gradient(), expected_gradient),
                abs(two.loss() - one.loss()) / abs(one.loss()),
            ]
            found[name] += bits(products, two.gradient())
        return one, two

    weighted, two = both(
        "weights", lambda model: HessianOperator(model, LOSS, DATA), everything=True
    )
    figures["fingerprints agree"] = weighted.fingerprint() == two.fingerprint()
    figures["verdict"] = two.check().verdict
    figures["reductions"] = [count_reductions(two, columns) for columns in (1, 3, 20)]
    figures["repr"] = repr(two)
    both("streamed", lambda model: HessianOperator(model, LOSS, DATA, memory_share=0), one=weighted)
    both("one batch", lambda model: HessianOperator(model, LOSS, DATA[:1]))
    mean, _ = both("mean of a function", lambda model: HessianOperator(model, mean_loss, PLAIN))
    both(
        "sum",
        lambda model: HessianOperator(model, sum_loss, PLAIN, reduction="sum"),
        one=mean,
        scale=NUM_EXAMPLES,
    )
    both("ggn", lambda model: GaussNewtonOperator(model, LOSS, DATA))
    both("fisher", lambda model: FisherOperator(model, LOSS, DATA, kind="monte_carlo"))

    # Each worker with a file of its own, one of them with less in it.
    def mine(context):
        x, y = classification()
        cut = (0, 8) if context.input_pipeline_id == 0 else (8, 13)
        return tf.data.Dataset.from_tensor_slices((x[slice(*cut)], y[slice(*cut)])).batch(3)

    dealt = strategy.distribute_datasets_from_function(mine)
    both("dealt", lambda model: HessianOperator(model, LOSS, dealt), one=mean)

    plain = regularized("float64")
    with strategy.scope():
        penalized = regularized("float64")
    x, y = classification()
    labels = split((x, np.eye(3)[y][:, :2]))
    of = {True: plain, False: penalized}
    one, two = (HessianOperator(of[flag], "mse", labels) for flag in (True, False))
    v = vectors(one.shape[0])
    errors["regularizers"] = [relative_error(two @ v, one @ v), abs(two.loss() - one.loss())]

    hessian = HessianOperator(shared, LOSS, DATA)
    pairs = top_eigenpairs(hessian, 2)
    expected = top_eigenpairs(weighted, 2)
    errors["eigenvalues"] = [relative_error(pairs.values, expected.values)]
    found["eigenpairs"] = bits(pairs.values, pairs.vectors)
    basis, tridiagonal = approximate_hessian(shared, mean_loss, PLAIN, 4)
    found["approximate"] = bits(basis.numpy(), tridiagonal.numpy())
    figures["spectrum"] = spectrum()
    figures["raised"] = refusals(shared)
    return figures


def count_reductions(operator, columns):
    """Count the all-reduces of one product with a block."""
    extended = type(strategy.extended)
    original, calls = extended.reduce_to, []

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    extended.reduce_to = counted
    try:
        operator @ np.ones((operator.shape[0], columns))
    finally:
        extended.reduce_to = original
    return len(calls)


def refusals(model):
    """Return what is raised where one worker has a problem."""
    raised = {}

    def note(name, function):
        try:
            function()
            raised[name] = None
        except (RuntimeError, ValueError, ArithmeticError) as error:
            raised[name] = f"{type(error).__name__}: {error}"

    hessian = HessianOperator(model, LOSS, DATA)
    x, y, weights = DATA[1]
    spoiled = [DATA[0], (np.full_like(x, np.nan), y, weights), DATA[2]]
    note("nan", lambda: HessianOperator(model, LOSS, spoiled) @ np.ones(31))
    other = np.ones(31)
    other[asked.index] += 1e-15
    note("vectors", lambda: hessian @ other)
    note("afterwards", lambda: hessian @ np.ones(31))

    def fails(model, batch):
        if asked.index == 1:
            raise ValueError("this worker has no such file")
        return mean_loss(model, batch)

    note("survey", lambda: HessianOperator(model, fails, PLAIN))

    class Vanishing:
        gone = False

        def __iter__(self):
            if self.gone and asked.index == 1:
                raise ValueError("the disk is gone")
            return iter(PLAIN)

    data = Vanishing()
    streamed = HessianOperator(model, LOSS, data, memory_share=0)
    data.gone = True
    note("stream", lambda: streamed @ np.ones(31))
    note("empty", lambda: HessianOperator(model, LOSS, []))
    return raised


def spectrum():
    """Run an algorithm of many products, and die in the middle of it if asked to."""
    with strategy.scope():
        model = mlp("float64")
    hessian = HessianOperator(model, LOSS, DATA)
    steps = []

    def on_step(step):
        steps.append(time.time())
        if step.step == asked.die_at and asked.index == 1:
            os.kill(os.getpid(), 9)

    try:
        result = estimate_spectrum(
            hessian,
            order=12,
            num_draws=1,
            checkpoint=asked.checkpoint,
            progress=True,
            callback=on_step,
        )
    except RuntimeError as error:
        waited = time.time() - steps[-1]
        return {"error": f"{type(error).__name__}: {error}", "waited": waited}
    return {"bits": bits(result.alpha, result.beta), "steps": len(steps)}


if __name__ == "__main__":
    # Look for garbage seldom, as in conftest.py: tracing makes millions of objects.
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = {"compare": compare, "spectrum": spectrum}[asked.what]()
    asked.out.write_text(json.dumps(figures))
