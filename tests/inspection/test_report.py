"""Reports: text for any terminal, the figures, and the data of the page."""

import io
import itertools
import json
import re
import xml.etree.ElementTree

import cases
import numpy as np
import pytest
import torch

from swsmix import plots
from swsmix._labels import file_name, shorten
from swsmix.inspection import Picture, draw_figures, html_page, terminal
from swsmix.inspection.inspect import inspect
from swsmix.inspection.text import bars, histogram_text, percent, rebin
from swsmix.mixture import GaussianMixture

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


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pt"
    torch.save(cases.resnet50(), path)
    return inspect(path)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_the_table_holds_all_that_was_counted_at_every_width(resnet, width, ascii_only):
    lines = plain(resnet, width, ascii_only=ascii_only).split("\n")
    assert max(map(len, lines)) <= width
    assert "".join(lines).isascii() == ascii_only
    start = 1 + max(i for i, line in enumerate(lines) if line.startswith("#"))
    body = " ".join(line.strip() for line in lines[start:])
    body = " ".join(body.split("left out")[0].split())
    names = set()
    for layer, _ in resnet.layers:
        shares = " ".join(percent(share) for share in layer.shares)
        name = next(n for n in (layer.name, *shortened(layer.name)) if f" {n} " in f" {body}")
        names.add(name)
        after = body[body.index(name) :]
        found = [after.index(entry) for entry in (f"{layer.size:,}", f"{layer.bits_per_weight:.2f}",
                 "100.0 %", shares)]  # fmt: skip
        assert found == sorted(found) and found[-1] < 140
    assert len(names) == len(resnet.layers)
    assert ("weights; 7 clusters;" in body) == (width <= 50)  # each tensor on lines of its own
    head = next((line for line in lines if line.startswith("tensor")), "")
    assert ("histogram" in head, "shape" in head) == (width >= 120, width == 200)


def shortened(name):
    return [shorten(name, length) for length in range(len(name), 5, -1)]


def test_a_histogram_and_the_shapes_come_in_as_the_terminal_widens(resnet):
    seen = [plain(resnet, width) for width in range(60, 130)]
    for column in ("histogram", "shape", "shares, %"):
        there = [column in text for text in seen]
        assert there == sorted(there) and there[-1]


@pytest.mark.parametrize("groups", [4, 5])
def test_of_many_mixtures_the_largest_are_shown_and_all_tensors_are_in_one_table(tmp_path, groups):
    state = {f"w{i}": torch.linspace(-1, 1, 100 + (i == 0)).repeat(i + 1, 1) for i in range(groups)}
    torch.save(state, tmp_path / "a.pt")
    text = plain(inspect(tmp_path / "a.pt", per_tensor=True, num_components=3))
    shown = [i for i in range(groups) if f"mixture 'w{i}'" in text]
    assert shown == [*range(groups)][-4:]
    assert text.count("\ntensor") == (groups if groups == 4 else 1)
    assert all(re.search(rf"^w{i} ", text, re.MULTILINE) for i in range(groups))
    assert ("the 4 largest of 5 mixtures" in text) == (groups == 5)


def test_what_was_left_out_is_said_with_the_reason(run_folder):
    text = plain(inspect(run_folder, refit=True))
    assert "left out (1 dimension, fewer than 2): 0.bias, 2.bias" in text


def test_one_weight_is_no_plural(tmp_path):
    torch.save({"w": torch.ones(1, 1)}, tmp_path / "a.pt")
    for width in (40, 120):
        text = plain(inspect(tmp_path / "a.pt"), width)
        assert "1 weight;" in text and "1 weights" not in text and "1 clusters" not in text


EVIL = "\x1b[2J\x1b]0;owned\x07\u202ea\x00\ud800\n" + "b" * 300


