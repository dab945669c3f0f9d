"""Pictures of a vector of weights: what they draw is the weights and their mixture."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from pictures import FIGURES, HISTORY, LIVE, MIXTURE, WEIGHTS, bars, curve, draw, labelled, number
from scipy.stats import norm

from swsmix import plots
from swsmix.mixture import GaussianMixture

# --- clusters ---


def test_clusters_draws_the_live_components_and_no_other():
    for ax in plots.clusters(WEIGHTS, MIXTURE).axes:
        assert sorted(number(a) for a in labelled(ax, "component")) == LIVE


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


def test_labels_of_centres_are_in_ink_and_only_their_ties_in_colour():
    colors = plots.component_colors(MIXTURE.mean)
    for ax in (plots.clusters(WEIGHTS, MIXTURE).axes[1], plots.responsibilities(MIXTURE).axes[0]):
        texts = [t for t in labelled(ax, "centre") if hasattr(t, "xy")]
        assert {to_hex(t.get_color()) for t in texts} == {"#1a1a1a"}
        assert [to_hex(t.arrow_patch.get_edgecolor()) for t in texts] == [colors[j] for j in LIVE]


# Component 1 lies under 0, and 3 has no weights: claimed by none, they would crowd the picture.
CROWDED = GaussianMixture([0.6, 0.1, 0.29, 0.01], [0.0, 0.001, 0.5, 0.8], [0.02, 0.02, 0.02, 0.02])


def test_components_that_hold_no_weight_have_a_curve_but_no_label_and_no_band():
    w = torch.tensor([0.0] * 9 + [0.5] * 3)
    linear, log = plots.clusters(w, CROWDED).axes
    assert [t.get_text() for t in labelled(log, "centre") if hasattr(t, "xy")] == ["9", "3"]
    assert sorted(number(a) for a in labelled(linear, "component")) == [0, 1, 2, 3]
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


@pytest.mark.parametrize("log", [0, 1])
def test_curves_have_no_more_points_than_the_eye_needs(log):
    ax = plots.clusters(WEIGHTS, MIXTURE).axes[log]
    low, high = ax.get_ylim()
    step = np.diff(bars(ax)[1][:2])
    every = np.linspace(*ax.get_xlim(), 5000)
    for j in LIVE:
        x, y = curve(ax, f"_component {j}")
        assert len(x) < 100
        inside = every[(every > x[0]) & (every < x[-1])]
        law = norm(MIXTURE.mean[j].item(), MIXTURE.std[j].item())
        exact = MIXTURE.mixing[j].item() / step
        exact = exact * (law.cdf(inside + step / 2) - law.cdf(inside - step / 2))
        if log:
            drawn = np.exp(np.interp(inside, x, np.log(y)))
            seen = exact > low
            off = np.log(drawn[seen] / exact[seen]) / np.log(high / low)
        else:
            off = (np.interp(inside, x, y) - exact) / high
        assert np.abs(off).max() < 2e-3


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


def test_a_spike_much_narrower_than_a_pixel_is_seen_and_named():
    spiked = GaussianMixture([0.6, 0.1, 0.3], [0.0, 0.001, 0.3], [1e-5, 0.3, 0.3])
    figure = plots.responsibilities(spiked)
    (ax,) = figure.axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    box, x = ax.get_window_extent(), round(ax.transData.transform((0, 0))[0])
    rows = slice(len(pixels) - int(box.y1), len(pixels) - int(box.y0))
    spike = np.array([int(plots.NEUTRAL[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(pixels[rows, x - 2 : x + 3] - spike).max(-1) < 40
    assert near.mean(0).max() > 0.8  # nearly all of the height: gamma is above 0.99
    named = [t.get_text() for t in labelled(ax, "centre") if hasattr(t, "xy")]
    assert named == ["0", "0.001", "0.3"]
    assert not labelled(plots.responsibilities(MIXTURE).axes[0], "narrow")


# --- before and after ---


def test_before_after_dots_are_the_weights_in_the_colours_of_their_components():
    before, after = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.6, 0.0, -0.5])
    main = plots.before_after(before, after, MIXTURE).axes[0]
    (dots,) = labelled(main, "dots")
    np.testing.assert_allclose(dots.get_offsets(), torch.stack([before, after], 1))
    colors = plots.component_colors(MIXTURE.mean)
    assert [to_hex(c) for c in dots.get_facecolors()] == [colors[j] for j in (3, 1, 0)]
    assert dots.get_rasterized()


def test_before_after_is_as_wide_as_the_initial_weights_alone():
    before = torch.linspace(-0.01, 0.02, len(WEIGHTS))
    main = plots.before_after(before, WEIGHTS, MIXTURE).axes[0]
    assert main.get_xlim() == pytest.approx((-0.0109, 0.0209), abs=1e-6)
    low, high = main.get_ylim()
    assert low < WEIGHTS.min() and high > WEIGHTS.max()
    assert len([t for t in main.get_xticks() if -0.0109 <= t <= 0.0209]) <= 5


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


# --- what is no tensor ---


FOREIGN = """
import numpy as np, torch
from swsmix import GaussianMixture, plots
mixture, array = GaussianMixture([1.0], [0.0], [1.0]), np.zeros((2, 2))
mend = "ndarray: pass torch.as_tensor(w)"
for draw, argument, end in (
    (lambda: plots.clusters(array, mixture), "weights", mend),
    (lambda: plots.clusters(array[0], mixture), "weights", mend),
    (lambda: plots.clusters([torch.zeros(2), array], mixture), "weights", mend),
    (lambda: plots.responsibilities(mixture, array), "weights", mend),
    (lambda: plots.before_after(torch.zeros(4), array, mixture), "final", mend),
    (lambda: plots.layers({"fc": array}, {"fc": mixture}), "fc", mend),
    (lambda: plots.hinton(array), "weight_matrix", mend),
    (lambda: plots.clusters({"fc": torch.zeros(2)}, mixture), "weights",
     "dict: pass list(w.values())"),
    (lambda: plots.clusters(3.0, mixture), "weights", "float: pass torch.as_tensor(w)"),
):
    try:
        draw()
    except TypeError as error:
        assert str(error).startswith(f"{argument}: wanted a tensor"), error
        assert str(error).endswith(end), error
    else:
        raise SystemExit(f"{argument} was drawn")
"""


def test_what_is_no_tensor_is_refused_with_what_to_do_about_it():
    """In a process of its own: here beartype would refuse it first, in words of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
