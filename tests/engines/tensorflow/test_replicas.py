"""Two logical devices, in a process of their own, against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
SECONDS = 600  # it takes some 35 on two cores


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("replicas") / "figures.json"
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(
            [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        ),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    script = Path(__file__).with_name("two_devices.py")
    run = subprocess.run(
        [sys.executable, str(script), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(out.read_text())


def largest(figures, *names):
    return max(error for name in names for error in figures["errors"][name])


def test_keras_losses_weights_masks_and_regularizers_give_what_one_device_does(figures):
    names = (
        "cnn",
        "two outputs, weights by name",
        "regularizers and add_loss",
        "mean with sample weights",
        "sum",
        "masked sequence, weights of steps",
    )
    assert largest(figures, *names) <= 1e-6


def test_functions_give_what_one_device_does_means_and_sums(figures):
    names = "mean of a function", "sum of a function", "one batch", "streamed", "one layer"
    assert largest(figures, *names) <= 1e-6


def test_batches_stay_whole_so_that_losses_may_couple_their_examples(figures):
    assert largest(figures, "coupled") <= 1e-6


def test_gauss_newton_and_fisher_matrices_are_those_of_one_device(figures):
    names = "ggn", "ggn of a pair", "type2", "empirical", "monte_carlo", "distributed, fisher"
    assert largest(figures, *names) <= 1e-6


def test_a_distributed_dataset_is_taken_as_it_was_dealt(figures):
    assert largest(figures, "distributed dataset") <= 1e-6


def test_an_operator_over_other_data_is_distributed_too(figures):
    assert largest(figures, "other data") <= 1e-6


def test_inside_the_scope_of_the_strategy_nothing_is_divided_by_the_number_of_replicas(figures):
    assert largest(figures, "inside the scope") <= 1e-6


def test_algorithms_find_what_they_find_on_one_device(figures):
    names = "spectrum", "eigenvalues", "approximate_hessian", "dense"
    assert largest(figures, *names) <= 1e-6
    assert figures["found"]["cubic"] == [[12, 18], [18, 12]]


def test_runs_on_two_replicas_repeat_to_the_bit(figures):
    assert figures["found"]["spectrum repeats"]


def test_what_training_mode_writes_is_put_back_on_every_device(figures):
    assert largest(figures, "training mode") <= 1e-6
    assert figures["found"]["state put back"]


def test_every_device_computes_with_variables_of_its_own(figures):
    assert figures["found"]["devices"] == ["CPU:0", "CPU:1"]
    assert figures["found"]["threads"] == 2
    assert figures["found"]["own variables"]


def test_an_operator_says_its_replicas_and_is_the_same_matrix_by_its_fingerprint(figures):
    assert figures["found"]["repr"].endswith("float64, 2 replicas)")
    assert figures["found"]["fingerprints agree"]


def test_preflight_looks_at_the_batches_of_every_replica_in_two_passes(figures):
    assert figures["found"]["verdict"] == "sound"
    # One half of a small batch more, on each replica, and the first batch to be compared.
    assert figures["found"]["cost"] <= 2.5 + 1 / 3
    assert figures["found"]["compared"] == ["passed", "passed"]
    assert figures["found"]["weights are back"]


def test_examples_that_move_from_one_replica_to_another_are_the_same_data(figures):
    assert "the same examples in another order" in figures["found"]["data in another order"]


@pytest.mark.parametrize(
    "case, message",
    [
        ("nan", "FloatingPointError: the product is not finite in batch 1 of 3"),
        ("nan", "NaN or infinity is in its data: inputs."),
        ("singular", "the product is not finite in batch 2 of 3"),
        ("singular", "The curvature is not finite, while the loss and its gradient are"),
        ("dropout", "Dropout"),
        ("plain model", "the dataset is distributed, and the variables are not"),
        ("unused", "does not depend on the variables"),
        ("empty", "the dataset is empty"),
    ],
)
def test_what_cannot_be_is_refused_by_name(figures, case, message):
    assert message in figures["found"]["raised"][case]
