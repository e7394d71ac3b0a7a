"""Runs that are killed, extended, damaged or mixed up, and what is left of them."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import dense_symmetric, diagonal_operator, distinct_eigenvalues, log_uniform_bulk
from keras import layers
from models import affine, classification, regression, sequential
from scipy.sparse.linalg import LinearOperator

from spectral_density import ConvergenceWarning, estimate_spectrum, lanczos, top_eigenpairs
from spectral_density.checkpoint import CheckpointError, RunDirectory
from spectral_density.curvature import FisherOperator, HessianOperator
from spectral_density.linalg import lockstep_groups

SIZE = 60


class Stop(Exception):
    pass


def stop_after(step):
    def callback(seen):
        if seen.step == step:
            raise Stop

    return callback


def matrix(seed=0):
    return dense_symmetric(log_uniform_bulk(SIZE, seed=seed))


def same(found, expected):
    np.testing.assert_array_equal(found.alpha, expected.alpha)
    np.testing.assert_array_equal(found.beta, expected.beta)
    np.testing.assert_array_equal(found.residual_norms, expected.residual_norms)
    if expected.basis is None:
        assert found.basis is None
    else:
        np.testing.assert_array_equal(found.basis, expected.basis)


OPTIONS = {
    "one draw": {},
    "three draws": {"num_draws": 3, "draws_at_once": 2},
    "float32 basis": {"num_draws": 2, "basis_dtype": "float32"},
    "no reorthogonalization": {"num_draws": 2, "reorthogonalize": "none"},
    "no basis kept": {"num_draws": 3, "draws_at_once": 1, "keep_basis": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("stop", [1, 2, 3, 9, 10])
def test_a_stopped_run_ends_as_if_undisturbed(tmp_path, options, stop):
    a = matrix()
    expected = lanczos(a, 10, **options)
    with pytest.raises(Stop):
        lanczos(a, 10, checkpoint=tmp_path, callback=stop_after(stop), **options)
    same(lanczos(a, 10, checkpoint=tmp_path, **options), expected)
    # And once more, from the finished run alone.
    same(lanczos(a, 10, checkpoint=tmp_path, **options), expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_until_a_step_is_a_run_of_so_many_steps(tmp_path, options):
    a = matrix()
    asked = []

    def until(step):
        asked.append((step.step, step.draws.start))
        return step.step == 7

    same(lanczos(a, 20, until=until, **options), lanczos(a, 7, **options))
    # Only the first group is asked, and the others follow it.
    assert asked == [(step, 0) for step in range(1, 8)]
    lanczos(a, 12, checkpoint=tmp_path, **options)
    asked.clear()
    same(lanczos(a, 20, until=until, checkpoint=tmp_path, **options), lanczos(a, 7, **options))
    assert asked == [(step, 0) for step in range(1, 8)]
    same(lanczos(a, 20, checkpoint=tmp_path, **options), lanczos(a, 20, **options))
    same(lanczos(a, 20, until=lambda step: step.step > 20, **options), lanczos(a, 20, **options))


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_steps_can_be_added_without_repeating_any(tmp_path, reorthogonalize):
    products = []
    a = matrix()

    def matvec(v):
        products.append(1)
        return a @ v

    operator = LinearOperator(a.shape, matvec=matvec, dtype=float)
    operator.fingerprint = lambda: {"matrix": "a"}
    options = {"reorthogonalize": reorthogonalize, "checkpoint": tmp_path}
    lanczos(operator, 8, **options)
    assert len(products) == 8
    # One product makes sure that the operator is the same.
    longer = lanczos(operator, 20, **options)
    assert len(products) == 20 + 1
    same(longer, lanczos(a, 20, reorthogonalize=reorthogonalize))
    same(lanczos(operator, 5, **options), lanczos(a, 5, reorthogonalize=reorthogonalize))
    assert len(products) == 20 + 2


def test_draws_can_be_added_without_repeating_any(tmp_path):
    a = matrix()
    spectrum = estimate_spectrum(a, 12, 3, draws_at_once=1, checkpoint=tmp_path)
    seen = []
    more = estimate_spectrum(
        a, 12, 5, draws_at_once=1, checkpoint=tmp_path, callback=lambda s: seen.append(s.draws)
    )
    assert {draws.start for draws in seen} == {3, 4}
    np.testing.assert_array_equal(more.nodes[:3], spectrum.nodes)
    undisturbed = estimate_spectrum(a, 12, 5, draws_at_once=1)
    np.testing.assert_array_equal(more.nodes, undisturbed.nodes)
    np.testing.assert_array_equal(
        more.density().values,
        undisturbed.density().values,
    )


def test_groups_that_were_begun_stay_together(tmp_path):
    a = matrix()
    lanczos(a, 5, num_draws=4, draws_at_once=3, checkpoint=tmp_path)
    extended = lanczos(a, 9, num_draws=6, draws_at_once=2, checkpoint=tmp_path)
    np.testing.assert_allclose(extended.alpha, lanczos(a, 9, num_draws=6).alpha, rtol=1e-9)
    assert {p.name for p in tmp_path.glob("draws-*")} == {
        "draws-0-3",
        "draws-3-4",
        "draws-4-6",
    }
    with pytest.raises(ValueError, match="draws 0 to 2 together"):
        lanczos(a, 5, num_draws=2, checkpoint=tmp_path)


def test_workers_learn_from_the_chief_which_groups_were_begun(tmp_path):
    lanczos(matrix(), 5, num_draws=4, draws_at_once=3, checkpoint=tmp_path / "of the chief")

    class Chief:
        is_chief = True

        def on_chief(self, function):
            self.told = function()
            return self.told

    class Other:
        is_chief = False

        def on_chief(self, function):
            return chief.told

    chief, asked = Chief(), {"num_draws": 6, "draws_at_once": 2}
    expected = [range(3), range(3, 4), range(4, 6)]
    on_chief = lockstep_groups(
        SIZE, 5, **asked, checkpoint=tmp_path / "of the chief", workers=chief
    )
    # The directory is on the chief's disk alone.
    elsewhere = lockstep_groups(SIZE, 5, **asked, checkpoint=tmp_path / "none", workers=Other())
    assert on_chief == elsewhere == expected


def test_a_run_to_full_order_with_breakdowns_resumes(tmp_path):
    a = diagonal_operator(distinct_eigenvalues(3, 20))
    expected = lanczos(a, 20)
    with pytest.raises(Stop):
        lanczos(a, 20, checkpoint=tmp_path, callback=stop_after(4))
    same(lanczos(a, 20, checkpoint=tmp_path), expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"reorthogonalize": "none"}, "reorthogonalize"),
        ({"basis_dtype": "float32"}, "basis_dtype"),
        ({"start": np.ones(SIZE)}, "start"),
    ],
)
def test_a_checkpoint_of_another_problem_is_refused_by_name(tmp_path, change, named):
    lanczos(matrix(), 4, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=named):
        lanczos(matrix(), 4, checkpoint=tmp_path, **change)


def test_a_checkpoint_of_another_matrix_is_refused(tmp_path):
    lanczos(matrix(), 4, checkpoint=tmp_path)
    with pytest.raises(
        CheckpointError, match=r"of another problem: the entries of the matrix differ"
    ):
        lanczos(matrix(1), 4, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights", "the weights of the model differ"),
        ("data", "the data differ"),
        ("batch weights", "the weights of the batches differ"),
        ("labels", "the operator labels differ"),
    ],
)
def test_what_differs_is_said_in_words_and_not_by_its_hash(tmp_path, name, said):
    def problem(word):
        return {"operator": {name: hashlib.sha256(word).hexdigest(), "loss": {"axis": 1}}}

    RunDirectory(tmp_path, problem(b"before")).__exit__(None, None, None)
    with pytest.raises(CheckpointError) as caught:
        RunDirectory(tmp_path, problem(b"after"))
    assert str(caught.value) == (
        f"the checkpoint {tmp_path} is of another problem: {said}. "
        "Use another directory, or the same problem."
    )


def test_other_start_vectors_are_told_from_none(tmp_path):
    lanczos(matrix(), 4, checkpoint=tmp_path / "one", start=np.ones(SIZE))
    with pytest.raises(CheckpointError, match="problem: the start vectors differ"):
        lanczos(matrix(), 4, checkpoint=tmp_path / "one", start=np.arange(float(SIZE)))
    with pytest.raises(CheckpointError, match="start is not given and was given"):
        lanczos(matrix(), 4, checkpoint=tmp_path / "one")
    lanczos(matrix(), 4, checkpoint=tmp_path / "two")
    with pytest.raises(CheckpointError, match="start is given and was not given"):
        lanczos(matrix(), 4, checkpoint=tmp_path / "two", start=np.ones(SIZE))


def test_a_function_is_told_from_another_by_one_product(tmp_path):
    a = matrix()

    def operator(scale):
        return LinearOperator(a.shape, matvec=lambda v: scale * (a @ v), dtype=float)

    lanczos(operator(1.0), 4, checkpoint=tmp_path)
    lanczos(operator(1.0), 6, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="another operator"):
        lanczos(operator(1.0003), 6, checkpoint=tmp_path)


def damage(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def flip(content):
    content[len(content) // 2] ^= 0xFF


FILES = ["problem.json", "draws-0-1/state.npz", "draws-0-1/vectors.bin"]


def halve(content):
    del content[len(content) // 2 :]


@pytest.mark.parametrize("change", [flip, halve])
@pytest.mark.parametrize("name", ["problem.json", "draws-0-1/state.npz", "draws-0-1/vectors.bin"])
def test_a_damaged_checkpoint_says_which_file(tmp_path, name, change):
    lanczos(matrix(), 6, checkpoint=tmp_path)
    damage(tmp_path / name, change)
    with pytest.raises(CheckpointError, match=f"{Path(name).name}.* (cannot be read|is )"):
        lanczos(matrix(), 8, checkpoint=tmp_path)


def test_a_step_that_was_half_written_counts_for_nothing(tmp_path):
    with pytest.raises(Stop):
        lanczos(matrix(), 10, checkpoint=tmp_path, callback=stop_after(4))
    group = tmp_path / "draws-0-1"
    with open(group / "vectors.bin", "ab") as file:
        file.write(b"\x01" * 100)
    (group / "state.npz.new").write_bytes(b"half a fil")
    same(lanczos(matrix(), 10, checkpoint=tmp_path), lanczos(matrix(), 10))


def test_vectors_are_on_the_disk_before_the_state_that_counts_them(tmp_path, monkeypatch):
    synchronize, rename = os.fsync, os.replace
    done = []

    def fsync(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        synchronize(descriptor)

    def replace(new, old):
        done.append((os.stat(new).st_ino, old.name))
        rename(new, old)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    lanczos(matrix(), 3, checkpoint=tmp_path)
    folder = tmp_path / "draws-0-1"
    vectors, directory = ((folder / name).stat().st_ino for name in ("vectors.bin", "."))
    renames = [
        place
        for place, entry in enumerate(done)
        if isinstance(entry, tuple) and "state" in entry[1]
    ]
    assert len(renames) >= 3
    for place in renames:
        state = done[place][0]
        assert done[place - 2 : place] == [vectors, state]
        assert done[place + 1] == directory


def test_a_full_disk_keeps_the_last_good_step(tmp_path, monkeypatch):
    synchronize = os.fsync
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 15:
            raise OSError(28, "No space left on device")
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*kept"):
        lanczos(matrix(), 10, checkpoint=tmp_path)
    monkeypatch.setattr(os, "fsync", synchronize)
    steps = []
    resumed = lanczos(
        matrix(), 10, checkpoint=tmp_path, callback=lambda seen: steps.append(seen.step)
    )
    assert 1 < steps[0] < 10
    same(resumed, lanczos(matrix(), 10))


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"not empty.*thesis\.tex"):
        lanczos(matrix(), 4, checkpoint=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot write"):
        lanczos(matrix(), 4, checkpoint=tmp_path / "file")


@pytest.mark.parametrize("other", [1, 99])  # 1 had other random streams
def test_a_checkpoint_of_another_format_is_refused(tmp_path, other):
    lanczos(matrix(), 4, checkpoint=tmp_path)
    stored = json.loads((tmp_path / "problem.json").read_text())
    (tmp_path / "problem.json").write_text(json.dumps(stored | {"format": other}))
    with pytest.raises(CheckpointError, match=f"format {other}"):
        lanczos(matrix(), 4, checkpoint=tmp_path)


@pytest.mark.parametrize("other", [{}, {"format": 2, "weights": "other"}], ids=["none", "later"])
def test_an_operator_described_in_another_format_is_refused(tmp_path, other):
    RunDirectory(tmp_path, {"operator": {"format": 1}}).__exit__(None, None, None)
    with pytest.raises(CheckpointError, match="describes its operator in format 1, and this"):
        RunDirectory(tmp_path, {"operator": other})


def test_two_runs_do_not_share_a_directory(tmp_path):
    with RunDirectory(tmp_path, {}), pytest.raises(CheckpointError, match="in use"):
        RunDirectory(tmp_path, {})
    RunDirectory(tmp_path, {}).__exit__(None, None, None)


KILLED = """
    import sys, time
    import numpy as np
    from spectral_density import lanczos

    a = np.diag(np.linspace(-1, 2, 3000) ** 3)
    result = lanczos(a, 40, checkpoint=sys.argv[1], num_draws=2, draws_at_once=1)
    np.savez(sys.argv[2], alpha=result.alpha, beta=result.beta, basis=result.basis)
