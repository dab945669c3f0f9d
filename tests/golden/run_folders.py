"""The golden run folders: two runs, what they hold, and what one epoch more gives."""

import shutil

import torch
from golden.stored import HERE, rounded, write
from torch import nn

from swsmix import GaussianNoise, HyperPrior, MixturePrior, Schedule, fit, load_run
from swsmix.training.runs import restore_, save_config

DOUBLE = torch.float64


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
