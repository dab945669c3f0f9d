"""The tutorial notebooks run, with no error, warning or terminal code in their outputs."""

import re
from pathlib import Path

import pytest

pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "figures" / "tutorials").glob("*.ipynb"))


def outputs(book):
    return [[*cell.outputs] for cell in book.cells if cell.cell_type == "code"]


def check(book):
    for cell in outputs(book):
        for each in cell:
            assert each.output_type != "error"
            if each.get("name") == "stderr":
                assert not re.search(r"[Ww]arning|\x1b", each.text)


def kinds(book):
    return [{kind for each in cell for kind in each.get("data", {})} for cell in outputs(book)]


def test_there_is_one_for_each_job():
    assert {path.stem for path in NOTEBOOKS} == {"inspect", "reproduce", "train"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # those of the notebook's own tools
def test_a_notebook_runs_and_shows_what_is_stored_in_it(path, tmp_path):
    stored, book = nbformat.read(path, 4), nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=120, resources=resources).execute()
    check(book)
    check(stored)
    assert kinds(stored) == kinds(book)
    assert path.stat().st_size < 200_000
    assert any("image/png" in kind for kind in kinds(stored))