"""


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    a = np.diag(np.linspace(-1, 2, 3000) ** 3)
    expected = lanczos(a, 40, num_draws=2, draws_at_once=1)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "run", tmp_path / "out"]
    for _ in range(3):
        process = subprocess.Popen(command)
        while not (tmp_path / "run" / "problem.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, timeout=120)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["alpha"], expected.alpha)
        np.testing.assert_array_equal(found["beta"], expected.beta)
        np.testing.assert_array_equal(found["basis"], expected.basis)


EIGEN_OPTIONS = {
    "largest magnitude": {"k": 4},
    "smallest": {"k": 3, "which": "SA"},
    "both ends": {"k": 4, "which": "BE"},
    "in blocks": {"k": 4, "block_size": 2},
}


def spaced_matrix():
    """A matrix whose ends take a few restarts to find, and not more."""
    return dense_symmetric(np.linspace(-1, 2, 30) ** 3)


@pytest.mark.parametrize("options", EIGEN_OPTIONS.values(), ids=EIGEN_OPTIONS)
def test_eigenpairs_go_on_from_every_step(tmp_path, options):
    a = spaced_matrix()
    states = []

    def keep(state):
        shutil.copytree(tmp_path / "run", tmp_path / str(len(states) + 1))
        states.append({name: array.copy() for name, array in state.arrays().items()})

    expected = top_eigenpairs(a, **options, checkpoint=tmp_path / "run", callback=keep)
    # Each step leads from the files of the one before to the same bits, so all of them do.
    assert states[-1]["restarts"] >= 1
    assert states[-1]["rounds"] >= 2
    for step, state in enumerate(states[1:], 1):
        seen = []

        def one_step(found, seen=seen):
            seen.append({name: array.copy() for name, array in found.arrays().items()})
            raise Stop

        with pytest.raises(Stop):
            top_eigenpairs(a, **options, checkpoint=tmp_path / str(step), callback=one_step)
        for name, array in state.items():
            np.testing.assert_array_equal(seen[0][name], array, f"{name} at step {step + 1}")
    same_pairs(top_eigenpairs(a, **options, checkpoint=tmp_path / str(len(states))), expected)


@pytest.mark.parametrize("options", EIGEN_OPTIONS.values(), ids=EIGEN_OPTIONS)
@pytest.mark.parametrize("place", ["first", "second", "middle", "last but one", "last"])
def test_eigenpairs_of_a_stopped_run_end_as_if_undisturbed(tmp_path, options, place):
    a = spaced_matrix()
    steps = []
    expected = top_eigenpairs(a, **options, callback=lambda state: steps.append(state.steps))
    count = len(steps)
    stops = {"first": 1, "second": 2, "middle": count // 2, "last but one": count - 1}
    with pytest.raises(Stop):
        top_eigenpairs(
            a, **options, checkpoint=tmp_path, callback=stop_after_steps(stops.get(place, count))
        )
    same_pairs(top_eigenpairs(a, **options, checkpoint=tmp_path), expected)
    assert len(list(tmp_path.glob("generation-*"))) == 1


def same_pairs(found, expected):
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert found.num_products == expected.num_products


def stop_after_steps(steps):
    def callback(state):
        if state.steps == steps:
            raise Stop

    return callback


def test_a_budget_used_up_can_be_raised(tmp_path):
    a = matrix()
    with pytest.warns(ConvergenceWarning, match="Raise max_products"):
        first = top_eigenpairs(a, 3, max_products=8, checkpoint=tmp_path)
    found = top_eigenpairs(a, 3, checkpoint=tmp_path)
    assert not first.converged.all()
    assert found.num_products == top_eigenpairs(a, 3).num_products
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(a)[-3:][::-1], atol=1e-9)


def test_eigenpairs_of_another_problem_are_refused(tmp_path):
    top_eigenpairs(matrix(), 2, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="k is 3 and was 2"):
        top_eigenpairs(matrix(), 3, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="algorithm"):
        lanczos(matrix(), 3, checkpoint=tmp_path)


# Operators over data in another order ------------------------------------------------------------

ANOTHER_ORDER = "begun with the same examples in another order"


def examples(x=None, y=None, batch=5):
    """A dataset whose order is another one at each pass."""
    own_x, own_y = regression()
    arrays = (own_x if x is None else x, own_y if y is None else y)
    return tf.data.Dataset.from_tensor_slices(arrays).shuffle(50).batch(batch)


def least_squares(dataset=None, kind=HessianOperator, loss="mse", **options):
    return kind(affine("float64"), loss, dataset or examples(), **options)


@pytest.mark.parametrize("memory_share", [0, 0.25])
def test_a_run_goes_on_with_the_same_examples_in_another_order_and_says_so(tmp_path, memory_share):
    one, two = (least_squares(memory_share=memory_share) for _ in range(2))
    lanczos(one, 2, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match=ANOTHER_ORDER) as caught:
        resumed = lanczos(two, 4, checkpoint=tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)
    # The bits of what was there are kept, and what follows is the same matrix's.
    expected = lanczos(one, 4)
    np.testing.assert_allclose(resumed.alpha, expected.alpha, rtol=1e-9)


def test_a_search_for_eigenpairs_goes_on_in_another_order_too(tmp_path):
    one, two = least_squares(), least_squares()
    top_eigenpairs(one, 1, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match=ANOTHER_ORDER):
        found = top_eigenpairs(two, 1, checkpoint=tmp_path)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(one.to_dense())[-1:], rtol=1e-6)


def test_data_in_the_same_order_resume_to_the_bit_and_without_a_word(tmp_path):
    steady = examples().cache()
    one, two = least_squares(steady), least_squares(steady)
    lanczos(one, 2, checkpoint=tmp_path)
    same(lanczos(two, 4, checkpoint=tmp_path), lanczos(one, 4))


def coupled(model, batch):
    outputs = model(batch[0])
    return tf.reduce_mean((outputs - tf.reduce_mean(outputs, axis=0)) ** 2)


def monte_carlo(dataset=None):
    model = sequential(layers.Dense(3, dtype="float64"))
    dataset = tf.data.Dataset.from_tensor_slices(classification()).shuffle(50).batch(5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return FisherOperator(model, loss, dataset, kind="monte_carlo", seed=1)


X_ALONE = regression()[0][::-1].copy()

OTHER = {
    "other examples": (
        least_squares,
        lambda: least_squares(examples(x=2 * X_ALONE)),
        "data differ",
    ),
    "inputs reordered among the labels": (
        least_squares,
        lambda: least_squares(examples(x=X_ALONE)),
        "data differ",
    ),
    "an example dropped": (
        least_squares,
        lambda: least_squares(examples(*(np.append(a[:-1], a[:1], axis=0) for a in regression()))),
        "data differ",
    ),
    "labels drawn by place": (monte_carlo, monte_carlo, "data differ"),
    "a batch_weight of its own": (
        lambda: least_squares(loss=own_mean, batch_weight=lambda batch: 1.0),
        lambda: least_squares(loss=own_mean, batch_weight=lambda batch: 1.0),
        "data differ",
    ),
    # Nothing but a product tells that the examples depend on each other.
    "examples coupled in batches": (
        lambda: least_squares(loss=coupled),
        lambda: least_squares(loss=coupled),
        "of another operator",
    ),
}


def own_mean(model, batch):
    return tf.reduce_mean((model(batch[0]) - tf.cast(batch[1], tf.float64)) ** 2)


@pytest.mark.filterwarnings("ignore:the checkpoint .* was begun with the same examples")
@pytest.mark.parametrize("name", OTHER)
def test_another_matrix_over_reordered_data_is_refused(tmp_path, name):
    begin, go_on, says = OTHER[name]
    lanczos(begin(), 2, checkpoint=tmp_path, check=False)
    with pytest.raises(CheckpointError, match=says):
        lanczos(go_on(), 4, checkpoint=tmp_path, check=False)
