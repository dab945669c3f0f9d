"""Pictures of a posterior: what is drawn is what was given, and bad input is refused."""

import numpy as np
import pytest
import torch
from pictures import assert_nothing_is_cut_off

from swsmix import plots
from swsmix.plots.posterior import mixture_curves

FLOAT = torch.float64
QUANTILES = (0.05, 0.25, 0.75, 0.95)


def test_a_band_holds_the_quantiles():
    x = torch.arange(6, dtype=FLOAT)
    given = {q: q * (1.0 + x) for q in QUANTILES}
    figure = plots.predictive_band(x, given, mean=0.5 * (1.0 + x), target=0.4 * x)
    wide, narrow = figure.axes[0].collections
    ends = wide.get_paths()[0].vertices[:, 1]
    assert ends.min() == pytest.approx(0.05) and ends.max() == pytest.approx(0.95 * 6)
    assert narrow.get_paths()[0].vertices[:, 1].max() == pytest.approx(0.75 * 6)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["90 % interval", "50 % interval", "posterior mean", "observed"]
    with pytest.raises(ValueError, match=r"add \[0.95\]"):
        plots.predictive_band(x, {q: given[q] for q in QUANTILES[:3]})
    with pytest.raises(ValueError, match=r"x must ascend, .* x\.argsort\(\)"):
        plots.predictive_band(x.flip(0), given)


@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_nothing_of_a_posterior_is_cut_off_in_one_column(width):
    x = torch.arange(6, dtype=FLOAT)
    given = {q: q * (1.0 + x) for q in QUANTILES}
    mixing, mean, std = draws()
    ranks = {"soft weight-sharing": [0.1, 0.5, 0.9] * 3, "weight decay": [1.0] * 5}
    for figure in (
        plots.predictive_band(x, given, mean=0.5 * (1.0 + x), target=0.4 * x, width=width),
        plots.mixture_band(torch.randn(500), mixing, mean, std, width=width),
        plots.membership_band(mixing, mean, std, span=(-1.0, 1.0), width=width),
        plots.calibration(ranks, width=width),
    ):
        assert_nothing_is_cut_off(figure)


def draws(num=30):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.rand(num, 2, generator=generator, dtype=FLOAT)
    mean = torch.tensor([-0.5, 0.5], dtype=FLOAT) + 0.1 * torch.rand(num, 2, generator=generator)
    return mixing / mixing.sum(-1, keepdim=True), mean, 0.1 + 0.1 * torch.rand(num, 2).double()


def test_every_curve_of_the_mixture_integrates_to_one():
    grid = np.linspace(-4, 4, 4001)
    curves = mixture_curves(grid, *draws())
    np.testing.assert_allclose(curves.sum(1) * (grid[1] - grid[0]), 1.0, rtol=1e-6)


def test_the_mixture_and_its_memberships_are_drawn():
    mixing, mean, std = draws()
    figure = plots.mixture_band(torch.randn(500), mixing, mean, std)
    assert figure.axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="1 are not finite"):
        plots.mixture_band(torch.tensor([float("nan")]), mixing, mean, std)
    figure = plots.membership_band(mixing, mean, std, span=(-1.0, 1.0))
    lines = [a for a in figure.axes[0].get_lines() if "component" in a.get_label()]
    shares = [(line.get_ydata() - row) / 0.85 for row, line in enumerate(lines)]
    np.testing.assert_allclose(sum(shares), 1.0)  # mean responsibilities sum to 1
    for row, band in enumerate(figure.axes[0].collections):  # each in a row of its own
        ends = band.get_paths()[0].vertices[:, 1]
        assert row <= ends.min() <= ends.max() <= row + 0.85
    labels = [float(t.get_text().replace("−", "-")) for t in figure.axes[0].get_yticklabels()]
    assert labels == pytest.approx(mean.mean(0).tolist(), abs=0.01)
    with pytest.raises(ValueError, match="interval"):
        plots.membership_band(mixing, mean, std, span=(1.0, 1.0))


def test_the_calibration_curve_is_the_observed_coverage():
    ranks = [0.5, 0.4, 0.9, 0.01]
    figure = plots.calibration({"test": ranks})
    curve = next(line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 101)
    covered = dict(zip(np.round(curve.get_xdata(), 2), curve.get_ydata(), strict=True))
    assert covered[0.1] == 0.25  # .5 alone lies in the central 10 %
    assert covered[0.3] == 0.5 and covered[0.85] == 0.75 and covered[1.0] == 1.0
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        plots.calibration({"test": [1.5]})
    with pytest.raises(ValueError, match="at least one"):
        plots.calibration({})
    with pytest.raises(ValueError, match=r"at most 4 labels.* got 5"):
        plots.calibration({str(number): ranks for number in range(5)})


def test_every_number_of_predictions_has_a_band_of_its_own():
    """The curve of 24 years was once judged by the band of 35."""
    from scipy.stats import binom

    generator = torch.Generator().manual_seed(0)
    ranks = {n: torch.rand(int(n), generator=generator).tolist() for n in ("35", "24")}
    bands = bands_of(plots.calibration(ranks))
    assert list(bands) == [35, 24]
    for n, (low, high) in bands.items():
        assert (low, high) == (binom.ppf(0.05, n, 0.5) / n, binom.ppf(0.95, n, 0.5) / n)
    assert list(bands_of(plots.calibration({"a": ranks["24"], "b": ranks["24"]}))) == [24]


def bands_of(figure):
    """n -> the ends of its band at a nominal coverage of .5."""
    (ax,) = figure.axes
    edges = iter([line.get_ydata()[50] for line in ax.lines if line.get_label() == "_edge"])
    found = {int(a.get_label().split()[-1]): (next(edges), next(edges)) for a in ax.collections}
    for band, ends in zip(ax.collections, found.values(), strict=True):
        corners = band.get_paths()[0].vertices
        at = corners[np.isclose(corners[:, 0], 0.495) | np.isclose(corners[:, 0], 0.505), 1]
        assert set(np.round(ends, 9)) <= set(np.round(at, 9))  # what is filled
    return found
