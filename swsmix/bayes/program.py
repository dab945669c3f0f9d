"""The joint density as a Pyro model, for Pyro's guides and other Pyro algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints
from torch.func import functional_call

from swsmix import tables
from swsmix.bayes.joint import Joint
from swsmix.bayes.layout import Layout
from swsmix.bayes.mixture_term import MixtureTerm

Program = Callable[..., None]
_HALF_LOG_2PI_E = 0.5 * math.log(2.0 * math.pi * math.e)


class MixtureWeights(dist.TorchDistribution):
    """n weights drawn from a Gaussian mixture, the assignments marginalised.

    Pyro's own `MixtureSameFamily` declares no transform of its support to the reals, so that NUTS
    and guides refuse it as a latent site. The density is the O(N) one of `swsmix.tables`.

    Args:
        mixing: pi (k,).
        mean: mu (k,).
        std: sigma (k,).
        num: n.
        table: the mixture's tables, for a cheap gradient: with them `log_prob` has the right
            gradient by the weights, but the value 0.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(
        self,
        mixing: Tensor,
        mean: Tensor,
        std: Tensor,
        num: int,
        table: tables.Tables | None = None,
    ) -> None:
        self.mixture, self.table = (mixing, mean, std), table
        super().__init__(event_shape=torch.Size([num]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw weights (*sample_shape, n)."""
        shape = (*sample_shape, *self.event_shape)
        with torch.no_grad():
            mixing, mean, std = self.mixture
            j = torch.multinomial(mixing, torch.Size(shape).numel(), replacement=True)
            return (mean[j] + std[j] * torch.randn_like(mean[j])).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """sum_i log p(w_i) in nats, a scalar."""
        if self.table is not None:
            zero: Tensor = _GradientOnly.apply(value, self.table)
            return zero
        return -tables.neg_log_prior(value, *self.mixture).to(value.dtype)


class _GradientOnly(torch.autograd.Function):
    """The gradient of sum_i log p(w_i), without its value: one look-up per weight."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, table: tables.Tables) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(w)
        return w.new_zeros(())

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return ctx.table.gradient(w).mul_(-above), None


class EntropyScore(poutine.messenger.Messenger):
    """Score a mean-field guide by its entropy instead of by its density at the draw.

    E log q = -sum_i (log scale_i + log(2 pi e) / 2) is exact, without noise. Draw and entropy are
    computed from loc and log scale by one autograd function, which saves most of the passes over
    the weights that Pyro's Normal and Delta make, forward and backward.

    Args:
        guide: Pyro's `AutoNormal` with `scale_constraint = constraints.positive`, so that its
            scales are exponentials of their parameters.
    """

    def __init__(self, guide: Any) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, message: Any) -> None:
        fn, name = message["fn"], message["name"]
        if name.endswith("_unconstrained"):  # also how PyroModule names a parameter
            loc, log_scale = (attrgetter(name)(m) for m in (self.guide.locs, self.guide.scales))
            drawn, total = _NormalDraw.apply(loc, log_scale)
            message["fn"] = _ScoredDraw(fn, -(total + _HALF_LOG_2PI_E * loc.numel()), drawn)
        elif isinstance(fn, dist.Delta):
            message["fn"] = _ScoredDraw(fn, fn.log_density, fn.v)


class _NormalDraw(torch.autograd.Function):
    """loc + exp(log_scale) * noise, and the sum of log_scale."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(loc).mul_(log_scale.exp())
        ctx.save_for_backward(noise)
        return loc + noise, log_scale.sum()

    @staticmethod
    def backward(ctx: Any, above: Tensor, above_sum: Tensor) -> tuple[Tensor, Tensor]:
        (noise,) = ctx.saved_tensors
        return above, torch.addcmul(above_sum, above, noise)


class _ScoredDraw(dist.TorchDistribution):
    """A given draw with a given score in place of its log density."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, like: Any, score: Tensor, drawn: Tensor) -> None:
        self.score, self.drawn = score, drawn
        super().__init__(like.batch_shape, like.event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.drawn

    def log_prob(self, value: Tensor) -> Tensor:
        return self.score


class HeldMixture(NamedTuple):
    """A mixture that stays fixed for some steps, with its tables."""

    mixing: Tensor
    mean: Tensor
    std: Tensor
    table: tables.Tables


def program(joint: Joint, held: Mapping[str, HeldMixture] | None = None) -> Program:
    """A Pyro model with the density of `Joint.log_joint(z, jacobian=False)`.

    Sites, for every group g: `g.share` (Dirichlet: the free mixing proportions, divided by their
    sum), `g.variance`, `g.mean`, `g.weights`; then `others`, `noise_variance` and `y`.

    Args:
        joint: the model.
        held: group -> a mixture to hold fixed, looked up at each call. Its sites are then omitted,
            and the density lacks terms that do not depend on the weights.

    Returns:
        model(x, y, num_data=None, temperature=1). With `num_data` the likelihood of the batch is
        scaled to so many cases; it is divided by `temperature`, below 1 during KL warm-up.
    """
    layout, net = joint.layout, joint.net
    like = next(net.parameters())
    numbers = {g: len(layout.weight_index(g)) for g in layout.groups}
    under_prior = {name for names in layout.groups.values() for name in names}
    others = [name for name in layout.parameters if name not in under_prior]

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)

    def model(x: Tensor, y: Tensor, num_data: int | None = None, temperature: float = 1.0) -> None:
        network: dict[str, Tensor] = {}
        for group in layout.components:
            term, names = joint.terms[group], layout.groups[group]
            with poutine.scale(scale=term.tau):
                if fixed := (held or {}).get(group):
                    mixing, mean, std, table = fixed
                else:
                    (mixing, mean, std), table = _sample_mixture(group, term, tensor), None
                weights = MixtureWeights(mixing, mean, std, numbers[group], table)
                w = pyro.sample(f"{group}.weights", weights)
            network |= _split(w, names, layout)
        if others:
            prior = dist.Normal(tensor(0.0), joint.other_std).expand([len(joint.others)])
            network |= _split(pyro.sample("others", prior.to_event(1)), others, layout)
        noise = tensor(layout.noise_std or 1.0)
        if layout.learns_noise:
            half = tensor(0.5 * joint.noise_count)
            noise = pyro.sample(
                "noise_variance", dist.InverseGamma(half, half * joint.noise_scale**2)
            ).sqrt()
        out = functional_call(net, network, (x,))
        num_cases = len(x) if num_data is None else num_data
        with poutine.scale(scale=num_cases / len(x) / temperature):
            if layout.likelihood == "gaussian":
                pyro.sample("y", dist.Normal(out, noise).to_event(out.ndim), obs=y)
            elif layout.likelihood == "categorical":
                pyro.sample("y", dist.Categorical(logits=out).to_event(1), obs=y)
            else:
                pyro.sample("y", dist.Bernoulli(logits=out).to_event(out.ndim), obs=y)

    return model


def _sample_mixture(
    group: str, term: MixtureTerm, tensor: Callable[[Any], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample the sites of a group's mixture: mixing, mean and std (k,)."""
    c = term.components
    mixing, mean, std = (tensor(v) for v in (c.mixing, c.mean, c.std))
    free = [torch.from_numpy(i).to(mixing.device) for i in c.free]
    if len(free[0]) > 1:
        share = pyro.sample(f"{group}.share", dist.Dirichlet(tensor(term.alpha)))
        mixing = mixing.index_copy(0, free[0], c.rest * share)
    elif len(free[0]):
        mixing = mixing.index_fill(0, free[0], c.rest)
    if len(free[2]):
        inverse = dist.InverseGamma(tensor(term.half), tensor(term.half_s2)).to_event(1)
        std = std.index_copy(0, free[2], pyro.sample(f"{group}.variance", inverse).sqrt())
    if len(free[1]):
        spread = std[free[1]] / tensor(term.hyper.mean_count)[free[1]].sqrt()
        normal = dist.Normal(tensor(term.hyper.mean)[free[1]], spread).to_event(1)
        mean = mean.index_copy(0, free[1], pyro.sample(f"{group}.mean", normal))
    return mixing, mean, std


def _split(flat: Tensor, names: Sequence[str], layout: Layout) -> dict[str, Tensor]:
    shapes = [layout.parameters[name] for name in names]
    parts = flat.split([math.prod(shape) for shape in shapes])
    return {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}


def sites_of(joint: Joint, z: Tensor) -> dict[str, Tensor]:
    """The values of the model's latent sites at z (d,): site -> value."""
    layout, sites = joint.layout, {}
    for group, c in layout.components.items():
        mixing, mean, std = layout.mixture(z, group)
        free = [torch.from_numpy(i) for i in c.free]
        if len(free[0]) > 1:
            sites[f"{group}.share"] = mixing[free[0]] / c.rest
        if len(free[2]):
            sites[f"{group}.variance"] = std[free[2]].square()
        if len(free[1]):
            sites[f"{group}.mean"] = mean[free[1]]
        sites[f"{group}.weights"] = layout.weights(z, group)
    if len(joint.others):
        sites["others"] = z[torch.from_numpy(joint.others)]
    if layout.learns_noise:
        sites["noise_variance"] = z[-1].exp()
    return sites


def held_mixtures(joint: Joint, sites: Mapping[str, Tensor]) -> dict[str, HeldMixture]:
    """The mixtures in a draw of the sites, with their tables: group -> mixture."""
    held = {}
    for group, c in joint.layout.components.items():
        like = sites[f"{group}.weights"]
        mixture = [
            torch.tensor(v, dtype=like.dtype, device=like.device) for v in (c.mixing, c.mean, c.std)
        ]
        free = [torch.from_numpy(i).to(like.device) for i in c.free]
        if len(free[0]) > 1:
            mixture[0][free[0]] = c.rest * sites[f"{group}.share"].detach()
        elif len(free[0]):
            mixture[0][free[0]] = c.rest
        if len(free[1]):
            mixture[1][free[1]] = sites[f"{group}.mean"].detach()
        if len(free[2]):
            mixture[2][free[2]] = sites[f"{group}.variance"].detach().sqrt()
        held[group] = HeldMixture(mixture[0], mixture[1], mixture[2], tables.build(*mixture))
    return held


def z_of(joint: Joint, sites: dict[str, Tensor]) -> Tensor:
    """The z (d,) of these sites: the inverse of `sites_of`."""
    layout = joint.layout
    like = next(iter(sites.values()))
    z = torch.zeros(layout.size, dtype=like.dtype, device="cpu")
    for group, c in layout.components.items():
        u, mu, xi = layout.mixture_slices[group]
        free = [torch.from_numpy(i) for i in c.free]
        z[torch.from_numpy(layout.weight_index(group))] = sites[f"{group}.weights"].cpu()
        if len(free[0]) > 1:
            log_share = sites[f"{group}.share"].cpu().clamp_min(1e-30).log()
            z[u] = log_share @ torch.from_numpy(joint.terms[group].basis).to(z.dtype)
        if len(free[1]):
            z[mu] = sites[f"{group}.mean"].cpu()
        if len(free[2]):
            z[xi] = sites[f"{group}.variance"].cpu().log()
    if len(joint.others):
        z[torch.from_numpy(joint.others)] = sites["others"].cpu()
    if layout.learns_noise:
        z[-1] = sites["noise_variance"].cpu().log()
    return z
