"""Several checkpoints side by side: the same axes, and differences from the first that has it."""

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from swsmix.cli import app
from swsmix.inspection import html_page
from swsmix.inspection.comparison import compare, draw_compared, table
from swsmix.inspection.inspect import inspect
from swsmix.inspection.sorting import KEYS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    g = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("epochs")
    names = ("encoder.layers.0.attention.query.weight", "encoder.layers.11.output.weight", "c")
    for epoch in range(3):
        state = {name: torch.randn(30, 20, generator=g) / (i + 1) for i, name in enumerate(names)}
        state[names[1]][0, :2] = 12.0 * epoch
        if epoch == 1:
            state["own"] = state.pop("c")
        torch.save(state, folder / f"epoch-{epoch}.pt")
    return folder


@pytest.fixture(scope="module")
def compared(folder):
    return compare([inspect(path) for path in sorted(folder.glob("*.pt"))])


def printed(compared, width, **options):
    console = Console(width=width, file=io.StringIO())
    console.print(table(compared, width=width, **options))
    return console.file.getvalue()


def test_every_tensor_of_every_checkpoint_is_in_one_row_with_its_own_measures(compared):
    assert [row.name for row in compared.rows][-1] == "own" and len(compared.rows) == 5
    for row in compared.rows[1:]:
        for values, inspection in zip(row.values, compared.inspections, strict=True):
            tensors = {t.name: t for t, _ in inspection.layers}
            assert (values is None) == (row.name not in tensors)
            for key in KEYS if values is not None else ():
                assert values[key] == pytest.approx(KEYS[key](tensors[row.name]), nan_ok=True)


def test_histograms_have_the_same_edges_and_lose_no_weight(compared):
    for row in compared.rows:
        for counts, values in zip(row.counts, row.values, strict=True):
            assert (counts is None) == (values is None)
            assert counts is None or (len(counts), counts.sum()) == (
                len(row.edges) - 1, values["weights"])  # fmt: skip
    for i, inspection in enumerate(compared.inspections):
        joined = torch.cat([t.weights.flatten() for t, _ in inspection.layers]).numpy()
        row = compared.rows[0]
        assert (row.counts[i] == np.histogram(joined, row.edges)[0]).all()


def test_differences_add_up_to_the_measures(compared):
    for row in compared.rows:
        for key in KEYS:
            place = row.reference(key)
            for i, values in enumerate(row.values):
                found = row.difference(i, key)
                if values is None or math.isnan(values[key]):
                    assert math.isnan(found)
                elif math.isinf(values[key]) or math.isinf(row.values[place][key]):
                    assert found == 0.0 if values[key] == row.values[place][key] else found != found
                else:
                    assert row.values[place][key] + found == pytest.approx(values[key])
            assert place is None or all(v is None or math.isnan(v[key]) for v in row.values[:place])


def degenerate(path, **tensors):
    torch.save(tensors, path)
    return inspect(path)


@pytest.mark.parametrize("first", ["spread", "one value", "zeros", "two values", "one weight"])
@pytest.mark.parametrize("second", ["spread", "one value", "zeros", "two values", "one weight"])
def test_what_is_no_number_is_a_dash_and_the_key_says_why(tmp_path, first, second):
    normal = torch.randn(20, 20)
    kinds = {
        "spread": normal,
        "one value": torch.full((20, 20), 0.1),
        "zeros": torch.zeros(20, 20),
        "two values": normal.sign(),
        "one weight": torch.full((1, 1), 0.5),
    }
    both = [degenerate(tmp_path / f"{i}.pt", w=kinds[k]) for i, k in enumerate((first, second))]
    compared = compare(both)
    text = printed(compared, 140)
    assert "inf" not in text.split("gg-shape")[1] and "-∞" not in text and "+∞" not in text
    equal = {"one value", "zeros", "one weight"}
    shape = compared.rows[1].difference(1, "gg-shape")
    finite = {first, second} == {"spread"} or {first, second} == {"two values"}
    assert math.isnan(shape) != (finite or (first in equal and second not in equal))
    dashed = not finite
    assert ("weights that are all equal have no kurtosis" in text) == dashed
    page = html_page(compared)
    assert "-inf" not in page.split('id="data">')[1].split("</script>")[0]
    assert "weights that are all equal have no kurtosis" in page


