"""Stability thresholds: how large an eigenvalue an optimizer's learning rate bears."""

from __future__ import annotations

from math import inf
from typing import Any

from spectral_density.engines.optimizers import update_rule_of
from spectral_density.engines.update_rule import Dynamics, Momentum


def stability_threshold(optimizer: Any, /, **hyperparameters: Any) -> float:
    """Return the eigenvalue of P^-1/2 H P^-1/2 beyond which an optimizer diverges.

    On a quadratic, with P as it is, steps -eta P^-1 m of the whole gradient converge along each
    eigenvector whose eigenvalue is below, and grow along those above:

    | m | threshold |
    |---|---|
    | gradient | 2 / eta |
    | heavy ball | (2 + 2b) / eta |
    | Nesterov | (2 + 2b) / ((1 + 2b) eta) |
    | average (Adam) | (2 + 2b) / ((1 - b) eta) |

    b is the coefficient of the momentum, and 2 is 2 - eta wd with a decoupled weight decay wd of
    all variables. Variables that are left out of it bear more: by wd of gradients, (1 + b) wd of
    the heavy ball, (1 + b) / (1 - b) wd of AdamW, and where some are the threshold is between. The
    loss of a network bends less steeply further out: training then goes on *at* the threshold, the
    edge of stability. With mini-batches it stays below.

    Args:
        optimizer: see `preconditioned`; the learning rate of a schedule is that of the next step.
        **hyperparameters: of a state of Optax, by Optax's names: `learning_rate`, `momentum` and
            `nesterov` or `b1` where there is momentum, `weight_decay` (that of `adamw` is 1e-4 by
            default, and here 0). Numbers that the state holds need not be passed; the learning rate
            of a schedule in it is that of the last update: pass that of the next.

    Returns:
        Threshold, in units of 1 / learning rate; infinity at a learning rate of zero.

    Raises:
        TypeError: if the optimizer is unknown, or a hyperparameter is.
        ValueError: if its step has no threshold (clipped gradients, Lion, Adafactor, Muon), or a
            hyperparameter is missing or out of its range: a coefficient of 1, a learning rate below
            zero, a weight decay that is unstable alone.

    References:
        Cohen, Kaur, Li, Kolter, Talwalkar (2021), arXiv 2103.00065 (momentum: appendix B).
        Cohen et al. (2022), arXiv 2207.14484 (Adam).
    """
    return threshold_of(update_rule_of(optimizer, hyperparameters).dynamics())


def threshold_of(dynamics: Dynamics) -> float:
    """Return the largest stable eigenvalue of P^-1/2 H P^-1/2.

    The iteration along an eigenvector is a matrix of 2 x 2, whose eigenvalues are within the unit
    circle up to where -1 is one of them: 1 + trace + determinant = 0.
    """
    eta, b = dynamics.learning_rate, dynamics.coefficient
    if not eta:
        return inf
    kept = 1 - eta * dynamics.weight_decay
    largest = (1 + kept) * (1 + b) / eta
    if dynamics.momentum is Momentum.NESTEROV:
        return largest / (1 + 2 * b)
    if dynamics.momentum is Momentum.AVERAGE:
        return largest / (1 - b)
    return largest
