"""The page and the picture of pretrained.py, from the rows that it has measured.

    python figures/pretrained_page.py [FOLDER]

reads pretrained.jsonl in FOLDER (this one by default), and writes pretrained.md and pretrained.png
beside it.
"""

import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from swsmix import plots
from swsmix.plots import style

Rows = Sequence[dict]
Points = list[tuple[float, float]]  # bytes, and how bad
NAMES = {
    "cnn": "MNIST classifier (ccexam)",
    "magika": "Magika, types of files",
    "minilm": "MiniLM, sentences",
    "mobilenet": "MobileNetV2, photographs",
}
# What counts, in words, and two levels of it at which files are compared; of errors, what is more
# than the network's own.
MEASURES = {
    "cnn": ("errors", "errors, %", (0.1, 0.3)),
    "magika": ("other", "answers that change, %", (2.0, 4.0)),
    "minilm": ("distance", "1 - cosine with its own embedding", (0.03, 0.06)),
    "mobilenet": ("other", "answers that change, %", (10.0, 20.0)),
}
COLORS = {
    "k-means": "#999999", "rtn": "#E69F00", "gptq": "#CC79A7", "nncodec": "#009E73",
    "swsmix": "#56B4E9", "swsmix with inputs": "#0072B2",
}  # fmt: skip
WORDS = {
    "rtn": "rounding to nearest", "gptq": "GPTQ", "nncodec": "NNCodec", "swsmix": "ours, no data",
    "swsmix with inputs": "ours, with inputs",
}  # fmt: skip
CNN_ALLOWS, MINILM_ASKS, MARGIN = 0.15, 0.97, 0.005  # of the default run; the margin of a choice
MOBILENET_ALLOWS = 20.0  # percent of the choice half's answers that change by the default run


def find(rows: Rows, **what: object) -> list[dict]:
    """The rows that have these values."""
    return [r for r in rows if all(r.get(name) == v for name, v in what.items())]


def own_errors(rows: Rows, network: str, half: str = "report") -> float:
    """How bad the network is as it was given; 0 for measures that compare with it."""
    (row,) = find(rows, network=network, method="float32")
    return row[half][MEASURES[network][0]]


def points(rows: Rows, network: str, method: str) -> Points:
    """Bytes and measure of a method, the smallest file first; the default run is not on the curve.

    `swsmix` and the others thus round small tensors alike.
    """
    measure = MEASURES[network][0]
    found = find(rows, network=network, method=method)
    return sorted((r["size_bytes"], r["report"][measure]) for r in found
                  if r["setting"] != "default")  # fmt: skip


def front(curve: Points) -> Points:
    """Those that no smaller file is as good as."""
    kept: Points = []
    for size, bad in curve:
        if not kept or bad < kept[-1][1]:
            kept.append((size, bad))
    return kept


def bytes_at(curve: Points, level: float) -> float | None:
    """The bytes at which a method is as good as a level, between its points; None beyond them.

    Logarithms of bytes are interpolated along the measure.
    """
    kept = front(sorted(curve))
    for (small, worse), (large, better) in itertools.pairwise(kept):
        if better <= level <= worse:
            share = (worse - level) / (worse - better)
            return math.exp((1.0 - share) * math.log(small) + share * math.log(large))
    return None


def levels(rows: Rows, network: str) -> list[float]:
    """The levels at which a network's files are compared."""
    return [own_errors(rows, network) + more for more in MEASURES[network][2]]


def ratio(rows: Rows, network: str, method: str, other: str) -> float | None:
    """Bytes of a method over those of another at equal measure: the mean of the levels known."""
    one, two = points(rows, network, method), points(rows, network, other)
    known = []
    for level in levels(rows, network):
        a, b = bytes_at(one, level), bytes_at(two, level)
        if a and b:
            known.append(math.log(a / b))
    return math.exp(sum(known) / len(known)) if known else None


