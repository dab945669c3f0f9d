"""What draws of a network's parameters predict: outputs, new targets, log likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from swsmix.bayes import checks
from swsmix.bayes.layout import Layout


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of new targets.

    Attributes:
        mean: the posterior mean of the outputs (of the probabilities, for labels) (n, ...).
        quantiles: q -> the predictive q-quantiles, noise included (n, ...); regression only.
        samples: predictive draws, noise included (draws, n, ...): numbers or labels.
        functions: the outputs of each draw without noise (probabilities, for labels)
            (draws, n, ...).
    """

    mean: Tensor
    quantiles: dict[float, Tensor]
    samples: Tensor = field(repr=False)
    functions: Tensor = field(repr=False)


@torch.no_grad()
def network_outputs(layout: Layout, z: Tensor, net: nn.Module, x: Tensor) -> Tensor:
    """The network's outputs at each z: (chains, draws, n, ...), see `Posterior.outputs`."""
    shapes = {n: tuple(p.shape) for n, p in net.named_parameters()}
    for name, shape in layout.parameters.items():
        if shapes.get(name) != shape:
            raise ValueError(
                f"the posterior is over a network with {name} of shape {shape}; this one has "
                f"{shapes.get(name, list(shapes))}"
            )
    checks.check_finite(x, "inputs")
    like = next(net.parameters())
    x = x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)
    training = net.training
    net.eval()
    try:
        checks.output_shape(net, x)
        flat = z.reshape(-1, z.shape[-1]).to(like.device, like.dtype)
        rows = [functional_call(net, layout.network(row), (x,)).double().cpu() for row in flat]
    finally:
        net.train(training)
    return torch.stack(rows).view(*z.shape[:2], *rows[0].shape)


def predict_targets(
    out: Tensor, likelihood: str, noise_std: Tensor | None, quantiles: Sequence[float], seed: int
) -> Prediction:
    """Draw a target for each output (draws, n, ...), see `Posterior.predict`."""
    generator = torch.Generator().manual_seed(seed)
    if noise_std is not None:
        std = noise_std.double().reshape(-1, *[1] * (out.ndim - 1))
        samples = out + std * torch.randn(
            out.shape, generator=generator, dtype=out.dtype, device="cpu"
        )
        values = np.quantile(samples.numpy(), list(quantiles), axis=0) if quantiles else []
        by_q = {q: torch.from_numpy(np.asarray(v)) for q, v in zip(quantiles, values, strict=True)}
        return Prediction(out.mean(0), by_q, samples, out)
    if likelihood == "binary":
        p = out.sigmoid()
        return Prediction(p.mean(0), {}, torch.bernoulli(p, generator=generator).long(), p)
    p = out.softmax(-1)
    labels = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:-1])
    return Prediction(p.mean(0), {}, labels, p)


def log_likelihood(out: Tensor, y: Tensor, likelihood: str, noise_std: Tensor | None) -> Tensor:
    """Log p(y | outputs) of each case (chains, draws, n), see `Posterior.log_likelihood`."""
    if likelihood == "categorical":
        index = y.long().expand(*out.shape[:2], -1)[..., None]
        return out.log_softmax(-1).gather(-1, index)[..., 0]
    if noise_std is None:
        log_p = y.double() * out - torch.nn.functional.softplus(out)
    else:
        std = noise_std.double().reshape(*out.shape[:2], *[1] * (out.ndim - 2))
        log_p = torch.distributions.Normal(out, std).log_prob(y.double())
    return log_p.flatten(3).sum(-1) if log_p.ndim > 3 else log_p
