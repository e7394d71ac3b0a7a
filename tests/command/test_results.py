import json

import numpy as np
import pytest
from cases import diagonal_operator, semicircle_with_outliers

from spectral_density import Spectrum, estimate_spectrum
from spectral_density.command import results
from spectral_density.command.results import (
    CHECKPOINT,
    SPECTRUM,
    SUMMARY,
    PreviousRun,
    previous_run,
    recorded_start,
)

ASKED = {"data": "d.npz", "seed": 1, "order": 20, "draws": 4, "draws_at_once": None}


@pytest.fixture(scope="module")
def spectrum():
    return estimate_spectrum(diagonal_operator(semicircle_with_outliers(100)), 20, 4)


def looked(folder, asked=ASKED, resume=True, use_checkpoint=True):
    return previous_run(folder, asked, resume=resume, use_checkpoint=use_checkpoint)


def leave(folder, complete, checkpoint, **changes):
    """Make the directory what a run leaves."""
    folder.mkdir(exist_ok=True)
    content = {"complete": complete, "settings": {**ASKED, **changes}}
    (folder / SUMMARY).write_text(json.dumps(content))
    if complete:
        (folder / SPECTRUM).write_text("")
    if checkpoint:
        (folder / CHECKPOINT / "draws-0-4").mkdir(parents=True)
        (folder / CHECKPOINT / "draws-0-4" / "state.npz").write_text("")
    return folder


def test_a_new_directory_or_one_with_other_files_is_free(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "new"):
        for resume in (False, True):
            assert looked(folder, resume=resume) == PreviousRun()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        looked(tmp_path / "file")


@pytest.mark.parametrize("name", [SPECTRUM, SUMMARY, CHECKPOINT, *results.PICTURES])
def test_without_resume_any_file_of_a_run_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"\({name}\).*--resume"):
        looked(tmp_path, resume=False)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 3, "complete": true}'])
def test_resume_does_not_take_another_file_for_a_summary(tmp_path, content):
    (tmp_path / SUMMARY).write_text(content)
    with pytest.raises(FileExistsError, match="no summary of a run"):
        looked(tmp_path)


def test_resume_does_not_write_over_a_spectrum_of_nobody_knows_what(tmp_path):
    (tmp_path / SPECTRUM).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{SPECTRUM} and no {SUMMARY}"):
        looked(tmp_path)


def test_a_complete_run_of_the_same_settings_has_all_that_is_asked_for(tmp_path):
    before = looked(leave(tmp_path, True, False))
    assert before.complete
    assert not before.is_less_than(ASKED)


def test_an_interrupted_run_is_gone_on_with(tmp_path):
    before = looked(leave(tmp_path, False, True))
    assert (before.complete, before.checkpoint) == (False, True)


@pytest.mark.parametrize("complete", [False, True])
def test_steps_and_draws_may_be_added_to_a_checkpoint(tmp_path, complete):
    more = {**ASKED, "order": 30, "draws": 6, "draws_at_once": 1}
    before = looked(leave(tmp_path, complete, True), more)
    assert before.is_less_than(more)


def test_steps_cannot_be_added_to_a_run_without_a_checkpoint(tmp_path):
    with pytest.raises(FileExistsError, match=r"--order 20.*--keep-checkpoint"):
        looked(leave(tmp_path, True, False), {**ASKED, "order": 30})


@pytest.mark.parametrize("name", ["order", "draws"])
def test_fewer_steps_or_draws_than_begun_are_refused(tmp_path, name):
    with pytest.raises(FileExistsError, match=rf"begun with --{name} {ASKED[name]}"):
        looked(leave(tmp_path, False, True), {**ASKED, name: 3})


@pytest.mark.parametrize("complete", [False, True])
def test_another_run_is_refused_by_what_differs(tmp_path, complete):
    with pytest.raises(FileExistsError, match=r"\(seed is 2 and was 1\)"):
        looked(leave(tmp_path, complete, True), {**ASKED, "seed": 2})


TO_A_TOLERANCE = {**ASKED, "order": None, "draws": None, "tolerance": 1e-3, "max_products": 900}


