"""Makes the golden files: what the code gives today, so that tomorrow's can be held to it.

    codec/    seven .sws files, each with the tensors in it: encoding gives these bytes, decoding
              these tensors; neither draws a number or fits anything
    runs/     two run folders, and in runs.json what they hold and what one epoch more gives
    keys      keys.json: names, dtypes and shapes in the state_dict of MixturePrior
    tables    tables.json: digests of the tables that the papers' results make
    drawings  drawings.json: the numbers that are drawn in the papers' figures and in swsmix.plots

The tests never run this. It is run on purpose, where a format or a result is to change, for the
parts that are named: python tests/golden/make.py codec runs keys tables drawings
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.collections import PathCollection, QuadMesh
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from papers.nowlan1992 import figures as nowlan1992
from papers.ullrich2017 import figures as ullrich2017
from swsmix import (
    GaussianMixture,
    GaussianNoise,
    HyperPrior,
    MixturePrior,
    Schedule,
    fit,
    load_run,
    plots,
)
from swsmix.codec import encode
from swsmix.compression.codebooks import quantize_state, snapped
from swsmix.compression.snap import snapped_state
from swsmix.training.history import History
from swsmix.training.runs import restore_, save_config

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parents[1] / "figures"
DOUBLE = torch.float64


def write(name, values):
    """JSON, one entry a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(name):
    return json.loads((HERE / f"{name}.json").read_text())


def rounded(values):
    """Plain numbers of ten digits."""
    return [float(f"{v:.10g}") for v in np.ravel(np.asarray(values, dtype=float)).tolist()]


# ------------------------------------------------------------------------------- compressed files


class Tied(nn.Module):
    """One tensor under two names, and one of its own."""

    def __init__(self):
        super().__init__()
        self.encoder, self.middle = nn.Linear(12, 20, bias=False), nn.Linear(20, 20)
        self.decoder = nn.Linear(12, 20, bias=False)
        self.decoder.weight = self.encoder.weight


def like_trained(net):
    """Rows of unlike size, and something in every bias and buffer."""
    with torch.no_grad():
        for t in net.state_dict().values():
            if t.ndim >= 2:
                t.mul_(torch.linspace(0.05, 1.5, len(t)).square().view(-1, *[1] * (t.ndim - 1)))
            elif t.is_floating_point():
                t.add_(0.3 * torch.rand(t.shape) + 0.01)
            else:
                t.fill_(1234)
    return net


def prior_on(net, num_components, **options):
    prior = MixturePrior(net, num_components, **options)
    for _ in range(10):
        prior.em_step_()
    return prior


def snapped_states():
    """name -> a state_dict to encode. Only `make` calls this: the tests read what it gave."""
    torch.manual_seed(0)
    linear = like_trained(nn.Linear(24, 40))
    prior = prior_on(linear, 5, zero=True)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
    conv, tied = like_trained(conv), like_trained(Tied())
    fitted = {}
    for method in ("mixture", "kmeans"):
        state = like_trained(nn.Linear(30, 25)).state_dict()
        state = snapped(state, quantize_state(state, 7, method=method, zero=method == "mixture"))
        fitted |= {f"{method}.{name}": t for name, t in state.items()}
    rows, columns = torch.arange(24)[:, None], torch.arange(32)
    neurons, channel = torch.randn(48, 20), torch.linspace(0, 0.8, 8).view(8, 1, 1)
    order = sorted(range(48), key=lambda i: (neurons[i].abs() < 1.5).tolist())
    return {
        "linear": snapped_state(linear, prior),
        "bias8": snapped_state(linear, prior, bias_bits=8),
        "conv": snapped_state(conv, prior_on(conv, 6), bias_bits=16),
        "tied": snapped_state(tied, prior_on(tied, 4, groups="tensor")),
        "fitted": fitted,
        "plain": {
            "half": torch.randn(7, 5).half(),
            "brain": torch.randn(6, 3).bfloat16(),
            "double": torch.randn(4, dtype=DOUBLE),
            "nasty": torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45]),
            "long": torch.tensor([[0, 1, -1], [2**62, -(2**63), 300]]),
            "int": torch.tensor([5, -70_000], dtype=torch.int32),
            "short": torch.tensor([5, -700], dtype=torch.int16),
            "tiny": torch.tensor([5, -70], dtype=torch.int8),
            "byte": torch.arange(200, dtype=torch.uint8),
            "flags": torch.tensor([True, False, False, True, True]),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(0.1),
            "count": torch.tensor(17),
            "constant": torch.full((9, 9), 0.25),
            "a.dotted.name": torch.ones(3),
        },
        # What the context models are for: strides, sorted neurons, channels of their own density.
        "contexts": {
            "period": torch.where((rows * columns) % 8 == 3, 0.5, 0.0) - 0.25 * (columns == 9),
            "sorted": neurons.sign().mul(0.5).masked_fill(neurons.abs() < 1.5, 0.0)[order],
            "channels": torch.where(torch.rand(12, 8, 3, 3) < channel.square(), 0.25, 0.0),
        },
    }


