"""Every block of code in the documentation runs as it stands, and every link leads somewhere.

A page is one session: its Python blocks run in order, share their names, and start in an empty
directory. A fence ```python no-run, with a reason on the line above, is for what no test can run.
"""

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "notebooks"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
TEXTS = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))]
TEXTS += sorted(NOTEBOOKS.glob("*.md"))

FENCE = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(page):
    return str(page.relative_to(ROOT))


def fences(page):
    """Yield (language and options, code, line number) of each fenced block."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        indent = len(found[1])
        code = "".join(line[indent:] or "\n" for line in found[3].splitlines(keepends=True))
        yield found[2].strip(), code, text[: found.start()].count("\n") + 1


def blocks(page, language):
    return [(code, line) for info, code, line in fences(page) if info == language]


def prose(page):
    """Return the text of a page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page):
    """Return the anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text.strip().lower())) for text in plain}


@pytest.fixture
def matplotlib_without_windows():
    """Leave no figure open, whatever a page draws."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    yield
    plt.close("all")
    matplotlib.rcdefaults()


SELDOM = (
    "docs/gallery.md",
    "docs/how-to/jax.md",
    "docs/how-to/per-layer.md",
    "docs/how-to/training-with-curvature.md",
    "docs/migration.md",
)


def page_of(path):
    """Mark a page that takes long, and whose calls others make, too."""
    seldom = name(path) in SELDOM
    return pytest.param(path, marks=[pytest.mark.exhaustive] if seldom else [], id=name(path))


# Keras, when it saves a model, with NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("page", [page_of(p) for p in PAGES if blocks(p, "python")])
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch, matplotlib_without_windows):
    monkeypatch.chdir(tmp_path)
    # Keras numbers the names of layers as they are made: each page begins at "dense".
    pytest.importorskip("keras").utils.clear_session()
    namespace = {"__name__": "__main__"}
    # A file of the page's own lines, which TensorFlow reads functions from, as of any script.
    script = tmp_path / f"{page.stem}_page.py"
    lines = [""] * len(page.read_text().splitlines())
    for code, line in blocks(page, "python"):
        lines[line : line + code.count("\n")] = code.splitlines()
    script.write_text("\n".join(lines) + "\n")
    for code, line in blocks(page, "python"):
        exec(compile("\n" * line + code, str(script), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_is_not_run_says_why(page):
    lines = page.read_text().splitlines()
    for info, _, line in fences(page):
        if info.startswith("python") and info != "python":
            assert info == "python no-run", f"{name(page)}:{line}: unknown option in {info!r}"
            before = " ".join(lines[max(line - 4, 0) : line - 1])
            assert "not run" in before, f"{name(page)}:{line}: say why in a comment above"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=name)
def test_the_commands_of_a_page_are_understood(page):
    from spectral_density.command.parser import make_parser

    for code, line in blocks(page, "bash"):
        for words in commands(code):
            try:
                make_parser().parse_args(words)
            except SystemExit as end:
                assert end.code == 0, f"{name(page)}:{line}: spectral-density {shlex.join(words)}"


def commands(code):
    """Yield the arguments of each call of spectral-density in a script."""
    for text in code.replace("\\\n", " ").splitlines():
        words = shlex.split(text, comments=True)
        while "spectral-density" in words:
            words = words[words.index("spectral-density") + 1 :]
            ends = [i for i, word in enumerate(words) if word in ("&&", "||", "|", ";", ">")]
            yield words[: ends[0]] if ends else words


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name(page)} links to {target}"


def test_the_site_lists_every_page():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_the_reference_has_every_public_name():
    import spectral_density

    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    assert set(spectral_density.__all__) - documented <= {"__version__"}


def test_the_index_of_notebooks_has_every_notebook():
    index = (NOTEBOOKS / "README.md").read_text()
    missing = [path.name for path in NOTEBOOKS.glob("*.ipynb") if path.name not in index]
    assert not missing


def test_the_version_stands_in_one_place():
    import spectral_density

    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {spectral_density.__version__}\n" in citation
    assert f"## [{spectral_density.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
