"""Every notebook runs, CI-sized and without data files, and is kept with its outputs."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

# What a run on made-up images, in seconds, takes. `mock` is kept: it ends when it is collected.
QUICK_CELL = """
import os

os.environ.pop("TFDS_DATA_DIR", None)
os.environ.update(
    CUDA_VISIBLE_DEVICES="-1",
    TF_CPP_MIN_LOG_LEVEL="3",
    SD_EPOCHS="1",
    SD_CURVATURE_IMAGES="8",
    SD_ORDER="3",
    SD_DRAWS="2",
    SD_DRAW_STEPS="3",
    SD_HIDDEN="1",
    SD_UNITS="32",
    SD_RANK="5",
    SD_NEWTON_STEPS="3",
    SD_PASSES="1",
    SD_STEPS="2",
    SD_PRODUCTS="6",
    SD_DEVIATIONS="1",
)
import gc

import keras
import tensorflow_datasets as tfds

# Look for garbage seldom, as in conftest.py: tracing makes millions of objects.
gc.freeze()
gc.set_threshold(50_000, 20, 10)
mock = tfds.testing.mock_data(num_examples=64)
mock.__enter__()
"""


SELDOM = (
    "saddle_free_newton",
    "autoencoder",
    "edge_of_stability",
    "hessian_basics",
    "jax",
    "randomized_svd",
    "weight_initialization",
)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def sources(notebook):
    return "\n".join(cell.source for cell in code_cells(notebook))


def texts(cell):
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        yield from (value for kind, value in output.get("data", {}).items() if "text" in kind)


def test_there_is_a_notebook():
    assert "spectral_density" in [path.stem for path in NOTEBOOKS]


def seldom(path):
    """Mark a notebook that others run the same calls as."""
    marks = [pytest.mark.exhaustive] if path.stem in SELDOM else []
    return pytest.param(path, marks=marks, id=path.stem)


# jupyter_client and nbclient warn about each other's use of asyncio and of sockets.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("notebook", [seldom(path) for path in NOTEBOOKS], indirect=True)
def test_it_runs_without_data_files(notebook, tmp_path):
    # The cell imports Keras, before which a notebook says on what it is to run.
    backend = re.search(r'^os\.environ\["KERAS_BACKEND"\] = .*$', sources(notebook), re.MULTILINE)
    first = f"import os\n\n{backend.group()}\n" if backend else ""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first + QUICK_CELL))
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises on the first cell that does
    assert all(cell.execution_count for cell in code_cells(notebook))


def test_it_is_valid(notebook):
    nbformat.validate(notebook)


def test_it_is_kept_executed_in_order_and_without_errors(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "stream" in kinds
    assert "error" not in kinds


def test_it_is_kept_with_its_pictures(notebook):
    for cell in code_cells(notebook):
        if "plt.show()" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_its_outputs_are_free_of_logs_widgets_and_paths(notebook):
    for cell in code_cells(notebook):
        assert all(output.get("name") != "stderr" for output in cell.outputs)
        assert not any(
            kind.endswith("widget-view+json") for o in cell.outputs for kind in o.get("data", {})
        )
        for text in texts(cell):
            assert not re.search(r"(^|[\s\"'(=])(/|[A-Z]:\\|~/)\w", text), text


def test_it_is_small(notebook):
    assert len(nbformat.writes(notebook).encode()) < 400_000
