import os
import subprocess
import sys

import numpy as np
import pytest

from spectral_density import Spectrum, __version__, cli, demo


def run(*arguments, code=None, timeout=170, **environment):
    """Run `python -m spectral_density`, or `code` in its place, in a fresh interpreter."""
    command = ["-m", "spectral_density"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "Agg", **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "demo"),
        (["--version"], __version__),
        (["demo", "--help"], "--out"),
    ],
)
def test_help_and_version_come_without_tensorflow(arguments, expected):
    code = (
        "import sys, atexit\n"
        "heavy = ('tensorflow', 'keras', 'matplotlib', 'scipy')\n"
        "atexit.register(lambda: print('loaded', [n for n in heavy if n in sys.modules]))\n"
        "sys.argv[0] = 'spectral-density'\n"
        "from spectral_density.cli import main\n"
        "sys.exit(main())\n"
    )
    done = run(*arguments, code=code)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "loaded []" in done.stdout
    assert done.stderr == ""


def test_the_module_runs_as_the_command():
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "COMMAND"), (["dance"], "dance"), (["demo", "-x"], "-x")]
)
def test_wrong_usage_is_named_with_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_demo_without_scikit_learn_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pip install scikit-learn" in captured.err
    assert captured.err.startswith("spectral-density: ")
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_debug_shows_the_whole_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match="scikit-learn"):
        cli.main(["--debug", "demo", "--out", str(tmp_path / "out")])


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path, capsys):
    pytest.importorskip("sklearn")
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main(["demo", "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("spectral-density: ")
        assert str(out) in error


def test_an_interrupt_ends_the_command_without_a_trace(monkeypatch, tmp_path, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_compares_with_the_exact_spectrum_and_writes_its_files(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "results" / "demo"
    done = run("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    numbers = {}
    for line in done.stdout.splitlines():
        for name in ("relative error", "Wasserstein", "ten largest"):
            if name in line:
                words = [w for w in line.split() if w[0].isdigit() and "e-" in w]
                numbers.setdefault(name, float(words[0]))
    assert numbers["relative error"] <= 1e-5
    assert numbers["Wasserstein"] <= 1e-3
    assert numbers["ten largest"] <= 1e-5
    assert "4,480 parameters" in done.stdout
    assert "Lanczos" in done.stderr  # the bar, forced on
    assert "Warning" not in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["spectrum.npz", "spectrum.png"]
    assert (out / "spectrum.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert str(out / "spectrum.png") in done.stdout
    spectrum = Spectrum.load(out / "spectrum.npz")
    assert spectrum.nodes.shape == (10, 90)
    assert spectrum.size == 4480
    assert np.all(np.isfinite(spectrum.density().values))
