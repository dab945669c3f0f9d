"""Small multiples: a panel for each of a prior's mixtures, and for each of several matrices."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pictures import MIXTURE, assert_nothing_is_cut_off, bars, curve, labelled
from torch import nn

from swsmix import MixturePrior, plots
from swsmix.plots.multiples import MOST


def network(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4 + i, 5 + i, bias=False) for i in range(layers)))


def prior_of(layers: int = 3) -> MixturePrior:
    return MixturePrior(network(layers), 3, groups="tensor")


EACH = {
    "clusters": plots.clusters,
    "responsibilities": plots.responsibilities,
    "before_after": lambda prior, **options: plots.before_after(flat(prior), prior, **options),
    "hinton": plots.hinton,
}
each = pytest.mark.parametrize("draw", EACH.values(), ids=EACH)


def flat(prior):
    return torch.cat([prior.flat_weights(group) for group in prior.mixtures])


def titles(figure):
    return [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes]


@each
def test_each_mixture_has_a_panel_in_the_priors_order(draw):
    assert titles(draw(prior_of())) == ["0.weight", "1.weight", "2.weight"]


@each
@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_of_very_many_the_largest_are_drawn_and_a_line_says_how_many_there_are(draw, width):
    figure = draw(prior_of(MOST + 3), width=width)
    assert titles(figure) == [f"{i}.weight" for i in range(3, MOST + 3)]  # later ones are larger
    (said,) = [t.get_text() for t in figure.texts if t.get_text()]
    assert said.startswith(f"{MOST} of {MOST + 3} ") and "largest" in said
    assert not [t for t in draw(prior_of(3), width=width).texts if "largest" in t.get_text()]
    assert_nothing_is_cut_off(figure)


@each
def test_your_own_axes_are_one_for_each(draw):
    figure = Figure()
    assert draw(prior_of(), ax=figure.subplots(1, 3)) is figure
    assert titles(figure) == ["0.weight", "1.weight", "2.weight"]
    with pytest.raises(ValueError, match="needs 3 Axes, got 2"):
        draw(prior_of(), ax=Figure().subplots(1, 2))


def test_a_panel_of_clusters_is_the_group_alone():
    prior = prior_of()
    for ax, group in zip(plots.clusters(prior).axes, prior.mixtures, strict=True):
        alone = plots.clusters(prior, group=group).axes[1]
        for j in range(3):
            x, y = curve(ax, f"_component {j}")
            there, wanted = curve(alone, f"_component {j}")
            seen = (x > there[0]) & (x < there[-1]) & (y > 2 * alone.get_ylim()[0])
            np.testing.assert_allclose(y[seen], np.interp(x[seen], there, wanted), rtol=0.05)
        values, edges = bars(ax)
        low = ax.get_ylim()[0]
        held = np.where(values > 1.01 * low, values, 0) @ np.diff(edges)
        assert held == pytest.approx(1)
        shown = [t.get_text() for t in labelled(ax, "centre")]
        assert [t for t in shown if t] == [
            t.get_text() for t in labelled(alone, "centre") if t.get_text() and hasattr(t, "xy")
        ]


def dots(ax):
    (collection,) = labelled(ax, "dots")
    return np.asarray(collection.get_offsets())


def test_every_form_of_the_weights_before_training_gives_the_same_dots():
    prior = prior_of()
    before = copy.deepcopy(network())
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.mul_(0.5)
    tensors = {n: p.detach() for n, p in before.named_parameters()}
    forms = [
        before,
        tensors,
        {n: t.flatten() for n, t in tensors.items()},  # as History.initial, group -> vector
        torch.cat([t.flatten() for t in tensors.values()]),
        MixturePrior(before, 3, groups="tensor"),
    ]
    for form in forms:
        figure = plots.before_after(form, prior)
        for ax, (name, start) in zip(figure.axes, tensors.items(), strict=True):
            end = prior.flat_weights(name)
            np.testing.assert_allclose(dots(ax), np.stack([start.flatten(), end], 1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"got none of \['0.weight'\].*state dict"):
        plots.before_after({"1.weight": tensors["1.weight"]}, prior, group="0.weight")


def test_a_vector_for_each_group_is_the_start_of_its_tensors():
    prior = MixturePrior(network(), 3, groups={"first": ["0.weight", "1.weight"], "last": "2.*"})
    initial = {group: 0.5 * prior.flat_weights(group) for group in ("last", "first")}
    for ax, group in zip(plots.before_after(initial, prior).axes, prior.mixtures, strict=True):
        end = prior.flat_weights(group)
        np.testing.assert_allclose(dots(ax), np.stack([0.5 * end, end], 1), rtol=1e-6)


def test_a_panel_of_matrices_has_each_weight_and_its_own_scale():
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 2))
    figure = plots.hinton(net)
    weights = [net[0].weight.flatten(1), net[2].weight]
    for ax, w in zip(figure.axes, weights, strict=True):
        (squares,) = labelled(ax, "squares")
        areas = np.array([np.ptp(p.vertices[:4, 0]) ** 2 for p in squares.get_paths()])
        wanted = w.detach().abs().flatten().numpy()
        np.testing.assert_allclose(areas / areas.max(), wanted / wanted.max(), rtol=1e-5)
        assert ax.get_title(loc="left").split("\n")[1] == f"full cell: {wanted.max():.3g}"
    state = {**net.state_dict(), "huge": torch.zeros(300, 300)}
    (said,) = [t.get_text() for t in plots.hinton(state).texts if t.get_text()]
    assert said.startswith("2 of 5 matrices")  # the largest does not fit; two are vectors


def test_a_mixture_alone_has_its_curves_and_its_mixing_above_its_centres():
    figure = plots.clusters(MIXTURE)
    for ax in figure.axes:
        assert not labelled(ax, "weights")
        x, y = curve(ax, "mixture")
        density = MIXTURE.log_prob(torch.from_numpy(x)).exp().numpy()
        seen = density > 2 * max(ax.get_ylim()[0], 1e-9)
        np.testing.assert_allclose(y[seen], density[seen], rtol=0.02, atol=0.01 * density.max())
    shown = [t.get_text() for t in labelled(figure.axes[1], "centre") if hasattr(t, "xy")]
    assert shown == ["0.2", "0.5", "0.3"]
    assert_nothing_is_cut_off(figure)


def test_the_entropy_of_a_mixture_is_that_of_the_responsibilities():
    ax = plots.entropy(MIXTURE).axes[0]
    x, bits = curve(ax, "entropy")
    gamma = MIXTURE.responsibilities(torch.from_numpy(x).float()).numpy()
    wanted = -(gamma * np.log2(np.maximum(gamma, 1e-300))).sum(1)
    np.testing.assert_allclose(bits, wanted, atol=1e-5)
    assert bits.max() > 0.9
