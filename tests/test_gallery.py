"""The gallery is what its generator makes of today's plots."""

import dataclasses
import re

import pytest
import torch
from matplotlib.figure import Figure

from figures import gallery
from papers.nowlan1992 import figures as nowlan1992
from swsmix import plots
from swsmix.problems import experiments, recipes


def test_the_gallery_is_up_to_date_and_its_pictures_are_there():
    assert (gallery.FIGURES / "README.md").read_text() == gallery.text(), (
        "run: python figures/gallery.py --text"
    )
    for name in gallery.LINES:
        assert (gallery.FIGURES / "gallery" / f"{name}.png").read_bytes()[1:4] == b"PNG"
    film = gallery.FIGURES / "sunspots-collapse.gif"
    assert film.read_bytes()[:3] == b"GIF" and film.stat().st_size < 3e6


def test_every_other_picture_has_one_line_that_says_of_how_many_it_is():
    lines = [line for line in gallery.text().splitlines() if line.startswith("- [")]
    links = [re.match(r"- \[(\S+)\]\(\1\): ", line)[1] for line in lines]
    there = {p.relative_to(gallery.FIGURES).as_posix() for p in gallery.FIGURES.rglob("*.png")}
    assert sorted(links) == sorted(set(links))
    assert {link for link in there if not link.startswith("gallery/")} <= set(links)
    for line in lines:
        said = line.split("): ", 1)[1]
        assert re.search(r"\d|\bone\b|\bseeds\b", said) and len(said) > 30, line


def test_a_pictures_line_counts_the_seeds_that_its_results_were_made_with():
    known = gallery.captions()
    for name, (_, tables) in nowlan1992.DRAWINGS.items():
        lines = nowlan1992.read(nowlan1992.HERE / "results", tables[0])
        stamps = [line["stamp"] for line in lines.values()]
        made = {stamp.get("seeds", stamp.get("restarts")) for stamp in stamps} - {None}
        if name.startswith("shift-") and tables[0] == "shift":
            made = {sum(unit.startswith("n100-") for unit in lines)}
        for number in made:
            assert re.search(rf"\b{number}\b", known[f"nowlan1992/{name}.png"]), name


def test_the_gallery_shows_every_plot():
    drawing = {n for n in plots.__all__ if n.islower() and n not in {"save", "component_colors"}}
    shown = " ".join([gallery.FILM, *gallery.LINES.values(), *gallery.POSTERIOR.values()])
    assert {name for name in drawing if f"plots.{name}(" in shown} == drawing


def test_every_line_of_the_gallery_draws_a_figure(tmp_path):
    threads = torch.get_num_threads()
    problem = dataclasses.replace(recipes.load_problem("sunspots"), epochs=2)
    experiments.train(problem, run=str(tmp_path / "run"), baseline=False, progress=False)
    torch.set_num_threads(threads)
    names = gallery.variables(tmp_path / "run")
    for line in gallery.LINES.values():
        assert isinstance(eval(line, names), Figure), line
    with pytest.raises(ValueError, match="change the suffix"):
        eval(gallery.FILM.replace(".gif", ".avi"), names)
