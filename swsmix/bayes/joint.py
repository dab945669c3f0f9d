"""The log joint density of a network, its mixtures and its noise: what a posterior is made of."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from swsmix.bayes import checks, density
from swsmix.bayes.layout import Array, Components, Layout
from swsmix.bayes.network import General, Plain, evaluator
from swsmix.prior import MixturePrior

Likelihood = Literal["gaussian", "categorical", "binary"]


class Joint:
    """p(data, w, phi, sigma_y): a network under its mixture prior, ready for inference.

        w_i ~ sum_j pi_j N(mu_j, sigma_j^2)        the weights that the prior sees, assignments
                                                   marginalised, as in `MixturePrior.penalty`
        pi, mu, sigma^2 ~ the prior's HyperPrior   densities over pi and sigma^2
        b ~ N(0, other_std^2)                      every other trainable parameter (biases, ..)
        sigma_y^2 ~ scaled-inverse-chi^2(noise_count, noise_scale^2)   or given, `noise_std`
        y ~ N(f(x), sigma_y^2), softmax(f(x)), or Bernoulli(f(x)) of logits f

    Selection, groups, pins, tau and hyper-priors are those of the prior. The network is copied, in
    evaluation mode; neither it nor the prior is changed. Densities are computed in float64.

    Args:
        net: the network, as a rule trained under the prior.
        prior: its mixture prior.
        x: the inputs.
        y: the targets: real, of the outputs' shape (`"gaussian"`); class numbers (`"categorical"`);
            0 and 1 (`"binary"`).
        likelihood: see above.
        noise_std: fixes sigma_y; None learns it.
        noise_scale: where sigma_y's prior lies; by default a tenth of the targets' std.
        noise_count: its strength, in cases.
        other_std: of the normal prior on what the mixtures do not see, in units of the weights.

    Raises:
        TypeError: if the data are no tensors.
        ValueError: if the prior is another network's; there are no data, or they are not finite,
            or do not fit; weights or mixtures are not finite; a density is improper (see
            `HyperPrior.mean_count`).

    Example:
        >>> from swsmix import HyperPrior
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
        >>> prior = MixturePrior(net, 2, hyper=HyperPrior(mean_count=0.1))
        >>> joint = Joint(net, prior, torch.randn(9, 3), torch.randn(9))
        >>> joint.layout.size  # 16 weights, 5 biases, u, two means, two stds, the noise
        27
    """

    def __init__(
        self,
        net: nn.Module,
        prior: MixturePrior,
        x: Tensor,
        y: Tensor,
        *,
        likelihood: Likelihood | str = "gaussian",
        noise_std: float | None = None,
        noise_scale: float | None = None,
        noise_count: float = 1.0,
        other_std: float = 3.0,
    ) -> None:
        checks.same_network(net, prior)
        checks.usable_data(x, y, likelihood)
        for name, value in (
            ("noise_std", noise_std),
            ("noise_scale", noise_scale),
            ("noise_count", noise_count),
            ("other_std", other_std),
        ):
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {value}")
        self.net = copy.deepcopy(net).eval()
        self.prior = prior
        self.other_std, self.noise_count = other_std, noise_count
        self.layout = Layout(
            parameters={
                n: tuple(p.shape) for n, p in self.net.named_parameters() if p.requires_grad
            },
            groups=dict(prior.selection.groups),
            components={g: Components.of(m) for g, m in prior.mixtures.items()},
            likelihood=likelihood,
            noise_std=noise_std if likelihood == "gaussian" else None,
        )
        like = next(self.net.parameters())
        self.x = x.detach().to(like.device)
        self.x = self.x.to(like.dtype) if self.x.is_floating_point() else self.x
        self.y = y.detach().to(like.device)
        self.y = self.y.long() if likelihood == "categorical" else self.y.to(like.dtype)
        scale = self.y.double().std(correction=0).item() if self.y.numel() > 1 else 0.0
        self.noise_scale = noise_scale or 0.1 * scale or 1.0
        self.terms = {
            group: density.MixtureTerm(
                self.layout.components[group],
                density.Hyper(
                    **{n: t.cpu().numpy() for n, t in hyper.expanded(prior.mixtures[group]).items()}
                ),
                prior.tau[group],
            )
            for group, hyper in prior.hyper_priors.items()
        }
        self._index = {g: self.layout.weight_index(g) for g in self.layout.groups}
        seen = np.zeros(self.layout.num_parameters, dtype=bool)
        seen[np.concatenate(list(self._index.values()))] = True
        self.others = np.flatnonzero(~seen)
        for group, term in self.terms.items():
            checks.proper(group, term)
        checks.fitting(checks.output_shape(self.net, self.x), self.y, likelihood)

    @functools.cached_property
    def _compiled(self) -> tuple[Plain | General, Array]:
        """The network's function and the targets, in float64 on the CPU."""
        net, x = copy.deepcopy(self.net).double().cpu(), self.x.cpu()
        x = x.double() if x.is_floating_point() else x
        y = self.y.cpu()
        y = y.double() if y.is_floating_point() else y
        return evaluator(net, self.layout, x), y.numpy()

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: all but the compiled function, which is made anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}

    def start(self, noise_std: float | None = None) -> Array:
        """Z at the network's, the prior's and the noise's current values: the MAP fit, as a rule.

        Args:
            noise_std: sigma_y if it is learned; by default the residuals' root mean square.

        Returns:
            z (d,).
        """
        values = {g: (m.mixing, m.mean, m.std) for g, m in self.prior.mixtures.items()}
        if self.layout.learns_noise and noise_std is None:
            with torch.no_grad():
                noise_std = (self.net(self.x) - self.y).square().mean().sqrt().item()
            noise_std = max(noise_std, 1e-3 * self.noise_scale)
        z: Array = self.layout.pack(dict(self.net.named_parameters()), values, noise_std).numpy()
        return z

    def centre(self, z: Array) -> Array:
        """Z in centred coordinates, where each bias is its unit's mean input.

        Args:
            z: (d,), as in `Layout`.

        Returns:
            (d,); see `swsmix.bayes.network`. z itself if the network is not made of plain layers.
        """
        p = self.layout.num_parameters
        return np.concatenate([self._compiled[0].centre(z[:p]), z[p:]])

    def uncentre(self, z: Array) -> Array:
        """The inverse of `centre`.

        Returns:
            (d,).
        """
        p = self.layout.num_parameters
        return np.concatenate([self._compiled[0](z[:p], centred=True)[1], z[p:]])

    def log_joint(
        self, z: Array, *, jacobian: bool = True, centred: bool = False
    ) -> tuple[float, Array]:
        """Log p(data, z), normalised in z, and its gradient.

        Args:
            z: (d,), float64; see `Layout`.
            jacobian: the density over z. Without, that over weights, mixing, means, sigma^2 and
                sigma_y^2, whose stationary points are those of EM and of gradient descent on
                `MixturePrior.penalty`.
            centred: z is given, and the gradient wanted, in centred coordinates.

        Returns:
            Nats, and the gradient (d,).
        """
        layout = self.layout
        gradient = np.zeros_like(z)
        evaluate, y = self._compiled
        out, theta, pull = evaluate(z[: layout.num_parameters], centred=centred)
        others = theta[self.others]
        if layout.likelihood == "gaussian":
            log_variance = (
                float(z[-1]) if layout.learns_noise else 2.0 * math.log(layout.noise_std or 1.0)
            )
            value, push, by_noise = density.gaussian(out, y, log_variance)
            if layout.learns_noise:
                more, slope = density.log_scaled_inverse_chi2(
                    log_variance, self.noise_count, self.noise_scale
                )
                value += more + jacobian * log_variance
                gradient[-1] = by_noise + slope + jacobian
        elif layout.likelihood == "categorical":
            value, push = density.categorical(out, y)
        else:
            value, push = density.binary(out, y)
        for group, term in self.terms.items():
            index, (u, mu, xi) = self._index[group], layout.mixture_slices[group]
            more, by_w, by_u, by_mu, by_xi = term(
                theta[index], z[u], z[mu], z[xi], jacobian=jacobian
            )
            value += more
            gradient[index] += by_w
            gradient[u], gradient[mu], gradient[xi] = by_u, by_mu, by_xi
        scaled = others / self.other_std
        value -= 0.5 * float(scaled @ scaled)
        value -= len(others) * (math.log(self.other_std) + 0.5 * math.log(2.0 * math.pi))
        gradient[self.others] -= scaled / self.other_std
        gradient[: len(theta)] = pull(push, gradient[: len(theta)])
        return value, gradient

    def potential(self, z: Array, *, centred: bool = False) -> tuple[float, Array]:
        """-log p(data, z) and its gradient: what a sampler rolls about in.

        Args:
            z: (d,).
            centred: whether in centred coordinates.

        Returns:
            Nats, and the gradient (d,); inf where the numbers overflow.
        """
        with np.errstate(all="ignore"):
            try:
                value, gradient = self.log_joint(z, centred=centred)
            except OverflowError:
                return math.inf, np.zeros_like(z)
        return (-value, -gradient) if math.isfinite(value) else (math.inf, np.zeros_like(z))

    def potential_fn(self, sites: dict[str, Tensor]) -> Tensor:
        """The same for Pyro: `pyro.infer.NUTS(potential_fn=joint.potential_fn)`, one site `"z"`.

        Returns:
            A differentiable scalar.
        """
        value: Tensor = _Potential.apply(sites["z"], self)  # type: ignore[no-untyped-call]
        return value


class _Potential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, joint: Joint) -> Tensor:
        value, gradient = joint.potential(z.detach().numpy())
        ctx.save_for_backward(torch.from_numpy(gradient))
        return z.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return above * gradient, None