def test_control_characters_in_names_reach_no_terminal_no_figure_and_no_page(tmp_path):
    torch.save({EVIL: torch.randn(9, 9), f"{EVIL}2": torch.ones(3)}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt", per_tensor=True)
    for width in (40, 120):
        text = plain(found, width)
        assert text.replace("\n", "").isprintable() and "owned" in text
    for picture in draw_figures(found):
        path = plots.save(picture.figure, tmp_path / "x.svg")
        xml.etree.ElementTree.parse(path)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", path.read_text(encoding="utf-8"))
    text = html_page(found, draw_figures(found))
    assert text.replace("\n", "").replace("\xad", "").isprintable()
    assert "\\x1b[2J" in data_of(text)["layers"][0]["name"]


def test_file_names_are_short_of_safe_characters_and_as_different_as_the_names():
    names = ["a/b", "a_b", "a:b", "a b", "A_b", "x" * 300, "x" * 301, "é", "\ud800", "../a", EVIL]
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) for name in found)
    assert file_name("hinton-fc1.weight") == "hinton-fc1.weight"


# -- figures and the page ---------------------------------------------------------------------


def test_a_run_has_all_figures_and_a_foreign_checkpoint_those_without_a_history(
    run_folder, tmp_path
):
    names = [picture.name for picture in draw_figures(inspect(run_folder))]
    assert names == ["clusters", "responsibilities", "collapse", "trajectories", "before-after",
                     "layers", "entropy", "hinton-2.weight", "loss-terms"]  # fmt: skip
    torch.save(cases.state(), tmp_path / "a.pt")
    pictures = [*draw_figures(inspect(tmp_path / "a.pt", per_tensor=True))]
    assert [picture.name for picture in pictures] == [
        "clusters-0.weight", "responsibilities-0.weight", "clusters-2.weight",
        "responsibilities-2.weight", "layers", "entropy", "hinton-0.weight", "hinton-2.weight",
    ]  # fmt: skip
    assert pictures[0].caption.startswith("Clusters. 0.weight: ")


def test_of_very_many_tensors_the_largest_are_drawn_and_it_is_said(tmp_path):
    torch.save({f"layer{i:02}": torch.randn(80, 1 + i) for i in range(45)}, tmp_path / "a.pt")
    pictures = {p.name: p for p in draw_figures(inspect(tmp_path / "a.pt", num_components=2))}
    assert "The 12 largest of 45" in pictures["layers"].caption
    assert len(pictures["layers"].figure.axes) == 12
    bars_ = pictures["entropy"].figure.axes[0]
    assert bars_.get_yticklabels()[0].get_text() == "layer05" and len(bars_.patches) == 40


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_the_inspection_and_is_the_same_each_time(run_folder):
    found = inspect(run_folder)
    first, again = (html_page(found, itertools.islice(draw_figures(found), 2)) for _ in range(2))
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


def test_the_page_of_a_resnet_50_stays_small(resnet):
    text = html_page(resnet, draw_figures(resnet))
    assert len(data_of(text)["layers"]) == 54 and text.count("<figure>") == 4
    assert len(text.encode()) < 2.2e6


def test_names_from_a_checkpoint_never_become_markup(tmp_path):
    name = '</script><img src=x onerror="alert(1)">{{data}}'
    torch.save({name: torch.randn(9, 9)}, tmp_path / "a<b>.pt")
    found = inspect(tmp_path / "a<b>.pt")
    text = html_page(found, [Picture(name, name, plots.entropy({name: 1.0}))])
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
    frames = data_of(html_page(found))["groups"][0]["frames"]
    assert len(frames) == 200
    assert frames[0]["label"] == "epoch 0" and frames[-1]["label"] == "epoch 499"


def test_names_with_markup_or_mathematics_are_only_names(tmp_path):
    torch.save({r"a$\frac$b[/]": torch.randn(30, 30), "b": torch.ones(4, 4)}, tmp_path / "a.pt")
    taken = inspect(tmp_path / "a.pt", per_tensor=True)
    for picture in draw_figures(taken):
        picture.figure.savefig(io.BytesIO())  # mathematics is parsed when it is drawn