def save_tensors(path, tensors):
    save_file(
        {name: t.detach().clone().contiguous() for name, t in tensors.items()},
        path,
        {"names": json.dumps(list(tensors))},  # safetensors sorts them
    )


def load_tensors(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in json.loads(file.metadata()["names"])}


def make_codec():
    (HERE / "codec").mkdir(exist_ok=True)
    for name, state in snapped_states().items():
        save_tensors(HERE / "codec" / f"{name}.safetensors", state)
        (HERE / "codec" / f"{name}.sws").write_bytes(encode(state))


# ------------------------------------------------------------------------------------ run folders


def points(rows, columns):
    """Numbers between -1 and 1 that no generator has to give, float64."""
    return torch.arange(1.0, 1.0 + rows * columns, dtype=DOUBLE).mul(1.7).sin().view(rows, columns)


def network(inputs, outputs):
    net = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters(), 1):
            p.copy_(points(p.numel(), i)[:, -1].view(p.shape) / 2)
    return net


def adam():
    """Mini-batches, one mixture, a schedule of everything, a best network that is remembered."""
    net, x = network(6, 3), points(50, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] * x[:, 2] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    given = {
        "loss": nn.CrossEntropyLoss(),
        "data": (x[:40], y[:40]),
        "validation": (x[40:], y[40:]),
        "batch_size": 10,
        "optimizer": optimizer,
        "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8),
        "schedule": Schedule(
            tau=0.5, start=1, warmup=4, em_every=2, em_rate=0.5, std_start=0.3, std_end=0.05,
            anneal=20,
        ),
        "patience": 9,
    }  # fmt: skip
    return net, MixturePrior(net, 5, method="quantiles", zero=True, zero_mixing=0.5), given


def lbfgs():
    """Full-batch rounds, a learned noise, a mixture a tensor."""
    net, x = network(4, 1), points(30, 4)
    y = x[:, :1] - x[:, 1:2] * x[:, 2:3]
    prior = MixturePrior(
        net, 3, method="quantiles", groups="tensor", include="0.weight", hyper=HyperPrior(std=0.05)
    )
    loss = GaussianNoise(0.5).double()
    return net, prior, {
        "loss": loss, "data": (x, y), "optimizer": "l-bfgs", "iterations": 6,
        "schedule": Schedule(em_every=1),
    }  # fmt: skip


RUNS = {"adam": adam, "lbfgs": lbfgs}
"""Run -> its network and prior, untrained, and what `fit` is given."""
EPOCHS = 2


def trained(name, path, epochs, **options):
    net, prior, given = RUNS[name]()
    with torch.random.fork_rng():  # a resumed run sets the generator
        given |= options | {"prior": prior, "epochs": epochs, "run": path, "progress": False}
        history = fit(net, **given)
    return numbers(net.state_dict(), prior.state_dict(), history)


def numbers(net, prior, history):
    """Everything a run ends with, but the seconds that it took."""
    scalars = {n: v for n, v in history.scalars.items() if n != "seconds"}
    columns = {
        f"{name}/{group}": history.stacked(group, name)
        for group in history.groups
        for name in ("mixing", "mean", "std", "count", "claimed")
    }
    found = {"scalars": scalars, "history": columns, "net": net, "prior": prior}
    return {f"{k}/{n}": rounded(v) for k, part in found.items() for n, v in part.items()}


