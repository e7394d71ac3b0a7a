"""Run notebooks from top to bottom and keep what they put out.

    python notebooks/execute.py notebooks/spectral_density.ipynb

Sizes are set by the environment variables that each notebook names in its first cell.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# What compiled libraries write to the terminal (TensorFlow's start-up log) is not the notebook's.
KERNEL_OPTIONS = ["--IPKernelApp.capture_fd_output=False"]


def execute(path: Path) -> None:
    """Run a notebook, in an empty directory, and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=None,
            coalesce_streams=True,
            record_timing=False,
            store_widget_state=False,
            extra_arguments=KERNEL_OPTIONS,
            resources={"metadata": {"path": directory}},
        ).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def main() -> None:
    """Run the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for path in parser.parse_args().notebooks:
        start = time.perf_counter()
        execute(path)
        print(f"{path}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