def over_gptq(rows: Rows, network: str) -> list[tuple[str, float | None]]:
    """Our bytes with inputs over GPTQ's at what it makes of 2 and of 3 bits."""
    ours = points(rows, network, "swsmix with inputs")
    found = []
    for bits in ("2", "3"):
        for row in find(rows, network=network, method="gptq", setting=bits):
            bad = row["report"][MEASURES[network][0]]
            least = ours[0][0] if ours and ours[0][1] <= bad else None  # better, and smaller
            size = bytes_at(ours, bad) or least
            found.append((bits, size / row["packed"] if size else None))
    return found


def percent(value: float | None) -> str:
    """How much smaller or larger, from a ratio."""
    if value is None:
        return "-"
    return f"{100.0 * abs(1.0 - value):.0f} % {'smaller' if value < 1.0 else 'larger'}"


def aims(rows: Rows) -> list[str]:
    """The table of what it must show."""
    there = [n for n in NAMES if find(rows, network=n, method="float32")]
    lines = ["| aim, on the report half | required | measured | met |", "|---|---|---|---|"]

    def add(aim: str, required: str, measured: str, met: object) -> None:
        lines.append(f"| {aim} | {required} | {measured} | {met} |")

    for method, most, count, aim, required in (
        ("swsmix", 1.0, 3, "without data, at equal measure, against NNCodec",
         "not larger on three of four (stretch: 8 % smaller)"),
        ("swsmix with inputs", 0.75, 2, "with inputs, at equal measure, against NNCodec",
         "25 % smaller on two of four (stretch: three)"),
    ):  # fmt: skip
        found = {n: ratio(rows, n, method, "nncodec") for n in there}
        met = sum(r is not None and r <= most for r in found.values())
        words = "; ".join(f"{n} {percent(r)}" for n, r in found.items())
        add(aim, required, words, f"{met} of {len(there)}" + (", yes" if met >= count else ", no"))
    for network, most, required in (("cnn", 0.6, "40 %"), ("minilm", 0.88, "12 % (stretch: 25 %)")):
        if network in there:
            found = over_gptq(rows, network)
            known = [r for _, r in found if r]
            words = "; ".join(f"{bits} bits: {percent(r)}" for bits, r in found)
            met = "yes" if known and max(known) <= most else "no"
            add(f"with inputs, against packed GPTQ, {network}", f"{required} smaller", words, met)
    for network, what in (("cnn", "errors within .15 point"), ("minilm", "cosine at least .97")):
        for row in find(rows, network=network, method="swsmix", setting="default"):
            now = row["report"][MEASURES[network][0]]
            change = now - own_errors(rows, network)
            met = change <= (CNN_ALLOWS if network == "cnn" else 1.0 - MINILM_ASKS)
            other = bytes_at(points(rows, network, "nncodec"), now)
            beside = f"; NNCodec {other:,.0f} bytes there" if other else ""
            said = f"{change:+.2f}" if network == "cnn" else f"{1.0 - now:.4f}"
            words = f"{said} in {row['size_bytes']:,} bytes{beside}"
            add(f"default run, {network}", what, words, "yes" if met else "no")
    return lines


def table_of(rows: Rows, network: str) -> list[str]:
    """All rows of a network."""
    measure, words, _ = MEASURES.get(network, ("errors", "errors, %", ()))
    errors = [r for r in find(rows, network=network) if "errors" in r["report"]]
    both = bool(errors) and measure != "errors"
    head = ["method", "setting", "bytes", "distortion", words, *(["wrong, %"] if both else [])]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    digits = 4 if measure == "distance" else 2
    order = ["float32", "float16", *COLORS]
    by_method = sorted(find(rows, network=network),
                       key=lambda r: (order.index(r["method"]), -r["size_bytes"]))  # fmt: skip
    for row in by_method:
        cells = [row["method"], row["setting"], f"{row['size_bytes']:,}"]
        cells += [f"{row['distortion']:.2g}", f"{row['report'][measure]:.{digits}f}"]
        cells += [f"{row['report']['errors']:.2f}"] if both else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def comparison(rows: Rows, network: str) -> list[str]:
    """Bytes at the two levels, of each method."""
    at = levels(rows, network)
    own = own_errors(rows, network)
    named = [f"+{more:g}" if own else f"{more:g}" for more in MEASURES[network][2]]
    lines = [f"| {NAMES[network]}: {MEASURES[network][1]} | {named[0]} | {named[1]} |",
             "|---|---:|---:|"]  # fmt: skip
    for method in COLORS:
        found = [bytes_at(points(rows, network, method), level) for level in at]
        sizes = " | ".join(f"{size:,.0f}" if size else "-" for size in found)
        lines.append(f"| {WORDS.get(method, method)} | {sizes} |")
    return lines


