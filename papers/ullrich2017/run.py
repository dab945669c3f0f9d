#!/usr/bin/env python3
"""Ullrich, Meeds & Welling 2017, run again and further: networks in files that really are small.

    swsmix reproduce ullrich2017             everything; resumes where it was stopped
    swsmix reproduce ullrich2017 --quick     a subset of the images, a few epochs: does it run?
    swsmix reproduce ullrich2017 --figure pareto

The unit of work is a file in results/: a pretrained network, or a compressed one. What is there is
not run again, and a unit that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one unit a core beats two threads a unit
# `papers` and `swsmix` of this checkout, in the place of this folder.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from papers.ullrich2017 import figures, settings, work
from swsmix._files import save_json
from swsmix.problems.mnist import mnist

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Unit:
    """One piece of work and the file of its result.

    Attributes:
        kind: `"pretrain"` or `"compress"`.
        setting: how.
        seed: of the split, the initial weights and the batches.
        scratch: where networks, files and checkpoints go.
        results: where the result goes.
        subset: so many images only, for a quick look.
    """

    kind: str
    setting: work.Setting
    seed: int
    scratch: Path
    results: Path
    subset: int | None

    @property
    def key(self) -> str:
        """The name of the result."""
        name = self.setting.pretraining if self.kind == "pretrain" else self.setting.name
        return f"{name}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """The file of the result."""
        return self.results / f"{self.key}.json"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do; a lost pretrained network is trained again."""
        if self.kind == "pretrain" and not self.network.is_file():
            return False
        return self.result.is_file()

    @property
    def network(self) -> Path:
        """The pretrained network's file."""
        name = f"{self.setting.pretraining}-seed{self.seed}.safetensors"
        return self.scratch / "pretrained" / name

    def __call__(self) -> float:
        """Do the work and write the result.

        Returns:
            The seconds it took.
        """
        torch.set_num_threads(1)
        began = time.monotonic()
        function = work.pretrain if self.kind == "pretrain" else work.compress
        found = function(self.setting, self.seed, self.scratch, self.results, self.subset)
        seconds = time.monotonic() - began
        about = {"seconds": round(seconds, 1), "subset": self.subset, **machine()}
        save_json(self.result, found | about)
        shutil.rmtree(self.scratch / "runs" / self.key, ignore_errors=True)
        return seconds


def machine() -> dict[str, str]:
    """What the times were measured on."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a unit",
        "torch": str(torch.__version__),
    }


def stages(scratch: Path, results: Path, seeds: int, *, quick: bool) -> Iterable[list[Unit]]:
    """First the pretrained networks, then what is made of them."""
    wanted = settings.quick() if quick else settings.full(seeds)
    subset = settings.QUICK_IMAGES if quick else None
    compress = [
        Unit("compress", setting, seed, scratch, results, subset) for setting, seed in wanted
    ]
    left = [unit for unit in compress if not unit.done]
    pretrain: dict[str, Unit] = {}
    for unit in left:
        needed = Unit("pretrain", unit.setting, unit.seed, scratch, results, subset)
        pretrain.setdefault(needed.key, needed)
    yield list(pretrain.values())
    yield compress


def work_off(units: list[Unit], jobs: int) -> float:
    """Do the units that are not done yet, `jobs` at a time.

    Returns:
        Their seconds, added up.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    todo = [unit for unit in units if not unit.done]
    total = 0.0
    columns = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    ]  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with Progress(*columns) as progress, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        bar = progress.add_task("units", total=len(units), completed=len(units) - len(todo))
        running = {pool.submit(unit): unit for unit in todo}
        try:
            for ended in as_completed(running):
                total += ended.result()
                progress.update(bar, advance=1, description=running[ended].key)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return total


def main() -> None:
    """Run what is asked for."""
    arguments = _arguments()
    quick = arguments.quick
    out = arguments.out or (Path("runs/ullrich2017-quick") if quick else None)
    # By default the results are the checkout's own, and what is large lies in runs/.
    scratch = ROOT / "runs" / HERE.name if out is None else out
    results = HERE / "results" if out is None else out / "results"
    pictures = ROOT / "figures" / HERE.name if out is None else out / "figures"
    for folder in (scratch, results, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.figure is None:
        mnist()  # one clear error here rather than one in each process
        began, busy = time.monotonic(), 0.0
        jobs = arguments.jobs or os.cpu_count() or 1
        seeds = arguments.seeds or settings.NUM_SEEDS
        for stage in stages(scratch, results, seeds, quick=quick):
            busy += work_off(stage, jobs)
        if busy:
            about = {
                "command": " ".join(["papers/ullrich2017/run.py", *sys.argv[1:]]),
                "seeds": 1 if quick else seeds,
                "jobs": jobs,
                "minutes_of_units": round(busy / 60, 1),
                "minutes": round((time.monotonic() - began) / 60, 1),
                **machine(),
            }
            save_json(results / "run.json", about)
    for path in figures.draw(results, pictures, only=arguments.figure):
        print(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a subset, one seed, few epochs")
    parser.add_argument("--figure", metavar="NAME", help="draw this figure alone, from results")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of the main rows (3)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; one a core by default")
    parser.add_argument("--out", type=Path, metavar="DIR", help="instead of the checkout")
    arguments = parser.parse_args()
    for name in ("seeds", "jobs"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    return arguments


if __name__ == "__main__":
    main()