def test_a_change_to_an_infinite_shape_is_the_largest(tmp_path):
    normal = torch.randn(20, 20)
    other = normal.pow(3)
    compared = compare([
        degenerate(tmp_path / "a.pt", steady=normal, other=normal.clone()),
        degenerate(tmp_path / "b.pt", steady=other, other=normal.sign()),
    ])  # fmt: skip
    assert compared.rows[2].change("gg-shape") == math.inf
    lines = printed(compared, 140, sort="gg-shape").split("\n")
    assert [line for line in lines if line in ("steady", "other")] == ["other", "steady"]


@pytest.mark.parametrize("width", [40, 60, 100, 140])
def test_nothing_is_cut_and_columns_that_do_not_fit_are_named(compared, width):
    text = printed(compared, width)
    lines = text.split("\n")
    assert max(map(len, lines)) <= width and "…" not in text
    (head,) = (line for line in lines if line.startswith("tensor"))
    missing = [key for key in KEYS if (key if key != "left" else "left by 7") not in head]
    said = " ".join(text.split("too narrow here for: ")[-1].split()) if missing else ""
    assert ", ".join(key if key != "left" else "left by 7" for key in missing) == said
    assert (missing == []) == (width >= 100)
    row = compared.rows[0]
    assert f"{row.values[0]['kurtosis']:.2f}" in text
    assert f"{row.difference(2, 'kurtosis'):+.2f}" in text
    assert text.count("not there") == 3


def test_tensors_are_sorted_by_their_largest_change(compared):
    lines = printed(compared, 140, sort="kurtosis").split("\n")
    names = [line for line in lines if line in [row.name for row in compared.rows[1:]]]
    change = {row.name: row.change("kurtosis") for row in compared.rows[1:]}
    known = [change[name] for name in names if change[name] == change[name]]
    assert len(names) == 4 and known == sorted(known, reverse=True) and names[-1] == "own"


def test_names_tell_the_checkpoints_apart(folder, tmp_path):
    (tmp_path / "x").mkdir()
    state = torch.load(folder / "epoch-0.pt", weights_only=True)
    torch.save(state, tmp_path / "x" / "epoch-0.pt")
    one, two = inspect(folder / "epoch-0.pt"), inspect(tmp_path / "x" / "epoch-0.pt")
    first, second, third = compare([one, two, two]).names
    assert len({first, second, third}) == 3
    assert compare([one, two]).names[1] == "x/epoch-0.pt"
    with pytest.raises(ValueError, match="at least two"):
        compare([one])


def test_the_page_and_the_figures_hold_the_comparison(compared):
    pictures = [*draw_compared(compared)]
    assert [picture.name for picture in pictures] == ["compared", "compared-measures"]
    panels = pictures[0].figure.axes
    assert len(panels) == 3
    assert len({(p.get_xlim(), p.get_ylim(), p.get_yscale()) for p in panels}) == 1
    rings = [sum(len(line.get_xdata()) for line in p.lines) for p in panels]
    assert rings[0] == 0 and rings[1] > 0 < rings[2]  # 12 and 24 are far from the others
    data = json.loads(re.search(r'id="data">(.*?)</script>', html_page(compared), re.DOTALL)[1])
    assert [data["checkpoint"], *(o["checkpoint"] for o in data["others"])] == [*compared.names]
    for row, own in zip(data["compared"], compared.rows, strict=True):
        assert row["name"] == own.name
        assert [c and sum(c) for c in row["counts"]] == [v and v["weights"] for v in own.values]


def test_the_command_compares_and_refuses_what_is_for_one(folder, tmp_path):
    paths = [str(path) for path in sorted(folder.glob("*.pt"))]
    call = CliRunner().invoke
    done = call(app, ["inspect", *paths, "--html", "--out", str(tmp_path / "o")])
    assert done.exit_code == 0 and "epoch-2.pt" in done.output
    written = {path.name for path in (tmp_path / "o").iterdir()}
    assert written == {"compared.png", "compared-measures.png", "report.html"}
    for option in ("--animate", "--bytes"):
        done = call(app, ["inspect", *paths, option])
        assert isinstance(done.exception, ValueError) and "pass one of them" in str(done.exception)
