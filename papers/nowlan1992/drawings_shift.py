"""The figures of the shift experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from papers.nowlan1992.intervals import estimate
from papers.nowlan1992.tables import published
from swsmix import GaussianMixture, plots
from swsmix.history import History

Lines = Mapping[str, Mapping[str, Any]]
CHOICES = {
    "one": "one run",
    "objective": "lowest objective",
    "agreement": "nearest to the ensemble",
    "ensemble": "ensemble",
}
COLORS = dict(zip(CHOICES, ("#999999", "#0072b2", "#d55e00", "#009e73"), strict=True))


def accuracy(shift: Lines) -> Figure:
    """Test accuracy by method and way of choosing, two settings side by side."""
    settings = [n for n in ("n100", "squared") if _of(shift, n)]
    cited = {row["ours"]: row["test"][0] for row in published()["shift"]["rows"]}
    titles = {"n100": "0/1 bits, cross-entropy", "squared": "±1 bits, squared error"}
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
        ax.set(title=f"{titles[setting]}, {len(units)} data sets", xlabel="test accuracy (%)")
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
    axes = figure.subplots(1, 2, sharey=True)
    for ax, choice in zip(axes, ("objective", "ensemble"), strict=True):
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
        ax.set(xscale="log", xlabel="training cases", title=f"single net, {CHOICES[choice]}")
        ax.set_xticks(list(settings.values()), [str(v) for v in settings.values()])
        ax.minorticks_off()
        ax.grid(color="0.9", lw=0.6)
    axes[1].set_title("ensemble of the restarts")
    axes[0].set(ylabel="test error (%)", ylim=(0, None))
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


def diagrams(portraits: Lines) -> Figure:
    """Hinton diagrams of the shift net, plain, under decay and with soft sharing."""
    names = {
        "back-propagation": "shift-plain",
        "weight decay": "shift-decay",
        "soft-sharing, 10 components": "shift-10-em",
    }
    figure = Figure(figsize=(0.72 * plots.FULL, 5.6))
    axes = figure.subplots(3, 1)
    figure.subplots_adjust(left=0.06, right=0.8, top=0.96, bottom=0.04, hspace=0.3)
    for ax, (title, name) in zip(axes, names.items(), strict=True):
        hinton(ax, portraits[name], title, hidden=10, inputs=20)
        ax.axvline(9.5, color="0.4", lw=0.6)
        ax.set_xticks([4.5, 14.5, 21], ["first strip", "second strip", "output"])
    return plain_style(figure)


def hinton(ax: Axes, portrait: Mapping[str, Any], title: str, *, hidden: int, inputs: int) -> None:
    """One net's W and v, with what the squares mean on the right."""
    theta = torch.tensor(portrait["net"], dtype=torch.float64)
    w = theta[: hidden * inputs].view(hidden, inputs)
    v = theta[hidden * inputs : hidden * (inputs + 1), None]
    mixture = last_mixture(portrait) if "rounds" in portrait else None
    plots.hinton(torch.cat([w, torch.zeros_like(v), v], 1), mixture=mixture, ax=ax)
    ax.axvline(inputs, color="0.4", lw=0.6)
    ax.set(xlabel="", ylabel="hidden unit", yticks=[], anchor="C")
    ax.set_title(title, fontsize=8)
    ax.tick_params(length=0)
    old = ax.get_legend()
    assert old is not None
    handles, labels = old.legend_handles, [text.get_text() for text in old.get_texts()]
    ax.legend(
        handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=1, frameon=False,
        fontsize=7, handlelength=1.0, title=None if mixture is None else "component",
        title_fontsize=7,
    )  # fmt: skip


