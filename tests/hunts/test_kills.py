"""Commands are killed at every event in the file system: nothing is lost, nothing is in the way.

The laws of a kill, before each event, in the middle of each write, and with what is not synced
gone as after a power cut:

- what could be read before can be read after it;
- the same command (a run: `--resume`, if it asks for that) then succeeds;
- what it leaves is bit for bit what an unbroken one leaves, and nothing else is there.

What Python calls events are all: nothing changes between two of them, which is a law too.
"""

import multiprocessing
import os
import random
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import killing
import pytest
from killed_commands import CASES, NUTS, SVI, TINY, swsmix_once
from tape import Kill

pytestmark = [
    pytest.mark.hunt,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc"),
]

SEED = 20261129  # of the sample
SECONDS = 16.0  # of the sample, over all commands


@dataclass
class Found:
    """The counts of one command, and its faults."""

    events: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"before": 0, "torn": 0, "power": 0})
    recovered: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self):
        kills = ", ".join(f"{n} {how}" for how, n in self.kills.items())
        return (
            f"{self.events} events; killed {kills}; recovered bit for bit {self.recovered}; "
            f"{len(self.faults)} faults; {self.seconds:.0f} s"
        )


def warm_up(root):
    """Import in this process what the children need, so that they only compute."""
    os.environ["MPLBACKEND"] = "agg"
    import pkgutil

    import torch

    torch.set_num_threads(1)
    import swsmix as package

    for module in pkgutil.walk_packages(package.__path__, "swsmix."):
        if not module.name.endswith(("__main__", "triton_loops")):
            __import__(module.name)
    import scipy.optimize  # noqa: F401

    here = os.getcwd()
    os.chdir(root)
    for posterior in (SVI, NUTS):  # with what is imported and compiled late
        swsmix_once(f"train {TINY} --force {posterior}")
    shutil.rmtree("run")
    os.chdir(here)
    assert len(os.listdir("/proc/self/task")) == 1, "more than one thread: a fork would not be safe"


def search(name, root, seconds):
    """Kill one command at its events: all of them, or a sample of as many as the time allows."""
    case, found, began = CASES[name], Found(), time.perf_counter()
    root = Path(root) / name.replace(" ", "_")
    base = root / "base"
    base.mkdir(parents=True)
    if case.before is not None:
        made = killing.run(case.before, base)
        assert made.code == 0, made.output
    whole = root / "whole"
    shutil.copytree(base, whole)
    unbroken = killing.run(case.command, whole, look=case.look)
    record, expected = unbroken.record, killing.tree(whole)
    assert unbroken.code == 0, unbroken.output
    found.events = len(record.events)
    found.faults += record.faults
    kills = [Kill(i) for i in range(1, found.events + 1)]
    kills += [Kill(i, torn=True) for i in record.writes]
    kills += [Kill(i, power=True) for i in record.unsynced]
    if seconds is not None:
        kills = random.Random(SEED).sample(kills, len(kills))
    for kill in kills:
        if seconds is not None and found.recovered and time.perf_counter() - began > seconds:
            break
        how = "power" if kill.power else "torn" if kill.torn else "before"
        found.kills[how] += 1
        fault = after_kill(case, kill, record, expected, base, root / "killed")
        if fault is None:
            found.recovered += 1
        else:
            found.faults.append(f"{how} {record.events[kill.event - 1]} ({kill.event}): {fault}")
    found.seconds = time.perf_counter() - began
    return found


def after_kill(case, kill, record, expected, base, folder):
    """What is wrong after one kill and the recovery from it; None if nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    ended = killing.run(case.command, folder, kill=kill)
    if ended.code != -9:
        return f"not killed but {ended.code}: {ended.output[-300:]}"
    try:
        left = case.look(folder)
    except Exception as error:
        return f"not readable: {error!r}"
    if left not in record.seen:
        return f"something else is read: {left}"
    if record.seen[kill.event - 1] is not None and left is None:
        return "what could be read is away"
    for command in (case.command, *case.again):
        ended = killing.run(command, folder)
        if ended.code == 0:
            break
        if "--resume" not in ended.output:
            return f"the command ends with {ended.code}: {ended.output[-400:]}"
    else:
        return f"the command ends with {ended.code}: {ended.output[-400:]}"
    tree = killing.tree(folder)
    if wrong := [n for n in sorted(tree | expected) if tree.get(n) != expected.get(n)]:
        kinds = [
            f"{n} {'stays' if n not in expected else 'is away' if n not in tree else 'differs'}"
            for n in wrong
        ]
        return f"not what an unbroken one leaves: {', '.join(kinds)[:500]}"
    return None


@pytest.fixture(scope="module")
def forking(tmp_path_factory):
    """A process with one thread that has imported everything; its children are killed."""
    with pytest.MonkeyPatch.context() as patch:
        for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
            patch.setenv(f"{library}_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            root = tmp_path_factory.mktemp("kills")
            pool.submit(warm_up, root).result()
            yield lambda name, seconds: pool.submit(search, name, str(root), seconds).result()


@pytest.mark.parametrize("name", CASES)
def test_after_a_kill_nothing_is_lost_and_nothing_is_in_the_way(name, forking, full):
    found = forking(name, None if full else SECONDS / len(CASES))
    print(f"\n{name}: {found}")
    for fault in found.faults:
        print(f"    {fault}")
    assert not found.faults
    assert found.recovered == sum(found.kills.values())
