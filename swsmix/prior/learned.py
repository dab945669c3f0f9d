"""A learned prior apart from its network: kept in a file, printed, rescaled, put on another net."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swsmix._files import check_regular, replacing
from swsmix.em import EMState, HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.prior import keys
from swsmix.prior.mixture_prior import MixturePrior
from swsmix.selection import Patterns, select

_MIXTURE = ("mixing", "mean", "std", "pinned_mixing", "pinned_mean", "pinned_std")


@dataclass(frozen=True, eq=False)
class LearnedPrior:
    """The mixtures that a prior has learned, with their hyper-priors.

    The file is that of a run folder's `prior.safetensors`, which can be loaded too.

    Attributes:
        mixtures: group -> mixture, with its pins.
        hyper_priors: group -> hyper-prior.
        groups: group -> the names of the tensors on which it was learned.

    Example:
        >>> import tempfile
        >>> net, wider = nn.Linear(20, 10), nn.Linear(80, 10)
        >>> learned = LearnedPrior.of(MixturePrior(net, num_components=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learned.save(f"{folder}/digits.prior")
        ...     learned = LearnedPrior.load(f"{folder}/digits.prior")
        >>> prior = learned.scaled(0.5).on(wider)  # half the weights: four times the inputs
        >>> prior.mixtures["all"].num_components
        3
    """

    mixtures: dict[str, GaussianMixture] = field(repr=False)
    hyper_priors: dict[str, HyperPrior] = field(repr=False)
    groups: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, prior: MixturePrior) -> LearnedPrior:
        """What a prior has learned until now; it shares nothing with it."""
        hyper = {
            group: HyperPrior(**each.expanded(prior.mixtures[group]))
            for group, each in prior.hyper_priors.items()
        }
        mixtures = {group: mixture.plain_copy() for group, mixture in prior.mixtures.items()}
        return cls(mixtures, hyper, {g: tuple(n) for g, n in prior.selection.groups.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, whole or not at all.

        Raises:
            OSError: if the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for group, mixture in self.mixtures.items():
            state = EMState(mixture, self.hyper_priors[group]).state_dict()
            kept = {n: t.clone() for n, t in state.items() if not n.startswith("running_")}
            tensors |= {f"groups.{keys.key(group)}.{name}": t for name, t in kept.items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"groups": json.dumps(self.groups)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LearnedPrior:
        """Read it from a file of `save`, from a run folder, or from the `prior.safetensors` in one.

        Args:
            path: the file, or a run folder: its outcome, or its newest checkpoint if it has not
                ended.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is no such file or folder, or its mixtures are none.
        """
        path = _file_in(Path(path))
        check_regular(path)
        found, names, why = {}, {}, "it names no groups"
        try:
            state = load_file(path)
            with safe_open(path, "pt") as opened:
                saved = json.loads((opened.metadata() or {}).get("groups", "{}"))
            for group, each in saved.items():
                found[group] = _read(state, f"groups.{keys.key(group)}.")
                names[group] = tuple(map(str, each))
        except Exception as error:  # of safetensors, JSON, or the mixtures
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            found.clear()
        if not found:
            raise ValueError(
                f"a file to load must be one of LearnedPrior.save, or the prior.safetensors of a "
                f"run in mode 'em', got {path}: {why}: save LearnedPrior.of(prior) from the prior"
            )
        mixtures = {group: mixture for group, (mixture, _) in found.items()}
        return cls(mixtures, {group: hyper for group, (_, hyper) in found.items()}, names)

    def __str__(self) -> str:
        """A table of the components: mixing, mean and std of each."""
        lines = []
        for group, mixture in self.mixtures.items():
            k = mixture.num_components
            lines.append(f"mixture {group!r}: K = {k}, learned on {', '.join(self.groups[group])}")
            for name in ("mixing", "mean", "std"):
                row = "".join(f"{v:>9.3g}" for v in getattr(mixture, name).tolist())
                lines.append(f"  {name:<7}{row}")
        return "\n".join(lines)

    def scaled(self, factor: float | Mapping[str, float]) -> LearnedPrior:
        """The prior of weights that are multiplied by a factor: means and stds are, too.

        For a network with another fan-in, for instance, whose weights are as much smaller.

        Args:
            factor: of all weights, or group -> factor; groups that are not named stay as they are.

        Raises:
            ValueError: if a factor is not positive and finite, or there is no such group.
        """
        factors = dict.fromkeys(self.mixtures, 1.0)
        factors |= factor if isinstance(factor, Mapping) else dict.fromkeys(factors, factor)
        if unknown := [group for group in factors if group not in self.mixtures]:
            raise ValueError(f"no groups {unknown}; this prior has {list(self.mixtures)}")
        if not all(0.0 < each < math.inf for each in factors.values()):
            raise ValueError(
                f"the factor of the weights must be positive and finite, got {factor}; "
                "give the ratio of their scales"
            )
        mixtures, hyper_priors = {}, {}
        for group, old in self.mixtures.items():
            mixture, hyper = old.plain_copy(), self.hyper_priors[group].expanded(old)
            mixture.mean.mul_(factors[group])
            mixture.std.mul_(factors[group])
            scaled = {name: factors[group] * hyper[name] for name in ("mean", "std")}
            mixtures[group], hyper_priors[group] = mixture, HyperPrior(**{**hyper, **scaled})
        return LearnedPrior(mixtures, hyper_priors, self.groups)

    def on(
        self,
        model: nn.Module,
        *,
        groups: Mapping[str, Patterns] | None = None,
        worth: float | None = None,
        **options: Any,
    ) -> MixturePrior:
        """Put the learned mixtures on a network, as the start of a new prior.

        The prior goes on learning from there, as far as its hyper-prior lets it: with `worth`,
        each group's hyper-prior says that so many weights have been seen that were distributed as
        the learned mixture (alpha_j = 1 + worth pi_j, kappa_j = nu_j = worth pi_j, at least 1e-3,
        with the learned mean and std).

        Args:
            model: the network.
            groups: learned group -> name patterns of its tensors here. By default those with the
                names that they had, or, of a single group, all weights.
            worth: how many weights the learned mixture counts for; by default its own
                hyper-prior is kept.
            options: `tau`, `exclude` of `MixturePrior`.

        Returns:
            A prior on the network; split and merge rest in it.

        Raises:
            ValueError: if the groups are not those that were learned, a pattern matches nothing,
                or `worth` is not positive.

        Example:
            >>> net = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 1))
            >>> learned = LearnedPrior.of(MixturePrior(net, 3, groups={"dense": "0.weight"}))
            >>> other = nn.ModuleDict({"inner": nn.Linear(9, 9), "last": nn.Linear(9, 2)})
            >>> learned.on(other, groups={"dense": "inner.weight"}, worth=100.0).selection.groups
            {'dense': ('inner.weight',)}
        """
        if worth is not None and not 0.0 < worth < math.inf:
            raise ValueError(
                f"worth must be a positive number of weights, got {worth}; omit it to keep the "
                "hyper-prior"
            )
        if groups is None:
            here = dict(model.named_parameters())
            if all(name in here for names in self.groups.values() for name in names):
                groups = self.groups
            elif len(self.groups) == 1:
                found = select(model)
                groups = {group: found.names for group in self.groups}
            else:
                raise ValueError(
                    f"the network must have the tensors on which the prior was learned, "
                    f"{self.groups}, got {list(here)}: say by groups= which patterns each takes"
                )
        unknown = [group for group in groups if group not in self.mixtures]
        if unknown or not groups:
            raise ValueError(
                f"groups must be among those that were learned, {list(self.mixtures)}, got "
                f"{list(groups)}: give learned group -> patterns"
            )
        hyper = self.hyper_priors if worth is None else self._counting(worth)
        return MixturePrior(model, groups=groups, initial=self.mixtures, hyper=hyper, **options)

    def _counting(self, worth: float) -> dict[str, HyperPrior]:
        """Hyper-priors that count each learned mixture as so many weights."""
        hyper_priors = {}
        for group, mixture in self.mixtures.items():
            count = (worth * mixture.mixing.double()).clamp_min(1e-3)
            hyper_priors[group] = HyperPrior(
                concentration=1.0 + count,
                mean=mixture.mean.double(),
                mean_count=count,
                std=mixture.std.double(),
                std_count=count,
            )
        return hyper_priors


def _file_in(path: Path) -> Path:
    """The file of the prior in a run folder or one of its checkpoints; a file itself."""
    if not path.is_dir():
        return path
    newest = sorted(path.glob("checkpoint-*"), reverse=True)
    for folder in (path, path / "final", *newest):
        if (folder / "prior.safetensors").is_file():
            return folder / "prior.safetensors"
    raise ValueError(
        "a prior to load must be a file of LearnedPrior.save, or a run folder with a "
        f"prior.safetensors in it, got the folder {path} without one: name the file"
    )


def _read(state: Mapping[str, Tensor], prefix: str) -> tuple[GaussianMixture, HyperPrior]:
    mixture = GaussianMixture(**{name: state[f"{prefix}mixture.{name}"] for name in _MIXTURE})
    hyper = {f.name: state[f"{prefix}hyper_{f.name}"] for f in fields(HyperPrior)}
    return mixture, HyperPrior(**hyper)
