"""Two workers on this machine, started and ended here, against one device."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SECONDS = 600  # until a pair of workers that goes on and on is ended; it takes some 20 on two cores

pytestmark = pytest.mark.slow


def free_ports(count=2):
    """Return ports that nobody listens on; another process may take one before we do."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def two_workers(what, folder, checkpoints=(None, None), die_at=None):
    """Run both workers to their end; return what each wrote (None if it died) and said."""
    folder.mkdir()
    ports = list(map(str, free_ports()))
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_CONFIG", "PYTHONWARNINGS")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    processes, outs, logs = [], [], []
    try:
        for index in range(2):
            outs.append(folder / f"{index}.json")
            logs.append(folder / f"{index}.log")
            command = [sys.executable, str(TESTS / "two_workers.py"), what, str(index), *ports]
            command += ["--out", str(outs[-1])]
            if checkpoints[index] is not None:
                command += ["--checkpoint", str(checkpoints[index])]
            if die_at is not None:
                command += ["--die-at", str(die_at)]
            with open(logs[-1], "w") as log:
                processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
                )
        deadline = time.monotonic() + SECONDS
        for process in processes:
            process.wait(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = [log.read_text() for log in logs]
    written = [json.loads(out.read_text()) if out.exists() else None for out in outs]
    if die_at is None:
        for process, text in zip(processes, said, strict=True):
            assert process.returncode == 0, text[-4000:]
    return written, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What both workers wrote, and what they said."""
    return two_workers("compare", tmp_path_factory.mktemp("workers") / "compare")


@pytest.fixture(scope="module")
def compared(undisturbed):
    return undisturbed[0]


CASES = (
    "weights",
    "streamed",
    "one batch",
    "mean of a function",
    "sum",
    "ggn",
    "fisher",
    "dealt",
    "regularizers",
    "eigenvalues",
)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_compute_what_one_device_does(compared, case):
    for figures in compared:
        assert max(figures["errors"][case]) <= 1e-6


def test_both_workers_end_with_the_same_bits(compared):
    chief, other = compared
    assert chief["bits"] == other["bits"]
    assert len(chief["bits"]) >= 9


def test_a_product_takes_one_all_reduce_whatever_the_width_of_the_block(compared):
    for figures in compared:
        assert figures["reductions"] == [1, 1, 1]


def test_the_operator_says_how_many_compute_it_and_is_known_by_the_same_fingerprint(compared):
    for figures in compared:
        assert figures["repr"].endswith("float64, 2 replicas on 2 workers)")
        assert figures["fingerprints agree"]
        assert figures["verdict"] == "sound"


def test_a_batch_that_is_not_finite_is_named_on_every_worker(compared):
    for figures in compared:
        assert "not finite in batch 1 of 3" in figures["raised"]["nan"]


def test_workers_that_multiply_other_vectors_are_told_so(compared):
    for figures in compared:
        assert "multiplied other vectors than the chief" in figures["raised"]["vectors"]
        assert figures["raised"]["afterwards"] is None


def test_what_goes_wrong_on_one_worker_ends_the_wait_of_the_other(compared):
    chief, other = compared
    assert "worker 1 failed" in chief["raised"]["survey"]
    assert "no such file" in other["raised"]["survey"]
    assert "worker 1 failed" in chief["raised"]["stream"]
    assert "the disk is gone" in other["raised"]["stream"]
    assert "empty" in chief["raised"]["empty"]
    assert "empty" in other["raised"]["empty"]


@pytest.mark.exhaustive
def test_a_worker_that_dies_is_an_error_on_the_other_and_the_checkpoint_resumes(
    undisturbed, tmp_path
):
    written, said = undisturbed
    bits = {figures["spectrum"]["bits"] for figures in written}
    assert len(bits) == 1
    assert {figures["spectrum"]["steps"] for figures in written} == {12}
    assert "Lanczos" in said[0]
    assert "Lanczos" not in said[1]  # only the chief shows progress

    # Where the second worker must not write: nothing could be made there.
    nowhere = Path(os.devnull) / "checkpoint"
    checkpoints = (tmp_path / "checkpoint", nowhere)
    (survivor, dead), _ = two_workers("spectrum", tmp_path / "killed", checkpoints, die_at=6)
    assert dead is None
    assert "a worker was lost" in survivor["error"]
    assert "checkpoint" in survivor["error"]
    assert survivor["waited"] < 60

    resumed, _ = two_workers("spectrum", tmp_path / "resumed", checkpoints)
    assert {figures["bits"] for figures in resumed} == bits
    assert {figures["steps"] for figures in resumed} == {6}  # of 12
