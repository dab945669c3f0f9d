"""A paper of two stages whose units only note that they were called."""

import dataclasses
from pathlib import Path

from swsmix.problems.reproduction import units
from swsmix.problems.reproduction.runner import Paper
from swsmix.problems.reproduction.units import Unit

NAMES = ("d", "b", "a", "c", "e")


def double(log, name, stop=None):
    """Note the call, then give a result; or end as it is told."""
    with open(log, "a") as file:
        file.write(f"{name} ")
    if stop == "error" and not Path(log).with_name("mended").exists():
        raise ValueError("too few cases")
    if stop == "interrupt":
        raise KeyboardInterrupt
    return {"value": 2 * ord(name), "name": name}


def make(folder, stops=(), table="table", **more):
    stops = dict(stops)
    return [
        Unit(table, name, double, (str(folder / "calls"), name, stops.get(name)), **more)
        for name in NAMES
    ]


def calls(folder):
    file = folder / "calls"
    return file.read_text().split() if file.exists() else []


def lines(folder, table="table"):
    """The results without the seconds that they took."""
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in units.read_table(folder / f"{table}.jsonl").values()
    ]


EXPECTED = [
    {"unit": name, "stamp": {}, "value": 2 * ord(name), "name": name} for name in sorted(NAMES)
]


def fake(folder, **changes):
    """A paper of two stages; the second reads what the first has written."""
    log = folder / "calls"

    def stages(places, seeds, *, quick):
        yield [Unit("first", f"s{s}", double, (str(log), "a")) for s in range(seeds)]
        known = units.read_table(places.results / "first.jsonl")
        total = sum(line["value"] for line in known.values())
        yield [Unit("second", f"of {total}", double, (str(log), "b"))]

    def draw(results, pictures, *, only=None):
        text = ",".join(units.read_table(results / "first.jsonl"))
        file = pictures / f"{only or 'all'}.txt"
        file.write_text(text)
        return [file]

    paper = Paper(
        folder=folder / "fake2026", description="Fake.", stages=stages, figures=["curve"],
        draw=draw, seeds=3, quick_seeds=1,
    )  # fmt: skip
    return dataclasses.replace(paper, **changes)
