"""The picture of the responsibilities is the mixture's own."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pictures import LIVE, MIXTURE, WEIGHTS, labelled, number

from swsmix import plots
from swsmix.mixture import GaussianMixture


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
