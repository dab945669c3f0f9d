"""The README and the guides: their code runs, their links and commands exist."""

import json
import pkgutil
import re
import warnings
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from swsmix import guides
from swsmix.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = {name: ROOT / "swsmix" / "guides" / f"{name}.md" for name in guides.names()}
PAGES = {"README": README, **GUIDES}
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """The Python blocks of a page, each below as many empty lines as it has above it there."""
    text = PAGES[page].read_text()
    found = [(text[: m.start(1)].count("\n"), m[1]) for m in BLOCK.finditer(text)]
    return [(line + 1, "\n" * line + code) for line, code in found]


def run(code, page, names):
    exec(compile(code, str(PAGES[page]), "exec"), names)


@pytest.mark.parametrize("number", range(len(blocks("README"))))
def test_each_python_block_of_the_readme_runs_alone(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        run(blocks("README")[number][1], "README", {})


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Do not use this posterior")  # chains for a reader to try
@pytest.mark.parametrize("page", GUIDES)
def test_the_python_blocks_of_a_guide_run_in_order(page, tmp_path, monkeypatch):
    found = blocks(page)
    for package in ("lightning", "transformers", "onnx", "onnxscript", "onnxruntime"):
        if any(package in code for _, code in found):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Lightning says of itself
                pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names = {}
    with torch.random.fork_rng():
        for _, code in found:
            run(code, page, names)


def test_there_are_blocks_to_run():
    assert len(blocks("README")) >= 2
    assert {page for page in GUIDES if not blocks(page)} <= {"changes"}


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_and_picture_is_there(page):
    links = re.findall(r"\]\(([^)#]+)\)", PAGES[page].read_text())
    for link in links:
        assert link.startswith("http") or (PAGES[page].parent / link).exists(), link


def current(page):
    """The text of a page without the old names, the left column of the tables of changes."""
    text = PAGES[page].read_text()
    return re.sub(r"^\| `[^|]*\|", "", text, flags=re.MULTILINE) if page == "changes" else text


@pytest.mark.parametrize("page", PAGES)
def test_every_program_and_test_that_is_named_is_there(page):
    for name in re.findall(r"\b(?:figures|tests|papers|swsmix)/[\w/.-]*\w", current(page)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_function_that_is_named_is_there(page):
    text = current(page)
    if page == "changes":
        text = text.split("were internal")[0]
    for dotted in re.findall(r"`(swsmix(?:\.\w+)+)`", text):
        pkgutil.resolve_name(dotted)  # or an error that names it


COMMANDS = "|".join(get_command(app).commands)
COMMAND = re.compile(rf"\bswsmix ((?:{COMMANDS})\b[^`\n#]*)")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_the_options_that_are_written(page):
    for words in COMMAND.findall(PAGES[page].read_text()):
        name, *rest = words.split()
        legal = {
            o for p in get_command(app).commands[name].params for o in (*p.opts, *p.secondary_opts)
        }
        given = {word for word in rest if re.fullmatch(r"--[a-z-]+", word)}
        assert given <= {*legal, "--help"}, words


def test_the_readme_is_one_page_and_keeps_its_two_commands():
    lines = README.read_text().splitlines()
    assert len(lines) <= 140
    install, test = [line for line in lines if line.startswith("python3 -m venv")]
    assert install.endswith("swsmix train") and test.endswith("pytest")


def test_the_readme_lists_every_guide_with_its_own_line():
    text = README.read_text()
    for name in guides.names():
        assert f"| [{name}](swsmix/guides/{name}.md) | {guides.summary(name)} |" in text


@pytest.mark.parametrize(("data", "digits", "first"), [("sunspots", 3, 1), ("shift", 1, 100)])
def test_the_numbers_of_the_main_jobs_are_those_of_the_ten_seeds(data, digits, first):
    found = json.loads((ROOT / "figures" / "seeds.json").read_text())
    (run,) = (row for row in found["runs"] if row["data"] == data and row["seeds"] == [0, 9])
    for name, row in run["rows"].items():
        assert 0.0 < row["test"] < first
        spread = run["spread"].get(name)
        for page, sign in (("README", "±"), ("regularisation", "+-")):
            shown = f"{row['test']:.{digits}f}"
            if spread and (page, "snapped" in name) != ("README", True) and "decay" not in name:
                shown += f" {sign} {spread['test']:.{digits}f}"
            if (data, page, "snapped" in name) != ("shift", "README", True):
                assert short(shown) in short(PAGES[page].read_text()), (page, name)


def short(text):
    return re.sub(r"\b0\.", ".", text)


def test_a_guide_begins_with_a_title_and_one_line_and_ends_with_what_to_do():
    assert {p.stem for p in GUIDES["training"].parent.glob("*.md")} == set(guides.names())
    for name in guides.names():
        text = guides.text(name)
        first = text.splitlines()
        assert re.fullmatch(r"# \w+", first[0]) and first[1] == first[3] == ""
        assert len(first[2]) <= 100 and first[2].endswith(".")
        assert "## When something goes wrong" in text
        assert text.isascii()  # any terminal can print it
        prose = [line for line in first if not line.startswith(("|", "    "))]
        assert max(map(len, prose)) <= 100


def test_an_unknown_guide_lists_the_legal_ones():
    with pytest.raises(ValueError, match=r"no guide 'cooking'; the guides are training, .*changes"):
        guides.text("cooking")
