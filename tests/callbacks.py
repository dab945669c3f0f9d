"""A trainer's callback against a loop by hand: one network, its data, and what must be equal."""

from __future__ import annotations

import torch
from torch import nn

from swsmix import MixturePrior, Schedule

OPTIONS = {"num_data": 48, "schedule": Schedule(tau=0.1, em_every=4, em_rate=0.5)}
EPOCHS, BATCH = 4, 8
STEPS = EPOCHS * 48 // BATCH


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))


def cases():
    g = torch.Generator().manual_seed(1)
    return torch.randn(48, 5, generator=g), torch.randint(3, (48,), generator=g)


def batches():
    x, y = cases()
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def by_hand(net, optimizer, loss, options):
    """Train by a loop; the network, the prior and its attachment."""
    prior = MixturePrior(net, 3)
    attachment = prior.attach(optimizer, **options)
    for _ in range(EPOCHS):
        for x, y in batches():
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()
    return net, prior, attachment


def assert_same(net, callback, other, prior, attachment):
    """Weights, mixtures, clock and tau, to the last bit."""
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    mine, theirs = callback.prior.state_dict(), prior.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True)
    assert callback.attachment.tau == attachment.tau
    assert callback.attachment.tick == attachment.tick == STEPS
