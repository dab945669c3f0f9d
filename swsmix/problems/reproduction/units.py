"""Units of work and their results: lines of tables, or files of their own.

    results/TABLE.jsonl    a line per unit, in order of the keys
    results/KEY.json       a unit with a file of its own
    results/run.json       how the results were made; written by the runner

Files are written whole or not at all.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from swsmix.training.runs import replacing, save_json


class DamagedResultError(ValueError):
    """A file of results that cannot be read; the message names the file, and the line."""


@dataclass(frozen=True)
class Unit:
    """One call whose result is kept.

    Attributes:
        table: the kind of result: the stem of the file whose line it is.
        key: the unit's name, unique in its table.
        work: a function of a module, called in a process of its own; it returns plain values.
        arguments: its positional arguments.
        options: its keyword arguments.
        stamp: what the result depends on beside the key, written with it; a result with another
            stamp is made anew.
        own_file: keep the result in `KEY.json` instead of in a line of the table.
        leaves: files that the work leaves elsewhere; where one is missing the unit is run again.
        checkpoints: a folder from which the work resumes, deleted once the result is kept.
    """

    table: str
    key: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    stamp: Mapping[str, Any] = field(default_factory=dict)
    own_file: bool = False
    leaves: tuple[Path, ...] = ()
    checkpoints: Path | None = None

    def __call__(self) -> tuple[dict[str, Any], float]:
        """The result, and the seconds it took."""
        torch.set_num_threads(1)  # one unit per core is faster than two threads per unit
        began = time.monotonic()
        return self.work(*self.arguments, **self.options), time.monotonic() - began

    def file(self, results: Path) -> Path:
        """The file that holds the result."""
        return results / (f"{self.key}.json" if self.own_file else f"{self.table}.jsonl")


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of JSON lines.

    Returns:
        The results by unit; none if there is no file.

    Raises:
        DamagedResultError: if a line is not a result, or a unit has two.
    """
    lines: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return lines
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        line = _parsed(text, f"line {number} of {path}", needs="unit")
        if line["unit"] in lines:
            raise DamagedResultError(
                f"line {number} of {path} is a second result of {line['unit']!r}: delete one"
            )
        lines[line["unit"]] = line
    return lines


def _parsed(text: bytes, where: str, needs: str | None = None) -> dict[str, Any]:
    mend = "mend it, restore it from version control, or delete it: what is missing is run again"
    try:
        value = json.loads(text)
    except ValueError as error:  # a UnicodeDecodeError too
        raise DamagedResultError(f"{where} is damaged ({error}): {mend}") from error
    if not isinstance(value, dict) or (needs is not None and needs not in value):
        wanted = "a JSON object" + (f" with the key {needs!r}" if needs else "")
        raise DamagedResultError(f"{where} needs to be {wanted}; got {text[:60]!r}: {mend}")
    return value


def unfinished(units: Iterable[Unit], results: Path) -> list[Unit]:
    """The units whose results are missing, or were made with another stamp."""
    tables: dict[Path, dict[str, dict[str, Any]]] = {}

    def done(unit: Unit) -> bool:
        file = unit.file(results)
        if not file.is_file() or not all(left.is_file() for left in unit.leaves):
            return False
        if unit.own_file:
            result = _parsed(file.read_bytes(), str(file))
            return all(name in result and result[name] == v for name, v in unit.stamp.items())
        if file not in tables:
            tables[file] = read_table(file)
        return tables[file].get(unit.key, {}).get("stamp") == unit.stamp

    return [unit for unit in units if not done(unit)]


def keep(unit: Unit, result: Mapping[str, Any], seconds: float, results: Path) -> None:
    """Write a unit's result, and delete the checkpoints that it no longer needs."""
    file, spent = unit.file(results), {"seconds": round(seconds, 1)}
    if unit.own_file:
        save_json(file, {**result, **spent, **unit.stamp, **machine()})
    else:
        lines = read_table(file)  # again: another run may have added to it
        lines[unit.key] = {"unit": unit.key, "stamp": dict(unit.stamp), **spent, **result}
        with replacing(file) as temporary:
            text = "".join(f"{json.dumps(lines[key])}\n" for key in sorted(lines))
            temporary.write_text(text, encoding="utf-8")
    discard_checkpoints([unit])


def discard_checkpoints(units: Iterable[Unit]) -> None:
    """Delete the checkpoints of units whose results are kept."""
    for unit in units:
        if unit.checkpoints is not None:
            rmtree(unit.checkpoints, ignore_errors=True)


def machine() -> dict[str, str]:
    """What the results were made on."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "torch": str(torch.__version__),
    }


def total_seconds(results: Path) -> float:
    """The seconds of all units whose results are there, over all runs."""
    # A hidden file was being written when a process was killed.
    files = [path for path in results.glob("[!.]*.json") if path.name != "run.json"]
    kept = [_parsed(path.read_bytes(), str(path)) for path in files]
    kept += [line for path in results.glob("[!.]*.jsonl") for line in read_table(path).values()]
    return float(sum(one.get("seconds", 0.0) for one in kept))
