#!/usr/bin/env python3
"""Nowlan & Hinton 1992, run again: every method, every seed, then the figures.

    swsmix reproduce nowlan1992             everything; goes on where it was stopped
    swsmix reproduce nowlan1992 --quick     a few seeds, under two minutes
    swsmix reproduce nowlan1992 --figure shift-accuracy
    swsmix reproduce nowlan1992 --only bayes

Each unit of work makes one line of a table in results/; see swsmix/problems/reproduction.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small are slower on two threads
# Import `papers` and `swsmix` from this checkout, and nothing from this folder.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from swsmix.problems.reproduction import signals

if __name__ == "__main__":
    signals.end_quietly()

from papers.nowlan1992 import bayes, portraits, selection, shift, sunspots
from swsmix.problems.reproduction import runner
from swsmix.problems.reproduction.runner import Places
from swsmix.problems.reproduction.units import Unit, read_table

HERE = Path(__file__).resolve().parent
SEEDS = 20


def stages(places: Places, seeds: int, *, quick: bool) -> Iterable[list[Unit]]:
    """The units, stage by stage; a stage may read what those before it have written.

    Yields:
        Lists of units that do not depend on each other.
    """
    small: dict[str, Any] = {"restarts": 4, "modes": ["em"], "quick": True}
    few = {"restarts": 2 if quick else 10}
    candidates, every = selection.candidates(quick=quick), range(seeds)
    first = every[:6]  # validation trains six networks per fold
    shifts = {
        name: [
            Unit("shift", f"{name}-{seed:03d}", shift.unit, (seed, name), size, stamp)
            for seed in every
        ]
        for name in shift.PROBLEMS
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
        Unit("modes", key, portraits.objectives, arguments, few, {"seeds": few["restarts"]})
        for key, arguments in portraits.SHARED.items()
        if not quick or key.endswith("-em")
    ]
    units += [
        Unit("portraits", key, portraits.plain, arguments)
        for key, arguments in portraits.PLAIN.items()
    ]
    yield units

    scores = read_table(places.results / "sunspots-validation.jsonl")
    final = [
        Unit("sunspots-final", f"{name}, by {by}", sunspots.final, (members, every), {}, stamp)
        for by in selection.BY
        for name, members in selection.chosen(scores, by).items()
        for stamp in [{"seeds": seeds, "members": [[*member] for member in members]}]
    ]
    final += [
        Unit("sunspots-horizons", name, sunspots.horizons, (members, every), {}, stamp)
        for name, members in selection.chosen(scores, "single").items()
        if name in selection.METHODS
        for stamp in [{"seeds": seeds, "members": [[*member] for member in members]}]
    ]
    final += [
        Unit("sunspots-final", name, sunspots.baseline, (name,)) for name in selection.BASELINES
    ]
    yield final
    if quick:
        return
    yield shifts.pop("squared") + shifts.pop("squashed")
    # Seed by seed, so that a run that was stopped has compared the sizes on the same seeds.
    yield [unit for sizes in zip(*shifts.values(), strict=True) for unit in sizes]
    yield [
        Unit(table, name, work, (name, bayes.LENGTHS[table]), {}, bayes.stamp(table, name))
        for table, work in (("bayes-rolling", bayes.score), ("bayes", bayes.final))
        for name in bayes.MODELS
    ]

    # From here on the units read the test years of every setting, and 1980-2008: nothing is chosen
    # afterwards.
    yield [
        Unit("sunspots-hindsight", key, sunspots.hindsight, (name, setting, first), {}, stamp)
        for key, name, setting in candidates
        for stamp in [{"seeds": len(first), "setting": setting}]
    ]
    yield [
        Unit("sunspots-confirm", name, sunspots.confirm, (name, line), {}, line["stamp"])
        for name, line in read_table(places.results / "sunspots-final.jsonl").items()
    ]


def main() -> None:
    """Run what is asked for."""
    from papers.nowlan1992 import figures  # loads matplotlib, which the workers do not need

    paper = runner.Paper(
        folder=HERE,
        description=str(__doc__),
        stages=stages,
        figures=[*figures.DRAWINGS],
        draw=figures.draw,
        seeds=SEEDS,
        quick_seeds=2,
        fixed_seeds=True,
        record=lambda results: figures.fill_(HERE / "README.md", results),
        check_quick=figures.check_direction,
    )
    runner.main(paper)


if __name__ == "__main__":
    main()
