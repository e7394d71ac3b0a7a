"""Several devices, and several processes, each tested in processes of their own."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from engines.jax.processes import FLAGS, environment, passes

FILE = Path(__file__).with_name("several_devices.py")
SECONDS = 300  # until two processes that go on and on are ended


@pytest.mark.slow
def test_four_devices(tmp_path):
    flags = f"{FLAGS} --xla_force_host_platform_device_count=4 --xla_dump_to={tmp_path}"
    some = "(ragged and 25-True) or (filled and 0-F) or sums or (parallel and True) or refused"
    passes(FILE, "-k", some, KERAS_BACKEND="jax", XLA_FLAGS=flags)
    # Nothing is said to other devices before the one reduction at the end.
    compiled = {path: path.read_text() for path in tmp_path.glob("*dealt*after_optimizations.txt")}
    assert compiled
    for words in ("all-reduce", "all-to-all", "all-gather", "collective-permute"):
        assert [path.name for path, text in compiled.items() if words in text] == []
    totals = [path.read_text() for path in tmp_path.glob("*total*after_optimizations.txt")]
    assert totals
    assert all("all-to-all" in text for text in totals)


@pytest.mark.exhaustive
def test_everything_on_four_devices():
    flags = f"{FLAGS} --xla_force_host_platform_device_count=4"
    passes(FILE, KERAS_BACKEND="jax", XLA_FLAGS=flags)


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """What two processes of one device each wrote."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("two_processes.py")
    outs = [folder / f"{index}.json" for index in range(2)]
    commands = [
        [sys.executable, str(script), str(index), str(port), str(out), str(folder / "run")]
        for index, out in enumerate(outs)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(each, env=environment(), **pipes) for each in commands]
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), said
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.slow
def test_two_processes_have_the_same_result(of_two_processes):
    first, second = of_two_processes
    assert first == second
    assert first["repr"].endswith("2 devices (cpu) of 2 processes)")
    assert first["error"] < 1e-6
    assert first["goes on"]
    assert first["verdict"] == "sound"


@pytest.mark.slow
@pytest.mark.parametrize(("what", "named"), [("vectors", "same vectors"), ("data", "same whole")])
def test_processes_that_differ_are_told_so(of_two_processes, what, named):
    for figures in of_two_processes:
        assert named in figures[what]
        assert figures["afterwards"] is None
