"""The figures of the shift experiment's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from papers.nowlan1992.drawings_nets import Lines, plain_style
from papers.nowlan1992.intervals import estimate
from papers.nowlan1992.tables import published
from swsmix import plots

CHOICES = {
    "one": "one run",
    "objective": "lowest objective",
    "agreement": "nearest to the ensemble",
    "ensemble": "ensemble",
}
_LINEAR = 0.1  # test error below which the axis is linear, as some data sets have none at all
COLORS = dict(zip(CHOICES, ("#999999", "#0072b2", "#d55e00", "#009e73"), strict=True))


def accuracy(shift: Lines) -> Figure:
    """Test accuracy by method and way of choosing, the settings with 100 cases side by side."""
    titles = {
        "n100": "0/1 bits, cross-entropy",
        "squashed": "±1 bits, squared error,\ntanh output",
        "squared": "±1 bits, squared error,\nlinear output",
    }
    settings = [n for n in titles if _of(shift, n)]
    cited = {row["ours"]: row["test"][0] for row in published()["shift"]["rows"]}
    figure = Figure(figsize=(plots.FULL, 3.4), layout="constrained")
    axes = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for ax, setting in zip(axes, settings, strict=True):
        units = _of(shift, setting)
        names = list(units[0]["methods"])
        for i, name in enumerate(names):
            for j, choice in enumerate(CHOICES):
                e = estimate([u["methods"][name][choice] for u in units])
                y = i + 0.18 * (j - 1.5)
                ax.plot([e.low, e.high], [y, y], color=COLORS[choice], lw=1.2)
                label = CHOICES[choice] if i == 0 else None
                ax.plot(e.mean, y, "o", color=COLORS[choice], ms=3.5, label=label)
            if name in cited:
                label = "published, as cited" if i == 0 else None
                ax.plot(cited[name], i, "|", color="black", ms=14, mew=1.2, label=label)
        ax.set_yticks(range(len(names)), names)
        ax.set(title=titles[setting], xlabel="test accuracy (%)")
        ax.grid(axis="x", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return plain_style(figure)


def cases(shift: Lines) -> Figure:
    """Test error against the number of training cases."""
    settings = {"n50": 50, "n100": 100, "n200": 200, "n400": 400}
    shown = {
        "back-propagation": "#999999",
        "early stopping": "#56b4e9",
        "weight decay": "#0072b2",
        "weight elimination": "#cc79a7",
        "soft-sharing, 5 components, em": "#e69f00",
        "soft-sharing, 10 components, em": "#d55e00",
    }
    figure = Figure(figsize=(plots.FULL, 3.0), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, choice in zip(axes, ("one", "agreement", "ensemble"), strict=True):
        for k, (name, color) in enumerate(shown.items()):
            points = []
            for setting, number in settings.items():
                units = _of(shift, setting)
                if units:
                    e = estimate([100.0 - u["methods"][name][choice] for u in units])
                    points.append(
                        (number * 1.02 ** (k - 2.5), e.mean, e.mean - e.low, e.high - e.mean)
                    )
            at, mean, down, up = zip(*points, strict=True)
            ax.errorbar(at, mean, (down, up), color=color, marker="o", ms=3, lw=1, label=name)
        ax.set(xscale="log", xlabel="training cases", title=CHOICES[choice])
        ax.set_xticks(list(settings.values()), [str(v) for v in settings.values()])
        ax.minorticks_off()
        ax.grid(color="0.9", lw=0.6)
        ax.set_yscale("symlog", linthresh=_LINEAR, linscale=0.5)
        ticks = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.axhline(_LINEAR, color="0.6", lw=0.6, ls=":")
    axes[0].set(ylabel="test error (%), logarithmic above 0.1", ylim=(-0.01, 60))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return plain_style(figure)


def complexity(shift: Lines) -> Figure:
    """Test error against the number of values that the weights need."""
    shown = {
        "back-propagation": ("#999999", "o"),
        "weight decay": ("#0072b2", "s"),
        "weight elimination": ("#cc79a7", "D"),
        "soft-sharing, 5 components, em": ("#e69f00", "v"),
        "soft-sharing, 10 components, em": ("#d55e00", "^"),
    }
    figure = Figure(figsize=(plots.FULL, 3.2), layout="constrained")
    ax = figure.subplots()
    for name, (color, marker) in shown.items():
        units = _of(shift, "n100")
        values = [u["methods"][name]["values"] for u in units]
        errors = [100.0 - u["methods"][name]["objective"] for u in units]
        ax.plot(values, errors, marker, color=color, ms=4, alpha=0.55, mew=0, ls="none", label=name)
        middle = torch.tensor(values).double().log().mean().exp().item()
        ax.plot(middle, sum(errors) / len(errors), marker, color=color, ms=9, mec="black", mew=0.8)
    ax.set(
        xscale="log", xlabel="values that the weights need (99 % of their variance)",
        ylabel="test error (%)", title="each data set a mark, the mean outlined",
    )  # fmt: skip
    ax.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], ["1", "2", "5", "10", "20", "50", "100", "200"])
    ax.minorticks_off()
    ax.grid(color="0.9", lw=0.6)
    figure.legend(loc="outside right upper", handlelength=1.0)
    return plain_style(figure)


def _of(shift: Lines, setting: str) -> list[Mapping[str, Any]]:
    return [line for key, line in shift.items() if key.startswith(f"{setting}-")]


DRAWINGS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "shift-accuracy": (accuracy, ("shift",)),
    "shift-cases": (cases, ("shift",)),
    "shift-complexity": (complexity, ("shift",)),
}
