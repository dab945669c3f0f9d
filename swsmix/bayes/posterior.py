"""The posterior: draws of network, mixtures and noise; predictions, diagnostics, files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix._files import replacing
from swsmix.bayes import checks, predictive, symmetric
from swsmix.bayes.agreement import Agreement
from swsmix.bayes.layout import Layout
from swsmix.bayes.predictive import Prediction
from swsmix.bayes.verdict import Summary, Verdict, judge

_DTYPES = (torch.float32, torch.float64)
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
class Posterior:
    """Draws from a posterior.

    The posterior does not change when components are permuted, and the sampler may permute them.
    `mixture` sorts the components of each draw by their means: "the third component's mean" is the
    third smallest mean. Quantities that no permutation changes (predictions, the mixture's density,
    numbers of clusters) need no sorting.

    Attributes:
        z: the draws in the sampler's coordinates (chains, draws, d).
        layout: which part of z is what.
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
        """The number of draws whose trajectory diverged; should be 0 (Betancourt 2017)."""
        return int(self.steps["diverged"].sum()) if "diverged" in self.steps else 0

    @property
    def network(self) -> dict[str, Tensor]:
        """Draws of every trainable parameter: name -> (chains, draws, *shape)."""
        return self.layout.network(self.z)

    def mixture(self, group: str | None = None) -> MixtureDraws:
        """Draws of a group's mixture, the components of each draw sorted by their means.

        Args:
            group: its name; may be omitted if there is only one.

        Returns:
            Mixing, mean and std, each (chains, draws, k).
        """
        drawn = self.layout.mixture(self.z, self._group(group))
        order = drawn[1].argsort(dim=-1, stable=True)
        return MixtureDraws(*(t.gather(-1, order) for t in drawn))

    def weights(self, group: str | None = None) -> Float[Tensor, "chains draws n"]:
        """Draws of the weights under a group's mixture."""
        return self.layout.weights(self.z, self._group(group))

    @property
    def noise_std(self) -> Float[Tensor, "chains draws"]:
        """Draws of sigma_y, in units of the targets."""
        return self.layout.noise(self.z)

    def _group(self, group: str | None) -> str:
        if group is None and len(self.layout.groups) == 1:
            return next(iter(self.layout.groups))
        if group not in self.layout.groups:
            raise ValueError(f"group must be one of {list(self.layout.groups)}; got {group!r}")
        return group

    def thinned(self, num: int) -> Posterior:
        """A posterior of at most about `num` of these draws, evenly spaced in each chain.

        Raises:
            ValueError: if `num` is below 1.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1; got {num}")
        every = max(1, -(-self.num_draws // num))
        steps = {name: t[:, ::every] for name, t in self.steps.items()}
        thin = Posterior(self.z[:, ::every], self.layout, steps, self.about)
        vars(thin)["verdict"] = self.verdict  # of all draws: fewer are no worse
        return thin

    def _noise_or_none(self) -> Tensor | None:
        return self.noise_std if self.layout.likelihood == "gaussian" else None

    # -- predictions --------------------------------------------------------------------------

    def outputs(self, net: nn.Module, x: Tensor) -> Float[Tensor, "chains draws ..."]:
        """The network's outputs under every draw.

        Args:
            net: the network; its own parameters are not used.
            x: inputs (n, ...).

        Returns:
            (chains, draws, n, ...) in float64.

        Raises:
            ValueError: if the network's parameters are not those that the posterior is over, x
                holds nan or inf, or the network does not take x.
        """
        return predictive.network_outputs(self.layout, self.z, net, x)

    def predict(
        self,
        net: nn.Module,
        x: Tensor,
        *,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        seed: int = 0,
    ) -> Prediction:
        """The posterior predictive distribution; a `PosteriorWarning` if it is not to be trusted.

        Args:
            net: the network; its own parameters are not used.
            x: inputs (n, ...).
            quantiles: q of the predictive quantiles; the default bounds the 50 % and the 90 %
                intervals.
            seed: seed of the noise.

        Raises:
            ValueError: for a quantile outside (0, 1), another network, or inputs with nan or inf.
        """
        if any(not 0.0 < q < 1.0 for q in quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1; got {tuple(quantiles)}")
        out = self.outputs(net, x).flatten(0, 1)
        self.verdict.warn()
        likelihood, noise_std = self.layout.likelihood, self._noise_or_none()
        return predictive.predict_targets(out, likelihood, noise_std, quantiles, seed)

    def log_likelihood(
        self, net: nn.Module, x: Tensor, y: Tensor
    ) -> Float[Tensor, "chains draws n"]:
        """Log p(y_c | x_c, draw) of every case, in nats, summed over the outputs of a case.

        Args:
            net: the network; its own parameters are not used.
            x: inputs (n, ...).
            y: targets, as `Joint` takes them.

        Returns:
            (chains, draws, n).

        Raises:
            TypeError: if the data are no tensors.
            ValueError: as `outputs`; if the targets hold nan or inf, or do not fit the outputs.
        """
        checks.check_data(x, y, self.layout.likelihood)
        out, y = self.outputs(net, x), y.cpu()
        checks.check_outputs(tuple(out.shape[2:]), y, self.layout.likelihood)
        likelihood, noise_std = self.layout.likelihood, self._noise_or_none()
        return predictive.log_likelihood(out, y, likelihood, noise_std)

    # -- diagnostics --------------------------------------------------------------------------

    @functools.cached_property
    def agreements(self) -> dict[str, Agreement]:
        """How well the chains agree on what no permutation of units or components changes.

        Of predictions at the inputs that `sample` was given (without, of the weights' norms), the
        log density, the noise's std, the sorted components and the clusters.
        """
        if self.about.get("method") == "svi":
            return {}  # a guide's draws are independent
        found = symmetric.summaries(self.layout, self.z, self.steps)
        if "predictions" in self.about:
            first = {"predictions": Agreement.from_dict(self.about["predictions"])}
        else:
            first = {"norms": Agreement.of(symmetric.norms(self.layout, self.z))}
        return first | {name: Agreement.of(values) for name, values in found.items()}

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Whether the draws may be used: what is wrong with them, and the remedies.

        `swsmix guide posterior` has all that is looked for, and the limits.
        """
        return judge(self.z, self.steps, self.about, self.agreements)

    def summary(self, *quantities: tuple[str, Tensor]) -> Summary:
        """How well the chains agree, and whether the draws may be used; printed, it says so.

        R-hat (rank-normalised, split; Vehtari et al. 2021) should be below 1.01, the effective
        sample size (ESS) above 100 per chain. Hidden units may be permuted and change sign between
        chains: the weights' R-hat is then large, which does no harm, and only `agreements` are
        judged. Other inputs: `posterior.summary(("predictions", posterior.outputs(net, x)))`.

        Args:
            quantities: further names with draws (chains, draws, ...); they are judged too.

        Returns:
            The largest R-hat and the smallest ESS of each quantity (nan where nothing varies),
            divergences, mean acceptance, steps per draw and energy fraction; agreements and verdict
            as attributes. A `PosteriorWarning` is given if there is a problem.
        """
        own = {name: Agreement.of(values) for name, values in quantities}
        agreements = own | self.agreements | own  # yours first, and instead of ours
        verdict = judge(self.z, self.steps, self.about, agreements)
        verdict.warn()
        return Summary(agreements, self.steps, verdict)

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all; nothing is pickled.

        Args:
            path: the file.
        """
        from safetensors.torch import save_file

        about = {
            "format": _FORMAT,
            "layout": json.dumps(self.layout.to_dict()),
            "about": json.dumps(self.about),
        }
        tensors = {"z": self.z.contiguous()} | {
            f"steps.{n}": t.contiguous() for n, t in self.steps.items()
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Posterior:
        """Read a file that `save` has written; a `PosteriorWarning` if it is not to be trusted.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or not a posterior.
        """
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with safe_open(path, "pt") as opened:
                meta = opened.metadata() or {}
                names = opened.keys()  # safe_open cannot be iterated over
                tensors = {name: opened.get_tensor(name) for name in names}
        except Exception as error:  # safetensors has its own, and OSError
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
        if meta.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is not a posterior: needs the format {_FORMAT!r}, got "
                f"{meta.get('format')!r}"
            )
        try:
            layout = Layout.from_dict(json.loads(meta["layout"]))
            about, z = json.loads(meta["about"]), tensors["z"]
            if z.ndim != 3 or z.shape[-1] != layout.size or z.dtype not in _DTYPES:
                raise ValueError(
                    f"draws of shape {tuple(z.shape)} and {z.dtype} for {layout.size} coordinates"
                )
            if not z.shape[0] * z.shape[1]:
                raise ValueError("it holds no draws")
            steps = {n.removeprefix("steps."): t for n, t in tensors.items() if n != "z"}
            for name, values in steps.items():
                if values.shape != z.shape[:2] or values.is_complex():
                    raise ValueError(
                        f"{name} must be one number per draw {tuple(z.shape[:2])}; got "
                        f"{tuple(values.shape)} of {values.dtype}"
                    )
            verdict = (posterior := cls(z, layout, steps, about)).verdict
        except (
            KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            raise ValueError(f"{path} is damaged: {error}") from error
        verdict.warn()
        return posterior

    def to_arviz(self, *, log_likelihood: Tensor | None = None) -> Any:
        """The draws in ArviZ's format, for its plots and tables.

        Args:
            log_likelihood: the result of `log_likelihood`, to include.

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
                    "to_arviz needs ArviZ: pip install arviz-base (or arviz)"
                ) from None
            return old(**groups)
        return from_dict(groups)
