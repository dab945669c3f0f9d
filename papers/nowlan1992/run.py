#!/usr/bin/env python3
"""Nowlan & Hinton 1992, run again: every method, every seed, then the figures.

    swsmix reproduce nowlan1992             everything; resumes where it was stopped
    swsmix reproduce nowlan1992 --quick     a few seeds, under two minutes
    swsmix reproduce nowlan1992 --figure shift-accuracy
    python papers/nowlan1992/run.py --only bayes

The unit of work is a line of a table in results/; what is there is not run again. A unit's numbers
do not depend on --jobs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process: such nets want no more
# `papers` and `swsmix` of this checkout, in the place of this folder.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from papers.nowlan1992 import bayes, portraits, selection, shift, sunspots
from swsmix._files import replacing, save_json

HERE = Path(__file__).resolve().parent
ROOT, SEEDS = HERE.parents[1], 20


@dataclass(frozen=True)
class Unit:
    """One piece of work, a line of a table.

    Attributes:
        table: the file's stem.
        key: names the unit in it.
        work: called with the arguments in a process of its own.
        arguments: positional.
        options: by name.
        stamp: what the result depends on beside the key, written into the line; a line with
            another stamp is made anew.
    """

    table: str
    key: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    stamp: dict[str, Any]

    def __call__(self) -> tuple[dict[str, Any], float]:
        """The result, and the seconds it took."""
        torch.set_num_threads(1)
        began = time.monotonic()
        return self.work(*self.arguments, **self.options), time.monotonic() - began


class Table:
    """Results by key in a file of JSON lines, in order of the keys; replaced whole, never torn."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, dict[str, dict[str, Any]]()
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self.lines = {line["unit"]: line for line in lines}

    def has(self, unit: Unit) -> bool:
        """Whether the unit's result is there, made as it would be now."""
        return unit.key in self.lines and self.lines[unit.key]["stamp"] == unit.stamp

    def put(self, unit: Unit, result: dict[str, Any], seconds: float) -> None:
        """Add a result and write the file."""
        about = {"unit": unit.key, "stamp": unit.stamp, "seconds": round(seconds, 1)}
        self.lines[unit.key] = about | result
        with replacing(self.path) as temporary:
            lines = [json.dumps(self.lines[k]) for k in sorted(self.lines)]
            temporary.write_text("\n".join(lines) + "\n")


