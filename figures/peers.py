"""Other ways to the same numbers: naive PyTorch, MixtureSameFamily, scikit-learn, DKM.

    python figures/peers.py

Prints the relative L2 error of each gradient against float64; benchmark.py and benchmark_gpu.py
time them. Each method takes weights (n,), mixing, mean and std (k,), and returns dR/dw.
"""

import math
import warnings
from collections.abc import Callable

import torch

from swsmix import tables


def mixture_of(k: int, std: float = 0.05) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zero with half of the mass, the other components spread over the weights."""
    mean = torch.cat([torch.zeros(1), torch.linspace(-0.6, 0.6, k - 1)])
    return torch.tensor([0.5] + [0.5 / (k - 1)] * (k - 1)), mean, torch.full((k,), std)


def weights_of(n: int, seed: int = 0) -> torch.Tensor:
    """Half of the weights around zero, the others ten times as wide."""
    w = 0.05 * torch.randn(n, generator=torch.Generator().manual_seed(seed))
    w[: n // 2] *= 0.1
    return w


def naive(w, mixing, mean, std):
    """Broadcasting, logsumexp and autograd for the weights and the mixture."""
    leaves = [each.detach().requires_grad_() for each in (w, mixing, mean, std)]
    z = (leaves[0][:, None] - leaves[2]) / leaves[3]
    joint = leaves[1].log() - leaves[3].log() - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    loss = -joint.logsumexp(1).sum()
    return torch.autograd.grad(loss, leaves)[0]


def naive_and_em(w, mixing, mean, std):
    """The same, and then the sums of an EM step from the responsibilities."""
    gradient = naive(w, mixing, mean, std)
    away = w[:, None] - mean
    gamma = (mixing.log() - std.log() - 0.5 * (away / std).square()).softmax(1)
    gamma.sum(0), (gamma * away).sum(0), (gamma * away.square()).sum(0)
    return gradient


def torch_mixture(w, mixing, mean, std, family=torch.distributions):
    leaves = [each.detach().requires_grad_() for each in (w, mixing, mean, std)]
    law = family.MixtureSameFamily(
        family.Categorical(leaves[1]), family.Normal(leaves[2], leaves[3])
    )
    return torch.autograd.grad(-law.log_prob(leaves[0]).sum(), leaves)[0]


def pyro_mixture(w, mixing, mean, std):
    import pyro.distributions

    return torch_mixture(w, mixing, mean, std, pyro.distributions)


def scikit_learn(w, mixing, mean, std):
    """One EM iteration: neither the value nor the gradient."""
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        len(mixing),
        max_iter=1,
        weights_init=(mixing.double() / mixing.double().sum()).numpy(),
        means_init=mean[:, None].double().numpy(),
        precisions_init=(1 / std.double()[:, None, None] ** 2).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one iteration does not converge
        model.fit(w[:, None].numpy())


def dkm(n: int, k: int) -> Callable[[], object] | str:
    """Forward and backward pass of coremltools' differentiable k-means, or why there is none."""
    try:
        from coremltools.optimize.torch import palettization
    except Exception as error:
        return f"coremltools' DKM is not installed: {error}"
    bits = math.ceil(math.log2(k))
    layer = torch.nn.Sequential(torch.nn.Linear(1000, n // 1000, bias=False))
    config = palettization.DKMPalettizerConfig.from_dict(
        {"global_config": {"n_bits": bits, "cluster_dim": 1}}
    )
    palettizer = palettization.DKMPalettizer(layer, config)
    prepared, x = palettizer.prepare(), torch.ones(1, 1000)
    palettizer.step()

    def both() -> None:
        prepared.zero_grad()
        prepared(x).sum().backward()

    return both


METHODS: dict[str, Callable] = {
    "naive": naive,
    "naive, with EM sums": naive_and_em,
    "torch MixtureSameFamily": torch_mixture,
    "Pyro MixtureSameFamily": pyro_mixture,
    "scikit-learn, one EM step": scikit_learn,
}


def full_tables(w, *mixture):
    return tables.build(*mixture).full(w).gradient


def full_direct(w, *mixture):
    return tables.direct(*mixture).full(w).gradient


def differentiable(w, *mixture):
    leaves = [each.detach().requires_grad_() for each in (w, *mixture)]
    return torch.autograd.grad(tables.neg_log_prior(*leaves), leaves)[0]


def error_of(gradient: torch.Tensor | None, w: torch.Tensor, mixture: tuple) -> float:
    """Relative L2 error of a gradient against float64; NaN where there is none."""
    if gradient is None:
        return math.nan
    exact = tables.direct(*(each.double() for each in mixture)).gradient(w.double())
    return float((gradient - exact).norm() / exact.norm())


def main() -> None:
    torch.set_num_threads(1)
    w, mixture = weights_of(200_000), mixture_of(17)
    for name, call in (METHODS | {"swsmix": differentiable}).items():
        print(f"{name:28} {error_of(call(w, *mixture), w, mixture):.1e}")


if __name__ == "__main__":
    main()
