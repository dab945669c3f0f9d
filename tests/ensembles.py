"""Small networks to train side by side, and all numbers of one."""

import torch
from torch import nn

from swsmix import HyperPrior, MixturePrior

FLOAT = torch.float64
B = 4


def net(seed, dtype=FLOAT, frozen=False):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    made[0].bias.requires_grad_(not frozen)
    return made


def cases(num=40, dtype=FLOAT, seed=0):
    x = torch.randn(num, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x, torch.sin(x.sum(1, keepdim=True))


def made(mode="em", groups="tensor", dtype=FLOAT, k=3, **options):
    nets = [net(seed, dtype, **options) for seed in range(B)]
    hypers = [HyperPrior(std=0.05 + 0.1 * i, std_count=2.0) for i in range(B)]
    priors = [
        MixturePrior(n, k, mode=mode, groups=groups, method="spread", hyper=h)
        for n, h in zip(nets, hypers, strict=True)
    ]
    return nets, priors


def everything(net, prior=None, loss=None):
    """All numbers of a member as one vector."""
    modules = [m for m in (net, prior, loss) if isinstance(m, nn.Module)]
    tensors = [t for m in modules for t in m.state_dict().values()]
    return torch.cat([t.detach().reshape(-1).double() for t in tensors]).nan_to_num(-1.0)
