"""Reports: text for any terminal, the figures, and the data of the page."""

import io
import itertools
import json
import re

import cases
import numpy as np
import pytest
import torch

from swsmix import plots
from swsmix.inspect import inspect
from swsmix.mixture import GaussianMixture
from swsmix.report import Picture, figures, file_name, page, terminal
from swsmix.report.text import bars, histogram_text, rebin

# -- text -------------------------------------------------------------------------------------


def test_text_bars_rise_with_the_counts_and_show_a_single_weight():
    counts = np.array([0, 1, 10, 100, 10**6, 10**6])
    (line,) = bars(counts)
    assert line[0] == " " and line[1] != " " and line[4] == line[5] == "█"
    assert list(line) == sorted(line, key=" ▁▂▃▄▅▆▇█".index)
    tall = bars(counts, rows=5, ascii_only=True)
    assert len(tall) == 5 and all(len(row) == 6 for row in tall) and "".join(tall).isascii()
    filled = np.array([[c != " " for c in row] for row in tall])
    assert (filled[1:] >= filled[:-1]).all()  # a column stands on the ground
    assert bars(np.zeros(3)) == ["   "]
    assert rebin(np.arange(10), 4).tolist() == [3, 12, 21, 9]


def test_text_centres_stand_below_their_weights():
    mixture = GaussianMixture([0.5, 0.5, 0.0], [0.15, 0.65, 0.9], [0.01, 0.01, 0.01])
    edges, counts = np.linspace(0, 1, 11), np.zeros(10)
    counts[[1, 6]] = 5
    lines = histogram_text(counts, edges, mixture, rows=2, ascii_only=True).plain.split("\n")
    assert lines == [" @    @", " @    @", " ^    ^   ", "0        1"]


def plain(inspection, width=120, **options):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(terminal(inspection, width=width, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_holds_all_that_was_counted(run_folder, width):
    found = inspect(run_folder, refit=True)
    text = plain(found, width)
    assert max(map(len, text.split("\n"))) <= width
    for layer, _ in found.layers:
        row = next(line for line in text.split("\n") if line.startswith(layer.name))
        shape = "x".join(map(str, layer.weights.shape))
        for entry in (shape, f"{layer.size:,}", f"{layer.bits_per_weight:.2f}", "100.0 %"):
            assert entry in row.replace("  ", " ")
    assert "left out (1 dimension, fewer than 2): 0.bias, 2.bias" in text
    assert plain(found, ascii_only=True).isascii()


# -- figures and the page ---------------------------------------------------------------------


def test_a_run_has_all_figures_and_a_foreign_checkpoint_those_without_a_history(
    run_folder, tmp_path
):
    names = [picture.name for picture in figures(inspect(run_folder))]
    assert names == ["clusters", "responsibilities", "collapse", "trajectories", "before-after",
                     "layers", "entropy", "hinton-2.weight", "loss-terms"]  # fmt: skip
    torch.save(cases.state(), tmp_path / "a.pt")
    pictures = [*figures(inspect(tmp_path / "a.pt", per_tensor=True))]
    assert [picture.name for picture in pictures] == [
        "clusters-0.weight", "responsibilities-0.weight", "clusters-2.weight",
        "responsibilities-2.weight", "layers", "entropy", "hinton-0.weight", "hinton-2.weight",
    ]  # fmt: skip
    assert pictures[0].caption.startswith("Clusters. 0.weight: ")
    assert file_name("../a b/c") == ".._a_b_c"


def test_of_very_many_tensors_the_largest_are_drawn_and_it_is_said(tmp_path):
    torch.save({f"layer{i:02}": torch.randn(80, 1 + i) for i in range(45)}, tmp_path / "a.pt")
    pictures = {p.name: p for p in figures(inspect(tmp_path / "a.pt", num_components=2))}
    assert "The 24 largest of 45" in pictures["layers"].caption
    assert len(pictures["layers"].figure.axes) == 24
    bars_ = pictures["entropy"].figure.axes[0]
    assert bars_.get_yticklabels()[0].get_text() == "layer05" and len(bars_.patches) == 40


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_the_inspection_and_is_the_same_each_time(run_folder):
    found = inspect(run_folder)
    first, again = (page(found, itertools.islice(figures(found), 2)) for _ in range(2))
    assert first == again
    assert "{{" not in first and first.count("<figure>") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", first)
    assert "://" not in first.replace("http://www.w3.org/2000/svg", "")
    data = data_of(first)
    assert data["summary"]["weights"] == "40"
    (group,) = data["groups"]
    assert [frame["label"] for frame in group["frames"]] == [f"epoch {i}" for i in range(4)]
    history = found.history
    for i, frame in enumerate(group["frames"]):
        assert sum(frame["counts"]) == 40
        assert frame["counts"] == history.stacked("all", "bin_counts")[i].tolist()
        order = history.stacked("all", "mean")[-1].argsort(stable=True)
        expected = history.stacked("all", "mean")[i][order]
        assert frame["mean"] == pytest.approx(expected.tolist(), rel=1e-6)
    (layer,) = data["layers"]
    assert sum(layer["counts"]) == 40 and layer["clusters"] == found.layers[0][0].num_clusters


def test_names_from_a_checkpoint_never_become_markup(tmp_path):
    name = '</script><img src=x onerror="alert(1)">{{data}}'
    torch.save({name: torch.randn(9, 9)}, tmp_path / "a<b>.pt")
    found = inspect(tmp_path / "a<b>.pt")
    text = page(found, [Picture(name, name, plots.entropy({name: 1.0}))])
    assert "<img src=x" not in text and "a<b>" not in text.split("<script")[0]
    assert data_of(text)["layers"][0]["name"] == name


def test_a_long_history_is_thinned_evenly_with_both_ends(run_folder):
    found = inspect(run_folder)
    history = found.history
    for columns in history.series.values():
        for name, values in columns.items():
            columns[name] = (values * 150)[:500]
    for name, values in history.scalars.items():
        history.scalars[name] = [float(i) for i in range(500)] if name == "epoch" else values * 125
    frames = data_of(page(found))["groups"][0]["frames"]
    assert len(frames) == 200
    assert frames[0]["label"] == "epoch 0" and frames[-1]["label"] == "epoch 499"


def test_names_with_markup_or_mathematics_are_only_names(tmp_path):
    torch.save({r"a$\frac$b[/]": torch.randn(30, 30), "b": torch.ones(4, 4)}, tmp_path / "a.pt")
    taken = inspect(tmp_path / "a.pt", per_tensor=True)
    for picture in figures(taken):
        picture.figure.savefig(io.BytesIO())  # mathematics is parsed when it is drawn