def loaded(name, path):
    """What a run folder says of itself, at its end and at its newest checkpoint, and its values."""
    found = {}
    for when, resumable in (("end", False), ("checkpoint", True)):
        run = load_run(path, resumable=resumable)
        groups = {group: list(names) for group, names in run.groups.items()}
        found[f"{name}/{when}"] = [run.epoch, len(run.history), run.folder.name, run.config, groups]
    values = numbers(run.network, run.prior, run.history)
    return found | {f"{name}/checkpoint/{key}": value for key, value in values.items()}


def restored(name, path):
    """What a fresh network and prior answer, once they have the state that a run ended with."""
    run = load_run(path)
    net, prior, given = RUNS[name]()
    restore_(run, net, prior)
    found = {"answers": net(given["data"][0][:5]).detach(), "penalty": prior.penalty().detach()}
    return {f"{name}/restored/{key}": rounded(value) for key, value in found.items()}


def resumed(name, path):
    """The run in a folder, which is changed, after one epoch more."""
    values = trained(name, path, EPOCHS + 1, resume=True)
    return {f"{name}/resumed/{key}": value for key, value in values.items()}


def make_runs():
    found = {}
    for name in RUNS:
        path, copy = HERE / "runs" / name, HERE / "runs" / f"{name}-resumed"
        shutil.rmtree(path, ignore_errors=True)
        trained(name, path, EPOCHS)
        save_config(path, {"data": name, "seed": 0, "tau": 0.5, "lr": None})
        shutil.copytree(path, copy)
        found |= loaded(name, path) | restored(name, path) | resumed(name, copy)
        shutil.rmtree(copy)
    write("runs", found)


# --------------------------------------------------------------------------- keys of a state_dict


def keys():
    """Each key of the prior's state_dict with its dtype and shape, for every kind of prior."""
    groups = {
        "global": "global",
        "tensor": "tensor",
        "mapping": {"100% in.side": "0.weight", "out": ["2.*", "0.bias"]},
    }
    pins = {"": {}, "zero": {"zero": True}, "mixing": {"zero": True, "zero_mixing": 0.8}}
    found = {}
    for mode in ("em", "gradient"):
        for group, pin, dtype in (
            *((group, "", torch.float32) for group in groups),
            ("global", "zero", torch.float32),
            ("global", "mixing", torch.float32),
            ("global", "", DOUBLE),
        ):
            net = network(6, 3).to(dtype)
            prior = MixturePrior(net, 2, groups=groups[group], mode=mode, **pins[pin])
            case = " ".join(filter(None, (mode, group, pin, str(dtype).removeprefix("torch."))))
            for key, t in prior.state_dict().items():
                found[f"{case}: {key}"] = [str(t.dtype).removeprefix("torch."), *t.shape]
    return found


# ------------------------------------------------------------------------------ tables and figures


def indices():
    """Paper -> the index of its figures, with all its tables, from the committed results."""
    mlps, lenets = nowlan1992.HERE / "results", ullrich2017.HERE / "results"
    return {
        "nowlan1992": nowlan1992._index(mlps, FIGURES / "nowlan1992"),
        "ullrich2017": ullrich2017._index(ullrich2017.Results(lenets), FIGURES / "ullrich2017"),
    }


def digests(texts):
    """Of the tables in each text, their number of lines and their SHA-256."""
    tables = {n: [row for row in text.splitlines() if row[:1] == "|"] for n, text in texts.items()}
    return {
        name: [len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest()]
        for name, rows in tables.items()
    }


def history():
    """Five records of weights on their way to -1, 0 and 1: a component dies and two merge."""
    found, ends = History(), torch.arange(120.0).mul(1.7).sin().mul(1.5)
    for t in range(5):
        weights = (1 - t / 4) * ends + t / 4 * ends.round()
        weights[:3] = 4.0 if t < 2 else 0.0
        mean = torch.tensor([-1.0, 0.0, 1.0, 4.0, 1.9 - 0.3 * min(t, 3)])
        count = torch.tensor([40.0, 50.0, 20.0, 3.0 if t < 2 else 0.2, 10.0])
        mixture = GaussianMixture(count / count.sum(), mean, torch.full((5,), 0.2 - 0.03 * t))
        scalars = {"epoch": 2 * t, "objective": 3 - t / 4, "data_loss": 2 - t / 4, "nll": -90 * t}
        found.record(scalars | {"hyper_prior": 40}, {"all": (weights, mixture, count)})
    return found


