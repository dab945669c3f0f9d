"""Mixtures and weights with a name, from easy to nasty; every law is tested on all of them."""

import torch

from swsmix import GaussianMixture


def _mixture(mixing, mean, std):
    mixing = torch.tensor(mixing, dtype=torch.float64)
    return GaussianMixture(mixing / mixing.sum(), mean, std)


def mixtures():
    """name -> a float64 mixture."""
    many = torch.linspace(-1.0, 1.0, 64, dtype=torch.float64).tolist()
    return {
        "one": _mixture([1.0], [0.3], [0.7]),
        "typical": _mixture([0.5, 0.2, 0.3], [0.0, -0.4, 0.5], [0.05, 0.1, 0.2]),
        "spiked": _mixture([0.999, 0.0005, 0.0005], [0.0, -0.1, 0.1], [1e-3, 0.05, 0.05]),
        "wide": _mixture([0.3, 0.3, 0.4], [-2.0, 0.0, 2.0], [3.0, 5.0, 4.0]),
        "coinciding": _mixture([0.25] * 4, [0.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.3, 0.1]),
        "sixty-four": _mixture([1.0] * 64, many, [0.02] * 64),
        "dead component": _mixture([0.6, 0.4, 0.0], [0.0, 1.0, 2.0], [0.1, 0.2, 0.3]),
    }


def weights(n=500, seed=0):
    """Trained-looking weights: a heap at zero, two bumps, and a few far out."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(n, generator=generator, dtype=torch.float64)
    centre = torch.tensor([0.0, 0.0, -0.4, 0.5], dtype=torch.float64)
    spread = torch.tensor([0.01, 0.2, 0.05, 0.05], dtype=torch.float64)
    kind = torch.randint(4, (n,), generator=generator)
    w = centre[kind] + spread[kind] * draw
    w[:3] = torch.tensor([0.0, 1.5, -1.5])
    return w
