"""The posterior: draws of network, mixtures and noise, what they predict, and how good they are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from swsmix._files import replacing
from swsmix.bayes import checks
from swsmix.bayes.layout import Array, Layout
from swsmix.mixture import GaussianMixture

_FORMAT = "swsmix posterior 1"


class MixtureDraws(NamedTuple):
    """Draws of one mixture, the components in the order of their means within each draw.

    Attributes:
        mixing: (chains, draws, k).
        mean: (chains, draws, k).
        std: (chains, draws, k).
    """

    mixing: Tensor
    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of new targets.

    Attributes:
        mean: the posterior mean of the outputs (of the probabilities, for labels) (n, ...).
        quantiles: q -> the predictive q-quantiles, noise included (n, ...); regression only.
        samples: predictive draws, noise included (draws, n, ...): numbers or labels.
        functions: the draws' outputs without noise (probabilities, for labels) (draws, n, ...).
    """

    mean: Tensor
    quantiles: dict[float, Tensor]
    samples: Tensor = field(repr=False)
    functions: Tensor = field(repr=False)


@dataclass(frozen=True)
class Posterior:
    """Draws from a posterior.

    The components of a mixture have no names of their own: each permutation of them is as likely.
    Sampling is left free to permute them, and `mixture` puts them into the order of their means
    afterwards, draw by draw. What depends on no order (predictions, the density of the mixture,
    numbers of clusters) is exact; "the third component's mean" is the third smallest mean.

    Attributes:
        z: the draws in the sampler's coordinates (chains, draws, d).
        layout: what lies where in z.
        steps: name -> (chains, draws), how each draw was made (`"diverged"`, `"steps"`, ..).
        about: method, seed, seconds and the like.
    """

    z: Float[Tensor, "chains draws d"] = field(repr=False)
    layout: Layout = field(repr=False)
    steps: dict[str, Tensor] = field(repr=False, default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """The number of chains."""
        return len(self.z)

    @property
    def num_draws(self) -> int:
        """The number of draws of all chains together."""
        return self.z.shape[0] * self.z.shape[1]

    @property
    def divergences(self) -> int:
        """The number of draws whose trajectory diverged; any are a bad sign (Betancourt 2017)."""
        return int(self.steps["diverged"].sum()) if "diverged" in self.steps else 0

    @property
    def network(self) -> dict[str, Tensor]:
        """Draws of every trainable parameter: name -> (chains, draws, *shape)."""
        return self.layout.network(self.z)

    def mixture(self, group: str | None = None) -> MixtureDraws:
        """Draws of a group's mixture, relabelled by sorting the means of each draw.

        Args:
            group: its name; may be left out if there is one.

        Returns:
            Mixing, mean and std.
        """
        drawn = self.layout.mixture(self.z, self._group(group))
        order = drawn[1].argsort(dim=-1, stable=True)
        return MixtureDraws(*(t.gather(-1, order) for t in drawn))

    def weights(self, group: str | None = None) -> Float[Tensor, "chains draws n"]:
        """Draws of the weights under a group's mixture.

        Returns:
            (chains, draws, n).
        """
        return self.layout.weights(self.z, self._group(group))

    @property
    def noise_std(self) -> Float[Tensor, "chains draws"]:
        """Draws of sigma_y."""
        return self.layout.noise(self.z)

    def _group(self, group: str | None) -> str:
        if group is None and len(self.layout.groups) == 1:
            return next(iter(self.layout.groups))
        if group not in self.layout.groups:
            raise ValueError(f"group must be one of {list(self.layout.groups)}; got {group!r}")
        return group

    def thinned(self, num: int) -> Posterior:
        """At most about `num` draws, evenly spaced in each chain.

        Returns:
            A posterior.

        Raises:
            ValueError: if `num` is below 1.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1; got {num}")
        every = max(1, -(-self.num_draws // num))
        steps = {name: t[:, ::every] for name, t in self.steps.items()}
        return Posterior(self.z[:, ::every], self.layout, steps, self.about)

    # -- what it predicts ---------------------------------------------------------------------

    @torch.no_grad()
    def outputs(self, net: nn.Module, x: Tensor) -> Float[Tensor, "chains draws ..."]:
        """What the network computes under every draw.

        Args:
            net: the network; its own parameters do not matter.
            x: inputs (n, ...).

        Returns:
            (chains, draws, n, ...) in float64.

        Raises:
            ValueError: if the network has other parameters than the posterior is over, or x holds
                nan or inf, or is nothing that the network takes.
        """
        shapes = {n: tuple(p.shape) for n, p in net.named_parameters()}
        for name, shape in self.layout.parameters.items():
            if shapes.get(name) != shape:
                raise ValueError(
                    f"the posterior is over a network with {name} of shape {shape}; this one has "
                    f"{shapes.get(name, list(shapes))}"
                )
        checks.finite(x, "inputs")
        like = next(net.parameters())
        x = x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)
        training = net.training
        net.eval()
        try:
            checks.output_shape(net, x)
            flat = self.z.reshape(-1, self.z.shape[-1]).to(like.device, like.dtype)
            rows = [functional_call(net, self.layout.network(z), (x,)).double().cpu() for z in flat]
        finally:
            net.train(training)
        return torch.stack(rows).view(*self.z.shape[:2], *rows[0].shape)

    def predict(
        self,
        net: nn.Module,
        x: Tensor,
        *,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        seed: int = 0,
    ) -> Prediction:
        """The posterior predictive distribution.

        Args:
            net: the network; its own parameters do not matter.
            x: inputs (n, ...).
            quantiles: of the predictive distribution; the default bounds the 50 % and the 90 %
                intervals.
            seed: of the noise.

        Returns:
            The prediction.

        Raises:
            ValueError: for a quantile outside (0, 1), another network, or inputs with nan or inf.
        """
        if any(not 0.0 < q < 1.0 for q in quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1; got {tuple(quantiles)}")
        out = self.outputs(net, x).flatten(0, 1)
        generator = torch.Generator().manual_seed(seed)
        if self.layout.likelihood == "gaussian":
            std = self.noise_std.double().reshape(-1, *[1] * (out.ndim - 1))
            samples = out + std * torch.randn(out.shape, generator=generator, dtype=out.dtype)
            found = np.quantile(samples.numpy(), list(quantiles), axis=0) if quantiles else []
            by_q = {
                q: torch.from_numpy(np.asarray(v)) for q, v in zip(quantiles, found, strict=True)
            }
            return Prediction(out.mean(0), by_q, samples, out)
        if self.layout.likelihood == "binary":
            p = out.sigmoid()
            return Prediction(p.mean(0), {}, torch.bernoulli(p, generator=generator).long(), p)
        p = out.softmax(-1)
        labels = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:-1])
        return Prediction(p.mean(0), {}, labels, p)

    def log_likelihood(
        self, net: nn.Module, x: Tensor, y: Tensor
    ) -> Float[Tensor, "chains draws n"]:
        """Log p(y_c | x_c, draw) of every case, in nats (summed over the outputs of a case).

        Returns:
            (chains, draws, n).

        Raises:
            TypeError: if the data are no tensors.
            ValueError: as `outputs`; if the targets hold nan or inf, or do not fit the outputs.
        """
        checks.usable_data(x, y, self.layout.likelihood)
        out, y = self.outputs(net, x), y.cpu()
        checks.fitting(tuple(out.shape[2:]), y, self.layout.likelihood)
        if self.layout.likelihood == "categorical":
            index = y.long().expand(*out.shape[:2], -1)[..., None]
            return out.log_softmax(-1).gather(-1, index)[..., 0]
        if self.layout.likelihood == "binary":
            log_p = y.double() * out - torch.nn.functional.softplus(out)
        else:
            std = self.noise_std.double().reshape(*out.shape[:2], *[1] * (out.ndim - 2))
            log_p = torch.distributions.Normal(out, std).log_prob(y.double())
        return log_p.flatten(3).sum(-1) if log_p.ndim > 3 else log_p

    # -- how good it is -----------------------------------------------------------------------

    def summary(self, *quantities: tuple[str, Tensor]) -> dict[str, float]:
        """How well the chains agree.

        R-hat (rank-normalised, split; Vehtari et al. 2021) should lie below 1.01, the effective
        sample sizes above 100 a chain. Weights of a network may be permuted and change sign from
        chain to chain, with a large R-hat and no harm: what counts are predictions. Give them:
        `("predictions", posterior.outputs(net, x))`.

        Args:
            quantities: further names with draws (chains, draws, ...).

        Returns:
            The largest R-hat and the smallest ESS of each quantity (of the log density, of the
            noise, and of yours; nan with one chain, or where nothing varies), divergences, mean
            acceptance and steps.
        """
        every: list[tuple[str, Tensor]] = list(quantities)
        if self.layout.learns_noise:
            every.append(("noise std", self.noise_std))
        if "energy" in self.steps:
            every.append(("energy", self.steps["energy"]))
        found: dict[str, float] = {}
        for name, values in every:
            rhat, ess = diagnose(values)
            found[f"R-hat of {name}"] = float(np.fmax.reduce(rhat, axis=None))
            found[f"ESS of {name}"] = float(np.fmin.reduce(ess, axis=None))
        if "diverged" in self.steps:
            found["divergences"] = float(self.divergences)
            found["acceptance"] = float(self.steps["accept"].double().mean())
            found["steps a draw"] = float(self.steps["steps"].double().mean())
        return found

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; nothing is pickled.

        Args:
            path: the file.
        """
        from safetensors.torch import save_file

        about = {
            "format": _FORMAT,
            "layout": json.dumps(self.layout.to_plain()),
            "about": json.dumps(self.about),
        }
        tensors = {"z": self.z.contiguous()} | {
            f"steps.{n}": t.contiguous() for n, t in self.steps.items()
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Posterior:
        """Read what `save` has written.

        Returns:
            The posterior.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or not a posterior.
        """
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no posterior {path}")
        try:
            with safe_open(path, "pt") as opened:
                meta = opened.metadata() or {}
                names = opened.keys()  # a file, not a dictionary: it cannot be iterated over
                tensors = {name: opened.get_tensor(name) for name in names}
        except Exception as error:  # safetensors raises its own and OSErrors
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
        if meta.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is not a posterior: wanted the format {_FORMAT!r}, got "
                f"{meta.get('format')!r}"
            )
        try:
            layout = Layout.from_plain(json.loads(meta["layout"]))
            about, z = json.loads(meta["about"]), tensors["z"]
            if z.ndim != 3 or z.shape[-1] != layout.size or not z.is_floating_point():
                raise ValueError(f"draws of shape {tuple(z.shape)} for {layout.size} coordinates")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        steps = {n.removeprefix("steps."): t for n, t in tensors.items() if n != "z"}
        return cls(z, layout, steps, about)

    def to_arviz(self, *, log_likelihood: Tensor | None = None) -> Any:
        """The draws for ArviZ's plots and tables, with whatever ArviZ is installed.

        Args:
            log_likelihood: from `log_likelihood`, to go with it.

        Returns:
            An `xarray.DataTree` (ArviZ 1) or `InferenceData` (ArviZ 0).

        Raises:
            ImportError: if ArviZ is not installed.
        """
        posterior = {n: t.double().numpy() for n, t in self.network.items()}
        for group in self.layout.groups:
            drawn = self.mixture(group)
            posterior |= {f"{group}.{n}": t.double().numpy() for n, t in drawn._asdict().items()}
        if self.layout.likelihood == "gaussian":
            posterior["noise_std"] = self.noise_std.double().numpy()
        names = {"diverged": "diverging", "accept": "acceptance_rate", "steps": "n_steps"}
        groups = {
            "posterior": posterior,
            "sample_stats": {names.get(n, n): t.numpy() for n, t in self.steps.items()},
        }
        if log_likelihood is not None:
            groups["log_likelihood"] = {"y": log_likelihood.numpy()}
        try:
            from arviz_base import from_dict
        except ImportError:
            try:
                from arviz import from_dict as old
            except ImportError:
                raise ImportError(
                    "to_arviz wants ArviZ: pip install arviz-base (or arviz)"
                ) from None
            return old(**groups)
        return from_dict(groups)


def diagnose(values: Tensor | Array) -> tuple[Array, Array]:
    """Rank-normalised split R-hat and bulk ESS of draws (chains, draws, ...), by ArviZ.

    Returns:
        Two arrays of the remaining shape; nan where nothing varies.
    """
    from arviz_stats.base.array import array_stats

    draws = np.asarray(values, dtype=np.float64)
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan), np.full(draws.shape[2:], np.nan)
    with np.errstate(all="ignore"):
        rhat = array_stats.rhat(draws, chain_axis=0, draw_axis=1)
        ess = array_stats.ess(draws, chain_axis=0, draw_axis=1)
    return np.asarray(rhat), np.asarray(ess)


def mixtures_of(draws: MixtureDraws, num: int = 200) -> list[GaussianMixture]:
    """Some of the draws as mixtures, for the plots.

    Returns:
        At most `num` mixtures, evenly spaced.
    """
    flat = [t.double().flatten(0, 1) for t in draws]
    rows = torch.linspace(0, len(flat[0]) - 1, min(num, len(flat[0]))).long()
    return [
        GaussianMixture(mixing / mixing.sum(), mean, std)
        for mixing, mean, std in zip(*(t[rows] for t in flat), strict=True)
    ]
