"""What the prior adds to a training step: small and large networks with Adam, K = 17.

    python figures/training_cost.py

Prints the tables that benchmark.py and benchmark_gpu.py write: the time of a step under the prior
over that of a plain one, and where it goes. The EM steps are in it, every ten steps; for ResNet-18
at every step, which is more than anyone needs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from swsmix import MixturePrior, Schedule, tables
from swsmix.problems.nets import lenet_300_100

UPDATES = ("proximal", "gradient")
NUM_DATA = 50_000
PARTS = ("copies", "loops", "EM steps")  # each with those before it


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x):
        y = self.norms[1](self.two(self.norms[0](self.one(x)).relu()))
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


def resnet_18():
    """For 32 x 32 images; 11.2 million weights."""
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def mlp():
    """800 weights."""
    return nn.Sequential(nn.Linear(39, 20), nn.Tanh(), nn.Linear(20, 1))


def conv_bn():
    """Two convolutions with batch norm, 20,432 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A network, and how long it is measured: steps in each of so many rounds."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a batch
    steps: int
    rounds: int
    em_every: int = 10


MLP = Net("MLP of 800 weights, batch 128", mlp, (128, 39), 300, 15)
LENET = Net("LeNet-300-100, batch 128", lenet_300_100, (128, 1, 28, 28), 60, 15)
CONV = Net("conv + batch norm, batch 64", conv_bn, (64, 1, 28, 28), 20, 15)
RESNET = Net("ResNet-18, batch 64, EM at every step", resnet_18, (64, 3, 32, 32), 1, 5, 1)
NETS = (MLP, LENET, CONV, RESNET)


def by_hand(prior: MixturePrior, optimizer: torch.optim.Adam, parts: int, em_every: int) -> None:
    """The proximal step without `attach`: what it needs at least, and checks nothing.

    Args:
        prior: of one mixture.
        optimizer: Adam.
        parts: how many of `PARTS`.
        em_every: steps between EM steps.
    """
    held = [(p, torch.empty_like(p)) for p in prior.parameters_of("all").values()]
    settings, table, number = optimizer.param_groups[0], prior.tables_of("all"), 0

    def before(*_: object) -> None:
        for p, kept in held:
            kept.copy_(p.detach())

    def after(*_: object) -> None:
        nonlocal table, number
        number += 1
        if parts > 1:
            root = (1.0 - settings["betas"][1] ** number) ** 0.5
            members = [
                (p.detach(), kept, tables.Adaptive(
                    optimizer.state[p]["exp_avg_sq"], settings["lr"] * root, settings["eps"] * root
                ))
                for p, kept in held
            ]  # fmt: skip
            tables.proximal_each_([(table, members, 1.0 / NUM_DATA)])
        if parts > 2 and number % em_every == 0:
            prior.em_step_()
            table = prior.tables_of("all")

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def measure(
    net: Net, *, device="cpu", now=time.process_time, parts: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Seconds per step in each round, of the plain step, each update, and some of `PARTS`.

    They take turns within a round, so that noise meets all of them.
    """
    x = torch.randn(net.shape, device=device)
    kinds = {}
    for update in ("plain", *UPDATES, *parts):
        torch.manual_seed(0)
        model = net.make().to(device)
        optimizer = torch.optim.Adam(model.parameters())
        if update in PARTS:
            by_hand(MixturePrior(model, 17), optimizer, PARTS.index(update) + 1, net.em_every)
        elif update != "plain":
            MixturePrior(model, 17).attach(
                optimizer,
                num_data=NUM_DATA,
                update=update,
                schedule=Schedule(em_every=net.em_every),
            )
        kinds[update] = model, optimizer, []
    if model(x).shape[1] == 1:
        loss, y = nn.functional.mse_loss, torch.randn(net.shape[0], 1, device=device)
    else:
        loss = nn.functional.cross_entropy
        y = torch.randint(10, net.shape[:1], device=device)
    for turn in range(net.rounds + 1):
        for model, optimizer, times in kinds.values():
            begin = now()
            for _ in range(net.steps):
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
            if turn:  # the first warms up
                times.append((now() - begin) / net.steps)
    return {update: times for update, (*_, times) in kinds.items()}


def in_brackets(values: list[float], form: str = ".3g") -> str:
    """The median, and in brackets the 10th and the 90th percentile."""
    middle, low, high = np.percentile(values, [50, 10, 90])
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def over_plain(times: dict[str, list[float]], name: str) -> str:
    """How many times as long as the plain step it takes, with the spread over the rounds."""
    return in_brackets([e / plain for e, plain in zip(times[name], times["plain"], strict=True)])


def table(measured: dict[str, dict[str, list[float]]]) -> list[str]:
    """The table in Markdown, as lines, from name -> update -> seconds by round."""
    rows = [
        "| training step (Adam, K = 17) | plain, ms | proximal / plain | gradient / plain |",
        "|---|---|---|---|",
    ]
    for name, times in measured.items():
        cells = [in_brackets([1e3 * t for t in times["plain"]])]
        cells += [over_plain(times, update) for update in UPDATES]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def parts_table(measured: dict[str, dict[str, list[float]]]) -> list[str]:
    """The same for `PARTS`, each with those before it; last, the proximal step of `attach`."""
    rows = [
        "| over the plain step | copies of the weights | and the loops | and EM steps | attached |",
        "|---|---|---|---|---|",
    ]
    for name, times in measured.items():
        cells = [over_plain(times, part) for part in (*PARTS, "proximal")]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {net.name: measure(net, parts=PARTS) for net in NETS}
    print("\n".join([*table(found), "", *parts_table(found)]))
