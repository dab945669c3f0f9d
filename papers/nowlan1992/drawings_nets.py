"""The figures that show single networks and what happened to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swsmix import GaussianMixture, plots
from swsmix.training.history import History

Lines = Mapping[str, Mapping[str, Any]]


def diagrams(portraits: Lines, problem: str) -> Figure:
    """Hinton diagrams of one problem's net, plain, under decay and with soft sharing."""
    hidden, inputs, most, std = {"shift": (10, 20, 10, 30), "sunspots": (8, 12, 8, 0.3)}[problem]
    names = {
        "back-propagation": f"{problem}-plain",
        f"weight decay, std {std}": f"{problem}-decay",
        f"soft-sharing, {most} components": f"{problem}-{most}-em",
    }
    width, right = {"shift": (0.72, 0.8), "sunspots": (0.6, 0.75)}[problem]
    figure = Figure(figsize=(width * plots.FULL, 5.6))
    axes = figure.subplots(3, 1)
    figure.subplots_adjust(left=0.06, right=right, top=0.96, bottom=0.04, hspace=0.3)
    for ax, (title, name) in zip(axes, names.items(), strict=True):
        hinton(ax, portraits[name], title, hidden=hidden, inputs=inputs)
        if problem == "shift":
            ax.axvline(9.5, color="0.4", lw=0.6)
            ax.set_xticks([4.5, 14.5, 21], ["first strip", "second strip", "output"])
        else:
            ax.set_xticks([0, 11, 13], ["t − 12", "t − 1", "output"])
    return plain_style(figure)


def hinton(ax: Axes, portrait: Mapping[str, Any], title: str, *, hidden: int, inputs: int) -> None:
    """One net's W and v, with what the squares mean on the right."""
    theta = torch.tensor(portrait["net"], dtype=torch.float64)
    w = theta[: hidden * inputs].view(hidden, inputs)
    v = theta[hidden * inputs : hidden * (inputs + 1), None]
    mixture = _owners(portrait["rounds"][-1]) if "rounds" in portrait else None
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


def mixtures(portraits: Lines, problem: str) -> Figure:
    """The final mixtures over the weights, linear and log, with the weights as a rug."""
    sizes = {"shift": (5, 10), "sunspots": (3, 8)}[problem]
    names = {f"{size} components": f"{problem}-{size}-em" for size in sizes}
    shown = {title: name for title, name in names.items() if name in portraits}
    figure = Figure(figsize=(plots.FULL, 2.5 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False)
    for row, (title, name) in zip(axes, shown.items(), strict=True):
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
    shown = {title: name for title, name in names.items() if name in portraits}
    figure = Figure(figsize=(plots.FULL, 3.0), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (title, name) in zip(axes, shown.items(), strict=True):
        plots.collapse(history(portraits[name]), ax=ax)
        ax.set_xlabel(f"round of {portraits[name]['iterations']} iterations")
        ax.set_title(title, fontsize=8, loc="right")
    return plain_style(figure)


def modes(runs: Lines) -> Figure:
    """EM against gradient mode: the objective over training, of ten nets each.

    Lines are medians over the nets, bands hold the middle half of them.
    """
    problems = {"shift": (5, 10), "sunspots": (3, 8)}
    figure = Figure(figsize=(plots.FULL, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    colors = {"em": "#d55e00", "gradient": "#0072b2"}
    for ax, (problem, sizes) in zip(axes, problems.items(), strict=True):
        for size, style in zip(sizes, ("--", "-"), strict=True):
            for mode, color in colors.items():
                line = runs.get(f"{problem}-{size}-{mode}")
                if line is None:
                    continue
                low, median, high = np.quantile(line["objectives"], [0.25, 0.5, 0.75], axis=1)
                at = [line["iterations"] * i for i in range(len(median))]
                label = f"{mode}, {size} components"
                ax.fill_between(
                    at, low, high, color=color, alpha=0.15, lw=0, label=f"_band {label}"
                )
                ax.plot(at, median, style, color=color, lw=1.1, label=label)
                taus = line["taus"][1:]
                ramp = 1 + taus.index(taus[-1])
        if ramp > 1:
            ax.axvline(at[ramp], color="0.6", lw=0.7, ls=":")
            ax.text(
                at[ramp],
                0.98,
                " full tau",
                transform=ax.get_xaxis_transform(),
                fontsize=7,
                va="top",
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


def _owners(at: Mapping[str, Any]) -> GaussianMixture:
    """The mixture without the components that claim no weight: the dead, and doubles."""
    weights = torch.tensor(at["weights"], dtype=torch.float64)
    mine = _mixture(at).log_joint(weights).argmax(-1).unique().tolist()
    return _mixture({k: [at[k][j] for j in mine] for k in ("mixing", "mean", "std")})


def _mixture(at: Mapping[str, Any]) -> GaussianMixture:
    mixing = torch.tensor(at["mixing"], dtype=torch.float64)
    return GaussianMixture(
        mixing / mixing.sum(),
        torch.tensor(at["mean"], dtype=torch.float64),
        torch.tensor(at["std"], dtype=torch.float64),
    )


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
    "shift-nets": (partial(diagrams, problem="shift"), ("portraits",)),
    "shift-mixtures": (partial(mixtures, problem="shift"), ("portraits",)),
    "sunspots-nets": (partial(diagrams, problem="sunspots"), ("portraits",)),
    "sunspots-mixtures": (partial(mixtures, problem="sunspots"), ("portraits",)),
    "collapse": (collapse, ("portraits",)),
    "modes": (modes, ("modes",)),
}
