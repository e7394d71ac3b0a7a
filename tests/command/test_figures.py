import subprocess
import sys

import numpy as np
import pytest

from spectral_density import estimate_spectrum
from spectral_density.command.figures import file_labels, plot_files


@pytest.fixture
def files(tmp_path):
    """Two spectrum files, and a run directory."""
    eigenvalues = np.linspace(-1, 3, 40)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "run" / "spectrum.npz"]
    (tmp_path / "run").mkdir()
    for shift, path in enumerate(paths):
        estimate_spectrum(np.diag(eigenvalues + shift), 10, 2).save(path)
    return [paths[0], paths[1], tmp_path / "run"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_or_several_spectra_are_drawn_on_one_figure(files, tmp_path, count, suffix):
    out = tmp_path / "new" / f"figure{suffix}"
    assert plot_files(files[:count], out, xscale="symlog") == out
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert out.read_bytes().startswith(start)


def test_the_legend_has_the_labels(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["matplotlib"].rcParams, "svg.fonttype", "none")
    text = plot_files(files, tmp_path / "named.svg").read_text()
    assert all(f">{name}<" in text for name in ("a", "b", "run"))
    text = plot_files(files, tmp_path / "l.svg", labels=["Adam", "SGD", "RMSprop"]).read_text()
    assert all(f">{name}<" in text for name in ("Adam", "SGD", "RMSprop"))


def test_the_same_figure_gives_the_same_bytes(files, tmp_path):
    for suffix in (".svg", ".png"):
        outs = [plot_files(files, tmp_path / f"{name}{suffix}") for name in "cd"]
        assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_picture_that_is_there_is_written_over_by_force_only(files, tmp_path):
    out = tmp_path / "mine.png"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        plot_files(files, out)
    assert out.read_text() == "mine"
    plot_files(files, out, force=True)
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_a_spectrum_file_is_never_written_over(files):
    before = files[0].read_bytes()
    with pytest.raises(ValueError, match=r"must end in one of \.png"):
        plot_files(files, files[0], force=True)
    assert files[0].read_bytes() == before


@pytest.mark.parametrize(
    ("labels", "message"), [(["x"], "got 1"), (["x", "x", "y"], "the same label")]
)
def test_labels_that_tell_nothing_apart_are_refused(files, tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        plot_files(files, tmp_path / "o.png", labels=labels)


def test_a_missing_spectrum_is_named_and_nothing_is_written(files, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nowhere.npz", "empty"):
        with pytest.raises(FileNotFoundError, match=name):
            plot_files([*files, tmp_path / name], tmp_path / "o.png")
    assert not (tmp_path / "o.png").exists()


def test_names_are_as_short_as_they_can_be(tmp_path):
    def labels(*names):
        return file_labels([tmp_path / name for name in names])

    assert labels("a.npz", "b.npz") == ["a", "b"]
    assert labels("one/spectrum.npz", "two") == ["one", "two"]
    assert labels("one/a.npz", "two/a.npz", "b.npz")[:2] == ["one/a", "two/a"]
    assert labels("epoch.5", "epoch.10.npz") == ["epoch.5", "epoch.10"]


def test_no_screen_and_no_tensorflow_is_needed(files, tmp_path):
    code = (
        "import sys; from spectral_density.command.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "assert code == 0 and 'tensorflow' not in sys.modules\n"
    )
    out = tmp_path / "o.png"
    done = subprocess.run(
        [sys.executable, "-c", code, "plot", *map(str, files), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "PYTHONPATH": ":".join(p for p in sys.path if p), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {out}\n"
    assert done.stderr == ""
    assert out.exists()
