"""Figures of a posterior, from its draws: predictions, mixture, memberships, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from swsmix._histogram import Array
from swsmix._labels import format_number
from swsmix.plots.given import refusal, tensor_of
from swsmix.plots.style import (
    BARS,
    FULL,
    GREY,
    INK,
    POSITIVE,
    add_legend,
    component_colors,
    lay_out,
    make_panels,
    space_ticks,
    styled,
)

Numbers = Tensor | np.ndarray
_BANDS = ((0.05, 0.95, 0.18), (0.25, 0.75, 0.38))  # low and high quantile, opacity


@styled
def predictive_band(
    x: Numbers,
    quantiles: Mapping[float, Numbers],
    *,
    mean: Numbers | None = None,
    target: Numbers | None = None,
    color: str = POSITIVE,
    width: float = FULL,
    ax: Axes | None = None,
) -> Figure:
    """The 50 % and the 90 % predictive interval along x, with the targets.

    For an iterated forecast, let x be the years ahead.

    Args:
        x: positions along the horizontal axis (n,), ascending.
        quantiles: q -> the predictive quantiles (n,), q = 0.05, 0.25, 0.75, 0.95, as
            `Posterior.predict` returns them.
        mean: the posterior mean (n,), drawn as a line.
        target: the observed targets (n,), drawn as dots.
        color: colour of the bands.
        width: width of the figure, in inches.
        ax: axes to draw into.

    Raises:
        TypeError: for anything but numbers.
        ValueError: if a quantile is missing, the lengths differ, or x does not ascend.
    """
    wanted = [q for low, high, _ in _BANDS for q in (low, high)]
    if not isinstance(quantiles, Mapping):
        raise TypeError(
            refusal("quantiles", "q -> numbers", quantiles, "pass Posterior.predict's .quantiles")
        )
    if missing := [q for q in wanted if q not in quantiles]:
        raise ValueError(
            f"quantiles: needs those of the intervals, {sorted(wanted)}, got {[*quantiles]}: add "
            f"{missing}"
        )
    x, quantile = tensor_of(x, "x"), {q: tensor_of(v, f"{q}") for q, v in quantiles.items()}
    mean, target = (None if v is None else tensor_of(v, "mean, target") for v in (mean, target))
    shapes = {tuple(v.shape) for v in (x, *quantile.values(), mean, target) if v is not None}
    if len(shapes) != 1 or len(x.shape) != 1 or not len(x):
        raise ValueError(
            "x, quantiles, mean and target must have one length, at least 1, got shapes "
            f"{sorted(shapes)}: pass vectors (n,)"
        )
    if not bool((x.diff() >= 0).all()):
        raise ValueError("x must ascend, got numbers that fall; sort all by order = x.argsort()")
    figure, (panel,) = make_panels(ax, 1, width=width, row=2.6 if width >= FULL else 2.1)
    for low, high, alpha in _BANDS:
        label = f"{round(100 * (high - low))} % interval"
        panel.fill_between(
            x.numpy(), quantile[low].numpy(), quantile[high].numpy(), color=color, alpha=alpha,
            lw=0, label=label,
        )  # fmt: skip
    if mean is not None:
        panel.plot(x.numpy(), mean.numpy(), color=color, lw=1.1, label="posterior mean")
    if target is not None:
        panel.plot(x.numpy(), target.numpy(), "o", color=INK, ms=2.4, mew=0, label="observed")
    panel.set_xlim(float(x[0]), float(x[-1]) if len(x) > 1 else float(x[0]) + 1.0)
    add_legend(panel)
    return figure


@styled
def mixture_band(
    weights: Numbers,
    mixing: Numbers,
    mean: Numbers,
    std: Numbers,
    *,
    log: bool = True,
    width: float = FULL,
    ax: Axes | None = None,
) -> Figure:
    """The 50 % and 90 % band of the mixture's density, over the weights' histogram.

    Args:
        weights: draws of the weights, any shape.
        mixing: draws of pi (draws, k).
        mean: draws of mu.
        std: draws of sigma.
        log: whether the density axis is logarithmic.
        width: width of the figure, in inches.
        ax: axes to draw into.

    Raises:
        TypeError: for anything but numbers.
        ValueError: if there are no weights, one is not finite, or the mixture's draws differ in
            shape.
    """
    flat = tensor_of(weights).double().reshape(-1).numpy()
    mixing, mean, std = _draws(mixing, mean, std)
    if not len(flat) or not np.isfinite(flat).all():
        raise ValueError(
            f"weights: needs finite ones, at least one, got {len(flat)} of which "
            f"{int((~np.isfinite(flat)).sum())} are not finite: pass draws of a posterior"
        )
    figure, (panel,) = make_panels(ax, 1, width=width, row=2.6)
    low, high = np.quantile(flat, [0.002, 0.998])
    if low == high:
        low, high = low - float(std.max()), high + float(std.max())
    grid = np.linspace(low, high, 400)
    counts, edges = np.histogram(flat, 80, (low, high))
    density = counts / (len(flat) * (edges[1] - edges[0]))
    curves = mixture_curves(grid, mixing, mean, std)
    bands = np.quantile(curves, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    floor = max(1e-4 * float(bands[2].max()), 1e-12) if log else 0.0
    panel.stairs(
        np.maximum(density, floor), edges, baseline=floor, fill=True, color=BARS,
        label="weights, all draws",
    )  # fmt: skip
    ground = floor / 10  # below the axis, so that no line runs along it
    for a, b, alpha, label in ((0, 4, 0.2, "90 % band"), (1, 3, 0.42, "50 % band")):
        panel.fill_between(
            grid, np.maximum(bands[a], ground), np.maximum(bands[b], ground), color=POSITIVE,
            alpha=alpha, lw=0, label=label,
        )  # fmt: skip
    panel.plot(grid, np.maximum(bands[2], ground), color=POSITIVE, lw=1.0, label="median density")
    if log:
        panel.set_yscale("log")
        panel.set_ylim(floor, 3.0 * max(float(density.max()), float(bands[4].max())))
    panel.set(xlim=(low, high), xlabel="weight", ylabel="density (1 / weight)")
    add_legend(panel)
    return figure


@styled
def membership_band(
    mixing: Numbers,
    mean: Numbers,
    std: Numbers,
    *,
    span: tuple[float, float],
    width: float = FULL,
    ax: Axes | None = None,
) -> Figure:
    """The responsibilities for a weight of a given value, with their uncertainty.

    Lines are posterior means of the responsibilities, bands their 50 % intervals. The components of
    each draw are sorted by their means. Each component has a row of its own, from 0 to 1, named by
    its posterior mean: the bands of several would overlap.

    Args:
        mixing: draws of pi (draws, k), sorted by mean (`Posterior.mixture`).
        mean: draws of mu.
        std: draws of sigma.
        span: the smallest and the largest weight to show.
        width: width of the figure, in inches.
        ax: axes to draw into.

    Raises:
        TypeError: for anything but numbers.
        ValueError: if the span is empty, or the mixture's draws differ in shape.
    """
    ends = tensor_of(span, "span")
    if ends.shape != (2,) or not bool(ends[0] < ends[1]):
        raise ValueError(f"span must be an interval (low, high), got {span}: pass low < high")
    mixing, mean, std = _draws(mixing, mean, std)
    figure, (panel,) = make_panels(ax, 1, width=width, row=max(1.7, 0.5 + 0.3 * mean.shape[-1]))
    grid = torch.linspace(*span, 200, dtype=torch.float64, device="cpu")
    gamma = _log_components(grid, mixing, mean, std).softmax(-1)
    centres = mean.double().mean(0)
    colors, x = component_colors(centres), grid.numpy()
    for row, color in enumerate(colors):
        low, high = np.quantile(gamma[..., row].numpy(), [0.25, 0.75], axis=0)
        panel.axhline(row, color="0.85", lw=0.5, zorder=0, label="_row")
        panel.fill_between(
            x, row + 0.85 * low, row + 0.85 * high, color=color, alpha=0.3, lw=0, label="_band"
        )
        average = gamma[..., row].mean(0).numpy()
        panel.plot(x, row + 0.85 * average, color=color, lw=1.0, label=f"_component {row}")
    panel.set_yticks(range(len(colors)), [format_number(c, digits=2) for c in centres.tolist()])
    panel.tick_params(axis="y", length=0)
    panel.set(xlim=span, ylim=(-0.1, len(colors)), xlabel="weight")
    panel.set_ylabel("responsibility,\na row (0 to 1) per mean")
    if ax is None:
        lay_out(figure)  # which sets the panel's width
    space_ticks(panel)
    return figure


@styled
def calibration(
    ranks: Mapping[str, Sequence[float]], *, width: float = FULL, ax: Axes | None = None
) -> Figure:
    """Observed against nominal coverage of the central intervals.

    The band of each label is where the curve of that many independent, calibrated predictions lies,
    at each level, with probability 90 %: fewer observations have a wider band. Labels with one
    number of observations share one.

    Args:
        ranks: label -> the predictive probability below each observation, P(y' < y), in [0, 1];
            uniform if the predictions are calibrated.
        width: width of the figure, in inches.
        ax: axes to draw into.

    Raises:
        TypeError: for anything but numbers by label.
        ValueError: if a label has no ranks, there are more than four labels, or a rank is outside
            [0, 1].
    """
    from scipy.stats import binom

    if not isinstance(ranks, Mapping):
        raise TypeError(refusal("ranks", "label -> ranks in [0, 1]", ranks, 'pass {"test": ranks}'))
    given = {label: tensor_of(r, str(label)).double().reshape(-1) for label, r in ranks.items()}
    if not given or any(not len(r) for r in given.values()):
        raise ValueError(
            "calibration needs at least one observation for each label, got "
            f"{ {label: len(r) for label, r in given.items()} }: omit the empty ones"
        )
    figure, (panel,) = make_panels(ax, 1, width=width, row=3.0)
    nominal = np.linspace(0.0, 1.0, 101)
    panel.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    colors = (POSITIVE, "#0072b2", "#009e73", "#cc79a7")
    if len(given) > len(colors):
        raise ValueError(
            f"calibration must have at most {len(colors)} labels, its colours, got {len(given)}: "
            "draw the others into another figure"
        )
    sizes = [len(values) for values in given.values()]
    for (label, values), color in zip(given.items(), colors, strict=False):
        p = values.numpy()
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError(
                f"the ranks of {label!r} must lie in [0, 1], got {p.min():.3g} to {p.max():.3g}: "
                "pass P(y' < y)"
            )
        inside = 2.0 * np.abs(p - 0.5)
        observed = [(inside <= level).mean() for level in nominal]
        panel.step(nominal, observed, where="mid", color=color, label=f"{label} (n = {len(p)})")
        if len(p) in sizes:
            low, high = (binom.ppf(q, len(p), nominal) / len(p) for q in (0.05, 0.95))
            shared = sizes.count(len(p)) > 1
            sizes = [size for size in sizes if size != len(p)]  # one band per number
            tint = GREY if shared else color
            panel.fill_between(
                nominal, low, high, step="mid", color=tint, alpha=0.15, lw=0,
                label=f"90 % by chance, n = {len(p)}",
            )  # fmt: skip
            for edge in (low, high):  # where bands overlap, their edges tell them apart
                panel.step(nominal, edge, where="mid", color=tint, lw=0.5, ls="--", label="_edge")
    panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="observed coverage")
    panel.set_aspect("equal")
    add_legend(panel, columns=2)
    return figure


def _draws(*given: Any) -> tuple[Tensor, ...]:
    """The draws of a mixture's mixing, mean and std, each (draws, k)."""
    found = tuple(tensor_of(v, n) for v, n in zip(given, ("mixing", "mean", "std"), strict=True))
    shapes = [tuple(each.shape) for each in found]
    if len(set(shapes)) > 1 or found[0].ndim != 2 or not found[0].numel():
        raise ValueError(
            f"mixing, mean and std must have one shape (draws, k), got {shapes}: pass those of "
            "Posterior.mixture"
        )
    mixing, mean, std = found
    if not bool(((mixing >= 0) & mean.isfinite() & (std > 0) & (std < torch.inf)).all()):
        raise ValueError(
            "mixing must be at least 0, mean finite and std positive, got from "
            f"{[each.min().item() for each in found]} to {[each.max().item() for each in found]}: "
            "pass those of Posterior.mixture"
        )
    return found


def mixture_curves(grid: Array, mixing: Tensor, mean: Tensor, std: Tensor) -> Array:
    """The density of every draw of a mixture on a grid: (draws, len(grid))."""
    logs = _log_components(torch.from_numpy(grid), mixing, mean, std)
    curves: Array = logs.logsumexp(-1).exp().numpy()
    return curves


def _log_components(grid: Tensor, mixing: Tensor, mean: Tensor, std: Tensor) -> Any:
    """Log pi_j N(w | mu_j, sigma_j^2): (draws, len(grid), k)."""
    pi, mu, sigma = (t.detach().double().cpu()[:, None, :] for t in (mixing, mean, std))
    off = (grid[None, :, None] - mu) / sigma
    return pi.log() - sigma.log() - 0.5 * off.square() - 0.5 * np.log(2.0 * np.pi)
