"""The figures of the sunspots experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure

from papers.nowlan1992 import selection
from papers.nowlan1992.drawings_nets import Lines, plain_style
from papers.nowlan1992.intervals import estimate
from papers.nowlan1992.tables import published
from swsmix import plots
from swsmix.problems import data

_WIDEST = 0.2  # arv; what lies beyond is written at the edge
_ARVS = (0.1, 0.12, 0.15, 0.2)
COLORS = {
    "linear AR(12)": "black",
    "back-propagation": "#999999",
    "early stopping": "#56b4e9",
    "weight decay": "#0072b2",
    "weight elimination": "#cc79a7",
    "soft-sharing, 3 components, em": "#e69f00",
    "soft-sharing, 3 components, gradient": "#66a61e",
    "soft-sharing, 8 components, em": "#d55e00",
    "soft-sharing, 8 components, gradient": "#009e73",
    "weight decay, posterior mean": "#5d3a9b",
    "soft-sharing, 3 components, posterior mean": "#f781bf",
    "soft-sharing, 8 components, posterior mean": "#a52a2a",
    "soft-sharing, all kinds": "#5a3d1c",
    "all others": "#1b2a49",
}
_LEFT_OUT = (
    "back-propagation",
    "soft-sharing, 3 components, gradient",
    "soft-sharing, 3 components, posterior mean",
    *selection.POOLS,
)
"""Of the figure of iterated forecasts: the first leaves it, the others hide what is there."""


def series(final: Lines, confirmed: Lines) -> Figure:
    """The yearly numbers with the one-step forecasts of the 8-component ensemble."""
    name = "soft-sharing, 8 components, em, by ensemble"
    whole = data.sunspots(scale=1.0)
    figure = Figure(figsize=(plots.FULL, 3.6), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    parts = {"train": "0.85", "test": "#d55e00", "late": "#0072b2"}
    forecasts = dict(final[name]["forecasts"])
    if name in confirmed:
        parts["confirm"] = "#009e73"
        forecasts |= confirmed[name]["forecasts"]
    last = data.SUNSPOT_SPLITS["confirm" if name in confirmed else "late"][1]
    shown = whole.years <= last
    titles = {
        "train": "forecast, learned years",
        "test": "1921-55",
        "late": "1956-79",
        "confirm": "1980-2008",
    }
    for ax, first in ((top, 1700), (bottom, 1912)):
        rows = shown & (whole.years >= first)
        ax.plot(
            whole.years[rows], whole.series[rows], color="black", lw=0.8, label="sunspot number"
        )
        for split, color in parts.items():
            begin, end = data.SUNSPOT_SPLITS[split]
            years = [y for y in range(begin, end + 1) if y >= first]
            values = forecasts[split][-len(years) :] if years else []
            tone = "0.55" if split == "train" else color
            ax.plot(years, values, "o", ms=1.8 if first == 1700 else 2.6, color=tone, mew=0,
                    label=titles[split])  # fmt: skip
        ax.set(ylabel="number", xlim=(first, last + 1))
    bottom.set_xlabel("year")
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return plain_style(figure)


def arv(final: Lines, confirmed: Lines) -> Figure:
    """The arv of every method on the years after 1920, by seed and together."""
    figure = Figure(figsize=(plots.FULL, 4.4), layout="constrained")
    limits = {"test": (0.06, _WIDEST), "late": (0.3, 0.8), "confirm": (0.15, 0.35)}
    parts = [(final, "test"), (final, "late"), (confirmed, "confirm")][: 3 if confirmed else 2]
    axes = figure.subplots(1, len(parts), sharey=True)
    order = ("linear AR(12)", *selection.METHODS, *selection.POOLS)
    names = [n for n in order if _line(final, n, "single")]
    for ax, (lines, split) in zip(axes, parts, strict=True):
        for i, name in enumerate(names):
            values = _line(lines, name, "single")["arv"][split]
            e = estimate(values)
            color = COLORS[name]
            jitter = torch.linspace(-0.22, 0.22, len(values)).tolist()
            ax.plot(values, [i + j for j in jitter], ".", color=color, ms=2.5, alpha=0.6)
            ax.plot([e.low, e.high], [i, i], color=color, lw=2)
            ax.plot(e.mean, i, "o", color=color, ms=5, mec="black", mew=0.5)
            if split == "test" and e.mean > _WIDEST:
                ax.text(0.99 * _WIDEST, i - 0.25, f"{e.mean:.2f} →", fontsize=6.5, ha="right")
            if len(values) > 1:
                for by, marker in (("ensemble", "D"), ("committee", "s")):
                    together = _line(lines, name, by)["ensemble"][split]
                    ax.plot(together, i, marker, ms=4, mfc="white", mec=color)
        begin, end = data.SUNSPOT_SPLITS[split]
        ax.set(title=f"{begin}-{end}", xlabel="arv (over 1535)", xlim=limits[split])
        ax.grid(axis="x", color="0.92", lw=0.6)
    rows = [row for row in published()["sunspots"]["rows"] if "ours" in row]
    for row, style in zip(rows, ("-.", "--", ":"), strict=True):
        value, label = row["test"][0], row["method"].split(" (")[0]
        axes[0].axvline(value, color="0.4", lw=0.8, ls=style, label=f"{label}, as cited")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "small: seeds; dot: their mean and its 95 % interval; diamond: ensemble; square: "
        "committee; plain nets go on to the right",
        fontsize=7,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return plain_style(figure)


def horizon(final: Lines) -> Figure:
    """The arv of iterated forecasts of 1921-55 against the horizon."""
    figure = Figure(figsize=(plots.FULL, 3.0), layout="constrained")
    ax = figure.subplots()
    for name, color in COLORS.items():
        if name in _LEFT_OUT:
            continue
        if line := _line(final, name, "single"):
            values = line["horizon"]
            ax.plot(range(1, len(values) + 1), values, "o-", ms=2.5, lw=1, color=color, label=name)
    ax.set(xlabel="years ahead", ylabel="arv (over 1535), mean over seeds", ylim=(0, 2))
    ax.grid(color="0.92", lw=0.6)
    figure.legend(loc="outside right upper", handlelength=1.5)
    return plain_style(figure)


def validation(hindsight: Lines, scores: Lines) -> Figure:
    """Does validation on training years rank the settings? Two scores against the test arv."""
    from scipy.stats import spearmanr

    figure = Figure(figsize=(plots.FULL, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    keys = [key for key in hindsight if key in scores]
    by: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "mean arv of the folds": lambda line: fmean(
            fmean(line[scheme]["folds"]) for scheme in ("blocks", "rolling")
        ),
        "geometric mean arv of the folds (the rule)": selection.score,
    }
    for ax, (title, score) in zip(axes, by.items(), strict=True):
        for name, color in COLORS.items():
            mine = [key for key in keys if hindsight[key]["method"] == name]
            if not mine:
                continue
            ax.plot(
                [score(scores[key]) for key in mine], [hindsight[key]["test"] for key in mine],
                "o", color=color, ms=4, mew=0, alpha=0.8, label=name,
            )  # fmt: skip
        pairs = [(score(scores[key]), hindsight[key]["test"]) for key in keys]
        rank = float(spearmanr(pairs).statistic)
        ax.set(xlabel=title, title=f"{len(keys)} settings, rank correlation {rank:.2f}")
        ax.set(xscale="log", yscale="log")
        for axis, ticks in ((ax.xaxis, (0.12, 0.14, 0.17, 0.2, 0.25)), (ax.yaxis, _ARVS)):
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(color="0.92", lw=0.6)
    axes[0].set_ylabel("arv 1921-55, mean over seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return plain_style(figure)


def _line(final: Lines, name: str, by: str) -> Mapping[str, Any]:
    """The line of a method as chosen by the score of single nets or of ensembles."""
    return final.get(f"{name}, by {by}", final.get(name, {}))


DRAWINGS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "sunspots-series": (series, ("sunspots-final", "sunspots-confirm")),
    "sunspots-arv": (arv, ("sunspots-final", "sunspots-confirm")),
    "sunspots-horizon": (horizon, ("sunspots-final",)),
    "sunspots-validation": (validation, ("sunspots-hindsight", "sunspots-validation")),
}
