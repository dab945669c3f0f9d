"""The pictures: what they draw is the data, and they draw it the same way each time."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from swsmix import plots
from swsmix.history import History
from swsmix.mixture import GaussianMixture

MIXTURE = GaussianMixture([0.2, 0.5, 0.0, 0.3], [-0.5, 0.0, 0.2, 0.6], [0.05, 0.02, 0.1, 0.04])
LIVE = [0, 1, 3]


def draw(mixture: GaussianMixture, num: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    component = rng.choice(len(mixture.mean), num, p=mixture.mixing.numpy())
    noise = mixture.std.numpy()[component] * rng.standard_normal(num)
    return torch.from_numpy(mixture.mean.numpy()[component] + noise).float()


WEIGHTS = draw(MIXTURE, 20_000)


def training(records: int = 9, groups: tuple[str, ...] = ("all",)) -> History:
    """Weights that collapse onto -1, 0, 1; component 3 dies at record 4, 4 joins 2 at record 6."""
    history = History()
    start = torch.linspace(-1.5, 1.5, 600)
    end = start.round().clamp(-1, 1)
    for t in range(records):
        s = t / max(records - 1, 1)
        mean = torch.tensor([-1.0, 0.0, 1.0, 3.0, 1.0 + max(0.0, (6 - t) * 0.3)])
        std = torch.full((5,), 0.2 - 0.1 * s)
        count = torch.tensor([200.0, 250.0, 100.0, 5.0 if t < 4 else 0.2, 50.0])
        mixture = GaussianMixture(count / count.sum(), mean, std)
        scalars = {"epoch": 2.0 * t, "objective": 3.0 - s, "data_loss": 2.0 - s, "nll": -900 * s}
        weights = (1 - s) * start + s * end
        history.record(
            scalars | {"hyper_prior": 40.0},
            {group: (weights, mixture, count) for group in groups},
        )
    return history


HISTORY = training()
FIGURES = {
    "clusters": lambda **kw: plots.clusters(WEIGHTS, MIXTURE, **kw),
    "responsibilities": lambda **kw: plots.responsibilities(MIXTURE, WEIGHTS, **kw),
    "before_after": lambda **kw: plots.before_after(WEIGHTS.roll(1), WEIGHTS, MIXTURE, **kw),
    "hinton": lambda **kw: plots.hinton(WEIGHTS[:120].reshape(8, 15), **kw),
    "hinton_clusters": lambda **kw: plots.hinton(
        WEIGHTS[:120].reshape(8, 15), mixture=MIXTURE, **kw
    ),
    "layers": lambda **kw: plots.layers(
        {"conv.weight": WEIGHTS, "a.very.long.name.of.a.layer.weight": WEIGHTS[:50]}, MIXTURE, **kw
    ),
    "entropy": lambda **kw: plots.entropy({"conv.weight": 0.4, "fc": 2.25}, **kw),
    "trajectories": lambda **kw: plots.trajectories(HISTORY, **kw),
    "collapse": lambda **kw: plots.collapse(HISTORY, **kw),
    "loss_terms": lambda **kw: plots.loss_terms(HISTORY, **kw),
}
every_figure = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)


def labelled(ax: Axes, label: str) -> list:
    artists = [*ax.lines, *ax.patches, *ax.collections, *ax.texts]
    return [a for a in artists if str(a.get_label()).strip("_").startswith(label)]


def number(artist) -> int:
    return int(artist.get_label().split()[-1])


def curve(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [a for a in ax.lines if a.get_label() == label]
    return line.get_xdata(), line.get_ydata()


def bars(ax: Axes) -> tuple[np.ndarray, np.ndarray]:
    (stairs,) = labelled(ax, "weights")
    return stairs.get_data().values, stairs.get_data().edges


# --- clusters ---


def test_clusters_draws_the_live_components_and_no_other():
    for ax in plots.clusters(WEIGHTS, MIXTURE).axes:
        assert [number(a) for a in labelled(ax, "component")] == LIVE


def test_clusters_components_are_scaled_by_mixing_and_averaged_over_a_bin():
    linear, log = plots.clusters(WEIGHTS, MIXTURE).axes
    edges = bars(linear)[1]
    step = edges[1] - edges[0]
    for ax, j in itertools.product((linear, log), LIVE):
        x, y = curve(ax, f"_component {j}")
        law = norm(MIXTURE.mean[j].item(), MIXTURE.std[j].item())
        expected = MIXTURE.mixing[j].item() * (law.cdf(x + step / 2) - law.cdf(x - step / 2)) / step
        assert np.ptp(x) < 14 * MIXTURE.std[j]  # and does not run on along the axis
        seen = y > 2 * ax.get_ylim()[0]
        np.testing.assert_allclose(y[seen], expected[seen], rtol=1e-6, atol=1e-12)


def test_clusters_curve_is_the_mixtures_density_where_bins_are_fine():
    x, y = curve(plots.clusters(WEIGHTS, MIXTURE).axes[0], "mixture")
    density = MIXTURE.log_prob(torch.from_numpy(x)).exp().numpy()
    np.testing.assert_allclose(y, density, atol=0.01 * density.max())


def test_clusters_bars_and_density_each_have_an_area_of_one():
    values, edges = bars(plots.clusters(WEIGHTS, MIXTURE).axes[0])
    assert values @ np.diff(edges) == pytest.approx(1, abs=1e-9)
    x, y = curve(plots.clusters(WEIGHTS, MIXTURE).axes[0], "mixture")
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)


def test_clusters_bars_count_the_weights():
    w = torch.tensor([0.0, 0.0, 0.0, 1.0])
    values, edges = bars(plots.clusters(w, MIXTURE).axes[0])
    counts = values * np.diff(edges) * 4
    full = np.flatnonzero(counts > 0.5)
    np.testing.assert_allclose(counts[full], [3, 1])
    for bin_, weight in zip(full, (0, 1), strict=True):
        assert edges[bin_] <= weight <= edges[bin_ + 1]


@pytest.mark.parametrize("std", [1e-5, 1e-3, 0.1])
def test_clusters_component_of_any_std_keeps_its_mass(std):
    mixture = GaussianMixture([0.7, 0.3], [0.0, 1.0], [std, std])
    w = torch.cat([draw(mixture, 5000), torch.tensor([-0.6, 1.6])])
    ax = plots.clusters(w, mixture).axes[0]
    for j, mixing in enumerate((0.7, 0.3)):
        x, y = curve(ax, f"_component {j}")
        assert np.trapezoid(y, x) == pytest.approx(mixing, rel=0.01)


def test_clusters_numbers_count_the_weights_of_each_component():
    w = torch.tensor([-0.5] * 7 + [0.0] * 1234 + [0.6] * 2)
    labels = labelled(plots.clusters(w, MIXTURE).axes[1], "centre")
    assert {t.get_text(): t.xy[0] for t in labels if hasattr(t, "xy")} == pytest.approx(
        {"7": -0.5, "1.23k": 0.0, "2": 0.6}
    )


# Component 1 lies under 0, and 3 has no weights: claimed by none, they would crowd the picture.
CROWDED = GaussianMixture([0.6, 0.1, 0.29, 0.01], [0.0, 0.001, 0.5, 0.8], [0.02, 0.02, 0.02, 0.02])


def test_components_that_hold_no_weight_have_a_curve_but_no_label_and_no_band():
    w = torch.tensor([0.0] * 9 + [0.5] * 3)
    linear, log = plots.clusters(w, CROWDED).axes
    assert [t.get_text() for t in labelled(log, "centre") if hasattr(t, "xy")] == ["9", "3"]
    assert [number(a) for a in labelled(linear, "component")] == [0, 1, 2, 3]
    main = plots.before_after(w, w, CROWDED).axes[0]
    assert [number(b) for b in labelled(main, "band")] == [0, 2]
    top = plots.responsibilities(CROWDED, w).axes[0]
    means = [t.get_text() for t in labelled(top, "centre") if hasattr(t, "xy")]
    assert means == ["0", "0.5", "0.8"]


def test_several_tensors_are_drawn_as_one():
    parts = [WEIGHTS[:7].reshape(7, 1), WEIGHTS[7:7], WEIGHTS[7:].bfloat16()]
    whole = torch.cat([p.float().flatten() for p in parts])
    for make in (plots.clusters, lambda w, m: plots.responsibilities(m, w)):
        one, other = (make(w, MIXTURE) for w in (parts, whole))
        for a, b in zip(one.axes, other.axes, strict=True):
            texts, curves = ([[t.get_text() for t in x.texts] for x in (a, b)],
                             [[c.get_ydata() for c in x.lines] for x in (a, b)])  # fmt: skip
            assert texts[0] == texts[1]
            for y, again in zip(*curves, strict=True):
                np.testing.assert_array_equal(y, again)
            bars_of = [[p.get_data().values for p in x.patches] for x in (a, b)]
            for y, again in zip(*bars_of, strict=True):
                np.testing.assert_array_equal(y, again)


def test_clusters_says_where_it_cuts_a_tower_and_only_then():
    mixture = GaussianMixture([0.97, 0.03], [0.0, 0.5], [1e-3, 0.05])
    ax = plots.clusters(draw(mixture, 10_000), mixture).axes[0]
    peak = max(bars(ax)[0].max(), curve(ax, "mixture")[1].max())
    assert ax.get_ylim()[1] < peak
    assert [t.get_text() for t in ax.texts] == [f"cut: reaches {peak:.3g}"]
    ax = plots.clusters(WEIGHTS, MIXTURE).axes[0]
    assert not ax.texts
    assert ax.get_ylim()[1] >= bars(ax)[0].max()


def test_clusters_log_panel_shows_a_single_weight():
    values, _ = bars(plots.clusters(WEIGHTS, MIXTURE).axes[1])
    low, high = plots.clusters(WEIGHTS, MIXTURE).axes[1].get_ylim()
    assert low < values[values > low * 1.01].min()
    assert values.max() < high


def test_clusters_of_ten_million_weights():
    w = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)).mul_(0.1)
    mixture = GaussianMixture([0.5, 0.5], [-0.1, 0.1], [0.1, 0.1])
    figure = plots.clusters(w, mixture)
    values, edges = bars(figure.axes[0])
    peak = values[np.abs(edges[:-1] + np.diff(edges) / 2) < 0.005]
    np.testing.assert_allclose(peak, norm(0, 0.1).pdf(0), rtol=0.01)
    labels = [t.get_text() for t in labelled(figure.axes[1], "centre") if hasattr(t, "xy")]
    assert labels == ["5M", "5M"]


# --- colours ---


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


# --- responsibilities ---


def test_responsibilities_fill_the_unit_interval_with_the_mixtures_own():
    ax = plots.responsibilities(MIXTURE).axes[0]
    areas = labelled(ax, "component")
    assert [number(a) for a in areas] == LIVE  # which are in the order of the means
    probe = np.linspace(-0.55, 0.65, 41)
    gamma = MIXTURE.responsibilities(torch.from_numpy(probe)).numpy()
    below = np.zeros(len(probe))
    for area in areas:
        vertices = area.get_paths()[0].vertices
        half = len(vertices) // 2
        upper = vertices[half + 1 : -1][::-1]
        lower = vertices[1:half]
        edges = sorted((lower, upper), key=lambda e: e[:, 1].sum())
        low, high = (np.interp(probe, e[:, 0], e[:, 1]) for e in edges)
        np.testing.assert_allclose(low, below, atol=1e-3)
        np.testing.assert_allclose(high - low, gamma[:, number(area)], atol=1e-2)
        below = high
    np.testing.assert_allclose(below, 1)


def test_responsibilities_histogram_gives_each_bar_to_its_claimant():
    figure = plots.responsibilities(MIXTURE, WEIGHTS)
    total = 0
    for stairs in labelled(figure.axes[1], "component"):
        data = stairs.get_data()
        full = data.values > 0.5
        middles = (data.edges[1:] + data.edges[:-1])[full] / 2
        claimant = MIXTURE.responsibilities(torch.from_numpy(middles)).argmax(-1)
        assert (claimant == number(stairs)).all()
        total += data.values[full].sum()
    assert total == len(WEIGHTS)


# --- before and after ---


def test_before_after_dots_are_the_weights_in_the_colours_of_their_components():
    before, after = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.6, 0.0, -0.5])
    main = plots.before_after(before, after, MIXTURE).axes[0]
    (dots,) = labelled(main, "dots")
    np.testing.assert_allclose(dots.get_offsets(), torch.stack([before, after], 1))
    colors = plots.component_colors(MIXTURE.mean)
    assert [to_hex(c) for c in dots.get_facecolors()] == [colors[j] for j in (3, 1, 0)]
    assert dots.get_rasterized()


def test_before_after_bands_are_two_stds_wide_on_each_side():
    main = plots.before_after(WEIGHTS, WEIGHTS, MIXTURE).axes[0]
    bands = {number(b): b.get_bbox() for b in labelled(main, "band")}
    assert list(bands) == LIVE
    for j, box in bands.items():
        mean, std = MIXTURE.mean[j].item(), MIXTURE.std[j].item()
        assert (box.y0, box.y1) == pytest.approx((mean - 2 * std, mean + 2 * std))


def test_before_after_margins_count_all_weights_and_dots_are_the_same_few_each_time():
    w = draw(MIXTURE, 100_000)
    figures = [plots.before_after(w + 0.1, w, MIXTURE) for _ in range(2)]
    first, second = (labelled(f.axes[0], "dots")[0].get_offsets() for f in figures)
    assert 15_000 < len(first) <= 20_000
    np.testing.assert_array_equal(first, second)
    main = figures[0].axes[0]
    for margin, shift in zip(main.child_axes, (0.1, 0.0), strict=True):
        (data,) = [p.get_data() for p in margin.patches]
        counts = 10**data.values - 1
        assert counts.sum() == pytest.approx(100_000)
        middles = (data.edges[1:] + data.edges[:-1]) / 2
        assert counts @ middles / 1e5 == pytest.approx(w.mean().item() + shift, abs=1e-3)


# --- Hinton diagrams ---


def squares(figure: Figure):
    (collection,) = labelled(figure.axes[0], "squares")
    paths = [p.vertices[:4] for p in collection.get_paths()]
    areas = np.array([np.ptp(v[:, 0]) * np.ptp(v[:, 1]) for v in paths])
    centres = np.array([v.mean(0) for v in paths])
    return areas, centres, [to_hex(c) for c in collection.get_facecolors()]


def test_hinton_areas_are_proportional_to_magnitudes_and_colours_are_signs():
    matrix = torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.5, -3.0]])
    areas, centres, colors = squares(plots.hinton(matrix))
    values = matrix[matrix != 0].numpy()
    np.testing.assert_allclose(areas / areas.max(), np.abs(values) / 4)
    np.testing.assert_allclose(centres, [[0, 0], [1, 0], [0, 1], [1, 1], [2, 1]], atol=1e-12)
    assert colors == [plots.NEGATIVE if v < 0 else plots.POSITIVE for v in values]
    assert areas.max() <= 1


def test_hinton_draws_the_first_row_at_the_top():
    low, high = plots.hinton(torch.eye(3)).axes[0].get_ylim()
    assert low > high


def test_hinton_scale_fills_a_cell_and_larger_weights_do_not_leave_it():
    one = squares(plots.hinton(torch.tensor([[0.5, 1.0]]), scale=2.0))[0]
    two = squares(plots.hinton(torch.tensor([[0.5, 8.0]]), scale=2.0))[0]
    np.testing.assert_allclose(one / two[1], [0.25, 0.5])


def test_hinton_with_a_mixture_has_the_colours_of_the_components_and_names_their_means():
    figure = plots.hinton(torch.tensor([[0.61, 0.01], [-0.49, 0.6]]), mixture=MIXTURE)
    colors = plots.component_colors(MIXTURE.mean)
    assert squares(figure)[2] == [colors[j] for j in (3, 1, 0, 3)]
    legend = figure.axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["−0.5", "0", "0.6"]


# --- tensors side by side ---


def test_layers_gives_each_tensor_its_own_histogram_and_mixture():
    other = GaussianMixture([1.0], [2.0], [0.1])
    weights = {"a": WEIGHTS, "b": torch.full((3, 4), 2.0)}
    figure = plots.layers(weights, {"a": MIXTURE, "b": other})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a  (20k)", "b  (12)"]
    assert [len(labelled(ax, "component")) for ax in figure.axes] == [3, 1]
    for ax, w in zip(figure.axes, weights.values(), strict=True):
        values, edges = bars(ax)
        values = np.where(values > 1.01 * ax.get_ylim()[0], values, 0)
        middles = (edges[1:] + edges[:-1]) / 2
        assert values @ (middles * np.diff(edges)) == pytest.approx(w.mean().item(), abs=5e-3)


def test_entropy_bars_are_the_bits_in_the_order_given():
    ax = plots.entropy({"b": 2.0, "a": 0.25}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [2.0, 0.25]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first is at the top
    assert "bits" in ax.get_xlabel()


# --- histories ---


def test_trajectories_are_the_histories_series():
    panels = plots.trajectories(HISTORY).axes
    for ax, name in zip(panels, ("mean", "std", "mixing"), strict=False):
        assert name in ax.get_ylabel()
        for j in range(5):
            x, y = curve(ax, f"_component {j}")
            end = 5 if j == 3 else 9
            np.testing.assert_allclose(x, 2.0 * np.arange(end))
            np.testing.assert_allclose(y, HISTORY.stacked("all", name)[:end, j])
    np.testing.assert_array_equal(curve(panels[3], "_live")[1], [5] * 4 + [4] * 5)
    assert [ax.get_yscale() for ax in panels] == ["linear", "log", "log", "linear"]


def test_trajectories_mark_deaths_and_mergers_where_they_happen():
    ax = plots.trajectories(HISTORY).axes[0]
    marks = {
        a.get_label(): a.get_xydata().tolist() for a in ax.lines if "component" not in a.get_label()
    }
    assert marks == {"_died 3": [[8.0, 3.0]], "_merged 4": [[12.0, 1.0]]}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["died", "merged"]


def test_trajectories_mark_nothing_where_nothing_happens():
    ax = plots.trajectories(training(records=3)).axes[0]
    assert len(ax.lines) == 5
    assert ax.get_legend() is None


def test_collapse_keeps_the_mass_and_the_place_of_every_record():
    ax = plots.collapse(HISTORY).axes[0]
    (mesh,) = [c for c in ax.collections if hasattr(c, "get_coordinates")]
    density = mesh.get_array().filled(0)  # (bins, records)
    corners = np.asarray(mesh.get_coordinates())
    sides, edges = corners[0, :, 0], corners[:, 0, 1]
    np.testing.assert_allclose(sides, 2.0 * np.arange(10) - 1)
    np.testing.assert_allclose(np.diff(edges) @ density, 1)
    middles = (edges[1:] + edges[:-1]) / 2
    second = np.diff(edges) * middles**2 @ density
    for t, s in enumerate(np.linspace(0, 1, 9)):
        start = torch.linspace(-1.5, 1.5, 600)
        weights = (1 - s) * start + s * start.round().clamp(-1, 1)
        assert second[t] == pytest.approx(weights.square().mean().item(), abs=0.02)
    assert mesh.get_rasterized()


def test_collapse_centres_follow_the_means_until_death():
    ax = plots.collapse(HISTORY).axes[0]
    mean = HISTORY.stacked("all", "mean").numpy().copy()
    mean[4:, 3] = np.nan
    for j in range(5):
        np.testing.assert_allclose(curve(ax, f"_component {j}")[1], mean[:, j])


def test_loss_terms_split_the_objective_into_data_and_prior():
    cases, nats = plots.loss_terms(HISTORY).axes
    objective, data, prior = (curve(cases, n)[1] for n in ("objective", "data", "prior"))
    np.testing.assert_allclose(objective, HISTORY.scalars["objective"])
    np.testing.assert_allclose(data + prior, objective)
    np.testing.assert_allclose(curve(nats, "R(w)")[1], HISTORY.scalars["nll"])
    np.testing.assert_allclose(curve(nats, "hyper-prior")[1], HISTORY.scalars["hyper_prior"])
    assert (cases.get_ylabel(), nats.get_ylabel()) == ("nats a case", "nats")


def test_group_picks_one_of_several_mixtures():
    history = training(groups=("conv", "fc"))
    history.series["fc"]["std"] = [2 * s for s in history.series["fc"]["std"]]
    y = curve(plots.trajectories(history, "fc").axes[1], "_component 0")[1]
    np.testing.assert_allclose(y, history.stacked("fc", "std")[:, 0])


# --- every figure ---


def overlaps(one, two) -> bool:
    slack = 0.5
    return (
        one.x0 < two.x1 - slack
        and two.x0 < one.x1 - slack
        and one.y0 < two.y1 - slack
        and two.y0 < one.y1 - slack
    )


@every_figure
@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_nothing_is_cut_off_covered_or_crowded(make, width):
    figure = make(width=width)
    assert figure.get_figwidth() == width
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is not None:
            box = legend.get_window_extent()
            assert not any(overlaps(box, other.get_window_extent()) for other in figure.axes)
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1 + 1
        labels = [ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            ticks = [t for t in ticks if t.get_visible() and t.get_text()]
            boxes = [t.get_window_extent() for t in ticks]
            assert not any(overlaps(a, b) for a, b in itertools.combinations(boxes, 2))
            labels += ticks
        boxes = [t.get_window_extent() for t in labels if t.get_visible() and t.get_text()]
        for box in boxes:
            assert page.x0 - 1 <= box.x0
            assert box.x1 <= page.x1 + 1
            assert page.y0 - 1 <= box.y0
            assert box.y1 <= page.y1 + 1
        assert all(t.get_fontsize() >= 6 for t in labels)


@every_figure
def test_ax_draws_into_the_axes_given(make):
    count = len(make().axes) - (make is FIGURES["collapse"])  # which has a colour bar
    figure = Figure()
    axes = figure.subplots(1, count)
    assert make(ax=axes) is figure
    assert all(ax.has_data() for ax in np.ravel(axes))
    with pytest.raises(ValueError, match=rf"wanted {count} Axes, got {count + 1}"):
        make(ax=Figure().subplots(1, count + 1))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_written_the_same_byte_for_byte(name, tmp_path):
    one, other = (FIGURES[name](width=plots.COLUMN) for _ in range(2))
    for kind in ("png", "svg", "pdf")[: 3 if name in {"clusters", "before_after"} else 2]:
        figures = (one, other, one)[: 3 if kind == "svg" else 2]
        first, *more = (
            plots.save(figure, tmp_path / f"{i}.{kind}", dpi=60.0).read_bytes()
            for i, figure in enumerate(figures)
        )
        assert all(again == first for again in more)
        assert not any(word in first for word in (b"CreationDate", b"<dc:date>", b"Software"))


SCRIPT = """
import sys
from swsmix import plots
for kind in ("svg", "pdf"):
    plots.save(plots.entropy({"a": 1.0, "b": 2.0}), f"{sys.argv[1]}/other.{kind}")
