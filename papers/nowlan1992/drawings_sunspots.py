"""The figures of the sunspots experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from papers.nowlan1992 import selection
from papers.nowlan1992.drawings_nets import Lines, plain_style
from papers.nowlan1992.intervals import estimate
from papers.nowlan1992.tables import published
from swsmix import plots
from swsmix.problems import data

_WIDEST = 0.2  # arv; what lies beyond is written at the edge
_ARVS = (0.1, 0.12, 0.15, 0.2)
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "linear": ("black", ("linear AR(12)",)),
    "other penalties": (
        "#0072b2",
        ("back-propagation", "early stopping", "weight decay", "weight elimination"),
    ),
    "soft-sharing by EM": (
        "#d55e00",
        ("soft-sharing, 3 components, em", "soft-sharing, 8 components, em"),
    ),
    "soft-sharing by gradient": (
        "#e69f00",
        ("soft-sharing, 3 components, gradient", "soft-sharing, 8 components, gradient"),
    ),
    "posterior means": (
        "#009e73",
        (
            "weight decay, posterior mean",
            "soft-sharing, 3 components, posterior mean",
            "soft-sharing, 8 components, posterior mean",
        ),
    ),
    "chosen among several": ("#666666", ("soft-sharing, all kinds", "all others")),
}
"""Kind -> its colour, and the methods of that kind: names tell those apart."""
COLORS = {name: color for color, names in KINDS.values() for name in names}
HORIZONS = {
    "other penalties": ("early stopping", "weight decay", "weight elimination"),
    "soft-sharing": (
        "soft-sharing, 3 components, em",
        "soft-sharing, 8 components, em",
        "soft-sharing, 8 components, gradient",
    ),
    "posterior means": (
        "weight decay, posterior mean",
        "soft-sharing, 8 components, posterior mean",
    ),
}
"""Panel -> the methods drawn in colour in it. Left out are back-propagation, which leaves the
figure, two that hide what is there, and the pools, each of which is one of these methods."""


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
    figure = Figure(figsize=(plots.FULL, 5.4), layout="constrained")
    limits = {"test": (0.06, _WIDEST), "late": (0.3, 0.8), "confirm": (0.15, 0.35)}
    parts = [(final, "test"), (final, "late"), (confirmed, "confirm")][: 3 if confirmed else 2]
    axes = figure.subplots(1, len(parts), sharey=True)
    order = ("linear AR(12)", *selection.METHODS, *selection.POOLS)
    names = [n for n in order if _line(final, n, "single")]
    for ax, (lines, split) in zip(axes, parts, strict=True):
        edge = limits[split][1]
        for i, name in enumerate(names):
            values = _line(lines, name, "single")["arv"][split]
            e = estimate(values)
            color = COLORS[name]
            inside = [v for v in values if v <= edge]
            ax.plot(inside, [i - 0.25] * len(inside), "|", color=color, ms=5, mew=0.7, alpha=0.8)
            ax.plot([e.low, min(e.high, edge)], [i, i], color=color, lw=2)
            if e.mean <= edge:
                ax.plot(e.mean, i, "o", color=color, ms=4.5, mec="black", mew=0.5)
            beyond = [f"{len(values) - len(inside)} nets"] if len(inside) < len(values) else []
            beyond += [f"mean {e.mean:.2f}"] if e.mean > edge else []
            if beyond:
                ax.text(edge, i - 0.38, f"{', '.join(beyond)} →", fontsize=6.5, ha="right",
                        bbox={"fc": "w", "ec": "none", "pad": 0.5})  # fmt: skip
            if len(values) > 1:
                for by, marker in (("ensemble", "D"), ("committee", "s")):
                    together = _line(lines, name, by)["ensemble"][split]
                    ax.plot(together, i + 0.25, marker, ms=3.5, mfc="white", mec=color, mew=0.8)
        begin, end = data.SUNSPOT_SPLITS[split]
        ax.set(title=f"{begin}-{end}", xlabel="arv (over 1535)", xlim=limits[split])
        ax.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
        ax.tick_params(axis="y", length=0)
        for i in range(1, len(names)):
            ax.axhline(i - 0.5, color="0.92", lw=0.6, zorder=0)
        ax.grid(axis="x", color="0.92", lw=0.6)
    rows = [row for row in published()["sunspots"]["rows"] if "ours" in row]
    for row, style in zip(rows, ("-.", "--", ":"), strict=True):
        value, label = row["test"][0], row["method"].split(" (")[0]
        axes[0].axvline(value, color="0.4", lw=0.8, ls=style, label=f"{label}, as cited")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "bars: nets; dot: their mean and its bootstrap 95 % interval; diamond: ensemble; square: "
        "committee; arrow: what lies beyond",
        fontsize=7,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return plain_style(figure)


def horizon(nets: Lines, final: Lines) -> Figure:
    """The arv of iterated forecasts of 1921-55 against the horizon, each kind over all others.

    Lines are medians over the nets, bands hold the middle half of them.
    """
    figure = Figure(figsize=(plots.FULL, 2.7), layout="constrained")
    axes = figure.subplots(1, len(HORIZONS), sharey=True)
    drawn = {name for names in HORIZONS.values() for name in names}
    linear = final.get("linear AR(12)", {}).get("horizon", [])
    quartiles = {
        name: np.quantile(nets[name]["horizons"], [0.25, 0.5, 0.75], axis=1)
        for name in sorted(drawn)
        if name in nets
    }
    for ax, (kind, names) in zip(axes, HORIZONS.items(), strict=True):
        for name, (_, median, _) in quartiles.items():
            if name not in names:
                ax.plot(range(1, len(median) + 1), median, color="0.87", lw=0.8, label="_other")
        if linear:
            ax.plot(range(1, len(linear) + 1), linear, color="black", lw=1.2, label="linear AR(12)")
        shown = [name for name in names if name in quartiles]
        for name, color in zip(shown, ("#0072b2", "#d55e00", "#009e73"), strict=False):
            low, median, high = quartiles[name]
            label = name.removeprefix("soft-sharing, ") if kind == "soft-sharing" else name
            label = label.removesuffix(", posterior mean")
            years = range(1, len(median) + 1)
            ax.fill_between(years, low, high, color=color, alpha=0.15, lw=0, label=f"_band {label}")
            ax.plot(years, median, lw=1.2, color=color, label=label)
        ax.set(xlabel="years ahead", title=kind, ylim=(0, 2.5))
        ax.grid(color="0.92", lw=0.6)
        ax.legend(loc="upper left", frameon=False, fontsize=6.5, handlelength=1.2)
    axes[0].set_ylabel("arv (over 1535), median of nets")
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
        for (kind, (color, names)), marker in zip(KINDS.items(), "oosv^D", strict=True):
            mine = [key for key in keys if hindsight[key]["method"] in names]
            if not mine:
                continue
            ax.plot(
                [score(scores[key]) for key in mine], [hindsight[key]["test"] for key in mine],
                marker, ls="", color=color, ms=4, mew=0, alpha=0.7, label=f"{kind} ({len(mine)})",
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
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return plain_style(figure)


def _line(final: Lines, name: str, by: str) -> Mapping[str, Any]:
    """The line of a method as chosen by the score of single nets or of ensembles."""
    return final.get(f"{name}, by {by}", final.get(name, {}))


DRAWINGS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "sunspots-series": (series, ("sunspots-final", "sunspots-confirm")),
    "sunspots-arv": (arv, ("sunspots-final", "sunspots-confirm")),
    "sunspots-horizon": (horizon, ("sunspots-horizons", "sunspots-final")),
    "sunspots-validation": (validation, ("sunspots-hindsight", "sunspots-validation")),
}
