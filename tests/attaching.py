"""A small regression to attach a prior to, optimisers, and the comparison of two states."""

import pytest
import torch
from torch import nn

NUM_DATA, TAU = 50, 0.3


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(NUM_DATA, 6, generator=generator, dtype=torch.float64)
    y = torch.sin(x.sum(1, keepdim=True))
    return net, x, y


def loss_of(net, x, y):
    return 0.5 * (net(x) - y).square().mean()


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9, dampening=0.1),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "amsgrad": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "fused adam": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
}
EVERY = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def close(a, b, **tolerance):
    tolerance = {"equal_nan": True, **tolerance}
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