@pytest.mark.parametrize(
    "more",
    [{"tolerance": 1e-4}, {"max_products": 1000}, {"order": 30}, {"draws": 5}],
    ids=str,
)
def test_a_run_to_a_tolerance_takes_a_smaller_one_a_larger_budget_and_other_bounds(tmp_path, more):
    asked = {**TO_A_TOLERANCE, **more}
    before = looked(leave(tmp_path, True, True, **TO_A_TOLERANCE), asked)
    assert before.is_less_than(asked)
    same = looked(tmp_path, TO_A_TOLERANCE)
    assert not same.is_less_than(TO_A_TOLERANCE)


@pytest.mark.parametrize(
    ("less", "named"),
    [({"tolerance": 1e-2}, "--tolerance 0.001"), ({"max_products": 90}, "--max-products 900")],
)
def test_a_run_to_a_tolerance_takes_no_larger_one_and_no_smaller_budget(tmp_path, less, named):
    with pytest.raises(FileExistsError, match=rf"begun with {named}, and this asks for less"):
        looked(leave(tmp_path, False, True, **TO_A_TOLERANCE), {**TO_A_TOLERANCE, **less})


def test_a_run_to_a_tolerance_is_another_than_one_of_a_plan(tmp_path):
    with pytest.raises(FileExistsError, match=r"tolerance is None and was 0\.001"):
        looked(leave(tmp_path, False, True, **TO_A_TOLERANCE), ASKED)


def test_another_file_is_said_without_its_hash(tmp_path):
    leave(tmp_path, True, False, data_sha256="a" * 64, model_sha256="b" * 64)
    with pytest.raises(FileExistsError, match=r"\(the model file is another one\)"):
        looked(tmp_path, {**ASKED, "data_sha256": "a" * 64, "model_sha256": "c" * 64})
    with pytest.raises(FileExistsError, match=r"\(data is e.npz and was d.npz\)"):
        looked(
            tmp_path,
            {**ASKED, "data": "e.npz", "data_sha256": "d" * 64, "model_sha256": "b" * 64},
        )


def test_a_checkpoint_is_not_resumed_without_one(tmp_path):
    with pytest.raises(FileExistsError, match="--no-checkpoint"):
        looked(leave(tmp_path, False, True), use_checkpoint=False)


def test_a_run_notes_its_settings_before_its_first_step(tmp_path):
    with recorded_start(tmp_path / "a" / "b", ASKED, PreviousRun()):
        content = json.loads((tmp_path / "a" / "b" / SUMMARY).read_text())
    assert content["complete"] is False
    assert content["settings"] == ASKED


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_run_that_made_no_step_leaves_nothing(tmp_path, error):
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(error), recorded_start(folder, ASKED, PreviousRun()):
            (folder / CHECKPOINT).mkdir()
            (folder / CHECKPOINT / "problem.json").write_text("")
            raise error
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_made_a_step_keeps_it(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), recorded_start(folder, ASKED, PreviousRun()):
        (folder / CHECKPOINT / "draws-0-4").mkdir(parents=True)
        (folder / CHECKPOINT / "draws-0-4" / "state.npz").write_text("")
        raise KeyboardInterrupt
    assert looked(folder).checkpoint


def test_what_is_gone_on_with_is_not_lost_when_it_fails_again(tmp_path):
    before = looked(leave(tmp_path, True, False))
    files = sorted(tmp_path.iterdir())
    with pytest.raises(MemoryError), recorded_start(tmp_path, ASKED, before):
        raise MemoryError
    assert sorted(tmp_path.iterdir()) == files


def test_the_files_are_written_whole_and_nothing_beside_them(tmp_path, spectrum):
    written = results.write(tmp_path, spectrum, {"settings": ASKED})
    assert sorted(tmp_path.iterdir()) == sorted(written)
    np.testing.assert_array_equal(Spectrum.load(written[0]).alpha, spectrum.alpha)
    assert (tmp_path / "spectrum.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in (tmp_path / "spectrum.svg").read_text()
    assert json.loads((tmp_path / SUMMARY).read_text())["complete"] is True


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, spectrum):
    (tmp_path / SPECTRUM).write_text("old")
    (tmp_path / "spectrum.png").mkdir()  # nothing can take the place of a directory
    with pytest.raises(OSError, match=r"spectrum\.png"):
        results.write(tmp_path, spectrum, {})
    assert not (tmp_path / SUMMARY).exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
