"""Components have colours by their means, the same in all figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from pictures import FIGURES, HISTORY, LIVE, MIXTURE, labelled, number

from swsmix import plots


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 17, 64])
def test_component_colors_are_distinct_and_follow_the_order_of_the_means(k):
    mean = torch.linspace(-1, 1.5, k)
    colors = plots.component_colors(mean)
    assert len(set(colors)) == k
    assert colors[int(mean.abs().argmin())] == plots.NEUTRAL
    shuffle = torch.randperm(k, generator=torch.Generator().manual_seed(1))
    assert plots.component_colors(mean[shuffle]) == [colors[i] for i in shuffle]


def test_component_colors_run_from_cold_to_warm():
    assert plots.component_colors(torch.tensor([1.0, -1.0, 0.0])) == [
        plots.POSITIVE,
        plots.NEGATIVE,
        plots.NEUTRAL,
    ]


def color_of(artist) -> str:
    color = artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor()
    return to_hex(np.atleast_2d(color)[0] if not isinstance(color, str) else color)


def test_a_component_has_one_colour_in_all_figures():
    expected = dict(enumerate(plots.component_colors(MIXTURE.mean)))
    for name in ("clusters", "responsibilities", "before_after", "layers"):
        seen = [
            (number(a), color_of(a))
            for ax in FIGURES[name]().axes
            for a in labelled(ax, "component") + labelled(ax, "band")
        ]
        assert {j for j, _ in seen} == set(LIVE), name
        assert all(expected[j] == color for j, color in seen), name


def test_figures_of_a_history_take_the_colours_of_its_last_mixture():
    expected = dict(enumerate(plots.component_colors(HISTORY.stacked("all", "mean")[-1])))
    for figure in (plots.trajectories(HISTORY), plots.collapse(HISTORY)):
        seen = {(number(a), color_of(a)) for ax in figure.axes for a in labelled(ax, "component")}
        assert seen == set(expected.items())
