#!/usr/bin/env python3
"""Ullrich, Meeds & Welling 2017, run again and further: networks in files that really are small.

    swsmix reproduce ullrich2017             everything; goes on where it was stopped
    swsmix reproduce ullrich2017 --quick     a subset of the images, a few epochs: does it run?
    swsmix reproduce ullrich2017 --figure pareto
    swsmix reproduce ullrich2017 --verify    measures the compressed files that are kept
    swsmix reproduce ullrich2017 --only resnet-20     CIFAR-10: hours, and no part of the rest

Each unit of work makes one file in results/, for a pretrained network or a compressed one; see
swsmix/problems/reproduction. A unit that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one unit per core is faster than two threads
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where there are several, beside other work
# Import `papers` and `swsmix` from this checkout, and nothing from this folder.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from swsmix.problems.reproduction import signals

if __name__ == "__main__":
    signals.end_quietly()

from papers.ullrich2017 import cifar, settings, verify, work
from swsmix.problems.mnist import mnist
from swsmix.problems.reproduction import runner
from swsmix.problems.reproduction.runner import Places
from swsmix.problems.reproduction.units import Unit, unfinished

HERE = Path(__file__).resolve().parent


def pretrained(setting: settings.Setting, seed: int, places: Places, subset: int | None) -> Unit:
    """The unit that trains a dense network; if the network's file is lost it is trained again."""
    key = f"{setting.pretraining}-seed{seed}"
    return Unit(
        "pretrained",
        key,
        work.pretrain,
        (setting, seed, places.scratch, subset),
        stamp={"subset": subset},
        own_file=True,
        leaves=(work.dense_file(setting, seed, places.scratch),),
        checkpoints=places.scratch / "runs" / key,
    )


def compressed(setting: settings.Setting, seed: int, places: Places, subset: int | None) -> Unit:
    """The unit that compresses a pretrained network."""
    key = f"{setting.name}-seed{seed}"
    return Unit(
        "compressed",
        key,
        work.compress,
        (setting, seed, places.scratch, places.results, subset),
        stamp={"subset": subset},
        own_file=True,
        checkpoints=places.scratch / "runs" / key,
    )


def stages(places: Places, seeds: int, *, quick: bool) -> Iterable[list[Unit]]:
    """First the pretrained networks that are still needed, then what is made of them.

    Yields:
        Lists of units that do not depend on each other.
    """
    wanted = settings.quick(seeds) if quick else settings.full(seeds)
    subset = settings.QUICK_IMAGES if quick else None
    units = [compressed(setting, seed, places, subset) for setting, seed in wanted]
    left = {unit.key for unit in unfinished(units, places.results)}
    needed: dict[str, Unit] = {}  # many settings start from the same network
    for unit, (setting, seed) in zip(units, wanted, strict=True):
        if unit.key in left:
            dense = pretrained(setting, seed, places, subset)
            needed.setdefault(dense.key, dense)
    yield [*needed.values()]
    yield units


def main() -> None:
    """Run what is asked for."""
    from papers.ullrich2017 import figures  # loads matplotlib, which the workers do not need

    paper = runner.Paper(
        folder=HERE,
        description=str(__doc__),
        stages=stages,
        figures=figures.NAMES,
        draw=figures.draw,
        seeds=settings.NUM_SEEDS,
        quick_seeds=1,
        prepare=mnist,  # one clear error rather than one in each process
        verify=verify.verify,
        apart={name: partial(cifar.stages, name) for name in cifar.ROWS},
    )
    runner.main(paper)


if __name__ == "__main__":
    main()
