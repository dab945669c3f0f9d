"""What the prior adds to a training step: small and large networks with Adam, K = 17.

    python figures/training_cost.py

Prints the table that benchmark.py and benchmark_gpu.py write: the time of a step under the prior
over that of a plain one. The EM steps are in it, every ten steps; for ResNet-18 at every step,
which is more than anyone needs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from swsmix import MixturePrior, Schedule
from swsmix.problems.nets import lenet_300_100

UPDATES = ("proximal", "gradient")


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


def measure(net: Net, *, device="cpu", now=time.process_time) -> dict[str, list[float]]:
    """Seconds per step in each round, of the plain step and each update.

    They take turns within a round, so that noise meets all of them.
    """
    x = torch.randn(net.shape, device=device)
    kinds = {}
    for update in ("plain", *UPDATES):
        torch.manual_seed(0)
        model = net.make().to(device)
        optimizer = torch.optim.Adam(model.parameters())
        if update != "plain":
            MixturePrior(model, 17).attach(
                optimizer, num_data=50_000, update=update, schedule=Schedule(em_every=net.em_every)
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


def table(measured: dict[str, dict[str, list[float]]]) -> list[str]:
    """The table in Markdown, as lines, from name -> update -> seconds by round."""
    rows = [
        "| training step (Adam, K = 17) | plain, ms | proximal / plain | gradient / plain |",
        "|---|---|---|---|",
    ]
    for name, times in measured.items():
        ratios = [
            [each / plain for each, plain in zip(times[update], times["plain"], strict=True)]
            for update in UPDATES
        ]
        cells = [in_brackets([1e3 * t for t in times["plain"]])]
        cells += [in_brackets(each) for each in ratios]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(table({net.name: measure(net) for net in NETS})))
