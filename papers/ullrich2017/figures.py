"""The figures and tables, from the files in results/, and their index."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from papers.ullrich2017.compared import ablation_table, coding_table, pruning_table
from papers.ullrich2017.kept import Results
from papers.ullrich2017.tables import NETS, cifar_table, table
from swsmix import plots
from swsmix.plots.style import styled
from swsmix.training.runs import replacing

HERE = Path(__file__).resolve().parent


def before_after(results: Results) -> Figure | None:
    """Figure 1: each weight after against before, under one mixture."""
    portrait = results.portrait("lenet-300-100-published")
    if portrait is None:
        return None
    before, after = (portrait.weights(when) for when in ("before", "retrained"))
    return plots.before_after(before, after, portrait.mixture("all"), width=4.5)


def bands(results: Results) -> Figure | None:
    """Figure 3, right: the same of one layer's own mixture."""
    portrait = results.portrait("lenet-300-100-shifted")
    if portrait is None:
        return None
    before, after = portrait.weights("before", "fc1.weight"), portrait.snapped("fc1.weight")
    return plots.before_after(before, after, portrait.mixture("fc1.weight"), width=4.5)


def dynamics(results: Results) -> Figure | None:
    """Figure 3, left: the components over the epochs."""
    portrait = results.portrait("lenet-300-100-published")
    return None if portrait is None else plots.trajectories(portrait.history("retrain"))


@styled
def pareto(results: Results) -> Figure | None:
    """Figure 2: error against compression, and the front that validation images chose."""
    sweep = [r for r in results.compressed if r["seed"] == 0]
    seeds: dict[str, list[dict[str, Any]]] = {}
    for r in results.compressed:
        seeds.setdefault(r["setting"], []).append(r)
    if not sweep:
        return None
    nets = [net for net in NETS if any(r["net"] == net for r in sweep)]
    figure = Figure(figsize=(plots.FULL, 3.0), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(nets), squeeze=False)[0]
    published = tomllib.loads((HERE / "published.toml").read_text())["rows"]
    for panel, net in zip(panels, nets, strict=True):
        for shift, colour, name in (
            (1, plots.POSITIVE, "ours, shifts of ±1 pixel"),
            (0, plots.NEGATIVE, "ours, no augmentation"),
        ):
            mine = [r for r in sweep if r["net"] == net and r["shift"] == shift]
            front = chosen(mine)
            rest = [r for r in mine if r not in front]
            _points(panel, rest, "o", ms=2.5, color=colour, alpha=0.4, mew=0, ls="")
            _points(panel, front, "-o", ms=3, color=colour, label=name)
            for r in mine:
                _range_of_seeds(panel, seeds[r["setting"]], colour)
        cited = sorted((r for r in published if r["net"] == net), key=lambda r: r["ratio"])
        for r in cited:
            marker = "s" if r["unit"] == "bytes" else "x"
            panel.plot(r["ratio"], r["error"], marker, ms=4, mfc="none", color=plots.NEUTRAL)
        errors = [r["compressed_test_error_percent"] for r in sweep if r["net"] == net]
        panel.set(
            xscale="log",
            ylim=(0.0, 1.08 * max(*errors, *(1.5 * r["error"] for r in cited))),
            xlabel="compression (float32 bytes / bytes)",
            title=NETS[net],
        )
        for axis in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
            axis("{x:g}")
        panel.tick_params(axis="x", which="both", length=2.5, pad=3)
        panel.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        panel.margins(x=0.1)
        _label_points(panel, cited)
    panels[0].set_ylabel("errors on the test images (%)")
    keys = [
        *panels[0].get_legend_handles_labels()[0],
        Line2D([], [], marker="o", ms=2.5, mew=0, ls="", alpha=0.4, color="black",
               label="ours, not on the front"),
        Line2D([], [], marker="+", ms=8, mew=0.8, ls="", color="black", label="range of all seeds"),
        Line2D([], [], marker="s", ms=4, mfc="none", ls="", color=plots.NEUTRAL,
               label="published, bytes"),
        Line2D([], [], marker="x", ms=4, ls="", color=plots.NEUTRAL,
               label="published, other units"),
    ]  # fmt: skip
    figure.legend(handles=keys, loc="outside upper center", ncols=3)
    return figure


