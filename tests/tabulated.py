"""Mixtures that are hard to tabulate, weights for them, and the slow twin of their tables."""

import math

import pytest
import torch


def spread(k, std):
    """k components of one std, nearly all of the mass on zero."""
    mean = torch.cat([torch.zeros(1), torch.linspace(-0.6, 0.6, k - 1)])
    mixing = torch.full((k,), 0.001 / (k - 1))
    mixing[0] = 0.999
    return mixing, mean, torch.full((k,), std)


def ladder(k):
    """Stds from 1e-4 to 0.3."""
    mean = 0.3 * torch.randn(k, generator=torch.Generator().manual_seed(1))
    return torch.full((k,), 1 / k), mean, torch.logspace(-4, math.log10(0.3), k)


MIXTURES = {
    "typical": spread(17, 0.05),
    "spiked": (*spread(17, 0.02)[:2], torch.tensor([1e-3] + [0.02] * 16)),
    "wide": (
        torch.full((3,), 1 / 3),
        torch.tensor([-2.0, 0.0, 2.0]),
        torch.tensor([3.0, 5.0, 4.0]),
    ),
    "coinciding": (
        torch.full((4,), 0.25),
        torch.full((4,), 0.1),
        torch.tensor([0.1, 0.1, 0.3, 0.1]),
    ),
    "sixty-four": spread(64, 0.02),
    "sixty-four, hard": ladder(64),
    "hard": ladder(17),
    "quantised": spread(17, 2e-4),
    "tied": (torch.full((3,), 1 / 3), torch.tensor([1.0, 0.0, 0.0]), torch.ones(3)),
    "barely there": (
        torch.ones(2) / 2,
        torch.tensor([0.0, 0.056640625]),
        torch.tensor([1.0, 0.00148560176]),
    ),
    "one": (torch.ones(1), torch.full((1,), 0.1), torch.full((1,), 0.1)),
    "dead": (
        torch.tensor([0.6, 0.4, 0.0]),
        torch.tensor([0.0, 0.5, 0.2]),
        torch.tensor([0.1, 0.2, 1e-4]),
    ),
    "opposed": (torch.tensor([0.5, 0.5]), torch.tensor([-0.5, 0.5]), torch.tensor([0.01, 0.01])),
}


every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())


def weights_of(mixture, n=70_000, seed=0):
    """Weights around the centres and between them, some far out, and exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    mixing, mean, std = mixture
    kind = torch.randint(len(mixing), (n,), generator=generator)
    w = mean[kind] + 3 * std[kind] * torch.randn(n, generator=generator)
    w[: n // 4] = torch.rand(n // 4, generator=generator) * 3 - 1.5
    exponent = torch.rand(n // 50, generator=generator) * 60 - 42
    w[: n // 50] = 10**exponent * torch.randn(n // 50, generator=generator).sign()
    w[-n // 10 :] = 0.0
    return w


def twin(w, mixing, mean, std):
    """f, f', a and the responsibilities, by the formulas, in float64; rows of w."""
    mixing, mean, std = mixing.double(), mean.double(), std.double()
    off = w.double()[:, None] - mean
    joint = mixing.log() - std.log() - 0.5 * math.log(2 * math.pi) - 0.5 * (off / std) ** 2
    gamma = joint.softmax(1)
    return (
        -joint.logsumexp(1),
        (gamma * off / std**2).sum(1),
        (gamma / std**2).sum(1),
        torch.stack([(gamma * off**n).sum(0) for n in range(3)]),
    )


def excess(gradient, exact, curvature):
    """The largest error of a gradient in the unit of the bound."""
    scale = exact.abs() + curvature.sqrt()
    return float(((gradient.double() - exact).abs() / scale).max())
