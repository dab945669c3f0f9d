"""What the tests of `fit` train: a small regression, and all that belongs to it."""

import torch
from torch import nn

from swsmix import GaussianNoise, MixturePrior, Schedule, fit

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