def _label_points(panel: Any, cited: list[dict[str, Any]]) -> None:
    """The published points' letters, from left to right, and what they mean, in the panel."""
    names = dict(zip("abcdefghijklmnopqrstuvwxyz", cited, strict=False))
    last, is_below = 0.0, False
    for letter, r in names.items():
        is_below = r["ratio"] < 1.15 * last and not is_below  # beside the one before
        last = r["ratio"]
        panel.annotate(
            letter, (last, r["error"]), (0, -5 if is_below else 4), textcoords="offset points",
            ha="center", va="top" if is_below else "baseline", fontsize=7,
        )  # fmt: skip
    text = "\n".join(f"{letter}  {short(r['method'])}" for letter, r in names.items())
    panel.text(0.02, 0.99, text, transform=panel.transAxes, va="top", fontsize=7, linespacing=1.15)


def _range_of_seeds(panel: Any, rows: list[dict[str, Any]], colour: str) -> None:
    """A cross from the smallest to the largest of a setting's seeds, if it has several."""
    if len(rows) < 2:
        return
    ratio = [r["ratio"] for r in rows]
    error = [r["compressed_test_error_percent"] for r in rows]
    style: dict[str, Any] = {"color": colour, "lw": 0.8, "label": "_seeds"}
    panel.plot([min(ratio), max(ratio)], [statistics.mean(error)] * 2, **style)
    panel.plot([statistics.mean(ratio)] * 2, [min(error), max(error)], **style)


def _points(panel: Any, rows: list[dict[str, Any]], form: str, **style: Any) -> None:
    y = [r["compressed_test_error_percent"] for r in rows]
    panel.plot([r["ratio"] for r in rows], y, form, **style)


def short(method: str) -> str:
    """A method's name for a label: without its authors' "et al." and remarks."""
    return method.split(" (")[0].replace(" et al.", "").replace("Bayesian Compression", "BC")


def chosen(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Pareto front by validation error and bytes: no other is both smaller and better."""
    front: list[dict[str, Any]] = []
    best = float("inf")
    for row in sorted(
        rows, key=lambda r: (r["size_bytes"], r["compressed_validation_error_percent"])
    ):
        if row["compressed_validation_error_percent"] < best:
            best = row["compressed_validation_error_percent"]
            front.append(row)
    return front[::-1]


@styled
def layers(results: Results) -> Figure | None:
    """The share of non-zero weights and the bits per weight, tensor by tensor."""
    rows = {s: rs for s, rs in results.rows().items() if rs[0]["recipe"] is not None}
    if not rows:
        return None
    names = {s: [n for n in seeds[0]["nonzero"] if "bias" not in n] for s, seeds in rows.items()}
    height = 0.5 + 0.22 * sum(map(len, names.values()))
    figure = Figure(figsize=(plots.FULL, height), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels: list[str] = []
    for setting, seeds in rows.items():
        for name in names[setting]:
            at = len(labels)
            labels.append(f"{setting} (n = {len(seeds)})  {name}")
            share = [100 * r["nonzero"][name] / r["weights"][name] for r in seeds]
            bits = [r["entropy_bits_a_weight"][name] for r in seeds]
            for panel, values in ((left, share), (right, bits)):
                middle = statistics.mean(values)
                panel.barh(at, middle, color=plots.NEGATIVE, alpha=0.6)
                panel.plot([min(values), max(values)], [at, at], color="black", lw=1.0)
                panel.text(max(values), at, f" {middle:.2g}", va="center", fontsize=6.5)
    left.set_yticks(range(len(labels)), labels, fontsize=6.5)
    left.invert_yaxis()
    left.set_xlabel("weights that are not zero (%)")
    right.set_xlabel("entropy of the index (bits per weight)")
    for panel in (left, right):
        panel.margins(x=0.12)
    return figure


@styled
def filters(results: Results) -> Figure | None:
    """LeNet-5's first filters, dense and compressed, on one scale."""
    portrait = results.portrait("lenet-5-caffe-shifted")
    if portrait is None:
        return None
    figure = Figure(figsize=(plots.FULL, 0.9), dpi=150)
    figure.set_layout_engine("constrained", wspace=0.1, hspace=0.0, w_pad=0.01, h_pad=0.02)
    grid = figure.subplots(2, 20)
    both = {
        "dense": portrait.weights("before", "conv1.weight"),
        "coded": portrait.snapped("conv1.weight"),
    }
    top = max(float(flat.abs().max()) for flat in both.values())
    for row, (name, flat) in enumerate(both.items()):
        weights = flat.view(20, 5, 5)
        for panel, image in zip(grid[row], weights, strict=True):
            shown = panel.imshow(image, cmap="RdBu_r", vmin=-top, vmax=top)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_linewidth(0.3)
        grid[row, 0].set_ylabel(name, fontsize=7)
    bar = figure.colorbar(shown, ax=grid, pad=0.01, aspect=12, label="weight")
    bar.ax.tick_params(labelsize=7)
    return figure


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "before-after": before_after,
    "pareto": pareto,
    "dynamics": dynamics,
    "bands": bands,
    "layers": layers,
    "filters": filters,
}
NAMES = (*FIGURES, "training")


