"""The tables "published / ours" and the paired comparisons, as Markdown."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from papers.nowlan1992 import selection
from papers.nowlan1992.intervals import Comparison, compare, estimate
from swsmix.problems import data

HERE = Path(__file__).resolve().parent
Lines = Mapping[str, Mapping[str, Any]]
CHOICES = ("one", "objective", "agreement", "ensemble")
SHARED = "soft-sharing, 10 components, em"
POOLED = "soft-sharing, all kinds"


def published() -> dict[str, Any]:
    """The published numbers, with their certainty.

    Returns:
        The contents of published.toml.
    """
    return tomllib.loads((HERE / "published.toml").read_text())


def shift_tables(shift: Lines) -> str:
    """Test accuracy by method and way of choosing, for every setting, and the comparisons.

    Returns:
        Markdown; empty without results.
    """
    known = published()["shift"]["rows"]
    text = []
    for setting, title in {
        "n100": "100 training cases, 0/1 bits, cross-entropy",
        "squashed": "100 training cases, ±1 bits, squared error, tanh output",
        "squared": "100 training cases, ±1 bits, squared error, linear output",
        "n50": "50 training cases, 0/1 bits, cross-entropy",
        "n200": "200 training cases, 0/1 bits, cross-entropy",
        "n400": "400 training cases, 0/1 bits, cross-entropy",
    }.items():
        cited = {row["ours"]: row["test"] for row in known if title.startswith("100 ")}
        units = [line["methods"] for key, line in shift.items() if key.startswith(f"{setting}-")]
        if not units:
            continue
        ways = ("one run", "lowest objective", "agreement", "ensemble")
        rows = []
        for name in units[0]:
            cells = [_percent([u[name][choice] for u in units]) for choice in CHOICES]
            rows.append((name, _cited(cited.get(name), 1), *cells))
        text += [f"**Shift, {title}**, {len(units)} data sets, test accuracy in %, mean ± sd:", ""]
        text += [*_table(("method", "published, as cited", *ways), rows), ""]
        text += ["Paired differences (points; bootstrap 95 % interval; Wilcoxon p):", ""]
        pairs = [(SHARED, name) for name in units[0] if name != SHARED]
        pairs += [(name, "weight decay") for name in units[0] if name.startswith("soft-sharing")]
        rows = []
        for name, other in dict.fromkeys(pairs):
            if name in units[0] and other in units[0]:
                compared = [
                    compare([u[name][c] for u in units], [u[other][c] for u in units])
                    for c in CHOICES
                ]
                rows.append((f"{name}, minus {other}", *map(_difference, compared)))
        text += [*_table(("", *ways), rows), ""]
    return "\n".join(text)


def sunspot_tables(final: Lines, confirmed: Lines) -> str:
    """The arv of every method by both normalisers, and soft-sharing against the others in pairs.

    Args:
        final: the table of `sunspots.final`.
        confirmed: that of `sunspots.confirm`, empty before the end.

    Returns:
        Markdown; empty without results.
    """
    if not final:
        return ""
    order = (*selection.BASELINES, *selection.METHODS, *selection.POOLS)
    names = [n for n in order if n in final or f"{n}, by single" in final]
    cited = {r["ours"]: r["test"] for r in published()["sunspots"]["rows"] if "ours" in r}
    seeds = max(len(line["arv"]["test"]) for line in final.values())
    parts = [(final, "train", "train"), (final, "test", "1921-55"), (final, "late", "1956-79")]
    if confirmed:
        parts.append((confirmed, "confirm", "1980-2008"))
    both = "arv over 1535, in brackets over 1495.6"
    text = [f"**Sunspots, single nets**, mean ± sd over {seeds} seeds; {both}:", ""]
    rows = []
    for name in names:
        cells = []
        for lines, split, _ in parts:
            line = lines.get(f"{name}, by single", lines.get(name))
            cells.append("" if line is None else _arv(line["arv"][split]))
        rows.append((name, _cited(cited.get(name), 4), *cells))
    titles = [title for _, _, title in parts]
    text += [*_table(("method", "published 1921-55, as cited", *titles), rows), ""]
    kinds = {
        "ensemble": f"**Sunspots, ensembles** of {seeds} nets",
        "committee": "**Sunspots, committees** of a method's five best settings",
    }
    for by, title in kinds.items():
        text += [f"{title}; {both}:", ""]
        rows = []
        for name in names:
            chosen = [lines.get(f"{name}, by {by}") for lines, _, _ in parts]
            if chosen[0] is not None:
                cells = [
                    "" if line is None else _arv([line["ensemble"][split]])
                    for line, (_, split, _) in zip(chosen, parts, strict=True)
                ]
                rows.append((name, *cells))
        text += [*_table(("method", *titles), rows), ""]
    text += [
        "Paired differences (arv over 1535; bootstrap 95 % interval; Wilcoxon p). Nets over seeds; "
        "ensembles and committees over years, since an interval over seeds says nothing about "
        "other years:",
        "",
    ]
    pairs = [
        (name, other)
        for name in names
        for other in ("weight decay", "weight elimination", "all others")
        if (name == POOLED) == (other == "all others") and name.startswith("soft-sharing")
    ]
    for _, split, title in parts[1:]:
        lines = confirmed if split == "confirm" else final
        rows = []
        for pair in pairs:
            if all(f"{name}, by single" in lines for name in pair):
                nets = [lines[f"{name}, by single"]["arv"][split] for name in pair]
                cells = [_difference(compare(*nets), 3)]
                for by in kinds:
                    years = [_squares(lines[f"{name}, by {by}"], split) for name in pair]
                    cells.append(_difference(compare(*years), 3))
                rows.append((", minus ".join(pair), *cells))
        text += [*_table((title, "nets", "ensembles", "committees"), rows), ""]
    return "\n".join(text)


def _squares(line: Mapping[str, Any], split: str) -> list[float]:
    """The ensemble's squared error of every year, over 1535."""
    years = data.sunspots(scale=1.0, dtype=torch.float64)
    _, target = years.split(split)
    out = torch.tensor(line["forecasts"][split], dtype=torch.float64)
    return ((out - target).square() / data.VARIANCE_1535).tolist()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _percent(values: Sequence[float]) -> str:
    e = estimate(values)
    return f"{e.mean:.1f}" + ("" if math.isnan(e.std) else f" ± {e.std:.1f}")


def _arv(values: Sequence[float]) -> str:
    e = estimate(values)
    text = f"{e.mean:.3f}" + ("" if math.isnan(e.std) else f" ± {e.std:.3f}")
    return f"{text} ({e.mean * data.VARIANCE_1535 / data.VARIANCE_1700_1979:.3f})"


def _cited(values: Sequence[float] | None, digits: int) -> str:
    return "" if values is None else " ± ".join(f"{v:.{max(digits - 1, 1)}f}" for v in values)


def _difference(comparison: Comparison, digits: int = 1) -> str:
    d = comparison.difference
    if math.isnan(d.low):
        return f"{d.mean:+.{digits}f}"
    text = f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
    return text if math.isnan(comparison.p_wilcoxon) else f"{text}, p = {comparison.p_wilcoxon:.2g}"