def mixtures(portraits: Lines, names: Mapping[str, str] | None = None) -> Figure:
    """The final mixtures over the weights, linear and log, with the weights as a rug."""
    names = names or {"5 components": "shift-5-em", "10 components": "shift-10-em"}
    found = {title: name for title, name in names.items() if name in portraits}
    figure = Figure(figsize=(plots.FULL, 2.5 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 2, squeeze=False)
    for row, (title, name) in zip(axes, found.items(), strict=True):
        mixture = last_mixture(portraits[name])
        weights = torch.tensor(portraits[name]["rounds"][-1]["weights"], dtype=torch.float64)
        plots.clusters(weights, mixture, ax=row)
        owner = mixture.log_joint(weights).argmax(-1)
        colors = plots.component_colors(mixture.mean)
        for j, color in enumerate(colors):
            mine = weights[owner == j].tolist()
            for ax in row:
                (rug,) = ax.plot(
                    mine, [-0.03] * len(mine), "|", color=color, ms=5, mew=0.7, clip_on=False,
                    transform=ax.get_xaxis_transform(),
                )  # fmt: skip
                rug.set_in_layout(False)
        for ax in row:
            ax.tick_params(axis="x", pad=6, labelsize=7)
        row[0].set_ylabel(f"{title}\ndensity (1 / weight)")
    return plain_style(figure)


def collapse(portraits: Lines) -> Figure:
    """The weights' histogram over training, shift and sunspots."""
    names = {"shift, 10 components": "shift-10-em", "sunspots, 8 components": "sunspots-8-em"}
    found = {title: name for title, name in names.items() if name in portraits}
    figure = Figure(figsize=(plots.FULL, 3.0), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for ax, (title, name) in zip(axes, found.items(), strict=True):
        plots.collapse(history(portraits[name]), ax=ax)
        ax.set_xlabel(f"round of {portraits[name]['iterations']} iterations")
        ax.set_title(title, fontsize=8, loc="right")
    return plain_style(figure)


def modes(portraits: Lines) -> Figure:
    """EM against gradient mode: the objective over training."""
    problems = {"shift": (5, 10), "sunspots": (3, 8)}
    figure = Figure(figsize=(plots.FULL, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    colors = {"em": "#d55e00", "gradient": "#0072b2"}
    for ax, (problem, sizes) in zip(axes, problems.items(), strict=True):
        for size, style in zip(sizes, ("--", "-"), strict=True):
            for mode, color in colors.items():
                line = portraits.get(f"{problem}-{size}-{mode}")
                if line is None:
                    continue
                objective = [r["objective"] for r in line["rounds"]]
                at = [line["iterations"] * i for i in range(len(objective))]
                ax.plot(
                    at, objective, style, color=color, lw=1.1, label=f"{mode}, {size} components"
                )
                ramp = next(
                    i for i, r in enumerate(line["rounds"]) if r["tau"] == line["rounds"][-1]["tau"]
                )
        if ramp > 1:
            ax.axvline(at[ramp], color="0.6", lw=0.7, ls=":")
            ax.text(
                at[ramp], 0.98, " tau = 1", transform=ax.get_xaxis_transform(), fontsize=7, va="top"
            )
        ax.set(title=problem, xlabel="L-BFGS iterations with the prior", ylabel="objective (nats)")
        ax.grid(color="0.9", lw=0.6)
        ax.legend(fontsize=6.5, frameon=False)
    return plain_style(figure)


def last_mixture(portrait: Mapping[str, Any]) -> GaussianMixture:
    """The mixture at the end."""
    return _mixture(portrait["rounds"][-1])


def history(portrait: Mapping[str, Any]) -> History:
    """A portrait's rounds as a history, for `swsmix.plots`."""
    record = History()
    for number, at in enumerate(portrait["rounds"]):
        mixture = _mixture(at)
        weights = torch.tensor(at["weights"], dtype=torch.float64)
        count = mixture.responsibilities(weights).sum(0)
        record.record({"epoch": float(number)}, {"all": (weights, mixture, count)})
    return record


def _mixture(at: Mapping[str, Any]) -> GaussianMixture:
    mixing = torch.tensor(at["mixing"], dtype=torch.float64)
    return GaussianMixture(
        mixing / mixing.sum(),
        torch.tensor(at["mean"], dtype=torch.float64),
        torch.tensor(at["std"], dtype=torch.float64),
    )


def _of(shift: Lines, setting: str) -> list[Mapping[str, Any]]:
    return [line for key, line in shift.items() if key.startswith(f"{setting}-")]


def plain_style(figure: Figure) -> Figure:
    """Small type, no boxes: the house style, for figures put together here."""
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=7)
        for text in (ax.xaxis.label, ax.yaxis.label):
            text.set_fontsize(7.5)
        for side in ("center", "right"):
            ax.set_title(ax.get_title(side), loc=side, fontsize=7.5)
    for legend in figure.legends:
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_fontsize(7)
    return figure


DRAWINGS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "shift-nets": (diagrams, ("portraits",)),
    "shift-mixtures": (mixtures, ("portraits",)),
    "shift-accuracy": (accuracy, ("shift",)),
    "shift-cases": (cases, ("shift",)),
    "shift-complexity": (complexity, ("shift",)),
    "collapse": (collapse, ("portraits",)),
    "modes": (modes, ("portraits",)),
}
