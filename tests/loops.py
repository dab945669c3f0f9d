"""Small loops: one with the prior attached, and its twin with the penalty in the loss."""

import torch
from torch import nn

from swsmix import MixturePrior, Schedule

NUM_DATA, TAU, EM_EVERY = 50, 0.3, 3


def make(seed=0, **options):
    torch.manual_seed(seed)
    net = nn.Linear(30, 20)
    return net, MixturePrior(net, 4, **options)


def train(net, optimizer, steps=5, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()


def problem():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return net, lambda net: 0.5 * (net(x) - torch.sin(x.sum(1, keepdim=True))).square().mean()


def attached(make, steps=7, update="gradient", step=None):
    net, loss = problem()
    prior = MixturePrior(net, 3)
    optimizer = make(net.parameters())
    attachment = prior.attach(
        optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=EM_EVERY), update=update
    )

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    for _ in range(steps):
        if step is not None:
            step(optimizer, closure)
        else:
            closure()
            optimizer.step()
    assert attachment.tick == steps
    return net


def by_hand(make, steps=7):
    """The penalty in the loss, EM after the step; the optimiser in the loop is the same."""
    net, loss = problem()
    prior = MixturePrior(net, 3)
    optimizer = make(net.parameters())
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (loss(net) + TAU / NUM_DATA * prior.penalty()).backward()
        optimizer.step()
        if step % EM_EVERY == 0:
            prior.em_step_()
    return net


def same(a, b, **tolerance):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)
