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
from matplotlib.text import Text
from pictures import LIVE, MIXTURE, WEIGHTS, bars, curve, draw, labelled, number, overlaps
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


def test_a_narrow_component_looks_as_narrow_as_it_is():
    """A std of .007 over 104 weights once looked like .04, the width of a bar."""
    mixture = GaussianMixture([0.5, 0.4, 0.1], [-0.14, 0.11, -1.07], [0.007, 0.007, 0.01])
    w = mixture.sample(104, generator=torch.Generator().manual_seed(0))
    for ax in (*plots.clusters(w, mixture).axes, *plots.layers({"a": w}, mixture).axes):
        x, y = curve(ax, "_component 0")
        wide = np.ptp(x[y >= 0.5 * y.max()]) / 2.355  # full width at half maximum
        assert wide == pytest.approx(0.007, rel=0.15)
        assert y.max() == pytest.approx(0.5 * norm(0, 0.007).pdf(0), rel=0.05)
    edges = bars(plots.clusters(w, mixture).axes[0])[1]
    assert edges[1] - edges[0] <= 0.0071


def test_numbers_above_centres_are_upright_and_do_not_touch():
    k = 17
    mean = torch.cat([torch.linspace(-0.1, 0.1, k - 2), torch.tensor([-1.0, 1.0])])  # crowded
    mixture = GaussianMixture([1 / k] * k, mean.tolist(), [0.001] * k)
    w = mean.repeat_interleave(1234)
    figure = plots.clusters(w, mixture)
    FigureCanvasAgg(figure).draw()
    texts = [t for t in labelled(figure.axes[1], "centre") if hasattr(t, "xy")]
    assert [t.get_text() for t in texts] == ["1.23k"] * k
    assert {t.get_rotation() for t in texts} == {0.0}
    boxes = [Text.get_window_extent(t) for t in texts]  # without the ties
    assert not any(overlaps(a, b) for a, b in itertools.combinations(boxes, 2))


def test_equal_means_are_named_once_with_their_number():
    twins = GaussianMixture([0.3, 0.3, 0.4], [0.5, 0.5, -1.0], [0.1, 0.1, 0.1])
    ax = plots.responsibilities(twins).axes[0]
    names = [t.get_text() for t in labelled(ax, "centre") if hasattr(t, "xy")]
    assert names == ["−1", "0.5 (×2)"]


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


# --- what is no tensor ---


FOREIGN = """
import torch
from swsmix import GaussianMixture, plots
mixture, number = GaussianMixture([1.0], [0.0], [1.0]), 3.0
mend = "float: pass torch.as_tensor(w)"
for draw, argument, end in (
    (lambda: plots.clusters(number, mixture), "weights", mend),
    (lambda: plots.clusters([torch.zeros(2), number], mixture), "weights", mend),
    (lambda: plots.responsibilities(mixture, number), "weights", mend),
    (lambda: plots.before_after(torch.zeros(4), number, mixture), "final", mend),
    (lambda: plots.layers({"fc": number}, {"fc": mixture}), "fc", mend),
    (lambda: plots.hinton(number), "weight_matrix", mend),
    (lambda: plots.clusters({"fc": torch.zeros(2)}, mixture), "weights",
     "dict: pass list(w.values())"),
):
    try:
        draw()
    except TypeError as error:
        assert str(error).startswith(f"{argument}: needs a tensor"), error
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


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize(("share", "named"), [(0.1, True), (1e-6, False)])
def test_idle_components_have_a_key_where_one_rises_into_view(share, named):
    weights = torch.linspace(-0.02, 0.02, 200)
    pair = GaussianMixture([1.0 - share, share], [0.0, 0.0], [0.01, 0.012])
    assert ("most responsible for none" in legend_of(plots.clusters(weights, pair))) == named


def test_a_wide_component_is_drawn_to_the_edges_under_a_tower_that_is_cut():
    weights = torch.cat([torch.linspace(-1e-3, 1e-3, 2000), torch.tensor([-1.2, 0.5, 1.0, 1.5])])
    mixture = GaussianMixture([0.98, 0.02], [0.0, 0.3], [1e-3, 1.0])
    panel = plots.clusters(weights, mixture).axes[0]
    assert any("cut: reaches" in text.get_text() for text in panel.texts)
    x, _ = curve(panel, "_component 1")
    left, right = panel.get_xlim()
    assert x[0] < left + 0.02 and x[-1] > right - 0.02
