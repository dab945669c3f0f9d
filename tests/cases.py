"""Mixtures and weights with a name, from easy to nasty; every law is tested on all of them."""

import torch
from torch import nn

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


def network(seed=0):
    """6-20-2."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2))


def state(seed=0):
    """Its state_dict."""
    return network(seed).state_dict()


def resnet50(scale=8):
    """The 161 parameters of a ResNet-50 under their names, its channels divided by `scale`."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def convolution(name, norm, to, come, side):
        to, come = to // scale, max(come // scale, 3)
        std = (2 / (come * side * side)) ** 0.5
        tensors[f"{name}.weight"] = std * torch.randn(to, come, side, side, generator=generator)
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = torch.ones(to), torch.zeros(to)

    convolution("conv1", "bn1", 64, 3, 7)
    come = 64
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convolution(f"{name}.conv1", f"{name}.bn1", inner, come, 1)
            convolution(f"{name}.conv2", f"{name}.bn2", inner, inner, 3)
            convolution(f"{name}.conv3", f"{name}.bn3", 4 * inner, inner, 1)
            if block == 0:
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", 4 * inner, come, 1)
            come = 4 * inner
    tensors["fc.weight"] = 0.03 * torch.randn(1000 // scale, come // scale, generator=generator)
    tensors["fc.bias"] = torch.zeros(1000 // scale)
    return tensors
