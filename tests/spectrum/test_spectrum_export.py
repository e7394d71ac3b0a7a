import importlib
import sys
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pytest
from cases import diagonal_operator, html_of, semicircle_with_outliers

mpl.use("Agg")

import matplotlib.pyplot as plt

from spectral_density import estimate_spectrum

SIZE, ORDER, DRAWS = 120, 20, 3


@pytest.fixture(scope="module")
def spectrum():
    return estimate_spectrum(diagonal_operator(semicircle_with_outliers(SIZE)), ORDER, DRAWS)


@pytest.fixture
def absent(monkeypatch):
    """Hide a library, installed or not."""

    def hide(name):
        monkeypatch.setitem(sys.modules, name, None)

    return hide


# In a notebook -----------------------------------------------------------------------------------


def test_a_spectrum_shows_its_summary_and_a_picture_in_a_notebook(spectrum):
    html = html_of(spectrum)
    for line in str(spectrum).splitlines()[1:]:
        name, text = line.strip().split("  ", 1)
        assert f">{name}<" in html
        assert text.strip().split("<")[0] in html
    assert 'src="data:image/png;base64,iVBOR' in html
    assert len(html) < 60_000
    assert not plt.get_fignums()


def test_a_description_cannot_break_the_page(spectrum):
    from dataclasses import replace

    html = html_of(replace(spectrum, description="<script>alert(1)</script>"))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# Tables ------------------------------------------------------------------------------------------


def test_the_dataframe_has_a_row_for_each_node(spectrum):
    pytest.importorskip("pandas")
    frame = spectrum.to_dataframe()
    assert list(frame.columns) == [
        "draw",
        "index",
        "node",
        "weight",
        "deflated_weight",
        "residual",
        "simple",
    ]
    assert len(frame) == ORDER * DRAWS
    assert frame["simple"].dtype == bool
    one = frame[frame["draw"] == 2]
    np.testing.assert_array_equal(one["node"], spectrum.nodes[2])
    np.testing.assert_array_equal(one["index"], np.arange(ORDER))
    moments = (frame["node"] * frame["deflated_weight"]).groupby(frame["draw"]).sum()
    assert moments.mean() == pytest.approx(spectrum.moment(1))


def test_the_dataset_has_the_quadratures_and_what_they_come_from(spectrum):
    pytest.importorskip("xarray")
    data = spectrum.to_xarray()
    assert dict(data.sizes) == {"draw": DRAWS, "index": ORDER, "step": ORDER}
    np.testing.assert_array_equal(data["node"], spectrum.nodes)
    np.testing.assert_array_equal(data["weight"].sum("index").values.round(12), 1.0)
    np.testing.assert_array_equal(data["beta"].sel(step=ORDER), spectrum.residual_norms)
    np.testing.assert_array_equal(data["beta"].sel(step=1), spectrum.beta[:, 0])
    assert data.attrs["size"] == SIZE
    assert data.attrs["seed"] == spectrum.seed


def test_tables_are_made_by_the_libraries_themselves(spectrum, monkeypatch):
    """Without them installed, stand-ins show what they are given."""
    pandas, xarray = ModuleType("pandas"), ModuleType("xarray")
    pandas.DataFrame = dict
    xarray.Dataset = lambda variables, coords, attrs: (variables, coords, attrs)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    monkeypatch.setitem(sys.modules, "xarray", xarray)
    frame = spectrum.to_dataframe()
    assert {np.shape(column) for column in frame.values()} == {(ORDER * DRAWS,)}
    np.testing.assert_array_equal(frame["node"], spectrum.nodes.ravel())
    variables, coords, attrs = spectrum.to_xarray()
    for dims, array in variables.values():
        assert array.shape == tuple(len(coords[dim]) for dim in dims)
    assert attrs["description"] == spectrum.description


@pytest.mark.parametrize(("method", "name"), [("to_dataframe", "pandas"), ("to_xarray", "xarray")])
def test_a_library_that_is_absent_is_named_with_what_to_type(spectrum, absent, method, name):
    absent(name)
    with pytest.raises(ImportError, match=rf"{method} needs {name}.*pip install {name}"):
        getattr(spectrum, method)()


def test_a_library_that_is_broken_says_so_itself(spectrum, tmp_path, monkeypatch):
    (tmp_path / "pandas.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        spectrum.to_dataframe()
