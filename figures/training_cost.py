"""What the prior adds to a training step: LeNet-300-100 and ResNet-18 with Adam, K = 17.

    python figures/training_cost.py

Prints the last table of benchmark.md; benchmark.py and benchmark_gpu.py write it.
"""

import statistics
import time

import torch
from torch import nn

from swsmix import MixturePrior, Schedule
from swsmix.problems.nets import lenet_300_100


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


def measure(name, make, shape, steps, rounds, *, device="cpu", now=time.process_time):
    """Seconds per step of each update; they take turns, so that noise meets all of them."""
    x, y = torch.randn(shape, device=device), torch.randint(10, shape[:1], device=device)
    kinds = {}
    for update in ("plain", "gradient", "proximal"):
        torch.manual_seed(0)
        net = make().to(device)
        optimizer = torch.optim.Adam(net.parameters())
        if update != "plain":
            MixturePrior(net, 17).attach(
                optimizer, num_data=50_000, update=update, schedule=Schedule()
            )
        kinds[update] = (net, optimizer, [])
    for turn in range(rounds + 1):
        for net, optimizer, times in kinds.values():
            begin = now()
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            if turn:  # the first warms up
                times.append((now() - begin) / steps)
    return {update: statistics.median(times) for update, (_, _, times) in kinds.items()}


LENET = ("LeNet-300-100, batch 128", lenet_300_100, (128, 1, 28, 28), 100, 5)
RESNET = ("ResNet-18, batch 64", resnet_18, (64, 3, 32, 32), 3, 3)


def lines(nets, **where):
    """The table in Markdown, as lines. EM comes once in 100 steps."""
    rows = [
        "| training step (Adam, K = 17) | plain ms | gradient | proximal |",
        "|---|---|---|---|",
    ]
    for name, *rest in nets:
        times = measure(name, *rest, **where)
        plain = times["plain"]
        more = [f"{100 * (times[u] / plain - 1):+.0f} %" for u in ("gradient", "proximal")]
        rows.append(f"| {name} | {plain * 1e3:.3g} | {more[0]} | {more[1]} |")
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(lines([LENET, RESNET])))
