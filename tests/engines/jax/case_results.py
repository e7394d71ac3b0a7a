"""Compute every matrix of every case of tests/models.py under the JAX backend, and save them.

    KERAS_BACKEND=jax JAX_ENABLE_X64=1 python case_results.py FILE float64 [CASE ...]

Run by test_keras_cases.py: Keras has one backend in a process.
"""

import sys
import warnings
from pathlib import Path

import keras
import numpy as np

from spectral_density import FisherOperator, GaussNewtonOperator, HessianOperator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models import CASES, split

DTYPE = sys.argv[2]
MATRICES = {"hessian": HessianOperator, "ggn": GaussNewtonOperator, "fisher": FisherOperator}


def matrices(case):
    """Dense matrices by name, the loss and the gradient; an error in words where there is one."""
    found = {}
    model = case.build(DTYPE)
    model.compile(optimizer="sgd", loss=case.loss(), loss_weights=case.loss_weights)
    batches = split(case.data(), case.splits)
    for name, kind in MATRICES.items():
        try:
            operator = kind(model, None, batches)
        except ValueError as error:
            found[name] = np.array(str(error))
            continue
        found[name] = operator.to_dense()
        if name == "hessian":
            found["loss"], found["gradient"] = operator.loss(), operator.gradient()
            found["whole"] = HessianOperator(model, None, batches, linearize=False).to_dense()
            found["dtype"] = np.array(operator.product_dtype.name)
    return found


def main():
    warnings.simplefilter("ignore")
    keras.config.set_floatx(DTYPE)
    results = {}
    for name in sys.argv[3:] or CASES:
        for key, value in matrices(CASES[name]).items():
            results[f"{name}|{key}"] = value
    np.savez(sys.argv[1], **results)


if __name__ == "__main__":
    main()
