"""The figures, from the tables in results/, and their index."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from papers.nowlan1992 import (
    drawings_bayes,
    drawings_nets,
    drawings_shift,
    drawings_sunspots,
    tables,
)
from papers.nowlan1992.intervals import compare
from swsmix import plots
from swsmix.problems.reproduction.units import read_table
from swsmix.training.runs import replacing

HERE = Path(__file__).resolve().parent
Lines = Mapping[str, Mapping[str, Any]]
DRAWINGS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = (
    drawings_shift.DRAWINGS
    | drawings_sunspots.DRAWINGS
    | drawings_nets.DRAWINGS
    | drawings_bayes.DRAWINGS
)
"""Figure -> the function that draws it and the tables it reads; without the first there is none."""
COMPARISONS = ("bayes-evidence",)
"""Figures that compare the lines of a table, so need two."""


def read(results: Path, table: str) -> dict[str, dict[str, Any]]:
    """A table of results by unit; empty if there is none."""
    return read_table(results / f"{table}.jsonl")


def draw(results: Path, pictures: Path, *, only: str | None = None) -> list[Path]:
    """Draw the figures whose tables are there, and write their index.

    Args:
        results: the folder of the tables.
        pictures: where to write.
        only: draw only this figure, a key of DRAWINGS.

    Returns:
        The files written.

    Raises:
        SystemExit: if the results of the one figure are missing.
    """
    written = []
    for name, (function, wanted) in DRAWINGS.items():
        if only not in (None, name):
            continue
        inputs = [read(results, table) for table in wanted]
        least = 2 if name in COMPARISONS else 1
        if len(inputs[0]) < least:  # the other tables are extras
            if only is not None:
                raise SystemExit(
                    f"{name} needs results of {wanted[0]}, at least {least}; got "
                    f"{len(inputs[0])}: run it without --figure"
                )
            continue
        written.append(plots.save(function(*inputs), pictures / f"{name}.png"))
    index = pictures / "README.md"
    with replacing(index) as temporary:
        temporary.write_text(_index(results, pictures))
    return [*written, index]


def _index(results: Path, pictures: Path) -> str:
    """The index: figure, the paper's counterpart, command, seeds, minutes."""
    paper = tomllib.loads((HERE / "paper.toml").read_text())
    about = results / "run.json"
    run = json.loads(about.read_text()) if about.is_file() else {}
    lines = [
        f"# {paper['title']}: the figures",
        "",
        "Generated from the tables in the paper's results folder; do not edit. All, with their",
        f"results: `{run.get('command', '?')}`, {run.get('seeds', '?')} seeds, "
        f"{run.get('machine', '?')}, torch {run.get('torch', '?')}. One again: the command in its "
        "row. Minutes are those of the units behind a figure, by the clock, summed over processes "
        "(on a machine with other work, so more than they need).",
        "",
        "| figure | the paper's counterpart | command | seeds | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for figure in paper["figures"]:
        name = figure["name"]
        if not (pictures / f"{name}.png").is_file() or name not in DRAWINGS:
            continue
        behind = [read(results, table) for table in DRAWINGS[name][1]]
        minutes = sum(line["seconds"] for table in behind for line in table.values()) / 60
        command = f"`swsmix reproduce nowlan1992 --figure {name}`"
        seeds = _seeds(behind[0]) + ("; plain and decay: one net" if name.endswith("-nets") else "")
        cells = (f"[{name}]({name}.png)", figure["counterpart"], command, seeds)
        cells += (f"{minutes:.1f}",)
        lines.append(f"| {' | '.join(cells)} |")
    for figure in paper["figures"]:
        name = figure["name"]
        if (pictures / f"{name}.png").is_file():
            lines += ["", f"## {name}", "", f"![{figure['shows']}]({name}.png)", ""]
            counterpart = f"The paper's counterpart: {figure['counterpart']}"
            if figure["counterpart"].startswith("None: "):
                words = figure["counterpart"].removeprefix("None: ")
                counterpart = words[0].upper() + words[1:]
            lines += [f"*{figure['shows']} {counterpart}*"]
    return "\n".join([*lines, "", "## The numbers", "", numbers(results)]) + "\n"


def _seeds(lines: Lines) -> str:
    """What a figure is an average over, from the lines of its table."""
    line = next(iter(lines.values()))
    if "rounds" in line or "net" in line:
        return f"best of {max(each['stamp'].get('restarts', 1) for each in lines.values())}"
    if "methods" in line:
        sets = Counter(unit.partition("-")[0] for unit in lines)
        return ", ".join(f"{name}: {many}" for name, many in sets.items()) + " data sets"
    return str(max(each["stamp"].get("seeds", 1) for each in lines.values()))


def numbers(results: Path) -> str:
    """The tables "published / ours" from the results.

    Returns:
        Markdown.
    """
    sunspots = (read(results, "sunspots-final"), read(results, "sunspots-confirm"))
    bayes = (read(results, "bayes"), read(results, "bayes-rolling"))
    parts = (
        tables.shift_tables(read(results, "shift")),
        tables.sunspot_tables(*sunspots),
        drawings_bayes.table(*bayes, sunspots[0]),
    )
    return "\n".join(part for part in parts if part)


def fill_(readme: Path, results: Path) -> None:
    """Put the present tables between the marks in the paper's README."""
    begin, end = "<!-- numbers -->\n", "<!-- end of numbers -->"
    head, rest = readme.read_text().split(begin)
    _, tail = rest.split(end)
    with replacing(readme) as temporary:
        temporary.write_text(f"{head}{begin}\n{numbers(results)}\n\n{end}{tail}")


def check_direction(results: Path) -> None:
    """The quick run's bound: soft weight-sharing generalises better than back-propagation.

    Raises:
        SystemExit: if the pipeline's results point the other way.
    """
    units = list(read(results, "shift").values())
    names = ("soft-sharing, 10 components, em", "back-propagation")
    shared, plain = ([u["methods"][n]["ensemble"] for u in units] for n in names)
    gain = compare(shared, plain).difference.mean
    print(f"shift: ensembles, soft-sharing minus back-propagation: {gain:+.1f} points of accuracy")
    if not gain > 2.0:
        raise SystemExit("soft weight-sharing should win by more than 2 points: something is wrong")
