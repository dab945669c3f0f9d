"""The commands that are killed: what was there before, what can be read, how one goes on."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

TINY = "--components 3 --no-baseline --quiet --out run"


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
    from swsmix.problems.reproduction.runner import Paper, main
    from swsmix.problems.reproduction.units import Unit

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
    from swsmix.problems.reproduction.units import read_table
    from swsmix.training.runs import replacing

    with replacing(pictures / "curve.png") as temporary:
        temporary.write_text(str(sorted(read_table(results / "numbers.jsonl"))))
    return [pictures / "curve.png"]


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
    from swsmix.problems.reproduction.units import read_table, total_seconds

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
        partial(swsmix, "compress net.safetensors --lossless --quiet --force --out out.sws"),
        partial(file_state, "out.sws"), make_compressed,
    ),
    "compress RUN": Case(
        partial(swsmix, "compress run --quiet --force --out run.sws"), run_state, make_run(),
    ),
    "decompress": Case(
        partial(swsmix, "decompress net.sws --quiet --force --out out.safetensors"),
        partial(file_state, "out.safetensors"), make_compressed,
    ),
    "reproduce": Case(partial(paper, "--out", "out"), results_state),
}  # fmt: skip
