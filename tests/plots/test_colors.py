"""Components have colours by their means, the same in all figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from pictures import FIGURES, HISTORY, LIVE, MIXTURE, labelled, number

from swsmix import plots
from swsmix.mixture import GaussianMixture

COLD, WARM = ("#009e73", "#56b4e9", plots.NEGATIVE), ("#cc79a7", "#e69f00", plots.POSITIVE)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 17, 64])
@pytest.mark.parametrize("lift", [-3.0, -0.2, 0.0, 0.2, 3.0])
def test_a_components_colour_agrees_with_the_sign_of_its_mean(k, lift):
    mean = lift + torch.randn(k, generator=torch.Generator().manual_seed(k))
    for value, color in zip(mean.tolist(), plots.component_colors(mean), strict=True):
        small = abs(value) <= 0.02 * mean.abs().max().item()
        assert color in ((plots.NEUTRAL,) if small else WARM if value > 0 else COLD)


@pytest.mark.parametrize("k", [3, 17, 64])
def test_a_components_colour_is_stronger_the_larger_its_mean_and_there_are_seven(k):
    mean = torch.linspace(-1, 1, k, dtype=torch.float64)
    colors = plots.component_colors(mean)
    assert len(set(colors)) <= 7
    right = [WARM.index(c) for m, c in zip(mean, colors, strict=True) if m > 0.02]
    left = [COLD.index(c) for m, c in zip(mean, colors, strict=True) if m < -0.02]
    assert right == sorted(right) == left[::-1]  # one strength for one magnitude
    assert right[-1] == 2
    shuffle = torch.randperm(k, generator=torch.Generator().manual_seed(1))
    assert plots.component_colors(mean[shuffle]) == [colors[i] for i in shuffle]
    assert plots.component_colors(100 * mean) == colors


def test_two_means_of_either_sign_have_no_grey_one_between_them():
    found = plots.component_colors(torch.tensor([-1.04, 1.05]))
    assert found == [plots.NEGATIVE, plots.POSITIVE]
    assert plots.component_colors(torch.zeros(3)) == [plots.NEUTRAL] * 3


MANY = GaussianMixture([1 / 17] * 17, torch.linspace(-1, 1, 17).tolist(), [0.02] * 17)


def test_no_panel_of_many_components_has_more_than_seven_colours():
    w = MANY.sample(3000, generator=torch.Generator().manual_seed(0))
    for figure in (
        plots.clusters(w, MANY),
        plots.responsibilities(MANY, w),
        plots.before_after(w, w, MANY),
        plots.layers({"a": w}, MANY),
    ):
        for ax in figure.axes:
            seen = {color_of(a) for a in labelled(ax, "component") + labelled(ax, "band")}
            assert len(seen) <= 7


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


# A wide component on the left claims weights on both sides of zero; narrow ones to the right.
ACROSS = GaussianMixture([0.5, 0.3, 0.2], [-0.3, 0.4, 0.9], [0.3, 0.02, 0.02])


def weights_by_color(figure, w):
    """The colour in which each of the weights is drawn, by the shape that stands for it."""
    labels = {label: a for ax in figure.axes for a in ax.collections for label in [a.get_label()]}
    if "_dots" in labels:
        return [to_hex(color) for color in labels["_dots"].get_facecolors()]
    if "_squares" in labels:
        return [to_hex(color) for color in labels["_squares"].get_facecolors()]
    shown = {}
    for stairs in labelled(figure.axes[1], "component"):
        data = stairs.get_data()
        for value, low, high in zip(data.values, data.edges, data.edges[1:], strict=False):
            if value > 0.5:
                shown[low, high] = color_of(stairs)
    return [next(c for (a, b), c in shown.items() if a <= v <= b) for v in w.tolist()]


@pytest.mark.parametrize("name", ["responsibilities", "before_after", "hinton"])
def test_a_weight_has_the_colour_of_the_mean_of_the_component_that_claims_it(name):
    w = torch.tensor([[-0.9, -0.31, 0.2, 0.28, 0.4, 0.41, 0.9, 0.91]])
    figure = {
        "responsibilities": lambda: plots.responsibilities(ACROSS, w),
        "before_after": lambda: plots.before_after(w, w, ACROSS),
        "hinton": lambda: plots.hinton(w, mixture=ACROSS),
    }[name]()
    owner = ACROSS.responsibilities(w.flatten()).argmax(-1)
    seen = weights_by_color(figure, w.flatten())
    assert seen == [plots.component_colors(ACROSS.mean)[j] for j in owner]
    for value, color, j in zip(w.flatten().tolist(), seen, owner.tolist(), strict=True):
        mean = ACROSS.mean[j].item()
        assert color in (WARM if mean > 0 else COLD)
        said = " ".join((getattr(plots, name).__doc__ or "").split())
        assert (value > 0) == (mean > 0) or "near zero may have the other sign" in said


@pytest.mark.parametrize("shape", [(3, 4), (1, 9)])
def test_without_a_mixture_a_weights_colour_is_its_own_sign(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seen = weights_by_color(plots.hinton(w), w.flatten())
    assert seen == [plots.NEGATIVE if v < 0 else plots.POSITIVE for v in w.flatten().tolist()]


def test_figures_of_a_history_take_the_colours_of_its_last_mixture():
    expected = dict(enumerate(plots.component_colors(HISTORY.stacked("all", "mean")[-1])))
    for figure in (plots.trajectories(HISTORY), plots.collapse(HISTORY)):
        seen = {(number(a), color_of(a)) for ax in figure.axes for a in labelled(ax, "component")}
        assert seen == set(expected.items())
