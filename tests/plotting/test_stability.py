import numpy as np
import pytest
from plotting.pictures import column_axes
from plotting.pictures import stability_records as records

from spectral_density.plotting import plot_stability


def test_the_ratios_are_drawn_over_steps_with_the_threshold_at_one():
    ax = plot_stability(records([0.2, np.nan, 0.9]), column_axes())
    line, threshold = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20])
    np.testing.assert_array_equal(line.get_ydata(), [0.2, np.nan, 0.9])
    assert set(threshold.get_ydata()) == {1.0}
    (band,) = ax.collections
    edges = np.concatenate([path.vertices[:, 1] for path in band.get_paths()])
    assert edges.min() == pytest.approx(0.2 - 0.5 / 20)
    assert edges.max() == pytest.approx(0.9 + 0.5 / 20)
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] >= 1.3
    assert ax.get_xlabel() == "step"
    assert ax.get_legend() is None
    assert "full batch" in ax.texts[0].get_text()


def test_several_trainings_have_names_and_line_styles():
    runs = {"Adam": records([0.5, 1.0]), "SGD": records([0.1, 0.3])}
    ax = plot_stability(runs, column_axes(), xlabel="epoch")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Adam", "SGD"]
    assert len({line.get_linestyle() for line in ax.lines[:2]}) == 2
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1])


@pytest.mark.parametrize("peak", [31.0, 1e7, np.inf])
def test_the_threshold_is_to_be_seen_beside_any_ratio(peak):
    ax = plot_stability(records([0.5, 1.0, peak, peak, 0.9]), column_axes())
    bottom, top = ax.get_ylim()
    assert bottom == 0
    assert 1 < top <= 3
    (marks,) = [line for line in ax.lines if line.get_marker() == "^"] or [None]
    if np.isfinite(peak):
        np.testing.assert_array_equal(marks.get_xdata(), [20, 30])
        assert set(marks.get_ydata()) == {top}
    else:
        assert marks is None  # a measurement that failed
    low = plot_stability(records([-1e5, 0.5]), column_axes())
    assert -1 <= low.get_ylim()[0] < 0


def test_numbers_alone_between_failures_are_marked():
    nan = np.nan
    ax = plot_stability(records([0.1] * 30 + [nan, 0.7, nan] + [0.5] * 5), column_axes())
    assert ax.lines[0].get_marker() == "."
    (marked,) = np.flatnonzero(ax.lines[0].get_markevery())
    assert marked == 31


def test_a_training_without_numbers_is_not_in_the_legend():
    runs = {"a": records([0.5, 1.0]), "failed": records([np.nan] * 2), "empty": []}
    ax = plot_stability(runs, column_axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a"]


def test_a_second_call_adds_its_curve_alone():
    ax = column_axes()
    plot_stability(records([0.5, 2.0]), ax)
    top = ax.get_ylim()[1]
    plot_stability(records([0.1, 0.3]), ax)
    assert len(ax.texts) == 1
    assert sum(set(line.get_ydata()) == {1.0} for line in ax.lines) == 1
    assert len(ax.lines) == 3
    assert ax.get_ylim()[1] == top


def test_trainings_without_names_and_what_is_no_record_are_refused():
    with pytest.raises(TypeError, match="passed by name, as a dict"):
        plot_stability([records([1.0]), records([0.5])])
    with pytest.raises(TypeError, match=r"pass callback\.records"):
        plot_stability([0.5, 1.0])


@pytest.mark.parametrize("runs", [[], {}, {"a": []}, records([1.0], threshold=None)])
def test_records_without_a_threshold_are_refused(runs):
    with pytest.raises(ValueError, match="no record has a threshold"):
        plot_stability(runs)


def test_another_axis_is_refused():
    with pytest.raises(ValueError, match='must be "step" or "epoch", got \'time\''):
        plot_stability(records([1.0]), xlabel="time")
