"""The log joint density of data, network, mixtures and noise, with its gradient."""

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
from swsmix.bayes.mixture_term import HyperPriorArrays, MixtureTerm
from swsmix.bayes.network import AutogradEvaluator, SequentialEvaluator, evaluator
from swsmix.prior import MixturePrior

Likelihood = Literal["gaussian", "categorical", "binary"]


class Joint:
    """p(data, w, phi, sigma_y) of a network under its mixture prior.

        w_i ~ sum_j pi_j N(mu_j, sigma_j^2)        the weights under the prior, assignments
                                                   marginalised, as in `MixturePrior.penalty`
        pi, mu, sigma^2 ~ the prior's HyperPrior   densities over pi and sigma^2
        b ~ N(0, other_std^2)                      every other trainable parameter (biases, ..)
        sigma_y^2 ~ scaled-inverse-chi^2(noise_count, noise_scale^2)   or given, `noise_std`
        y ~ N(f(x), sigma_y^2), softmax(f(x)), or Bernoulli(f(x)) of logits f

    Selection, groups, pins, tau and hyper-priors come from the prior. The network is copied and put
    into evaluation mode; neither it nor the prior is changed. Densities are computed in float64.

    Args:
        net: the network, usually trained under the prior.
        prior: its mixture prior.
        x: the inputs (n, ...).
        y: the targets: real, of the outputs' shape (`"gaussian"`); class numbers (`"categorical"`);
            0 and 1 (`"binary"`).
        likelihood: `"gaussian"`, `"categorical"` or `"binary"`.
        noise_std: a fixed sigma_y; None to learn it.
        noise_scale: the scale of sigma_y's prior; by default a tenth of the targets' std.
        noise_count: the strength of sigma_y's prior, in cases.
        other_std: std of the normal prior on parameters under no mixture, in units of the weights.

    Raises:
        TypeError: if the data are no tensors.
        ValueError: if the prior is over another network; there are no data, they are not finite,
            or they do not fit the network or the likelihood; weights or mixtures are not finite; a
            density is improper (see `HyperPrior.mean_count`).

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
        checks.check_prior_of(net, prior)
        checks.check_data(x, y, likelihood)
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
        self.terms = _mixture_terms(prior, self.layout)
        self._index = {g: self.layout.weight_index(g) for g in self.layout.groups}
        under_prior = np.zeros(self.layout.num_parameters, dtype=bool)
        under_prior[np.concatenate(list(self._index.values()))] = True
        self.others = np.flatnonzero(~under_prior)
        for group, term in self.terms.items():
            checks.check_proper(group, term)
        checks.check_outputs(checks.output_shape(self.net, self.x), self.y, likelihood)

    @functools.cached_property
    def _compiled(self) -> tuple[SequentialEvaluator | AutogradEvaluator, Array]:
        """The network as a function of its parameters, and the targets, in float64 on the CPU."""
        net, x = copy.deepcopy(self.net).double().cpu(), self.x.cpu()
        x = x.double() if x.is_floating_point() else x
        y = self.y.cpu()
        y = y.double() if y.is_floating_point() else y
        return evaluator(net, self.layout, x), y.numpy()

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: all but `_compiled`, which each makes for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}

    def start(self, noise_std: float | None = None) -> Array:
        """Z at the current values of network and prior, usually the MAP fit.

        Args:
            noise_std: sigma_y if it is learned; by default the residuals' root mean square.

        Returns:
            z (d,), see `Posterior.layout`.
        """
        return self.start_at(self.net, self.prior, noise_std)

    def start_at(
        self, net: nn.Module, prior: MixturePrior, noise_std: float | None = None
    ) -> Array:
        """Z at another network and its prior, alike but for their values.

            starts = [joint.start_at(*pair) for pair in zip(ensemble.models, ensemble.priors)]

        Args:
            net: the network.
            prior: its prior.
            noise_std: as for `start`.
        """
        values = {g: (m.mixing, m.mean, m.std) for g, m in prior.mixtures.items()}
        if self.layout.learns_noise and noise_std is None:
            like = next(net.parameters())
            x = self.x.to(like) if self.x.is_floating_point() else self.x
            with torch.no_grad():
                noise_std = (net(x).to(self.y) - self.y).square().mean().sqrt().item()
            noise_std = max(noise_std, 1e-3 * self.noise_scale)
        z: Array = self.layout.pack(dict(net.named_parameters()), values, noise_std).numpy()
        return z

    def centre(self, z: Array) -> Array:
        """Z (d,) in centred coordinates, where each bias is its unit's mean input.

        See `swsmix.bayes.network`; z itself if the network needs autograd.
        """
        p = self.layout.num_parameters
        return np.concatenate([self._compiled[0].centre(z[:p]), z[p:]])

    def uncentre(self, z: Array) -> Array:
        """The inverse of `centre`."""
        p = self.layout.num_parameters
        return np.concatenate([self._compiled[0](z[:p], centred=True)[1], z[p:]])

    def log_joint(
        self, z: Array, *, jacobian: bool = True, centred: bool = False
    ) -> tuple[float, Array]:
        """Log p(data, z), normalised in z, and its gradient.

        Args:
            z: (d,), float64; see `Layout`.
            jacobian: True for the density over z; False for the density over weights, mixing,
                means, sigma^2 and sigma_y^2, whose stationary points are those of EM and of
                gradient descent on `MixturePrior.penalty`.
            centred: z and the gradient are in centred coordinates, see `centre`.

        Returns:
            Nats, and the gradient (d,).
        """
        layout = self.layout
        gradient = np.zeros_like(z)
        evaluate, y = self._compiled
        out, theta, backward = evaluate(z[: layout.num_parameters], centred=centred)
        others = theta[self.others]
        value, by_out, by_noise = self._data_terms(out, y, z, jacobian)
        if layout.learns_noise:
            gradient[-1] = by_noise
        for group, term in self.terms.items():
            index, (u, mu, xi) = self._index[group], layout.mixture_slices[group]
            log_prior, by_w, by_u, by_mu, by_xi = term(
                theta[index], z[u], z[mu], z[xi], jacobian=jacobian
            )
            value += log_prior
            gradient[index] += by_w
            gradient[u], gradient[mu], gradient[xi] = by_u, by_mu, by_xi
        scaled = others / self.other_std
        value -= 0.5 * float(scaled @ scaled)
        value -= len(others) * (math.log(self.other_std) + 0.5 * math.log(2.0 * math.pi))
        gradient[self.others] -= scaled / self.other_std
        gradient[: len(theta)] = backward(by_out, gradient[: len(theta)])
        return value, gradient

    def _data_terms(
        self, out: Array, y: Array, z: Array, jacobian: bool
    ) -> tuple[float, Array, float]:
        """Log likelihood and the noise's prior, and their gradients by out and log sigma_y^2."""
        layout = self.layout
        if layout.likelihood == "categorical":
            return *density.categorical(out, y), 0.0
        if layout.likelihood == "binary":
            return *density.binary(out, y), 0.0
        if not layout.learns_noise:
            return density.gaussian(out, y, 2.0 * math.log(layout.noise_std or 1.0))
        log_variance = float(z[-1])
        value, by_out, by_noise = density.gaussian(out, y, log_variance)
        log_prior, slope = density.log_scaled_inverse_chi2(
            log_variance, self.noise_count, self.noise_scale
        )
        value += log_prior + jacobian * log_variance
        return value, by_out, by_noise + slope + jacobian

    def potential(self, z: Array, *, centred: bool = False) -> tuple[float, Array]:
        """The potential energy -log p(data, z) and its gradient, for samplers.

        Args:
            z: (d,).
            centred: z and the gradient are in centred coordinates, see `centre`.

        Returns:
            Nats, and the gradient (d,); inf and zeros where the numbers overflow.
        """
        with np.errstate(all="ignore"):
            try:
                value, gradient = self.log_joint(z, centred=centred)
            except OverflowError:
                return math.inf, np.zeros_like(z)
        return (-value, -gradient) if math.isfinite(value) else (math.inf, np.zeros_like(z))

    def potential_fn(self, sites: dict[str, Tensor]) -> Tensor:
        """`potential` for Pyro's samplers, as a differentiable scalar of one site, `"z"`.

        pyro.infer.NUTS(potential_fn=joint.potential_fn)
        """
        value: Tensor = _Potential.apply(sites["z"], self)
        return value


def _mixture_terms(prior: MixturePrior, layout: Layout) -> dict[str, MixtureTerm]:
    terms = {}
    for group, hyper in prior.hyper_priors.items():
        expanded = hyper.expanded(prior.mixtures[group])
        arrays = HyperPriorArrays(**{name: t.cpu().numpy() for name, t in expanded.items()})
        terms[group] = MixtureTerm(layout.components[group], arrays, prior.tau[group])
    return terms


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