def figures():
    """Name -> figure: all of the papers, and those of swsmix.plots from fixed weights."""
    results = nowlan1992.HERE / "results"
    for name, (function, tables) in nowlan1992.DRAWINGS.items():
        yield name, function(*(nowlan1992.read(results, table) for table in tables))
    results = ullrich2017.Results(ullrich2017.HERE / "results")
    for name, function in ullrich2017.FIGURES.items():
        yield name, function(results)
    mixture = GaussianMixture([0.25, 0.5, 0.25], [-0.5, 0.0, 0.6], [0.05, 0.02, 0.04])
    weights = points(400, 1).float().pow(3).mul(0.7).view(20, 20)
    tensors, record = {"conv.weight": weights[:5], "fc.weight": weights}, history()
    yield "plots.clusters", plots.clusters(weights, mixture)
    yield "plots.responsibilities", plots.responsibilities(mixture, weights)
    yield "plots.before_after", plots.before_after(weights.flip(0), weights, mixture)
    yield "plots.hinton", plots.hinton(weights, mixture=mixture)
    yield "plots.layers", plots.layers(tensors, mixture)
    yield "plots.entropy", plots.entropy({"conv.weight": 0.4, "fc.weight": 2.25})
    yield "plots.trajectories", plots.trajectories(record)
    yield "plots.collapse", plots.collapse(record)
    yield "plots.loss_terms", plots.loss_terms(record)


def drawn(figure):
    """The numbers drawn in a figure, by axes and kind of artist, along x and along y."""
    axes = [a for top in figure.axes for a in (top, *top.child_axes)]
    for number, ax in enumerate(axes):
        pairs = {"line": [np.column_stack(a.get_data(orig=False)) for a in ax.lines]}
        pairs["patch"] = [
            a.get_patch_transform().transform(a.get_path().vertices) for a in ax.patches
        ]
        grids = [a.get_array() for a in ax.images]
        for a in ax.collections:
            if isinstance(a, QuadMesh):
                grids.append(a.get_array())
            else:
                dots = isinstance(a, PathCollection)
                paths = [a.get_offsets()] if dots else [p.vertices for p in a.get_paths()]
                pairs.setdefault("collection", []).extend(paths)
        for kind, parts in pairs.items():
            for side, values in zip(
                "xy", np.concatenate([np.zeros((0, 2)), *parts]).T, strict=True
            ):
                yield f"{number} {kind} {side}", values
        yield f"{number} grid", np.concatenate([np.zeros(0), *(np.ravel(g) for g in grids)])


def summary(values):
    """Many numbers as their number, how many are finite, mean, root mean square, and some of them.

    The mean is taken again with weights that rise, so that the order counts.
    """
    values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    finite = values[np.isfinite(values)]
    means = (
        finite.mean(),
        np.sqrt((finite**2).mean()),
        (finite * np.linspace(0, 1, len(finite))).mean(),
    )
    some = finite[np.linspace(0, len(finite) - 1, min(len(finite), 3)).round().astype(int)]
    return [len(values), len(finite), *rounded([*means, *some])]


def drawings():
    found = {}
    for name, figure in figures():
        for part, values in drawn(figure):
            if len(values) and np.isfinite(np.ma.filled(values, np.nan)).any():
                found[f"{name}: {part}"] = summary(values)
    return found


PARTS = {
    "codec": make_codec,
    "runs": make_runs,
    "keys": lambda: write("keys", keys()),
    "tables": lambda: write("tables", digests(indices())),
    "drawings": lambda: write("drawings", drawings()),
}

if __name__ == "__main__":
    if not sys.argv[1:] or not set(sys.argv[1:]) <= set(PARTS):
        sys.exit(f"name the parts to make anew: {' '.join(PARTS)}")
    for part in sys.argv[1:]:
        PARTS[part]()