def choice(rows: Rows) -> list[str]:
    """How the default loss is chosen, and what it makes."""
    lines = ["| loss | CNN, points of errors | MiniLM, cosine | MobileNetV2, answers changed |",
             "|---|---:|---:|---:|"]  # fmt: skip
    best = None
    own = own_errors(rows, "cnn", "choice")
    tried = [r for r in find(rows, network="cnn", method="swsmix") if r["setting"] != "default"]
    for row in sorted(tried, key=lambda r: float(r["setting"])):
        same = {"method": "swsmix", "setting": row["setting"]}
        of_text = [r for r in find(rows, network="minilm", **same) if "choice" in r]
        if not of_text or "choice" not in row:
            continue
        change, cosine = row["choice"]["errors"] - own, of_text[0]["choice"]["cosine"]
        of_photographs = [r["choice"]["other"] for r in find(rows, network="mobilenet", **same)
                          if "choice" in r]  # fmt: skip
        other = f"{of_photographs[0]:.1f} %" if of_photographs else "-"
        lines.append(f"| {row['setting']} | {change:+.2f} | {cosine:.4f} | {other} |")
        good = change <= CNN_ALLOWS and cosine >= MINILM_ASKS + MARGIN
        if good and of_photographs and of_photographs[0] <= MOBILENET_ALLOWS:
            best = max(best or 0.0, float(row["setting"]))
    said = f"Chosen: {best}." if best else "None of these meets all three."
    return [*lines, "", said]


@style.styled
def draw(rows: Rows) -> Figure:
    """A panel for each network, a line for each method."""
    there = [n for n in NAMES if find(rows, network=n, method="float32")]
    figure, axes = style.make_panels(None, len(there), width=plots.FULL, row=2.6, columns=2)
    seen = {}
    for axis, network in zip(axes, there, strict=True):
        own = own_errors(rows, network)
        worst = {"cnn": 4.0, "magika": 60.0, "minilm": 0.5, "mobilenet": 90.0}[network]
        for method, color in COLORS.items():
            curve = [p for p in front(points(rows, network, method)) if 0.0 < p[1] <= worst]
            if curve:
                ours = method.startswith("swsmix")
                (line,) = axis.plot(
                    *zip(*curve, strict=True), color=color, marker="o" if ours else "s",
                    markersize=3, linewidth=1.5 if ours else 0.9,
                )  # fmt: skip
                seen[WORDS.get(method, method)] = line
        if own:
            axis.axhline(own, color="0.6", linestyle=":", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=NAMES[network], ylabel=MEASURES[network][1])
        axis.xaxis.set_major_locator(few_ticks(*axis.get_xlim()))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size_text(x)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.set_xlabel("bytes of the whole file")
    figure.legend(seen.values(), seen.keys(), ncols=6, loc="outside upper center", fontsize=7)
    return figure


def few_ticks(low: float, high: float) -> Locator:
    """1, 2, 5, 10, ..., or even steps where fewer than two of these are in the range."""
    wide = [m * 10**e for e in range(12) for m in (1, 2, 5) if low <= m * 10**e <= high]
    return LogLocator(10, (1.0, 2.0, 5.0)) if len(wide) > 1 else MaxNLocator(4)


def size_text(size: float) -> str:
    """Bytes as kB or MB."""
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"