print("matplotlib.pyplot" in sys.modules)
"""


def test_another_process_writes_the_same_bytes_and_needs_no_pyplot(tmp_path):
    environment = os.environ | {"PYTHONHASHSEED": "1", "MPLBACKEND": "svg"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    root = Path(plots.__file__).parents[2]
    printed = subprocess.check_output(command, env=environment, cwd=root, text=True)
    assert printed == "False\n"
    for kind in ("svg", "pdf"):
        here = plots.save(plots.entropy({"a": 1.0, "b": 2.0}), tmp_path / f"here.{kind}")
        assert here.read_bytes() == here.with_stem("other").read_bytes()


@every_figure
def test_no_global_state_is_left_behind(make):
    torch_state = torch.get_rng_state()
    with matplotlib.rc_context({"font.size": 13, "legend.frameon": True}):
        before = dict(matplotlib.rcParams)
        make()
        assert dict(matplotlib.rcParams) == before
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_saving_leaves_one_file_and_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save(plots.entropy({"a": 1.0}), tmp_path / "x.svg")
    assert dict(matplotlib.rcParams) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.svg"]


def test_a_figure_shows_itself_in_a_notebook_and_can_be_pickled():
    figure = plots.entropy({"a": 1.0})
    picture = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == picture


def test_mixtures_in_training_and_half_precision_weights_are_drawn():
    mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
    for name in ("mixing", "mean", "std"):
        buffer = mixture._buffers.pop(name)
        mixture.register_parameter(name, torch.nn.Parameter(buffer))
    w = torch.nn.Parameter(torch.randn(4, 5, dtype=torch.bfloat16))
    assert len(labelled(plots.clusters(w, mixture).axes[0], "component")) == 2
    plots.responsibilities(mixture, w)
    plots.before_after(w, w, mixture)
    plots.hinton(w, mixture=mixture)


HARD_WEIGHTS = {
    "one weight": torch.tensor([0.3]),
    "all equal": torch.full((50,), 0.25),
    "all zero": torch.zeros(50),
    "two far apart": torch.tensor([-1e4, 1e4]),
}
HARD_MIXTURES = {
    "one component": GaussianMixture([1.0], [0.1], [0.2]),
    "mixing exactly 0": GaussianMixture([1.0, 0.0], [0.0, 9.0], [0.1, 0.1]),
    "std 1e-5": GaussianMixture([0.6, 0.4], [0.0, 0.25], [1e-5, 1e-5]),
    "equal components": GaussianMixture([0.5, 0.5], [0.0, 0.0], [0.1, 0.1]),
    "20 components": GaussianMixture([0.05] * 20, torch.linspace(-1, 1, 20).tolist(), [0.02] * 20),
}


@pytest.mark.parametrize(
    ("weights", "mixture"),
    [(name, "std 1e-5") for name in HARD_WEIGHTS]
    + [("one weight", name) for name in HARD_MIXTURES],
)
def test_hard_cases_have_a_picture_with_all_of_the_data(weights, mixture):
    w, mixture = HARD_WEIGHTS[weights], HARD_MIXTURES[mixture]
    live = int((mixture.mixing > 0).sum())
    figure = plots.clusters(w, mixture)
    values, edges = bars(figure.axes[0])
    assert values @ np.diff(edges) == pytest.approx(1)
    assert edges[0] <= w.min() <= w.max() <= edges[-1]
    assert len(labelled(figure.axes[0], "component")) == live
    assert len(labelled(plots.responsibilities(mixture, w).axes[0], "component")) == live
    main = plots.before_after(w, w, mixture).axes[0]
    assert main.get_xlim()[0] < w.min() <= w.max() < main.get_xlim()[1]
    FigureCanvasAgg(figure).draw()


def test_a_history_of_one_record_has_a_picture():
    history = training(records=1)
    for figure in (
        plots.trajectories(history),
        plots.collapse(history),
        plots.loss_terms(history),
    ):
        FigureCanvasAgg(figure).draw()
        assert figure.axes[0].lines[0].get_marker() == "."


# --- errors ---

NAN = torch.tensor([0.0, math.nan, math.inf])
EMPTY = torch.zeros(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.clusters(EMPTY, MIXTURE), r"wanted at least one weight, got shape \(0,\)"),
        (lambda: plots.clusters(NAN, MIXTURE), "2 nan or inf among 3.*isfinite"),
        (lambda: plots.responsibilities(MIXTURE, NAN), "2 nan or inf among 3"),
        (lambda: plots.before_after(WEIGHTS, EMPTY, MIXTURE), "final: wanted at least one"),
        (lambda: plots.before_after(WEIGHTS, WEIGHTS[1:], MIXTURE), "got 20000 and 19999"),
        (lambda: plots.hinton(WEIGHTS), r"wanted a matrix .* got shape \(20000,\).*flatten"),
        (lambda: plots.hinton(torch.zeros(257, 256)), r"at most 65,536 .*\(257, 256\)"),
        (lambda: plots.hinton(torch.zeros(0, 3)), "at least one weight"),
        (lambda: plots.hinton(torch.eye(2), scale=0.0), "positive magnitude, got 0.0"),
        (lambda: plots.layers({}, MIXTURE), "got none"),
        (lambda: plots.layers({"a": NAN}, MIXTURE), "a: wanted finite"),
        (lambda: plots.layers({"a": WEIGHTS}, {"b": MIXTURE}), r"none for \['a'\].*\['b'\]"),
        (lambda: plots.entropy({}), "got {}"),
        (lambda: plots.entropy({"a": -1.0}), "at least 0; got {'a': -1.0}"),
        (lambda: plots.entropy({"a": math.nan}), "finite bits"),
        (lambda: plots.trajectories(History()), "trajectories: .*got an empty one"),
        (lambda: plots.collapse(History()), "collapse: .*got an empty one"),
        (lambda: plots.animate_collapse(History(), "x.gif"), "got an empty one"),
        (lambda: plots.loss_terms(History()), "got 0 record.* without .*'objective'"),
        (lambda: plots.collapse(training(groups=("a", "b"))), r"no group.*\['a', 'b'\]"),
        (lambda: plots.trajectories(HISTORY, "fc"), r"group 'fc': pass group= one of \['all'\]"),
        (
            lambda: plots.save(Figure(), "picture.jpg"),
            "wanted .png, .pdf or .svg, got 'picture.jpg'",
        ),
        (lambda: plots.animate_collapse(HISTORY, "film.avi"), "got 'film.avi', wanted .gif"),
    ],
)
def test_errors_say_what_was_wanted_and_got(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- files ---


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = plots.save(Figure(), tmp_path / "x.svg")
    old = path.read_bytes()

    def fail(self, name, **kwargs):
        Path(name).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(Figure(), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_the_film_has_a_frame_for_each_record_and_stays_small(tmp_path):
    path = plots.animate_collapse(HISTORY, tmp_path / "x.gif", seconds=0.9)
    assert path.stat().st_size < 300_000
    with Image.open(path) as film:
        assert film.n_frames == len(HISTORY)
        frames, times = [], []
        for i in range(film.n_frames):
            film.seek(i)
            times.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB"), dtype=float))
        assert film.info["loop"] == 0
    assert times == [100] * 8 + [2000]
    assert all(np.abs(a - b).mean() > 0.05 for a, b in itertools.pairwise(frames))
    assert list(tmp_path.iterdir()) == [path]


def test_the_film_is_the_same_byte_for_byte_and_at_most_max_frames_long(tmp_path):
    digests = {
        hashlib.sha256(
            plots.animate_collapse(HISTORY, tmp_path / f"{i}.gif", max_frames=3).read_bytes()
        ).hexdigest()
        for i in range(2)
    }
    assert len(digests) == 1
    with Image.open(tmp_path / "0.gif") as film:
        assert film.n_frames == 3


def test_a_frame_of_seventeen_components_is_a_hundredth_of_three_megabytes(tmp_path):
    history = History()
    start = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    mean = torch.linspace(-2, 2, 17)
    for t in range(10):
        weights = start + (t / 9) * ((4 * start).round().clamp(-8, 8) / 4 - start)
        mixture = GaussianMixture([1 / 17] * 17, mean.tolist(), [0.3 - 0.03 * t] * 17)
        history.record({"epoch": float(t)}, {"all": (weights, mixture, torch.full((17,), 294.0))})
    path = plots.animate_collapse(history, tmp_path / "x.gif")
    assert path.stat().st_size < 10 * 30_000


def test_mp4_goes_through_ffmpeg_frame_by_frame(tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "data = sys.stdin.buffer.read()\n"
        "print(len(data), *sys.argv[1:], file=open(sys.argv[-1], 'w'))\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    path = plots.animate_collapse(HISTORY, tmp_path / "x.mp4", seconds=0.9)
    size, *arguments = path.read_text().split()
    width, height = map(int, arguments[arguments.index("-s") + 1].split("x"))
    assert width % 2 == height % 2 == 0
    assert int(size) == 3 * width * height * (9 + 20)  # the last frame stays two seconds
    assert float(arguments[arguments.index("-r") + 1]) == pytest.approx(10)

    fake.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdin.buffer.read()\nsys.exit('no x264')\n"
    )
    with pytest.raises(ValueError, match=r"no x264.*\.gif"):
        plots.animate_collapse(HISTORY, tmp_path / "y.mp4", max_frames=1)
    assert not (tmp_path / "y.mp4").exists()


def test_mp4_without_ffmpeg_is_an_error_that_names_gif(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"there is no ffmpeg.*\.gif"):
        plots.animate_collapse(HISTORY, tmp_path / "x.mp4")
