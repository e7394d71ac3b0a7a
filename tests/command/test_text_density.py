import numpy as np
import pytest
from cases import diagonal_operator, semicircle_with_outliers

from spectral_density import Spectrum, estimate_spectrum
from spectral_density.command.text_density import text_density


@pytest.fixture(scope="module")
def spectrum():
    return estimate_spectrum(diagonal_operator(semicircle_with_outliers(300)), 30, 4)


def with_nodes(*nodes):
    """A spectrum of one draw with these nodes."""
    return Spectrum(np.array([nodes[:1]]), np.zeros((1, 0)), np.zeros(1), size=1)


def test_no_line_is_wider_than_asked_for(spectrum):
    for width in (30, 50, 78, 120):
        for encoding in ("utf-8", "ascii"):
            lines = text_density(spectrum, width=width, encoding=encoding).splitlines()
            assert max(map(len, lines[:-1])) <= width


def test_the_highest_columns_are_where_the_density_is_highest(spectrum):
    lines = text_density(spectrum, width=78).splitlines()
    density = spectrum.density()
    first = next(line for line in lines if set(line) & set("▁▂▃▄▅▆▇█"))
    column = next(i for i, c in enumerate(first[7:]) if c in "▁▂▃▄▅▆▇█")
    share = column / 71
    peak = np.argmax(density.values) / len(density.grid)
    assert abs(share - peak) < 0.1


def test_the_labels_are_decades_that_bracket_the_density(spectrum):
    lines = text_density(spectrum).splitlines()
    decades = [float(line.split()[0]) for line in lines if line[:5].strip().startswith("1e")]
    peak = spectrum.density().values.max()
    assert decades == sorted(decades, reverse=True)
    assert decades[0] / 10 < peak <= decades[0]
    np.testing.assert_allclose(np.diff(np.log10(decades)), -1)


def test_the_ticks_are_round_numbers_under_their_columns(spectrum):
    lines = text_density(spectrum).splitlines()
    row = next(i for i, line in enumerate(lines) if "└" in line)
    ticks = [i - 7 for i, c in enumerate(lines[row]) if c == "┬"]
    values = [float(text) for text in lines[row + 1].split()]
    grid = spectrum.density().grid
    for column, value in zip(ticks, values, strict=True):
        np.testing.assert_allclose(
            grid[0] + (column + 0.5) / 71 * (grid[-1] - grid[0]), value, atol=np.ptp(grid) / 71
        )


def test_simple_eigenvalues_are_marked_and_counted(spectrum):
    known = spectrum.nodes[0][spectrum.simple[0]]
    text = text_density(spectrum)
    assert f"▲ {len(known)} simple eigenvalues" in text
    marks = next(
        line for line in text.splitlines() if set(line.strip()) <= {"▲", " "} and "▲" in line
    )
    assert 1 <= marks.count("▲") <= len(known)


def test_a_terminal_without_block_characters_gets_ascii(spectrum):
    for encoding in ("ascii", "latin-1", None, "no such encoding"):
        assert text_density(spectrum, encoding=encoding).isascii()


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-12, 4e9])
def test_a_lone_eigenvalue_can_be_drawn(value):
    assert "density" in text_density(with_nodes(value))
