"""The picture of weights before and after training: dots, bands and margins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from pictures import LIVE, MIXTURE, WEIGHTS, draw, labelled, number

from swsmix import plots


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