INTRODUCTION = """# Networks that others trained

Whole files, at the measure of what each network is for. Each network is quantised at several
settings of each method; between the points of a method, logarithms of bytes are interpolated along
the measure, and points are left out that a smaller file of the method is as good as. Made by
`python figures/pretrained.py`, which says what it skips; the commands of parts stand below.

- **What is stored.** All tensors of the network. Those of fewer than two dimensions are in float16
  in the files of k-means, rounding, GPTQ and ours (in the default run, `swsmix compress FILE`, they
  are exact); NNCodec rounds them in its own way (`nonweight_qp=-75`).
- **Rounding to nearest and GPTQ**: a grid for each row, with a step and a lowest value in float16,
  its range cut to the least squared error of seven. Of packed numbers and numbers coded in our
  format the smaller file counts. GPTQ has the H, the order, the damping and the correction of
  biases that `quantize_` has; embeddings, of which no H is known, are rounded to 4 bits at least.
  Four matrices of MiniLM hold a giant weight each, and the grid of its row is as coarse as that:
  rounded to 4 bits, MiniLM keeps a cosine of 0.32 (0.95 with its matrices `output.dense` exact).
- **Distortion** in the tables is the squared change of all matrices together over their squares
  about the mean of each. The loss that `swsmix` is asked for weighs tensors otherwise: it is the
  mean over all weights of their tensor's squared error over its variance.
- **NNCodec**: dependent quantisation, a range of qp, with and without `opt_qp`, the better of both.
- **Data.** The CNN's choices are made on 10,000 training images, and its errors are of the 10,000
  test images. The others' halves are the files, sentences (first ones of the docstrings of
  Python's library) and photographs (crops of pictures that packages ship) of this installation;
  no file, module or photograph is in both halves. Inputs for `quantize_` and GPTQ are of the choice
  half. Magika and MobileNetV2 are measured by how many answers differ from the given network's,
  since so few files tell small differences of wrong answers from chance no better.
- **MobileNetV2's inputs** are 96 crops of four photographs. At 3.9 bits per weight the error on
  held-out crops of these falls to a quarter by compensation (0.014 against 0.049 of the outputs'
  squares); on the photographs of the report half, files of more than 1.6 MB are no better for it.
"""


def runs(rows: Rows) -> list[str]:
    """The commands, their minutes, and the versions of what they used."""
    by_versions: dict[str, list[str]] = {}
    for run in rows:
        if "versions" in run:
            seconds = sum(r["seconds"] for r in find(rows, run=run["run"]) if "network" in r)
            versions = ", ".join(f"{n} {v}" for n, v in run["versions"].items())
            by_versions.setdefault(f"{run['machine']}; {versions}; seed {run['seed']}", []).append(
                f"- `{run['command']}`: {run['run']}, {seconds / 60.0:.1f} minutes in the methods"
            )
    lines = []
    for versions, commands in by_versions.items():
        lines += [f"{versions}:", "", *commands, ""]
    return lines


def write(rows: Rows, folder: Path) -> None:
    """The page, and the picture if there is something to draw."""
    there = [n for n in NAMES if find(rows, network=n, method="float32")]
    lines = [INTRODUCTION]
    if absent := [NAMES[n] for n in NAMES if n not in there]:
        lines += [f"**Not measured yet:** {', '.join(absent)}.", ""]
    if there:
        (folder / "pretrained.png").write_bytes(style.png(draw(rows)))
        lines += [
            "![Bytes against the measure, on the report halves: one network and one run for each "
            "point, so no spread is drawn](pretrained.png)",
            "", "## What it must show", "", *aims(rows), "", "## Bytes at equal measure", "",
        ]  # fmt: skip
        for network in there:
            lines += [*comparison(rows, network), ""]
    if {"cnn", "minilm"} <= set(there):
        lines += [
            "## The default loss", "",
            "The largest loss of those tried at which, on the choice halves, the CNN's errors rise "
            f"by at most {CNN_ALLOWS} point, MiniLM's cosine is at least {MINILM_ASKS}, with "
            f"{MARGIN} to spare, and at most {MOBILENET_ALLOWS:.0f} % of MobileNetV2's answers "
            "change. The third condition was added when that network was seen to bear less than "
            "the two others.", "",
            *choice(rows), "",
        ]  # fmt: skip
    lines += ["## All points", ""]
    for network in dict.fromkeys(r["network"] for r in rows if "network" in r):
        lines += [f"### {NAMES.get(network, network)}", "", *table_of(rows, network), ""]
    lines += ["## How it was measured", "", *runs(rows)]
    (folder / "pretrained.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    write([json.loads(line) for line in (home / "pretrained.jsonl").read_text().splitlines()], home)
