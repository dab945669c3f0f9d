"""A prior at the current weights: sums over all tensors of a group, and over all their shards."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix import _shards, tables
from swsmix.em import Moments, variational
from swsmix.em.variational import Variance
from swsmix.tables import Full, Sums, Tables
from swsmix.tables.exact import eager

if TYPE_CHECKING:
    from swsmix.prior.mixture_prior import MixturePrior

# Tensors smaller than this are counted together; copying larger ones would cost memory.
_SMALL = 1 << 20


@dataclass(frozen=True)
class Evaluation:
    """A prior at the current weights: the penalty and the E step, without a graph.

    Attributes:
        penalty: sum_groups tau_g (R(w; phi) - log p(phi)), in nats, a scalar.
        terms: group -> `"nll"`, R(w; phi), and `"hyper_prior"`, -log p(phi), in nats.
        moments: group -> the moments of its E step, centred on the mixture's means.
    """

    penalty: Float[Tensor, ""]
    terms: dict[str, dict[str, Float[Tensor, ""]]]
    moments: dict[str, Moments]


def penalty_of(tau: Mapping[str, float], terms: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """sum_groups tau_g (R - log p(phi)), from the terms by group."""
    total = torch.zeros((), dtype=torch.float32, device="cpu")
    for group, parts in terms.items():
        total = total.to(parts["nll"]) + tau[group] * (parts["nll"] + parts["hyper_prior"])
    return total


@dataclass(frozen=True)
class LastPass:
    """What a pass over a group's weights found: good for these weights under these tables."""

    tables: weakref.ref[Tables]
    weights: tuple[Any, ...]  # their fingerprint, and the pieces' sizes and types
    sums: list[Sums]  # of each piece


def nll(prior: MixturePrior, group: str) -> Tensor:
    """R of one group over all its tensors (and shards), differentiable."""
    m, table = prior._state(group).mixture, prior.tables_of(group)
    total = torch.zeros((), dtype=m.mean.dtype, device=m.mean.device)
    pieces = list(_pieces(prior, group))
    for shards, parts in pieces:
        # A mixture is everyone's: its gradient (mode "gradient") comes from all shards.
        pi, mu, sigma = (_shards.sum_gradient_over(t, shards) for t in (m.mixing, m.mean, m.std))
        known = _passes_over(prior, group, shards, parts)
        values = [
            tables.neg_log_prior(w, pi, mu, sigma, table, each)
            for w, each in zip(parts, known, strict=True)
        ]
        here = torch.stack(values).sum()
        # The value is everyone's, the gradient belongs to the shard.
        everywhere = _shards.sum_over_(here.detach().clone(), shards)
        total = total + (here + (everywhere - here.detach()) if shards else here)
    return total


def nll_and_moments(prior: MixturePrior, group: str) -> tuple[Tensor, Moments]:
    """R and the E step of one group over all its tensors (and shards), without a graph."""
    prior.check_weights(group)
    mean = prior._state(group).mixture.mean.detach()
    nll, total = mean.new_zeros(()), mean.new_zeros(3, len(mean), dtype=torch.float64)
    for shards, parts in _pieces(prior, group):
        values, sums = [], torch.zeros_like(total)
        for w, known in zip(parts, _passes_over(prior, group, shards, parts), strict=True):
            values.append(known.value.to(torch.promote_types(w.dtype, mean.dtype)))
            sums += torch.stack(known.moments)
        # Each process has seen its shard only.
        nll = nll + _shards.sum_over_(torch.stack(values).sum(), shards)
        total += _shards.sum_over_(sums, shards)
    return nll, Moments(mean.double(), *total)


@eager
def _passes_over(
    prior: MixturePrior, group: str, shards: tuple[Any, ...], parts: list[Tensor]
) -> list[Full | Sums]:
    """What the tables give for flat weights, from the last pass if they are the same weights.

    So `penalty`, its gradient, the EM step and reports that follow each other share one pass.
    """
    table, last = prior.tables_of(group), prior.last_passes.get((group, shards))
    weights = tables.fingerprint(parts), *((len(w), w.dtype) for w in parts)
    if last is not None and last.tables() is table and last.weights == weights:
        return list(last.sums)
    gradients = torch.is_grad_enabled()
    # What is made in inference mode could not be used outside of it; to leave it turns them on.
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        found = [tables.one_pass(table, w) for w in parts]
    sums = [Sums(each.value, each.moments) for each in found]
    prior.last_passes[group, shards] = LastPass(weakref.ref(table), weights, sums)
    return found


def expected_moments(prior: MixturePrior, group: str, variance: Variance) -> Moments:
    """The E step over the posterior N(w, s^2) of one group."""
    prior.check_weights(group)
    mixture = prior._state(group).mixture
    total = torch.zeros(3, mixture.num_components, dtype=torch.float64, device="cpu")
    total = total.to(mixture.mean.device)
    for name, p in prior.parameters_of(group).items():
        w = _shards.local(p.detach())
        s2 = variational.check(name, w, variance[name])
        moments = variational.expected_sums(mixture, w.reshape(-1), s2.reshape(-1))[1]
        total += _shards.sum_over_(moments, _shards.shard_groups(p))
    return Moments(mixture.mean.detach().double(), *total)


def expected_terms(prior: MixturePrior, group: str, variance: Variance) -> dict[str, Tensor]:
    """The terms of a group's expected penalty; they are differentiable in the weights."""
    params, mixture = prior.parameters_of(group), prior._state(group).mixture
    s2 = [variational.check(name, p, variance[name]) for name, p in params.items()]
    w, flat = (torch.cat([t.reshape(-1) for t in ts]) for ts in (params.values(), s2))
    nll = variational.neg_expected_log_prior(mixture, w, flat.to(w))
    return {"nll": nll, "hyper_prior": -prior._log_hyper_prior(group)}


def check_weights(prior: MixturePrior, group: str) -> None:
    """Check that a group's weights are finite and on their mixture's device.

    Raises:
        ValueError: if not; the message names the tensor.
    """
    device = prior._state(group).mixture.mean.device
    for name, p in prior.parameters_of(group).items():
        w = _shards.local(p)
        if w.device != device:
            raise ValueError(
                f"{name} is on {w.device}, its mixture on {device}: call "
                f"prior.to({str(w.device)!r})"
            )
        if w.numel() and not math.isfinite(w.detach().sum().item()):
            bad = int((~torch.isfinite(w)).sum())
            if bad:
                raise ValueError(
                    f"{bad} of the {w.numel()} weights of {name} are nan or inf: training has "
                    "diverged; the mixture is left as it was"
                )


def _pieces(prior: MixturePrior, group: str) -> Iterator[tuple[tuple[Any, ...], list[Tensor]]]:
    """The group's weights as flat tensors, by the process groups that shard them."""
    by_shards: dict[tuple[Any, ...], list[Tensor]] = {}
    for p in prior.parameters_of(group).values():
        by_shards.setdefault(_shards.shard_groups(p), []).append(_shards.local(p))
    for shards, local in by_shards.items():
        yield shards, list(_shards.pieces(local, _SMALL))
