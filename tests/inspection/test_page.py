"""The figures of an inspection, and the data of its page."""

import io
import itertools
import json
import re
import xml.etree.ElementTree

import cases
import pytest
import torch
from test_text import EVIL, plain

from swsmix import plots
from swsmix.inspection import Picture, draw_figures, html_page
from swsmix.inspection.inspect import inspect


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


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


def test_a_run_has_all_figures_and_a_foreign_checkpoint_those_without_a_history(
    run_folder, tmp_path
):
    names = [picture.name for picture in draw_figures(inspect(run_folder))]
    assert names == ["clusters", "responsibilities", "collapse", "trajectories", "before-after",
                     "layers", "hinton-2.weight", "loss-terms"]  # fmt: skip
    torch.save(cases.state(), tmp_path / "a.pt")
    pictures = [*draw_figures(inspect(tmp_path / "a.pt", per_tensor=True))]
    assert [picture.name for picture in pictures] == [
        "clusters-0.weight", "responsibilities-0.weight", "clusters-2.weight",
        "responsibilities-2.weight", "layers", "hinton-0.weight", "hinton-2.weight",
    ]  # fmt: skip
    assert pictures[0].caption.startswith("Clusters. 0.weight: ")


def test_of_very_many_tensors_the_largest_are_drawn_and_it_is_said(tmp_path):
    state = {f"layer{i:02}": torch.randn(80, 1 + i).sign() for i in range(45)}
    torch.save(state, tmp_path / "a.pt")
    pictures = {p.name: p for p in draw_figures(inspect(tmp_path / "a.pt", num_components=2))}
    assert "The 12 largest of 45" in pictures["layers"].caption
    assert len(pictures["layers"].figure.axes) == 12
    bars_ = pictures["entropy"].figure.axes[0]
    assert bars_.get_yticklabels()[0].get_text() == "layer05" and len(bars_.patches) == 40


def test_figures_for_a_telephone_are_no_wider_than_a_column(run_folder):
    pictures = [*draw_figures(inspect(run_folder), width=plots.COLUMN)]
    assert {picture.figure.get_figwidth() for picture in pictures} == {plots.COLUMN}


def test_bits_are_drawn_of_clustered_weights_alone(tmp_path):
    torch.save({"a": torch.randn(80, 70), "b": torch.randn(80, 70).sign()}, tmp_path / "a.pt")
    pictures = {p.name: p for p in draw_figures(inspect(tmp_path / "a.pt", per_tensor=True))}
    bars_ = pictures["entropy"].figure.axes[0]
    assert [label.get_text() for label in bars_.get_yticklabels()] == ["b"]
    assert "The weights of 1 more tensor are not clustered." in pictures["entropy"].caption
    torch.save({"a": torch.randn(80, 70)}, tmp_path / "a.pt")
    assert "entropy" not in [p.name for p in draw_figures(inspect(tmp_path / "a.pt"))]


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
    tensor = found.layers[0][0]
    assert sum(layer["counts"]) == 40
    assert layer["clusters"] == (tensor.num_clusters if tensor.clustered else None)


def test_the_page_of_a_resnet_50_stays_small(resnet):
    text = html_page(resnet, draw_figures(resnet))
    assert len(data_of(text)["layers"]) == 54 and text.count("<figure>") == 3
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
