"""Processes of their own for tests: Keras has one backend in each, and JAX one precision."""

import os
import subprocess
import sys

# Most of the time goes into compiling.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def environment(in_float64=False, **more):
    precision = {"JAX_ENABLE_X64": "1" if in_float64 else "0"}
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS} | precision | more


def passes(file, *options, **settings):
    """Assert that the tests of a file pass in a process of its own."""
    plain = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
    command = [sys.executable, "-m", "pytest", *plain, "--import-mode=importlib", str(file)]
    run = subprocess.run(
        [*command, *options],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
