"""The rows of docs/errors.md, which are tests."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def rows():
    """Return error and words of its message, for each row by what is passed."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "What is passed":
            assert len(cells) == 4, line
            found[cells[0]] = cells[1], cells[2]
    return found