def work_off(units: Iterable[Unit], results: Path, jobs: int) -> None:
    """Run the units that are not in their tables yet."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    units = list(units)
    tables = {name: Table(results / f"{name}.jsonl") for name in {u.table for u in units}}
    todo = [u for u in units if not tables[u.table].has(u)]
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        bar = progress.add_task("units", total=len(units), completed=len(units) - len(todo))
        for unit, (result, seconds) in _each(todo, jobs):
            tables[unit.table].put(unit, result, seconds)
            progress.update(bar, advance=1, description=f"{unit.table}: {unit.key}")


def _each(units: list[Unit], jobs: int) -> Iterator[tuple[Unit, tuple[dict[str, Any], float]]]:
    """The units as they are done, in this process or in several."""
    if jobs == 1:
        yield from ((unit, unit()) for unit in units)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {pool.submit(unit): unit for unit in units}
        try:
            yield from ((running[done], done.result()) for done in as_completed(running))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> None:
    """Run what is asked for."""
    arguments = _arguments()
    from papers.nowlan1992 import figures  # the workers draw nothing

    if arguments.figure not in (None, *figures.DRAWINGS):
        raise SystemExit(f"the figures are {', '.join(figures.DRAWINGS)}; got {arguments.figure!r}")
    quick, seeds = arguments.quick, arguments.seeds or (2 if arguments.quick else SEEDS)
    home = arguments.out or (Path("runs/nowlan1992-quick") if quick else HERE)
    if home == HERE and seeds != SEEDS:
        raise SystemExit(
            f"{HERE / 'results'} holds {SEEDS} seeds a method, which --seeds {seeds} would replace:"
            " give it a folder of its own with --out"
        )
    pictures = home / "figures" if arguments.out or quick else ROOT / "figures" / HERE.name
    results = home / "results"
    for folder in (results, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.figure is None:
        jobs = arguments.jobs or os.cpu_count() or 1
        for stage in stages(results, seeds, quick=quick):
            wanted = [u for u in stage if arguments.only in (None, u.table)]
            work_off(wanted, results, jobs)
            save_json(results / "run.json", about(results, seeds, quick=quick))
    for path in figures.draw(results, pictures, only=arguments.figure):
        print(path)
    if home == HERE:
        figures.fill_(HERE / "README.md", results)
    if quick and arguments.figure is None:
        figures.check_direction(results)


def stages(results: Path, seeds: int, *, quick: bool) -> Iterable[list[Unit]]:
    """The units, stage by stage; a stage may read what those before it have written.

    Yields:
        Lists of units that do not depend on each other.
    """
    small: dict[str, Any] = {"restarts": 4, "modes": ["em"], "quick": True}
    few = {"restarts": 2 if quick else 10}
    candidates, every = selection.candidates(quick=quick), range(seeds)
    first = every[:6]  # as many networks a fold
    shifts = {
        name: [
            Unit("shift", f"{name}-{seed:03d}", shift.unit, (seed, name), size, stamp)
            for seed in every
        ]
        for name in shift.SETTINGS
        for size in [small if quick else shift.EFFORT.get(name, {"restarts": 20})]
        for stamp in [size | shift.stamp(name, size.get("modes"))]
    }
    units = shifts.pop("n100")
    units += [
        Unit("sunspots-validation", key, sunspots.validate, (name, setting, first), {}, stamp)
        for key, name, setting in candidates
        for stamp in [{"seeds": len(first), "setting": setting}]
    ]
    units += [
        Unit("portraits", key, portraits.shared, arguments, few, few)
        for key, arguments in portraits.SHARED.items()
        if not quick or key.endswith("-em")
    ]
    units += [
        Unit("portraits", key, portraits.plain, arguments, {}, {})
        for key, arguments in portraits.PLAIN.items()
    ]
    yield units

    scores = Table(results / "sunspots-validation.jsonl").lines
    final = [
        Unit("sunspots-final", f"{name}, by {by}", sunspots.final, (members, every), {}, stamp)
        for by in selection.BY
        for name, members in selection.chosen(scores, by).items()
        for stamp in [{"seeds": seeds, "members": [[*member] for member in members]}]
    ]
    final += [
        Unit("sunspots-final", name, sunspots.baseline, (name,), {}, {})
        for name in selection.BASELINES
    ]
    yield final
    if quick:
        return
    yield shifts.pop("squared") + shifts.pop("squashed")
    # Seed after seed, so that what is there at any time compares the sizes on the same seeds.
    yield [unit for sizes in zip(*shifts.values(), strict=True) for unit in sizes]
    yield [
        Unit(table, name, work, (name, bayes.LENGTHS[table]), {}, bayes.stamp(table, name))
        for table, work in (("bayes-rolling", bayes.score), ("bayes", bayes.final))
        for name in bayes.SETTINGS
    ]

    # What follows looks at the test years of every setting, and at 1980-2008: nothing is chosen
    # after it.
    yield [
        Unit("sunspots-hindsight", key, sunspots.hindsight, (name, setting, first), {}, stamp)
        for key, name, setting in candidates
        for stamp in [{"seeds": len(first), "setting": setting}]
    ]
    yield [
        Unit("sunspots-confirm", name, sunspots.confirm, (name, line), {}, line["stamp"])
        for name, line in Table(results / "sunspots-final.jsonl").lines.items()
    ]


def about(results: Path, seeds: int, *, quick: bool) -> dict[str, Any]:
    """How the results were made.

    Returns:
        Command, seeds, machine, versions, and the minutes of all units, over all runs.
    """
    import swsmix

    lines = [x for path in sorted(results.glob("*.jsonl")) for x in Table(path).lines.values()]
    return {
        "command": "swsmix reproduce nowlan1992" + (" --quick" if quick else ""),
        "seeds": seeds,
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "swsmix": swsmix.__version__,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 seeds, fewer methods and settings")
    parser.add_argument(
        "--only", metavar="TABLE", help="make this table of results alone, as bayes"
    )
    parser.add_argument("--figure", help="draw this figure alone, from the results")
    parser.add_argument(
        "--seeds", type=int, help="seeds a method; 20 (others want --out), or 2 with --quick"
    )
    parser.add_argument("--jobs", type=int, help="processes; one a core by default")
    parser.add_argument("--out", type=Path, help="a folder for results/ and figures/")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
