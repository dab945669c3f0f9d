"""The tables "published / ours" and the paired comparisons, as Markdown."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers.nowlan1992.intervals import Comparison, compare, estimate

HERE = Path(__file__).resolve().parent
Lines = Mapping[str, Mapping[str, Any]]
CHOICES = ("one", "objective", "agreement", "ensemble")
SHARED = "soft-sharing, 10 components, em"


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
    cited = {row["ours"]: row["test"] for row in published()["shift"]["rows"]}
    text = []
    for setting, title in {
        "n100": "Shift, 100 training cases, 0/1 bits, cross-entropy",
        "squared": "Shift, 100 training cases, ±1 bits, squared error",
    }.items():
        units = [line["methods"] for key, line in shift.items() if key.startswith(f"{setting}-")]
        if not units:
            continue
        header = ("method", "published", "one run", "lowest objective", "agreement", "ensemble")
        rows = []
        for name in units[0]:
            cells = [_percent([u[name][choice] for u in units]) for choice in CHOICES]
            rows.append((name, _cited(cited.get(name), 1), *cells))
        text += [f"**{title}**, {len(units)} data sets, test accuracy in %, mean ± sd:", ""]
        text += [*_table(header, rows), ""]
        if SHARED in units[0]:
            rows = []
            for name in units[0]:
                if name != SHARED:
                    pairs = [
                        compare([u[SHARED][c] for u in units], [u[name][c] for u in units])
                        for c in CHOICES
                    ]
                    rows.append((name, *map(_difference, pairs)))
            header = (f"{SHARED}, minus", *header[2:])
            text += ["Paired differences (points; bootstrap 95 % interval; Wilcoxon p):", ""]
            text += [*_table(header, rows), ""]
    return "\n".join(text)


def sunspot_tables(final: Lines, confirmed: Lines) -> str:
    """The arv of every method, and soft-sharing against weight decay and elimination in pairs.

    Returns:
        Markdown; empty without results.
    """
    if not final:
        return ""
    names = list(
        dict.fromkeys(
            key.removesuffix(", by ensemble").removesuffix(", by single") for key in final
        )
    )
    cited = {r["ours"]: r["test"] for r in published()["sunspots"]["rows"] if "ours" in r}
    rows = []
    for name in names:
        single = final.get(f"{name}, by single", final.get(name))
        ensemble = final.get(f"{name}, by ensemble", final.get(name))
        assert single is not None and ensemble is not None
        sure = confirmed.get(f"{name}, by single", confirmed.get(name))
        sure_ensemble = confirmed.get(f"{name}, by ensemble", confirmed.get(name))
        cells = [_arv(single["arv"][split]) for split in ("train", "test", "late")]
        rows.append(
            (
                name, _cited(cited.get(name), 4), *cells,
                *(f"{ensemble['ensemble'][split]:.3f}" for split in ("test", "late")),
                "" if sure is None else _arv(sure["arv"]["confirm"]),
                "" if sure_ensemble is None else f"{sure_ensemble['ensemble']['confirm']:.3f}",
            )
        )  # fmt: skip
    seeds = max(len(line["arv"]["test"]) for line in final.values())
    header = (
        "method", "published 1921-55", "train", "1921-55", "1956-79",
        "1921-55, ensemble", "1956-79, ensemble", "1980-2008", "1980-2008, ensemble",
    )  # fmt: skip
    text = [f"**Sunspots**, {seeds} seeds, arv over 1535 (over 1495.6 it is 1.026 times as much):"]
    text += ["", *_table(header, rows), ""]
    rows = []
    for name in names:
        if not name.startswith("soft-sharing"):
            continue
        for other in ("weight decay", "weight elimination", "early stopping"):
            pair = [final.get(f"{n}, by single") for n in (name, other)]
            if pair[0] and pair[1]:
                both = (pair[0], pair[1])
                cells = [
                    _difference(compare(*(line["arv"][split] for line in both)), 4)
                    for split in ("test", "late")
                ]
                rows.append((f"{name}, minus {other}", *cells))
    text += ["Paired differences of single nets (arv; bootstrap 95 % interval; Wilcoxon p):", ""]
    return "\n".join([*text, *_table(("", "1921-55", "1956-79"), rows)])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _percent(values: Sequence[float]) -> str:
    e = estimate(values)
    return f"{e.mean:.1f}" + ("" if math.isnan(e.std) else f" ± {e.std:.1f}")


def _arv(values: Sequence[float]) -> str:
    e = estimate(values)
    return f"{e.mean:.3f}" + ("" if math.isnan(e.std) else f" ± {e.std:.3f}")


def _cited(values: Sequence[float] | None, digits: int) -> str:
    return "" if values is None else " ± ".join(f"{v:.{max(digits - 1, 1)}f}" for v in values)


def _difference(found: Comparison, digits: int = 1) -> str:
    d = found.difference
    if math.isnan(d.low):
        return f"{d.mean:+.{digits}f}"
    text = f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
    return text if math.isnan(found.p_wilcoxon) else f"{text}, p = {found.p_wilcoxon:.2g}"
