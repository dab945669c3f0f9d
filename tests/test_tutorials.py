"""The tutorial notebooks run, with no error, warning or terminal code in their outputs."""

import re
import time
from pathlib import Path

import pytest

pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "figures" / "tutorials").glob("*.ipynb"))


def run(book, folder, *, seconds=120.0):
    """Run a notebook, whose cells have so many seconds together: each what those before it left."""
    began = []

    def left(_):
        began.append(time.monotonic())
        return max(began[0] + seconds - began[-1], 0.1)

    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout_func=left, resources=resources).execute()


def outputs(book):
    return [[*cell.outputs] for cell in book.cells if cell.cell_type == "code"]


def texts(output):
    yield output.get("text", "")
    yield from (v for kind, v in output.get("data", {}).items() if kind.startswith("text/"))


def check(book):
    for cell in outputs(book):
        for each in cell:
            assert each.output_type != "error"
            assert not any("\x1b" in text for text in texts(each))
            if each.get("name") == "stderr":
                assert not re.search(r"[Ww]arning", each.text)


def kinds(book):
    return [{kind for each in cell for kind in each.get("data", {})} for cell in outputs(book)]


def test_there_is_one_for_each_job():
    assert {path.stem for path in NOTEBOOKS} == {"inspect", "reproduce", "train"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # those of the notebook's own tools
def test_a_notebook_runs_in_two_minutes_and_shows_what_is_stored_in_it(path, tmp_path):
    stored, book = nbformat.read(path, 4), nbformat.read(path, 4)
    run(book, tmp_path)
    check(book)
    check(stored)
    assert kinds(stored) == kinds(book)
    assert path.stat().st_size < 200_000
    assert any("image/png" in kind for kind in kinds(stored))


@pytest.mark.filterwarnings("ignore")
def test_the_two_minutes_are_those_of_all_cells_together(tmp_path):
    cells = [nbformat.v4.new_code_cell("import time; time.sleep(0.8)") for _ in range(4)]
    with pytest.raises(nbclient.exceptions.CellTimeoutError):
        run(nbformat.v4.new_notebook(cells=cells), tmp_path, seconds=2.0)


def said(stem):
    (path,) = [path for path in NOTEBOOKS if path.stem == stem]
    book = nbformat.read(path, 4)
    return "\n".join(text for cell in outputs(book) for each in cell for text in texts(each))


def test_the_reproduction_puts_each_published_number_beside_ours():
    from papers.nowlan1992 import figures
    from papers.nowlan1992.intervals import estimate
    from papers.nowlan1992.tables import published

    final = figures.read(figures.HERE / "results", "sunspots-final")
    lines = said("reproduce").splitlines()
    rows = [row for row in published()["sunspots"]["rows"] if "ours" in row]
    assert len(rows) == 3
    for row in rows:
        ours = estimate(final[f"{row['ours']}, by single"]["arv"]["test"])
        (line,) = [line for line in lines if line.startswith(row["method"][:43])]
        assert f"{row['test'][0]:.3f}" in line and f"{ours.mean:.3f} [{ours.low:.3f}," in line


def test_the_inspection_compares_its_checkpoints():
    lines = said("inspect")
    assert all(f"\n  {name}.pt" in lines for name in ("trained", "pruned", "quantised"))
