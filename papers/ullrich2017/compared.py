"""The tables beside the rows: pruning, one step changed at a time, and the coder's two steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VARIANTS = {
    "recipe": "the recipe: two phases, EM, at the maximum, one mixture per tensor",
    "one-phase": "one phase, all components closing together",
    "one-phase-weak": "the same with a quarter of the strength",
    "gradient": "mixtures by gradient",
    "posterior": "EM over the posterior",
    "global": "one mixture for all tensors",
}

TRIED = "attempts"
OURS = {
    "lenet-300-100": ("ablation", "variant", "recipe"),
    "lenet-5-caffe": (TRIED, "attempt", "g1"),
    "resnet-20": (TRIED, "attempt", "e1"),
}
"""Network -> the file, the key and the name of our result beside pruning."""


def lines_of(name: str) -> list[dict[str, Any]]:
    """The results that a program has appended to a file."""
    file = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (error, bytes) those that no other beats in both, by error."""
    best: list[tuple[float, float]] = []
    for error, size in sorted(points):
        if not best or size < best[-1][1]:
            best.append((error, size))
    return best


def bytes_at(error: float, points: Iterable[tuple[float, float]]) -> float:
    """The bytes at an error, their logarithm interpolated between the two nearest of the front.

    Returns:
        nan where the error is not between two points.
    """
    best = front(points)
    for (low, large), (high, small) in pairwise(best):
        if low <= error <= high:
            share = (error - low) / (high - low)
            return math.exp((1.0 - share) * math.log(large) + share * math.log(small))
    return math.nan


def ours(net: str) -> dict[str, Any] | None:
    """What pruning is compared with: a result of ours on the same network and images."""
    file, key, name = OURS[net]
    found = next((r for r in lines_of(file) if r[key] == name), None)
    if found is not None and "validation_error_percent" not in found:
        found["validation_error_percent"] = found["compressed_validation_error_percent"]
    return found


def pruning_table() -> list[str]:
    """Gradual pruning and straight-through k-means against ours, at equal training time."""
    lines = [
        "## Beside pruning",
        "",
        "Gradual magnitude pruning, a share for each tensor, and straight-through k-means, in our "
        "own codec; seed 0, validation images, bytes of the whole file. Ours is the recipe of the "
        "table below, and attempts "
        + " and ".join(f"{name} ({net})" for net, (file, _, name) in OURS.items() if file == TRIED)
        + " of `attempts.jsonl`. Pruning's bytes at our error lie between its two nearest points, "
        "on a line of their logarithm.",
        "",
        "| network | method | error % | bytes | non-zero | minutes of one core |",
        "|---|---|---|---|---|---|",
    ]
    for net in OURS:
        lines += _pruned_rows(net)
    return [*lines, ""]


def _pruned_rows(net: str) -> list[str]:
    found, attempts = ours(net), [r for r in lines_of("pruning") if r["net"] == net]
    if found is None or not attempts:
        return [f"| {net} | not run | | | | |"]
    rows = [
        f"| {net} | pruning, {r['note']} | {r['validation_error_percent']:.2f} | "
        f"{r['size_bytes']:,} | {sum(r['nonzero'][n] for n in r['kept']):,} | "
        f"{r['processor_seconds'] / 60:.1f} |"
        for r in sorted(attempts, key=lambda r: r["validation_error_percent"])
    ]
    error, size = found["validation_error_percent"], found["size_bytes"]
    theirs = bytes_at(error, ((r["validation_error_percent"], r["size_bytes"]) for r in attempts))
    if math.isnan(theirs):
        between, saved = "no two points around it", ""
    else:
        between, saved = f"{theirs:,.0f}", f" ({100 * (size / theirs - 1):+.0f} %)"
    return [
        *rows,
        f"| {net} | pruning, interpolated at our error | {error:.2f} | {between} | | |",
        f"| {net} | **ours** | {error:.2f} | {size:,}{saved} | {found['nonzero']:,} | "
        f"{found['processor_seconds'] / 60:.1f} |",
    ]


def ablation_table() -> list[str]:
    """One step of the method changed at a time, at one validation error."""
    made = {r["variant"]: r for r in lines_of("ablation")}
    lines = [
        "## What decides: training",
        "",
        "LeNet-300-100 without augmentation, seed 0: one step changed at a time, the same dense "
        "network, strengths and epochs (fewer than the row's). Each variant spends what is left up "
        "to the limit of errors on the validation images, so that bytes are at one error.",
        "",
        "| variant | bytes at the limit | against the recipe | error % | non-zero | "
        "bytes and error % after the phases | minutes of one core |",
        "|---|---|---|---|---|---|---|",
    ]
    base = made.get("recipe")
    for name, words in VARIANTS.items():
        r = made.get(name)
        if r is None or base is None:
            lines.append(f"| {words} | not run | | | | | |")
            continue
        after = r["after_the_phases"]
        size = f"{r['size_bytes']:,}" if r["met"] else f"{r['size_bytes']:,}, limit missed"
        more = f"{100 * (r['size_bytes'] / base['size_bytes'] - 1.0):+.0f} %"
        lines.append(
            f"| {words} | {size} | {more if r['met'] and r is not base else ''} | "
            f"{r['validation_error_percent']:.2f} | {r['nonzero']:,} | {after['size_bytes']:,}, "
            f"{after['validation_error_percent']:.2f} | {r['processor_seconds'] / 60:.1f} |"
        )
    return [*lines, ""]


def coding_table() -> list[str]:
    """What contexts and sorting save on the kept files."""
    lines = [
        "## What decides: the coder",
        "",
        "Each kept file, written again without context models, with its inner neurons in random "
        "orders (mean of three), and with neither: the same network each time.",
        "",
        "| file | bytes | without contexts | without sorting | without both |",
        "|---|---|---|---|---|",
    ]
    for r in lines_of("coding"):
        cells = (
            f"{r[k]:,} ({100 * (r[k] / r['size_bytes'] - 1):+.0f} %)"
            for k in ("without_contexts", "without_sorting", "without_both")
        )
        lines.append(f"| {r['file']} | {r['size_bytes']:,} | {' | '.join(cells)} |")
    return [*lines, ""]
