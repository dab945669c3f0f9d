"""The gallery is what its generator makes of today's plots."""

import dataclasses

import pytest
import torch
from matplotlib.figure import Figure

from figures import gallery
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
