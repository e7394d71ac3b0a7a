import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import layers

import spectral_density as sd
from spectral_density import Spectrum
from spectral_density.command import cli, results

# Keras saves weights by an interface that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DATA = np.random.default_rng(0)
X = DATA.normal(size=(30, 4)).astype(np.float32)
IMAGES = DATA.integers(0, 256, size=(20, 2, 2, 1), dtype=np.uint8)
Y = DATA.integers(0, 3, size=30)
W = DATA.uniform(0.5, 2, size=30).astype(np.float32)

KEYS = {
    *("model_state", "counts", "effective_rank"),
    *("format", "complete", "operator", "num_eigenvalues", "order", "draws", "block", "seed"),
    *("choice", "ended_by"),
    *("largest_eigenvalue", "smallest_eigenvalue", "outliers", "trace", "frobenius_norm"),
    *(
        "negative_mass",
        "density",
        "accuracy",
        "model",
        "data",
        "data_notes",
        "loss",
        "num_examples",
    ),
    *("num_batches", "seconds", "passes", "resumed", "settings", "versions"),
}


def mlp(shape=(4,), *, activation=None):
    stack = [layers.Flatten()] if len(shape) > 1 else []
    return keras.Sequential(
        [keras.Input(shape), *stack, layers.Dense(3, "tanh"), layers.Dense(3, activation)]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models and data in a directory."""
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("files")
    model = mlp()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(folder / "logits.keras")
    model = mlp(activation="softmax")
    model.compile("sgd", "categorical_crossentropy")
    model.save(folder / "softmax.keras")
    mlp().save(folder / "uncompiled.keras")
    model = mlp((2, 2, 1))
    model.compile("sgd", "mse")
    model.save(folder / "images.keras")
    np.savez(folder / "d.npz", x=X, y=Y)
    np.savez(folder / "w.npz", x=X, y=Y, w=W)
    np.savez(folder / "images.npz", x=IMAGES, y=Y[:20])
    return folder


@pytest.fixture
def here(files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return files


@pytest.fixture
def command(here, capsys, monkeypatch):
    """Run a command in process: exit code, output, and the lines of errors. Without pictures."""
    monkeypatch.setattr(results, "PICTURES", ())

    def run(line, *more):
        code = cli.main([*shlex.split(line), *map(str, more)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def dense(model, loss, data, operator=sd.HessianOperator, **options):
    """Return the dense matrix that the library gives for the same problem."""
    return operator(keras.models.load_model(model), loss, data, **options).to_dense()


def test_a_run_writes_the_spectrum_of_the_compiled_loss(command, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PICTURES", ("spectrum.png", "spectrum.svg"))
    out = tmp_path / "new" / "out"
    code, text, error = command("run logits.keras --data d.npz --seed 1 --out", out)
    assert (code, error) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "spectrum.npz",
        "spectrum.png",
        "spectrum.svg",
        "summary.json",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == KEYS
    # All of the 27 eigenvalues: 90 steps are more than there are.
    exact = np.linalg.eigvalsh(dense("logits.keras", None, [(X, Y)]))
    spectrum = Spectrum.load(out / "spectrum.npz")
    np.testing.assert_allclose(spectrum.nodes[0], exact, atol=1e-5)
    assert summary["order"] == 27
    np.testing.assert_allclose(summary["largest_eigenvalue"]["value"], exact[-1], rtol=1e-5)
    np.testing.assert_allclose(summary["smallest_eigenvalue"]["value"], exact[0], atol=1e-5)
    assert summary["complete"] is True
    assert (summary["num_examples"], summary["num_batches"]) == (30, 1)
    assert 27 <= summary["passes"] <= 30  # and a few to see that the matrix is symmetric
    assert summary["seconds"] > 0
    assert (summary["draws"], summary["seed"]) == (2, 1)
    for shown in ("logits.keras: Sequential, 27 trainable", "30 examples", "check     sound"):
        assert shown in text
    assert "at logits, as compiled" in text


def test_weights_batches_and_seed_are_those_asked_for(command, tmp_path):
    code, _, _ = command(
        "run logits.keras --data w.npz --batch-size 7 --order 27 --draws 1 --seed 5 --out", tmp_path
    )
    assert code == 0
    batches = [(X[i : i + 7], Y[i : i + 7], W[i : i + 7]) for i in range(0, 30, 7)]
    operator = sd.HessianOperator(keras.models.load_model("logits.keras"), None, batches)
    expected = sd.estimate_spectrum(operator, 27, 1, seed=5)
    found = Spectrum.load(tmp_path / "spectrum.npz")
    np.testing.assert_allclose(found.alpha[0][:10], expected.alpha[0][:10], rtol=1e-4)


@pytest.mark.exhaustive
def test_a_tolerance_takes_the_steps_and_draws_that_the_library_takes(command, tmp_path):
    code, text, _ = command("run logits.keras --data d.npz --tolerance 0.05 --out", tmp_path)
    assert code == 0
    assert "to a tolerance of 0.05 of the range, with at most 900 products" in text
    operator = sd.HessianOperator(keras.models.load_model("logits.keras"), None, [(X, Y)])
    expected = sd.estimate_spectrum(operator, tolerance=0.05, max_products=900)
    found = Spectrum.load(tmp_path / "spectrum.npz")
    assert found.alpha.shape == expected.alpha.shape
    assert found.num_draws * found.order < 900
    np.testing.assert_allclose(found.alpha[0][:8], expected.alpha[0][:8], rtol=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ended_by"] == "tolerance"
    assert summary["accuracy"]["total"] <= 0.05
    assert not (tmp_path / "checkpoint").exists()
    assert "missed" not in text


def test_a_budget_and_a_block_are_spent_as_the_library_spends_them(command, tmp_path):
    code, text, error = command(
        "run logits.keras --data d.npz --max-products 12 --out", tmp_path / "a"
    )
    assert (code, error) == (0, "")
    assert "at most 12 products, in steps and draws" in text and "chosen" in text
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["order"] * summary["draws"] * summary["block"] <= 12
    assert "of 12 products" in summary["choice"]
    line = "run logits.keras --data d.npz --order 5 --draws 2 --block 3 --out"
    code, text, _ = command(line, tmp_path / "b")
    assert code == 0 and "2 draws of 3 vectors of 5 steps" in text
    spectrum = Spectrum.load(tmp_path / "b" / "spectrum.npz")
    assert (spectrum.order, spectrum.num_draws, spectrum.block) == (5, 2, 3)
    other = line.replace("--block 3", "--block 2 --resume")
    code, text, error = command(other, tmp_path / "b")
    assert code != 0 and "block is 2 and was 3" in error


def test_with_a_tolerance_order_and_draws_are_the_most(command, tmp_path):
    line = "run logits.keras --data d.npz --tolerance 1e-6 --order 9 --draws 3 --out"
    code, text, _ = command(line, tmp_path)
    assert code == 0
    assert "at most 27 products, 9 steps a draw, 3 draws" in text
    found = Spectrum.load(tmp_path / "spectrum.npz")
    assert (found.num_draws, found.order) == (3, 9)


@pytest.mark.exhaustive
def test_a_tolerance_that_was_missed_is_said_and_gone_on_with(command, tmp_path):
    line = "run logits.keras --data d.npz --no-check --tolerance 0.02"
    a, b, c = (tmp_path / name for name in "abc")
    code, text, _ = command(f"{line} --max-products 20 --out {a}")
    assert code == 0
    assert "raise --max-products" in text
    assert "a larger --max-products with --resume goes on from" in text
    assert (a / "checkpoint").is_dir()
    code, text, _ = command(f"{line} --max-products 20 --out {a} --resume")
    assert "nothing to do" in text
    code, text, _ = command(f"{line} --max-products 2400 --out {a} --resume")
    assert code == 0
    assert "going on from" in text
    code, text, _ = command(f"{line} --max-products 20 --no-checkpoint --out {c}")
    assert "it takes a larger --max-products" in text
    assert command(f"{line} --max-products 2400 --out {b}")[0] == 0
    spectra = [Spectrum.load(folder / "spectrum.npz") for folder in (a, b)]
    assert spectra[0].alpha.shape == spectra[1].alpha.shape
    assert [spectrum.ended_by.name for spectrum in spectra] == ["TOLERANCE"] * 2


@pytest.mark.parametrize(
    ("options", "operator", "given"),
    [
        ("--operator ggn", sd.GaussNewtonOperator, {}),
        ("--operator fisher", sd.FisherOperator, {}),
        ("--operator fisher --fisher-kind empirical", sd.FisherOperator, {"kind": "empirical"}),
        (
            "--layers dense.*/kernel",
            sd.HessianOperator,
            {"variables": re.compile("dense.*/kernel")},
        ),
    ],
)
def test_each_operator_and_selection_is_the_librarys(command, tmp_path, options, operator, given):
    code, _, error = command(
        f"run logits.keras --data d.npz --draws 1 --no-check {options} --out", tmp_path
    )
    assert code == 0, error
    exact = np.linalg.eigvalsh(dense("logits.keras", None, [(X, Y)], operator, **given))
    found = Spectrum.load(tmp_path / "spectrum.npz")
    assert found.size == len(exact)
    np.testing.assert_allclose(found.nodes.max(), exact[-1], rtol=1e-4)


def test_labels_and_images_get_the_form_that_model_and_loss_take(command, tmp_path):
    code, text, _ = command("run softmax.keras --data d.npz --draws 1 --out", tmp_path / "a")
    assert code == 0
    assert "one-hot" in text
    exact = np.linalg.eigvalsh(dense("softmax.keras", None, [(X, np.eye(3)[Y])]))
    np.testing.assert_allclose(Spectrum.load(tmp_path / "a/spectrum").nodes[0], exact, atol=1e-5)
    code, text, _ = command("run images.keras --data images.npz --draws 1 --out", tmp_path / "b")
    assert code == 0
    assert "scaled to [0, 1]" in text
    notes = json.loads((tmp_path / "b" / "summary.json").read_text())["data_notes"]
    assert len(notes) == 2
    batch = ((IMAGES / 255.0).astype(np.float32), np.eye(3)[Y[:20]])
    exact = np.linalg.eigvalsh(dense("images.keras", None, [batch]))
    np.testing.assert_allclose(Spectrum.load(tmp_path / "b/spectrum").nodes[0], exact, atol=1e-5)


def test_a_loss_is_a_keras_name_or_a_function_of_the_users(command, here, tmp_path):
    (here / "own.py").write_text(
        "import keras\n"
        "def loss(y_true, y_pred):\n"
        "    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, True)\n"
    )
    extremes = []
    for loss in ("sparse_categorical_crossentropy --from-logits", "own:loss"):
        out = tmp_path / str(len(extremes))
        code, _, error = command(f"run uncompiled.keras --data d.npz --loss {loss} --out", out)
        assert (code, error) == (0, "")
        extremes.append(json.loads((out / "summary.json").read_text())["largest_eigenvalue"])
    np.testing.assert_allclose(extremes[0]["value"], extremes[1]["value"], rtol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("uncompiled.keras --data d.npz", "saved without a loss"),
        ("uncompiled.keras --data d.npz --loss nonsense", "no loss of Keras"),
        ("uncompiled.keras --data d.npz --loss mse --from-logits", "knows no logits"),
        ("logits.keras --data d.npz --from-logits", "--from-logits belongs to"),
        ("logits.keras --data images.npz", r"inputs of shape (2, 2, 1), which images.npz"),
        ("logits.keras --data d.npz --layers nowhere", "no variable matches 'nowhere'"),
        ("logits.keras --data nowhere.npz", "no data file nowhere.npz"),
        ("nowhere.keras --data d.npz", "no model file nowhere.keras"),
        ("logits.keras --data d.npz --order 28", "no more than 27 Lanczos steps"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(command, tmp_path, line, message):
    code, _, error = command(f"run {line} --out", tmp_path / "out")
    assert code == 1
    assert error.startswith("spectral-density: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="a loss of TensorFlow's")
def test_what_tensorflow_finds_while_it_computes_is_told_without_its_headings(command, here):
    (here / "gathering.py").write_text(
        "import tensorflow as tf\n"
        "def loss(y_true, y_pred):\n"
        "    return tf.gather(y_pred, tf.cast(y_true, tf.int32) + 99, axis=1)\n"
    )
    code, _, error = command("check logits.keras --data d.npz --loss gathering:loss")
    assert code == 1
    assert "labels of shape () and outputs of shape (3,): indices[" in error


def test_an_unsound_matrix_is_refused_unless_asked_for(command, here, tmp_path):
    model = mlp()
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign(np.full((4, 3), np.nan, np.float32))
    model.save(here / "nan.keras")
    code, _, error = command("run nan.keras --data d.npz --out", tmp_path / "out")
    assert code == 1
    assert "NaN" in error
    assert "--no-check" in error
    code, text, _ = command("check nan.keras --data d.npz")
    assert code == cli.UNSOUND
    assert "unsound" in text


def test_check_lists_what_was_checked(command):
    code, text, error = command("check logits.keras --data d.npz")
    assert (code, error) == (0, "")
    for name in ("finite", "data", "repeatable", "split", "symmetric", "outputs", "sound, after"):
        assert name in text


def test_check_doubts_logits_that_are_taken_for_probabilities(command):
    code, text, _ = command(
        "check uncompiled.keras --data d.npz --loss sparse_categorical_crossentropy"
    )
    assert code == 0
    assert "doubtful outputs" in text


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ("uncompiled.keras --loss sparse_categorical_crossentropy", "Then pass --from-logits."),
        (
            "softmax.keras --loss categorical_crossentropy --from-logits",
            "Then leave --from-logits out.",
        ),
        ("mistaken.keras", "Then pass --loss categorical_crossentropy --from-logits."),
        ("sum.keras --loss sums:loss", "a mean is expected: let it return a mean."),
    ],
)
# Keras doubts these logits as well.
@pytest.mark.filterwarnings("ignore:.*received `from_logits=True`:UserWarning")
def test_advice_names_options_of_the_command(command, here, options, advice):
    model = mlp()
    model.compile("sgd", "categorical_crossentropy")
    model.save(here / "mistaken.keras")
    model.save(here / "sum.keras")
    (here / "sums.py").write_text(
        "import keras\n"
        "def loss(model, batch):\n"
        "    return keras.ops.sum(keras.ops.square(model(batch[0])))\n"
    )
    _, text, _ = command(f"check {options} --data d.npz")
    assert advice in text
    assert "=True" not in text


def test_a_run_that_is_there_is_refused_or_complete_never_lost(command, tmp_path):
    line = "run logits.keras --data d.npz --order 5 --draws 2 --no-check --out"
    assert command(line, tmp_path)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, error = command(line, tmp_path)
    assert code == 1
    assert "holds a run already" in error
    code, text, _ = command(line, tmp_path, "--resume")
    assert code == 0
    assert "complete: nothing to do" in text
    for other in ("--seed 2", "--order 6", "--order 4", "--batch-size 3", "--data w.npz"):
        code, _, error = command(line, tmp_path, "--resume", *other.split())
        assert code == 1
        assert "choose another --out" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_says_how_to_go_on_and_ends_the_same(
    command, tmp_path, monkeypatch, capsys
):
    line = "run logits.keras --data d.npz --order 20 --draws 2 --draws-at-once 1 --no-check --out"
    assert command(line, tmp_path / "whole")[0] == 0
    estimate = sd.estimate_spectrum

    def interrupted(*arguments, callback, **options):
        def stop(step):
            if step.draws.start == 1 and step.step == 3:
                signal.raise_signal(signal.SIGINT)
            callback(step)

        return estimate(*arguments, **options, callback=stop)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr("spectral_density.command.run.estimate_spectrum", interrupted)
        code, _, error = command(line, out)
    assert code == cli.INTERRUPTED
    assert error.count("\n") == 1
    assert json.loads((out / "summary.json").read_text())["complete"] is False
    again = error.strip().partition("Go on with: spectral-density ")[2]
    assert again.endswith("--resume")
    code, text, _ = command(again)
    assert code == 0
    assert "going on from" in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["resumed"] is True
    assert summary["passes"] < 40
    assert not (out / "checkpoint").exists()
    for name in ("alpha", "beta"):
        np.testing.assert_array_equal(
            *(getattr(Spectrum.load(tmp_path / o / "spectrum"), name) for o in ("cut", "whole"))
        )


def test_a_kept_checkpoint_takes_more_steps_and_draws(command, tmp_path):
    line = "run logits.keras --data d.npz --draws-at-once 1 --no-check --out"
    more = "--order 12 --draws 2"
    assert command(f"{line} {tmp_path / 'a'} --order 8 --draws 1 --keep-checkpoint")[0] == 0
    assert (tmp_path / "a" / "checkpoint").is_dir()
    assert command(f"{line} {tmp_path / 'a'} {more} --resume")[0] == 0
    assert command(f"{line} {tmp_path / 'b'} {more} --no-checkpoint")[0] == 0
    a, b = (Spectrum.load(tmp_path / name / "spectrum") for name in "ab")
    np.testing.assert_array_equal(a.alpha, b.alpha)
    assert (tmp_path / "a" / "checkpoint").is_dir()  # as asked for at first


def test_a_disk_without_room_is_told_beforehand(command, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, _, error = command("run logits.keras --data d.npz --out", tmp_path / "new" / "out")
    assert code == 1
    assert "--no-checkpoint" in error
    assert not (tmp_path / "new").exists()


def test_too_little_memory_names_the_ways_out_of_the_command(command, tmp_path, monkeypatch):
    def too_much(*arguments, **options):
        raise MemoryError("the run would take 9 GiB.")

    monkeypatch.setattr("spectral_density.command.run.estimate_spectrum", too_much)
    code, _, error = command("run logits.keras --data d.npz --out", tmp_path / "out")
    assert code == 1
    assert "9 GiB" in error
    assert "--basis disk" in error
    assert not (tmp_path / "out").exists()


def test_data_come_from_tensorflow_datasets(command, here, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(here))
    (here / "mnist").mkdir()  # as if it were on the disk
    with tfds.testing.mock_data(num_examples=12):
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.AveragePooling2D(14),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.save(here / "mnist.keras")
        code, text, error = command(
            "run mnist.keras --data tfds:mnist[train[:8]] --batch-size 5 --draws 1 --out", tmp_path
        )
    assert code == 0, error
    assert "scaled to [0, 1]" in text


@pytest.mark.slow
def test_a_killed_run_and_ctrl_c_in_a_process_of_its_own(here, tmp_path):
    big = keras.Sequential([keras.Input((4,)), layers.Dense(300), layers.Dense(3)])
    big.compile("sgd", "mse")
    big.save(here / "big.keras")
    line = "run big.keras --data d.npz --order 1500 --draws 2 --draws-at-once 1 --no-check --out"
    command = [sys.executable, "-m", "spectral_density", *line.split(), str(tmp_path)]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, cli.INTERRUPTED)):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        state = tmp_path / "checkpoint" / "draws-0-1" / "state.npz"
        before = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 120
        while (state.stat().st_mtime_ns if state.exists() else 0) == before:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        assert "Traceback" not in error
        command = [*command, "--resume"] if "--resume" not in command else command
    assert "Go on with" in error


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.parametrize("line", ["check q.keras --data d.npz", "run q.keras --data d.npz --out o"])
def test_a_model_without_second_derivatives_is_refused_in_a_sentence(command, line):
    model = mlp()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.quantize("int8")
    model.save("q.keras")
    code, _, error = command(line)
    assert code
    assert "straight-through" in error
    assert "layer Dense" in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
