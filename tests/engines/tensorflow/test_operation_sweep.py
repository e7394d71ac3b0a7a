"""Second derivatives of every differentiable operation against differences of its gradient."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from engines.tensorflow.against_differences import is_fault, judge
from engines.tensorflow.operations import CATALOGUE, NOT_RIGHT, Operation, missing
from models import default_dtype

from spectral_density import HessianOperator, PreflightError


def judged(*operations: Operation, tolerance: float | None = None) -> tuple[str, str]:
    """Judge the sum of some operations, each of variables of its own."""
    points = [[tf.Variable(part, dtype=tf.float64) for part in each.point] for each in operations]
    variables = [variable for point in points for variable in point]

    def value():
        return tf.add_n(
            [
                operation.value(*map(tf.convert_to_tensor, point))
                for operation, point in zip(operations, points, strict=True)
            ]
        )

    def build():
        return HessianOperator.from_function(lambda _: value(), variables)

    return judge(build, variables, value, tolerance or operations[0].tolerance)


# A fault of these ends the process, not the test.
DANGEROUS = {"tf.nn.ctc_loss", "keras.ops.ctc_loss"}

# One or two of each kind: a few seconds, in every run.
SAMPLE = """
    tf.math.softsign tf.math.reduce_prod tf.math.igamma:shape tf.math.bincount tf.nn.moments
    tf.nn.max_pool2d:same tf.nn.max_pool_with_argmax tf.nn.local_response_normalization
    tf.nn.embedding_lookup_sparse:mean tf.nn.softmax_cross_entropy_with_logits:labels
    tf.image.resize:bilinear tf.image.resize:bicubic tf.image.resize:area tf.image.crop_and_resize
    tf.image.adjust_contrast tf.linalg.cholesky tf.linalg.eigh tf.linalg.lu tf.signal.rfft
    tf.sparse.add tf.sparse.softmax tf.sparse.segment_mean tf.tensor_scatter_nd_max
    tf.recompute_grad tf.py_function tf.numpy_function tf.clip_by_norm
    tf.quantization.fake_quant_with_min_max_vars keras.ops.slice_update keras.ops.inner
    tf.nn.isotonic_regression tf.nn.conv2d:dilations tf.sparse.maximum tf.linalg.lstsq:orthogonal
"""


@pytest.fixture
def double():
    """Keras operations that compute in float64."""
    with default_dtype("float64"):
        yield


# So many are tried together, which takes little longer than one; to the accuracy of differences, so
# that none hides behind the others.
COMPANY = 16
TOGETHER = 1e-8


def faults(names) -> dict[str, tuple[str, str]]:
    found = {name: judged(CATALOGUE[name]) for name in names}
    return {
        name: (verdict, said[-300:]) for name, (verdict, said) in found.items() if is_fault(verdict)
    }


def not_right_together(names):
    """Yield the operations of each company that is not right as a whole."""
    for start in range(0, len(names), COMPANY):
        company = names[start : start + COMPANY]
        verdict, _ = judged(*(CATALOGUE[name] for name in company), tolerance=TOGETHER)
        if verdict != "right":
            yield from company


def test_every_public_operation_is_in_the_catalogue_or_left_out_for_a_reason():
    assert missing() == []


@pytest.mark.parametrize("name", SAMPLE.split())
def test_an_operation_is_right_or_refused(name, double):
    assert faults([name]) == {}


def trace_of(function, scale):
    """A function of the eigenvalues (singular values) of a multiple of the identity, of no kink."""

    def value(v):
        values = function((v + tf.linalg.matrix_transpose(v)) / 2)
        return tf.reduce_sum(tf.math.real(values) ** 2)

    return value, tf.Variable(scale * np.eye(2))


DEGENERATE = {
    "eigvalsh": tf.linalg.eigvalsh,
    "eigh": lambda v: tf.linalg.eigh(v)[0],
    "eigvals": tf.linalg.eigvals,
    "svd": lambda v: tf.linalg.svd(v, compute_uv=False),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "eigvalsh" else pytest.param(n, marks=pytest.mark.exhaustive) for n in DEGENERATE],
)
def test_equal_eigenvalues_are_found_by_the_derivative(name):
    value, variable = trace_of(DEGENERATE[name], 1.5)
    hessian = HessianOperator.from_function(value, variable)
    with pytest.raises(PreflightError, match="off the differences of the gradient"):
        hessian.check()


MODULE_NAMES = sorted({name.rpartition(".")[0] for name in CATALOGUE})


@pytest.mark.exhaustive
@pytest.mark.parametrize("module", MODULE_NAMES)
def test_no_operation_is_wrong_and_sound_and_none_ends_in_a_raw_error(module, double):
    names = [
        name
        for name in CATALOGUE
        if name.rpartition(".")[0] == module and name not in DANGEROUS | set(SAMPLE.split())
    ]
    alone = [name for name in names if CATALOGUE[name].is_single or name in NOT_RIGHT]
    others = [name for name in names if name not in alone]
    assert faults([*alone, *not_right_together(others)]) == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(DANGEROUS))
def test_an_operation_that_can_end_the_process_is_refused(name):
    code = (
        "from engines.tensorflow.operations import CATALOGUE; "
        "from engines.tensorflow.test_operation_sweep import judged; "
        f"print(judged(CATALOGUE[{name!r}])[0])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "refused"), ended.stderr[-500:]
