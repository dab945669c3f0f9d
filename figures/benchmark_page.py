"""The benchmark's page and picture, from the times that benchmark.py has measured.

    python figures/benchmark_page.py [FOLDER]

Reads benchmark.jsonl in FOLDER (this one by default), and writes benchmark.md and benchmark.png
beside it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from training_cost import CONV, LENET, MLP, UPDATES, in_brackets, parts_table, table

from swsmix import plots
from swsmix.plots import style

FIGURES = Path(__file__).parent
Rows = Sequence[dict]
LARGE = 25_000_000
PUBLIC = {"part": "public", "n": 1_000_000, "k": 17}
TABLES = {"part": "tables", "n": LARGE, "k": 17, "mixture": "soft"}
ALL = {"part": "public", "n": LARGE, "k": 17}
TWO = {"part": "threads", "n": LARGE, "method": "public"}

# What is wanted, required, stretch (None: there is none), at least or at most, and the ratio of
# which rows: its numerator and denominator.
AIMS = [
    ("public calls, N = 1e6, K = 17: times faster than naive", 90, None, "least",
     PUBLIC | {"method": "naive"}, PUBLIC | {"method": "swsmix"}),
    ("the same without numba", 60, None, "least",
     PUBLIC | {"method": "naive"}, PUBLIC | {"method": "swsmix, no numba"}),
    *((f"step over the plain one: {net.name}", required, stretch, "most",
       {"part": "steps", "net": net.name, "method": "proximal"},
       {"part": "steps", "net": net.name, "method": "plain"})
      for net, required, stretch in ((LENET, 1.45, 1.30), (MLP, 1.6, 1.25), (CONV, 1.10, None))),
    ("public calls, N = 2.5e7, K = 17, over `copy_`", 15, 12, "most",
     ALL | {"method": "swsmix"}, ALL | {"method": "copy"}),
    ("gradient, N = 2.5e7, over `copy_`", 4, None, "most",
     TABLES | {"method": "gradient"}, TABLES | {"method": "copy"}),
    ("gradient in bfloat16, over `copy_` of float32", 2.5, None, "most",
     TABLES | {"method": "gradient, bfloat16"}, TABLES | {"method": "copy"}),
    ("public calls, N = 2.5e7: times faster on two threads than on one", 1.5, None, "least",
     TWO | {"threads": 1}, TWO | {"threads": 2}),
]  # fmt: skip


def find(rows: Rows, **what: object) -> dict | None:
    """The row that has these values, if there is one."""
    return next((r for r in rows if all(r.get(name) == v for name, v in what.items())), None)


def known(row: dict) -> list[float]:
    """The seconds of the rounds in which it was measured."""
    return [each for each in row["seconds"] if each is not None]


def ratios(top: dict | None, bottom: dict | None) -> list[float]:
    """The ratios of the rounds in which both were measured; none if one is missing."""
    if top is None or bottom is None:
        return []
    both = zip(top["seconds"], bottom["seconds"], strict=True)
    return [one / other for one, other in both if one is not None and other is not None]


def line(row: dict) -> str:
    """A row for the screen."""
    what = " ".join(f"{v}" for k, v in row.items() if k not in ("seconds", "error", "bytes"))
    return f"{what}: {in_brackets([1e3 * t for t in known(row)])} ms" if "seconds" in row else what


def size(n: int) -> str:
    return f"{n:.1e}".replace(".0e", "e").replace("e+0", "e")


def milliseconds(row: dict) -> str:
    return in_brackets([1e3 * each for each in known(row)])


def cells(*values: object) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def shown(values: list[float]) -> str:
    return in_brackets(values) if values else ""


def aims(rows: Rows) -> list[str]:
    lines = [cells("aim", "required", "stretch", "measured", "met"), "|---|---|---|---|---|"]
    for what, required, stretch, sense, top, bottom in AIMS:
        found = ratios(find(rows, **top), find(rows, **bottom))
        sign, met = ("at least", "at most")[sense == "most"], "not measured"
        if found:
            middle = float(np.median(found))
            ahead = [middle >= x if sense == "least" else middle <= x
                     for x in (required, stretch) if x is not None]  # fmt: skip
            met = "no" if not ahead[0] else "stretch" if len(ahead) > 1 and ahead[1] else "yes"
        lines.append(cells(what, f"{sign} {required:g}", stretch or "", shown(found), met))
    return lines


def public(rows: Rows) -> list[str]:
    lines = [
        cells("N", "K", "method", "ms", "x naive", "x naive with EM sums", "x copy", "error"),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["part"] == "public":
            place = {name: row[name] for name in ("part", "n", "k")}
            faster = [
                shown(ratios(find(rows, **place, method=name), row))
                for name in ("naive", "naive, with EM sums")
            ]
            over = shown(ratios(row, find(rows, **place, method="copy")))
            error = f"{row['error']:.1e}" if row.get("error") == row.get("error", "") else ""
            what = size(row["n"]), row["k"], row["method"], milliseconds(row)
            lines.append(cells(*what, *faster, over, error))
    return lines


def of_tables(rows: Rows) -> list[str]:
    lines = [cells("N", "K", "mixture", "call", "ms", "x copy"), "|---|---|---|---|---|---|"]
    for row in rows:
        if row["part"] == "tables":
            place = {name: row[name] for name in ("part", "n", "k", "mixture")}
            over = shown(ratios(row, find(rows, **place, method="copy")))
            what = size(row["n"]), row["k"], row["mixture"], row["method"]
            lines.append(cells(*what, milliseconds(row), over))
    return lines


def threads(rows: Rows) -> list[str]:
    lines = [
        cells("N", "call", "one thread, ms", "two threads, ms", "times faster"),
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["part"] == "threads" and row["threads"] == 1:
            other = find(rows, **{k: row[k] for k in ("part", "n", "method")}, threads=2)
            assert other is not None
            what = size(row["n"]), row["method"], milliseconds(row), milliseconds(other)
            lines.append(cells(*what, shown(ratios(row, other))))
    return lines


def page(rows: Rows) -> str:
    """The page in Markdown."""
    head = rows[0]
    steps: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["part"] == "steps":
            steps.setdefault(row["net"], {})[row["method"]] = row["seconds"]
    memory = [f"{r['bytes']:g} for {r['method']}" for r in rows if r["part"] == "memory"]
    rest = [r["absent"] if "absent" in r else f"{r['method']}: {milliseconds(r)} ms (N = "
            f"{size(r['n'])}, K = {r['k']}; forward and backward)"
            for r in rows if r["part"] == "others"]  # fmt: skip
    parts = [
        ["# What the prior costs"],
        [f"{head['machine']}. `{head['command']}`, {head['date']}, {head['minutes']} minutes, "
         f"load {head['load']} at the end. One thread, processor time, except where threads are "
         "compared (wall clock). Medians over the rounds, and in brackets the 10th and the 90th "
         "percentile. All methods take turns within a round; a ratio is the median of the ratios "
         "within the rounds."],
        ["## Aims of this benchmark"],
        aims(rows),
        ["## The public calls"],
        ["`prior.penalty().backward(); prior.em_step_()` of a prior at its default start, split "
         "and merge left out: value, gradient, EM step, and the new tables that each EM step "
         "costs. *Naive* is logsumexp over N x K with autograd for the weights and the mixture "
         "(whose gradients amount to the EM sums); *with EM sums* takes these from the "
         "responsibilities on top. scikit-learn makes one EM step, without value or gradient. "
         "N x K methods are not run beyond N K = 6.5e7. Error: relative L2 of the gradient."],
        public(rows),
        [f"Extra bytes per weight at the peak, N = 1e6, K = 17: {', '.join(memory)} (0: "
            "no more than smaller calls had used before)."
        ]
        if memory else [],
        [*rest],
        ["## The tables"],
        ["Soft: stds 0.05, centres 0.08 apart for K = 17. Hard: stds 0.005. *build* cuts the "
         "cells; the others have them at hand."],
        of_tables(rows),
        ["## Training steps"],
        ["An EM step every ten steps; the proximal step is the default."],
        table(steps),
        ["Where it goes: the same step by hand, which checks nothing, part after part: the "
         "loops with the mixture as it is, then an EM step, and new tables, every ten steps. "
         "What *attached* takes more is Python between the EM steps: which tensors, which step "
         "sizes, whether anything has changed."],
        parts_table(steps),
        ["## Threads"],
        threads(rows),
        ["![Cost against weights, components, network and threads: medians of one run, bars from "
         "the 10th to the 90th percentile of its rounds](benchmark.png)"],
    ]  # fmt: skip
    return "\n\n".join("\n".join(each) for each in parts if each) + "\n"


LINES = {  # method: part, name, colour
    ("public", "naive"): ("naive", "#1a1a1a"),
    ("public", "scikit-learn, one EM step"): ("scikit-learn", "#009e73"),
    ("public", "swsmix, no numba"): ("swsmix, no numba", "#cc79a7"),
    ("public", "swsmix"): ("swsmix", "#0072b2"),
    ("tables", "gradient"): ("gradient alone", "#e69f00"),
    ("public", "copy"): ("copy", "#666666"),
}
COLOURS = {"proximal": "#0072b2", "gradient": "#e69f00"}


def with_bars(ax, x, rounds: list[list[float]], colour: str, **more) -> None:
    """Medians with bars from the 10th to the 90th percentile."""
    low, middle, high = np.array([np.percentile(each, [10, 50, 90]) for each in rounds]).T
    ax.errorbar(
        x, middle, [middle - low, high - middle], color=colour, marker="o", markersize=2.5,
        capsize=1.5, elinewidth=0.8, **more,
    )  # fmt: skip


def label_ends(ax, ends: list[tuple[str, float, float, str]]) -> None:
    """Names beside the ends of lines in a logarithmic panel, moved apart where they would touch."""
    gap = 0.085 * np.diff(np.log10(ax.get_ylim()))[0]
    last = -np.inf
    for name, x, y, colour in sorted(ends, key=lambda end: end[2]):
        last = max(last + gap, np.log10(y))
        ax.annotate(
            name, (x, 10**last), (4, 0), textcoords="offset points", va="center", color=colour,
            fontsize=7,
        )  # fmt: skip


def draw_costs(ax, rows: Rows, key: str, label: str, **fixed: int) -> None:
    """Nanoseconds per weight against N or K."""
    ends = []
    for (part, method), (name, colour) in LINES.items():
        kind = {"part": part, "method": method, **fixed}
        kind |= {"mixture": "soft"} if part == "tables" else {}
        found = [r for r in rows if all(r.get(a) == b for a, b in kind.items())]
        if not found:
            continue
        x = [r[key] for r in found]
        rounds = [[1e9 * t / r["n"] for t in known(r)] for r in found]
        with_bars(ax, x, rounds, colour, linestyle="--" if method == "copy" else "-")
        ends.append((name, max(x), float(np.median(rounds[x.index(max(x))])), colour))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.minorticks_off()
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.45)  # room for the names
    label_ends(ax, ends)
    ax.set_xlabel(label, loc="left")
    ax.set_ylabel("ns per weight")


def draw_steps(ax, rows: Rows) -> None:
    """The time of a step under the prior over a plain one, by network."""
    names = list(dict.fromkeys(r["net"] for r in rows if r["part"] == "steps"))[::-1]
    for shift, update in zip((0.15, -0.15), UPDATES, strict=True):
        for place, name in enumerate(names):
            plain, other = (find(rows, part="steps", net=name, method=m) for m in ("plain", update))
            values = ratios(other, plain)
            low, middle, high = np.percentile(values, [10, 50, 90])
            ax.errorbar(
                middle, place + shift, xerr=[[middle - low], [high - middle]], marker="o",
                markersize=3, capsize=1.5, elinewidth=0.8, color=COLOURS[update],
            )  # fmt: skip
            ax.annotate(
                update, (high, place + shift), (4, 0), textcoords="offset points", va="center",
                fontsize=6.5, color=COLOURS[update],
            )  # fmt: skip
    ax.axvline(1.0, color="#666666", linestyle="--", linewidth=0.8)
    ax.set_yticks(
        range(len(names)), [name.split(",")[0].replace(" of ", "\nof ") for name in names]
    )
    ax.set_ylim(-0.5, len(names) - 0.5)
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.3 * (high - low))
    ax.set_xlabel("time of a training step / plain step")


def draw_threads(ax, rows: Rows) -> None:
    """How much faster two threads are, by call and number of weights."""
    found = [r for r in rows if r["part"] == "threads" and r["threads"] == 1]
    names = [f"{r['method']}, {size(r['n'])}" for r in found]
    for place, row in enumerate(found[::-1]):
        other = find(rows, **{k: row[k] for k in ("part", "n", "method")}, threads=2)
        low, middle, high = np.percentile(ratios(row, other), [10, 50, 90])
        ax.errorbar(
            middle, place, xerr=[[middle - low], [high - middle]], marker="o", markersize=3,
            capsize=1.5, elinewidth=0.8, color="#0072b2",
        )  # fmt: skip
    for x in (1.0, 2.0):
        ax.axvline(x, color="#666666", linestyle="--", linewidth=0.8)
    ax.set_yticks(range(len(names)), names[::-1])
    ax.set_ylim(-0.5, len(names) - 0.5)
    ax.set_xlabel("times faster on two threads")


@style.styled
def draw(rows: Rows, path: Path) -> None:
    """The picture: one column wide, four panels."""
    count = 4
    figure, axes = style.make_panels(None, count, width=plots.COLUMN, row=2.1)
    draw_costs(axes[0], rows, "n", "weights N (K = 17)", k=17)
    sizes = {r["n"] for r in rows if r["part"] == "public" and r["k"] == 4}
    draw_costs(axes[1], rows, "k", f"components K (N = {size(max(sizes))})", n=max(sizes))
    axes[1].set_xticks([4, 17, 64], ["4", "17", "64"])
    draw_steps(axes[2], rows)
    draw_threads(axes[3], rows)
    plots.save(figure, path, dpi=200)


def write(path: Path) -> None:
    """Write benchmark.md and benchmark.png beside the data."""
    rows = [json.loads(each) for each in path.read_text().splitlines()]
    path.with_suffix(".md").write_text(page(rows))
    draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    write((Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES) / "benchmark.jsonl")
