"""Wrong arguments are told before a framework is loaded."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from spectral_density.command.before_loading import check_loss, check_source, tfds_directory

# Each line is refused for one reason, which its error names.
LINES = {
    "check m.keras --data tfds:mnist": "names no split",
    "check m.keras --data tfds:mnist[trian]": "no split 'trian'",
    "check m.keras --data tfds:cifar10[train]": "pass --download",
    "run m.keras --out o --data mnist": "none of tfds",
    "run m.keras --out o --data nowhere:data": "no module 'nowhere'",
    "run m.keras --out o --data own:data --batch-size 3": "--batch-size does not apply",
    "run m.keras --out o --data d.npz --loss crossentropy": "no loss of Keras",
    "run m.keras --out o --data d.npz --loss nowhere:loss": "no module 'nowhere'",
    "run m.keras --out o --data d.npz --from-logits": "--from-logits belongs",
    "run m.keras --out o --data d.npz --loss mse --from-logits": "knows no logits",
    "run m.keras --out o --data d.npz --custom-objects nowhere": "no module 'nowhere'",
    "run m.keras --out o --data other.npz": "must hold arrays named x and y",
    "run m.keras --out o --data damaged.npz": "is no npz file",
    "run m.keras --out o --data none.npz": "no data file",
}
PROGRAM = """
import sys
from spectral_density.command.cli import main
for line in sys.argv[1:]:
    assert main(line.split()) == 1, line
assert not {"keras", "tensorflow", "jax", "tensorflow_datasets"} & set(sys.modules)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    version = tmp_path / "tfds" / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    splits = [{"name": "train"}, {"name": "test"}]
    (version / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    np.savez("d.npz", x=np.zeros((4, 2)), y=np.zeros(4))
    np.savez("other.npz", a=np.zeros(3))
    (tmp_path / "damaged.npz").write_text("x")
    (tmp_path / "own.py").write_text("raise RuntimeError('imported')\n")
    with zipfile.ZipFile("m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    return tmp_path


def test_wrong_arguments_are_told_without_a_framework(here):
    pytest.importorskip("tensorflow_datasets")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *LINES], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    errors = run.stderr.splitlines()
    assert len(errors) == len(LINES)
    for error, says in zip(errors, LINES.values(), strict=True):
        assert says in error


def test_right_arguments_pass(here):
    pytest.importorskip("tensorflow_datasets")
    for source in ("tfds:mnist[train[:512]]", "tfds:mnist:3.0.1[train[:10%]+test]", "d.npz"):
        check_source(source, 5, download=False)
    check_source("tfds:cifar10[nosplit]", None, download=True)
    check_source("own:data", None, download=False)
    check_loss("own:loss", False, "own")
    check_loss(None, False, None)
    assert tfds_directory() == here / "tfds"


def test_every_loss_of_keras_passes_by_its_name():
    names = [
        name
        for name, loss in vars(keras.losses).items()
        if callable(loss) and name not in ("Loss", "get", "serialize", "deserialize")
    ]
    assert len(names) > 40
    for name in names:
        check_loss(name, False, None)
        with_logits = "crossentropy" in name.lower()
        if with_logits:
            check_loss(name, True, None)
