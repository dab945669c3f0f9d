"""The figures and the table of the Bayesian section, from results/bayes.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from papers.nowlan1992.drawings_nets import Lines, plain_style
from papers.nowlan1992.intervals import estimate
from swsmix import plots
from swsmix.problems import data

ANSWER = "8 components, full Bayes"
COLORS = {
    "one Gaussian, full Bayes": "#0072b2",
    "3 components, full Bayes": "#e69f00",
    "8 components, full Bayes": "#d55e00",
    "8 components, nu = 10": "#cc79a7",
    "8 components, empirical Bayes": "#009e73",
}
_FLOOR = -150.0  # sunspots, of the iterated forecasts' figure
OTHERS = ("soft-sharing, 8 components, em", "soft-sharing, 8 components, gradient", "weight decay")


def band(bayes: Lines) -> Figure:
    """One-step forecasts of 1921-79 with their 50 % and 90 % intervals."""
    line = _answer(bayes)
    figure = Figure(figsize=(plots.FULL, 2.9), layout="constrained")
    ax = figure.subplots()
    parts = [line[split] for split in ("test", "late")]
    years = torch.arange(1921, 1980, dtype=torch.float64)
    series = data.sunspots(scale=1.0)
    seen = series.series[(series.years >= 1921) & (series.years <= 1979)]
    quantiles = {
        float(q): _vector([v for part in parts for v in part["quantiles"][q]])
        for q in parts[0]["quantiles"]
    }
    mean = _vector([v for part in parts for v in part["mean"]])
    plots.predictive_band(years, quantiles, mean=mean, target=seen, ax=ax)
    ax.axvline(1955.5, color="0.5", lw=0.6, ls=":")
    ax.set(xlabel="year", ylabel="sunspot number", xlim=(1920.5, 1979.5))
    return plain_style(figure)


def fan(bayes: Lines) -> Figure:
    """Iterated forecasts from 1920 on: the uncertainty grows with the years ahead."""
    line = _answer(bayes)["fan"]
    figure = Figure(figsize=(plots.FULL, 2.9), layout="constrained")
    ax = figure.subplots()
    years = torch.arange(1921, 1921 + len(line["mean"]), dtype=torch.float64)
    series = data.sunspots(scale=1.0)
    seen = series.series[(series.years >= 1921) & (series.years <= int(years[-1]))]
    quantiles = {float(q): _vector(v) for q, v in line["quantiles"].items()}
    plots.predictive_band(years, quantiles, target=seen, ax=ax)
    ax.plot(years, quantiles[0.5], color=plots.POSITIVE, lw=1.2, label="median")
    ax.plot(years, _vector(line["mean"]), color=plots.POSITIVE, lw=0.9, ls=":", label="mean")
    past = (series.years >= 1895) & (series.years <= 1921)
    ax.plot(series.years[past], series.series[past], color="black", lw=0.9)
    ax.axvline(1920.5, color="0.5", lw=0.6, ls=":")
    ax.set(xlabel="year", ylabel="sunspot number", xlim=(1895, float(years[-1]) + 0.5))
    lowest = quantiles[0.05]
    ax.set_ylim(_FLOOR, 220)
    if float(lowest.min()) < _FLOOR:
        ax.annotate(
            f"the 90 % interval goes on to {float(lowest.min()):.0f} ↓".replace("-", "−"),
            (float(years[-1]), _FLOOR), (0, 3), textcoords="offset points", fontsize=6.5,
            ha="right",
        )  # fmt: skip
    ax.axhline(0, color="0.8", lw=0.5, zorder=0)
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, ncols=5, frameon=False,
        fontsize=7, handlelength=1.2,
    )  # fmt: skip
    return plain_style(figure)


def mixture(bayes: Lines) -> Figure:
    """The mixture's density over the weights, as a band, and each component's share of it."""
    draws = {n: torch.tensor(v, dtype=torch.float64) for n, v in _answer(bayes)["draws"].items()}
    figure = Figure(figsize=(plots.FULL, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    three = [draws[n] for n in ("mixing", "mean", "std")]
    plots.mixture_band(draws["weights"], *three, ax=top)
    plots.membership_band(*three, span=top.get_xlim(), ax=bottom)
    top.set_xlabel("")
    return plain_style(figure)


def calibration(bayes: Lines) -> Figure:
    """Coverage of the central predictive intervals, nominal against observed."""
    line = _answer(bayes)
    figure = Figure(figsize=(0.6 * plots.FULL, 3.9), layout="constrained")
    ax = figure.subplots()
    ranks = {"1921-55": line["test"]["ranks"], "1956-79": line["late"]["ranks"]}
    plots.calibration(ranks, ax=ax)
    return plain_style(figure)


def evidence(bayes: Lines, rolling: Lines) -> Figure:
    """Empirical against full Bayes and numbers of components, on the same axes."""
    names = [n for n in COLORS if n in bayes]
    ahead = [n for n in names if n in rolling]
    both = len(ahead) > 1
    figure = Figure(figsize=(plots.FULL, 2.4), layout="constrained")
    left, *middle, test, late = figure.subplots(1, 3 + both, sharey=True)
    best = max(names, key=lambda n: bayes[n]["loo"]["elpd"])
    top = _vector(bayes[best]["loo"]["pointwise"])
    known = data.sunspots(scale=1.0)
    for i, name in enumerate(names):
        line, color = bayes[name], COLORS[name]
        off = _vector(line["loo"]["pointwise"]) - top
        error = float(len(off) ** 0.5 * off.std())  # 0 for the best, which is what others are off
        left.errorbar(float(off.sum()), i, xerr=error, fmt="o", ms=4, color=color, lw=1)
        for ax, split in ((test, "test"), (late, "late")):
            begin, end = data.SUNSPOT_SPLITS[split]
            seen = known.series[(known.years >= begin) & (known.years <= end)]
            years = (_vector(line[split]["mean"]) - seen).square() / 1535.0
            e = estimate(years.tolist())
            ax.plot([e.low, e.high], [i, i], color=color, lw=1)
            ax.plot(line[split]["arv"], i, "o", ms=4, color=color)
        if both and name in ahead:
            totals = {n: _vector(rolling[n]["elpd"]) for n in ahead}
            folds = totals[name] - max(totals.values(), key=lambda each: float(each.sum()))
            middle[0].plot(folds, [i + 0.2] * len(folds), "|", ms=5, color=color)
            middle[0].plot(float(folds.mean()), i, "o", ms=4, color=color)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("PSIS-LOO minus the\nbest (nats, ± 1 SE)")
    test.set_xlabel("arv 1921-55\n(95 %, over years)")
    late.set_xlabel("arv 1956-79\n(95 %, over years)")
    for ax in middle:
        ax.set_xlabel("held out, minus the\nbest (nats, bars: folds)")
    for ax in (left, *middle, test, late):
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.grid(axis="x", color="0.92", lw=0.6)
        ax.margins(y=0.2)
    return plain_style(figure)


def table(bayes: Lines, rolling: Lines, final: Lines) -> str:
    """The Bayesian numbers as Markdown, with the other ways to train the same net.

    Args:
        bayes: the table of `bayes.final`.
        rolling: that of `bayes.score`; may be empty.
        final: that of `sunspots.final`; may be empty.

    Returns:
        Empty without results.
    """
    if not bayes:
        return ""
    header = (
        "the 12-8-1 net", "train", "1921-55", "1956-79", "in 50 %, 1921-55",
        "in 90 %, 1921-55", "PSIS-LOO (k > 0.7)", "rolling origin", "clusters", "R-hat",
        "divergences", "CPU min",
    )  # fmt: skip
    text = [
        "**Sunspots, posterior**, arv over 1535 of the posterior mean ± Monte Carlo error; "
        "coverage in % with its 95 % binomial interval; log predictive densities in nats; "
        "clusters: the effective number, posterior median; R-hat: the largest of the 209 training "
        "predictions. Below, from the tables above, single nets of the setting that validation "
        "chose: mean ± sd over seeds:",
        "",
        f"| {' | '.join(header)} |",
        f"| {' | '.join(['---'] * len(header))} |",
    ]
    for name in [n for n in COLORS if n in bayes]:
        line = bayes[name]
        cells = [name]
        cells += [
            f"{line[s]['arv']:.4f} ± {line[s]['arv_error']:.4f}" for s in ("train", "test", "late")
        ]
        for level in ("50", "90"):
            inside, num, low, high = line["test"]["coverage"][level]
            cells.append(f"{100 * inside / num:.0f} [{100 * low:.0f}, {100 * high:.0f}]")
        cells.append(
            f"{line['loo']['elpd']:.1f} ± {line['loo']['se']:.1f} ({line['loo']['unreliable']})"
        )
        ahead = rolling.get(name)
        cells.append("" if ahead is None else f"{sum(ahead['elpd']):.1f}")
        cells.append(f"{line['clusters']['effective'][2]:.1f}")
        diagnostics = line["diagnostics"]
        cells += [f"{diagnostics['R-hat of predictions']:.2f}", f"{diagnostics['divergences']:.0f}"]
        cells.append(f"{line['cpu_seconds'] / 60:.1f}")
        text.append(f"| {' | '.join(cells)} |")
    for name in OTHERS:
        if line := final.get(f"{name}, by single"):
            values = [_vector(line["arv"][split]) for split in ("train", "test", "late")]
            cells = [name, *(f"{v.mean():.4f} ± {v.std():.4f}" for v in values)]
            text.append(f"| {' | '.join([*cells, *[''] * (len(header) - len(cells))])} |")
    return "\n".join(text)


def _answer(bayes: Lines) -> Any:
    return bayes.get(ANSWER) or next(iter(bayes.values()))


def _vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


DRAWINGS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "bayes-band": (band, ("bayes",)),
    "bayes-fan": (fan, ("bayes",)),
    "bayes-mixture": (mixture, ("bayes",)),
    "bayes-calibration": (calibration, ("bayes",)),
    "bayes-evidence": (evidence, ("bayes", "bayes-rolling")),
}
