#!/usr/bin/env python3
"""One attempt at better settings, on the validation images alone.

    papers/ullrich2017/explore.py m0 lenet-300-100-shifted
    papers/ullrich2017/explore.py m1 lenet-300-100-shifted --first-phase m0 quantise_tau=0.03
    papers/ullrich2017/explore.py p0 lenet-5-caffe-shifted sparsify_tau=0.5 batch_size=128
    papers/ullrich2017/explore.py e0 resnet-20 sparsify_tau=0.2   the dense network must be there

A setting of `settings.py` is changed where an argument says so, the network is compressed as the
final run would do it, and a line is added to `attempts.jsonl`. A row of `cifar.py` has its phases
alone, without the search for what it may lose. The test images are not read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Import `papers` and `swsmix` from this checkout, and nothing from this folder.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from papers.ullrich2017 import cifar, run, settings, work
from swsmix.compression.recipe import Recipe
from swsmix.problems.reproduction.runner import Places
from swsmix.problems.reproduction.units import keep

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

ATTEMPTS = HERE / "attempts.jsonl"
SCRATCH = ROOT / "runs" / HERE.name


def main() -> None:
    """Make the attempt."""
    arguments = _arguments()
    setting, changes = changed(arguments.base, arguments.change)
    attempt = _on_cifar if isinstance(setting, cifar.Row) else _on_mnist
    result = attempt(arguments, setting)
    shown = {
        key: result[key] for key in ("size_bytes", "ratio", "compressed_validation_error_percent")
    }
    line = {
        "attempt": arguments.name,
        "base": arguments.base,
        "changes": changes,
        "first_phase": arguments.first_phase,
        "seed": arguments.seed,
        **shown,
        "by_phase": result.get("validation_error_by_phase"),
        "nonzero": sum(result["nonzero"].values()),
        "values": result["values"],
        "seconds": result["seconds"],
        "processor_seconds": result["processor_seconds"],
        "recipe": result["recipe"],
        "note": arguments.note,
    }
    with ATTEMPTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


def _on_mnist(arguments: argparse.Namespace, setting: settings.Setting) -> dict[str, Any]:
    """As the units of `work.py`, but for the test images."""
    torch.set_num_threads(1)
    setting = dataclasses.replace(setting, name=f"attempt-{arguments.name}", portrait=False)
    seed, results = arguments.seed, SCRATCH / "attempts"
    results.mkdir(parents=True, exist_ok=True)
    if not work.dense_file(setting, seed, SCRATCH).is_file():
        pretrain = run.pretrained(setting, seed, Places(results, results, SCRATCH), None)
        keep(pretrain, *pretrain(), results)
    if arguments.first_phase:
        for phase in ("sparsify", "quantise")[: arguments.phases]:
            done = SCRATCH / "runs" / f"attempt-{arguments.first_phase}-seed{seed}" / phase
            mine = SCRATCH / "runs" / f"{setting.name}-seed{seed}" / phase
            shutil.copytree(done, mine, dirs_exist_ok=True)
    return _timed(work.compress, setting, seed, SCRATCH, results)


def _on_cifar(arguments: argparse.Namespace, row: cifar.Row) -> dict[str, Any]:
    """The phases of a row, from the dense network that `--only` has left."""
    own = SCRATCH / "attempts" / arguments.name
    files = [cifar.dense_file(row, arguments.seed, folder) for folder in (SCRATCH, own)]
    if not files[0].is_file():
        raise SystemExit(f"there is no {files[0]}: swsmix reproduce ullrich2017 --only {row.name}")
    files[1].parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(*files)
    row = dataclasses.replace(row, allowed=None)
    return _timed(cifar.compress, row, arguments.seed, own, own)


def _timed(compress: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a unit's compression gives, without the test images, and what it takes."""
    began, busy = time.monotonic(), time.process_time()
    result = compress(*arguments, None, test=False)
    return result | {
        "seconds": round(time.monotonic() - began),
        "processor_seconds": round(time.process_time() - busy),
    }


def changed(base: str, changes: list[str]) -> tuple[settings.Setting | cifar.Row, dict[str, Any]]:
    """A setting or row by its name, with fields of its own or of its recipe replaced.

    Returns:
        The setting, and the changes by field.

    Raises:
        SystemExit: if there is no such setting, or no such field.
    """
    known: dict[str, settings.Setting | cifar.Row] = {s.name: s for s in settings.MAIN}
    known |= cifar.ROWS
    if base not in known:
        raise SystemExit(f"the settings are {', '.join(known)}; got {base!r}")
    setting, values = known[base], {}
    for change in changes:
        field, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise SystemExit(f"a change needs to be FIELD=NUMBER; got {change!r}") from None
        values[field] = value
        if field in {f.name for f in dataclasses.fields(Recipe)} and setting.recipe is not None:
            recipe = dataclasses.replace(setting.recipe, **{field: value})
            setting = dataclasses.replace(setting, recipe=recipe)
        elif field in {f.name for f in dataclasses.fields(setting)}:
            setting = dataclasses.replace(setting, **{field: value})
        else:
            raise SystemExit(f"neither the setting nor its recipe has a field {field!r}")
    return setting, values


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the attempt")
    parser.add_argument("base", help="a setting of settings.py, by name")
    parser.add_argument("change", nargs="*", help="FIELD=NUMBER, of the setting or its recipe")
    parser.add_argument("--first-phase", metavar="NAME", help="begin after this attempt's first")
    parser.add_argument("--phases", type=int, default=1, help="so many of its phases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="why it was tried, or what it showed")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
