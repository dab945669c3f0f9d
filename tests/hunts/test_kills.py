"""Commands are killed at every event in the file system: nothing is lost, nothing is in the way.

The laws of a kill, before each event, in the middle of each write, and with what is not synced
gone as after a power cut:

- what could be read before can be read after it;
- the same command (a run: `--resume`, if it asks for that) then succeeds;
- what it leaves is bit for bit what an unbroken one leaves, and nothing else is there.

What Python calls events are all: nothing changes between two of them, which is a law too.
"""

import hashlib
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import killing
import pytest
from killing import Kill

pytestmark = [
    pytest.mark.hunt,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc"),
]

SEED = 20261129  # of the sample
SECONDS = 16.0  # of the sample, over all commands
TINY = "--components 3 --no-baseline --quiet --out run"


# ------------------------------------------------------------------------------------ commands


def swsmix(text):
    """Call the command line as the console script does."""
    from swsmix.cli import main

    sys.argv = ["swsmix", *text.split()]
    _make_small()
    main()


def _make_small():
    """Figures of one line, posteriors of few steps; what writes their files stays as it is."""
    from matplotlib.figure import Figure

    from swsmix import bayes, plots

    def savefig(self, file, **_):
        file.write(b"a figure")

    Figure.savefig = savefig
    plots.files.settle = lambda figure: None
    for name in ("clusters", "collapse", "trajectories", "before_after", "hinton"):
        setattr(plots, name, lambda *_, **__: Figure())
    guide, sample = bayes.fit_guide, bayes.sample
    bayes.fit_guide = lambda joint, **more: guide(joint, **{**more, "epochs": 3})
    bayes.sample = lambda joint, **more: sample(
        joint, **{**more, "draws": 20, "warmup": 20, "max_depth": 1}
    )


def make_run(text="--epochs 1"):
    return partial(swsmix, f"train {TINY} {text}")


def make_compressed():
    """A file of tensors, and a compressed one, where the commands will write others."""
    import torch
    from safetensors.torch import save_file

    values = torch.tensor([-0.5, 0.0, 0.25, 1.0])
    index = torch.randint(4, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    save_file({"fc.weight": values[index[0]], "fc.bias": torch.zeros(16)}, "net.safetensors")
    save_file({"fc.weight": values[index[1]], "fc.bias": torch.zeros(16)}, "old.safetensors")
    for name in ("net", "old"):
        swsmix_once(f"compress {name}.safetensors --lossless --quiet --out {name}.sws")
    shutil.copy("old.sws", "out.sws")
    shutil.copy("old.safetensors", "out.safetensors")


def swsmix_once(text):
    """As `swsmix`, for several in one process."""
    try:
        swsmix(text)
    except SystemExit as ended:
        assert not ended.code, text


def paper(*more):
    """A paper of three units: a network with checkpoints, a file of its own, a line of a table."""
    from papers.runner import Paper, main
    from papers.units import Unit

    def stages(places, seeds, *, quick):
        run = places.scratch / "runs" / "net-0"
        leaves = (places.scratch / "net-0.safetensors",)
        yield [
            Unit("nets", "net-0", trained, (run, leaves[0]), own_file=True, leaves=leaves,
                 checkpoints=run),
            Unit("numbers", "a", number, (1,), stamp={"seeds": seeds}),
        ]  # fmt: skip
        yield [Unit("numbers", "b", number, (2,)), Unit("numbers", "c", number, (3,))]

    here = Path(__file__).parent / "fake2026"
    main(Paper(here, "Fake.", stages, ["curve"], draw, 2, 1), ["--jobs", "1", *more])


def trained(run, file):
    """A network of two epochs, continued if there are checkpoints."""
    import torch
    from safetensors.torch import save_file

    from swsmix import GaussianNoise, MixturePrior, fit
    from swsmix.training.runs import replacing

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    x = torch.linspace(-1, 1, 30).reshape(10, 3)
    history = fit(
        net, GaussianNoise(0.3), (x, x[:, :2] ** 2), optimizer="l-bfgs", epochs=2, iterations=3,
        prior=MixturePrior(net, num_components=2), run=run, resume=True, progress=False,
    )  # fmt: skip
    with replacing(file) as temporary:
        save_file(net.state_dict(), temporary)
    return {"loss": history.scalars["data_loss"][-1]}


def number(value):
    return {"value": value}


def draw(results, pictures, *, only=None):
    """A figure that shows which results there are."""
    from papers.units import read_table
    from swsmix.training.runs import replacing

    with replacing(pictures / "curve.png") as temporary:
        temporary.write_text(str(sorted(read_table(results / "numbers.jsonl"))))
    return [pictures / "curve.png"]


# ------------------------------------------------------------------- what can be read of a folder


def run_state(folder):
    """Which network, prior and history a run folder gives; None if there is no run."""
    from swsmix.training.runs import load_run

    try:
        run = load_run(folder / "run")
    except FileNotFoundError:
        return None
    parts = [(run.folder / f"{n}.safetensors").read_bytes() for n in ("network", "prior")]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:8]


def posterior_state(folder):
    """Of a run with a posterior."""
    from swsmix.bayes import Posterior

    file = folder / "run/posterior.safetensors"
    return run_state(folder), Posterior.load(file).num_draws if file.is_file() else None


def file_state(name, folder):
    """A file as a whole; it is never away."""
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:8]


def results_state(folder):
    """The units whose results are kept."""
    from papers.units import read_table, total_seconds

    results = folder / "out/results"
    if not results.is_dir():
        return None
    total_seconds(results)  # reads every file
    kept = [f.name for f in results.iterdir() if not f.name.startswith(".")]
    return (*sorted(kept), *read_table(results / "numbers.jsonl")) or None


@dataclass(frozen=True)
class Case:
    """A command, what was there before, and how one goes on after a kill."""

    command: Callable[[], object]
    look: Callable[[Path], object]
    before: Callable[[], object] | None = None
    again: tuple[Callable[[], object], ...] = ()  # if the command itself is refused


RESUMED = make_run("--resume --epochs 2")
SVI, NUTS = (f"--epochs 1 --draws 50 --chains 1 --posterior {how}" for how in ("svi", "nuts"))
CASES = {
    "train": Case(make_run("--epochs 2"), run_state, again=(RESUMED,)),
    "train --resume": Case(RESUMED, run_state, make_run()),
    "train --force": Case(
        make_run("--epochs 1 --force"), run_state, make_run("--epochs 1 --seed 1")
    ),
    "train --posterior svi": Case(
        make_run(SVI), posterior_state, again=(make_run(f"{SVI} --resume"),)
    ),
    "train --resume --posterior nuts": Case(
        make_run(f"{NUTS} --resume"), posterior_state, make_run(SVI)
    ),
    "compress": Case(
        partial(swsmix, "compress net.safetensors --lossless --quiet --out out.sws"),
        partial(file_state, "out.sws"), make_compressed,
    ),
    "compress RUN": Case(
        partial(swsmix, "compress run --quiet --out run.sws"), run_state, make_run(),
    ),
    "decompress": Case(
        partial(swsmix, "decompress net.sws --quiet --out out.safetensors"),
        partial(file_state, "out.safetensors"), make_compressed,
    ),
    "reproduce": Case(partial(paper, "--out", "out"), results_state),
}  # fmt: skip


# ------------------------------------------------------------------------------------- the search


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

    import papers.runner  # noqa: F401

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
