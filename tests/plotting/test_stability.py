import numpy as np
import pytest
from plotting.pictures import column_axes
from plotting.pictures import stability_records as records

from spectral_density.plotting import plot_stability


def test_the_ratios_are_drawn_over_steps_with_the_threshold_at_one():
    ax = plot_stability(records([0.2, np.nan, 0.9]), column_axes())
    line, threshold = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 20])
    np.testing.assert_array_equal(line.get_ydata(), [0.2, 0.9])
    assert set(threshold.get_ydata()) == {1.0}
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices[:, 1]
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


@pytest.mark.parametrize("runs", [[], {}, {"a": []}, records([1.0], threshold=None)])
def test_records_without_a_threshold_are_refused(runs):
    with pytest.raises(ValueError, match="no record has a threshold"):
        plot_stability(runs)


def test_another_axis_is_refused():
    with pytest.raises(ValueError, match='must be "step" or "epoch", got \'time\''):
        plot_stability(records([1.0]), xlabel="time")
