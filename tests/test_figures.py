"""The programs of figures/: they use public names of swsmix, and these are there."""

import ast
import importlib
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parents[1] / "figures").glob("*.py"))


def imported(program):
    """Module and name of each import from swsmix, wherever it stands in the program."""
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def test_there_are_programs():
    assert {"benchmark", "gallery", "pretrained", "updates"} <= {path.stem for path in PROGRAMS}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_uses_public_names_that_are_there(program):
    for module, name in imported(program):
        if module.split(".")[0] != "swsmix":
            continue
        assert not any(part.startswith("_") for part in [*module.split("."), name or ""])
        found = importlib.import_module(module)
        if name is not None and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_says_how_it_is_run(program):
    assert f"python figures/{program.name}" in ast.get_docstring(ast.parse(program.read_text()))


def test_the_table_of_targets_is_that_of_its_rows():
    from figures import targets

    assert (targets.HERE / "targets.md").read_text() == targets.page(
        targets.read(targets.HERE / "targets.jsonl")
    )


@pytest.mark.mnist
@pytest.mark.slow
def test_the_program_of_targets_runs_and_goes_on_where_it_was_stopped(tmp_path):
    from figures import targets

    targets.main(["--smoke", "--net", "lenet-300-100"], tmp_path)
    rows = targets.read(tmp_path / "targets.jsonl")
    assert tuple(row["unit"] for row in rows) == targets.UNITS
    asked = int(rows[-1]["asked"].removeprefix("size_bytes="))
    assert rows[-1]["size_bytes"] <= asked or "not_met" in rows[-1]
    targets.main(["--smoke", "--net", "lenet-300-100"], tmp_path)
    assert targets.read(tmp_path / "targets.jsonl") == rows