def draw(results: Path, pictures: Path, *, only: str | None = None) -> list[Path]:
    """Draw the figures whose results are there, and write their index.

    Args:
        results: the folder of the units' results.
        pictures: where to write.
        only: draw only this figure, one of NAMES.

    Returns:
        The files written.

    Raises:
        SystemExit: if the results of the one figure are missing.
    """
    everything, written = Results(results), []
    for name in NAMES if only is None else [only]:
        if name == "training":
            portrait = everything.portrait("lenet-300-100-published")
            if portrait is not None:
                path = pictures / "training.gif"
                written.append(plots.animate_collapse(portrait.history("retrain"), path, width=4.2))
                continue
        elif (figure := FIGURES[name](everything)) is not None:
            written.append(plots.save(figure, pictures / f"{name}.png"))
            continue
        if only is not None:
            raise SystemExit(f"{name} needs results that are not there: run it without --figure")
    index = pictures / "README.md"
    with replacing(index) as temporary:
        temporary.write_text(_index(everything, pictures))
    return [*written, index]


def _index(results: Results, pictures: Path) -> str:
    """The index: the tables, then each figure with the paper's counterpart."""
    paper = tomllib.loads((HERE / "paper.toml").read_text())
    about = results.folder / "run.json"
    run = json.loads(about.read_text()) if about.is_file() else {}
    lines = [
        f"# {paper['title']}: tables and figures",
        "",
        "Generated from the files in the paper's results folder; do not edit. Redraw a figure with",
        "`swsmix reproduce ullrich2017 --figure NAME`.",
        "",
    ]
    if run:
        seconds = sum(r["seconds"] for r in [*results.compressed, *results.pretrained])
        lines += [
            f"All units on MNIST together took {seconds / 60:.0f} minutes of one core. The last "
            f"run, of what was not there yet: `{run['command']}`, {run['seeds']} seeds, "
            f"{run['minutes']:g} minutes with {run['jobs']} processes ({run['machine']}, torch "
            f"{run['torch']}).",
            "",
        ]
    for net in NETS:
        lines += table(results, net)
    lines += [*cifar_table(results), *pruning_table(), *ablation_table(), *coding_table()]
    for figure in paper["figures"]:
        for suffix in ("png", "gif"):
            if (pictures / f"{figure['name']}.{suffix}").is_file():
                lines += [
                    f"## {figure['name']}", "", f"![{figure['name']}]({figure['name']}.{suffix})",
                    "", f"{figure['shows']} In the paper: {figure['counterpart']}", "",
                ]  # fmt: skip
    return "\n".join(lines)
