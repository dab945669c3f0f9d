"""What the tests of `fit` train, a small regression; a run folder; a second process."""

import os
import signal
import warnings

import torch
from torch import nn

from swsmix import GaussianNoise, MixturePrior, Schedule, fit
from swsmix.training import runs
from swsmix.training.history import History

METHODS = [
    ("adam", "em"),
    ("adam", "gradient"),
    ("l-bfgs", "em"),
    ("l-bfgs", "gradient"),
    ("cg", "em"),
]


def problem(seed=0, dropout=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 4, generator=generator)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.1 * torch.randn(64, 1, generator=generator)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net, (x[:48], y[:48]), (x[48:], y[48:])


def trainer(method, mode="em", **options):
    """A net with all that belongs to it, and how to fit it for some epochs."""
    net, data, validation = problem(dropout=0.2 if method == "adam" else 0.0)
    loss = GaussianNoise(0.3)
    prior = MixturePrior(net, 3, mode=mode)
    optimizer, more = method, {"iterations": 8}
    if method == "adam":
        groups = [*net.parameters(), *loss.parameters(), *prior.parameters()]
        optimizer = torch.optim.Adam(groups, lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        more = {"batch_size": 10, "lr_scheduler": scheduler}
    schedule = Schedule(tau=0.5, warmup=2, em_every=2, em_rate=0.7)

    def go(epochs, **extra):
        return fit(
            net, loss, data, optimizer=optimizer, epochs=epochs, prior=prior, schedule=schedule,
            validation=validation, progress=False, **more, **options, **extra,
        )  # fmt: skip

    return net, prior, loss, go


def saved(path, epoch=1, **options):
    """A small network and its prior, saved into a run folder."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    net[1].weight = nn.Parameter(net[1].weight.detach().t())  # not contiguous
    prior = MixturePrior(net, 3)
    prior.em_step_()
    history = History()
    entry = {"all": (prior.flat_weights("all"), prior.mixtures["all"], torch.ones(3))}
    history.record({"epoch": 0.0}, entry)
    runs.save_checkpoint(
        path, epoch, network=net, prior=prior, history=history, training={"tick": 7}, **options
    )
    return net, prior


def elsewhere(action):
    """What `action()` does in another process: "done", or its error."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads
        child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's other ones do not live here
        signal.alarm(120)  # a hang is a failure
        try:
            action()
            said = "done"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return stream.read()
