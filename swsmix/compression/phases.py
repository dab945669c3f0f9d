"""The phases of `compress_`: sparsify, quantise, snap, fine-tune; see `recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swsmix.compression import clusters
from swsmix.compression.centres import tie
from swsmix.compression.multiplier import LedSchedule, Multiplier
from swsmix.compression.snap import assign
from swsmix.compression.straight_through import StraightThrough
from swsmix.em import HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Data, Loss, is_pair
from swsmix.training.fitting import fit
from swsmix.training.history import History

if TYPE_CHECKING:
    from swsmix.compression.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """What the phases of one `compress_` share; `unit` is the std of the pretrained weights.

    The suffix tells the phases of one trial from those of the next, where there are several.
    """

    model: nn.Module
    loss: Loss
    data: Data
    recipe: Recipe
    weights: Mapping[str, Tensor]
    unit: Mapping[str, float]
    steps_per_epoch: int
    prior_options: Mapping[str, Any]
    fit_options: Mapping[str, Any]
    run: Path | None
    seed: int
    histories: dict[str, History] = field(default_factory=dict)
    suffix: str = ""

    def prior(self, mixtures: dict[str, GaussianMixture], *, std: float) -> MixturePrior:
        """A prior with these mixtures; the hyper-prior's std is in units of each tensor's."""
        hyper = {name: HyperPrior(std=std * unit) for name, unit in self.unit.items()}
        return MixturePrior(
            self.model, groups="tensor", initial=mixtures, hyper=hyper, **self.prior_options
        )

    def schedule(self, tau: float, epochs: int, start: float, end: float, **more: Any) -> Schedule:
        """The stds fall from start to end, in units of each tensor's, in 9/10 of the phase."""
        kind = LedSchedule if "multiplier" in more else Schedule
        return kind(
            tau=tau,
            em_every=self.recipe.em_every,
            std_start={name: start * unit for name, unit in self.unit.items()},
            std_end={name: end * unit for name, unit in self.unit.items()},
            # The stds are the schedule's alone: EM would close the zero component on the first
            # exact zeros, and a zero narrower than its neighbours loses weights to them.
            std_floor=1.0,
            anneal=round(0.9 * self.steps_per_epoch * epochs),
            **more,
        )

    def train(
        self,
        phase: str,
        epochs: int,
        lr: float,
        prior: MixturePrior | None = None,
        schedule: Schedule | None = None,
        network: nn.Module | None = None,
        callback: Callable[[int, History], None] | None = None,
    ) -> None:
        """Train the model, or the network that wraps it, by Adam and record the history."""
        phase += self.suffix
        free = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(free, lr)
        self.histories[phase] = fit(
            network or self.model,
            self.loss,
            self.data,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, lr / 20.0),
            epochs=epochs,
            prior=prior,
            schedule=schedule,
            seed=self.seed + len(self.histories),
            run=None if self.run is None else self.run / phase,
            callback=callback,
            **self.fit_options,
        )


def sparsify_(job: Job, multiplier: Multiplier | None = None) -> dict[str, Tensor]:
    """Train under a zero component that narrows and a slab; which weights are then zero.

    With a multiplier, tau is that, instead of the recipe's.
    """
    recipe = job.recipe
    spikes = {
        name: clusters.spike_and_slab(recipe.zero_start * unit, recipe.slab * unit)
        for name, unit in job.unit.items()
    }
    prior = job.prior(spikes, std=recipe.zero_end)
    schedule = job.schedule(
        recipe.sparsify_tau if multiplier is None else 1.0,
        recipe.sparsify_epochs,
        recipe.zero_start,
        recipe.zero_end,
        warmup=job.steps_per_epoch * recipe.warmup_epochs,
        **({} if multiplier is None else {"multiplier": multiplier}),
    )
    if multiplier is not None and job.run is not None:
        multiplier.resume(job.run / f"sparsify{job.suffix}")
    job.train(
        "sparsify", recipe.sparsify_epochs, recipe.sparsify_lr, prior, schedule,
        callback=None if multiplier is None else multiplier.follow,
    )  # fmt: skip
    return {name: assign(prior.mixtures[name], p) == 0 for name, p in job.weights.items()}


def quantise_(job: Job, zero: Mapping[str, Tensor]) -> MixturePrior:
    """Train under clusters of the weights outside zero, which narrow; the prior of the clusters."""
    recipe = job.recipe
    mixtures = {
        name: clusters.split_slab(
            zero[name], p, recipe.num_components - 1, recipe.cluster_start * job.unit[name],
            job.seed,
        )
        for name, p in job.weights.items()
    }  # fmt: skip
    prior = job.prior(mixtures, std=recipe.std_end)
    schedule = job.schedule(
        recipe.quantise_tau, recipe.quantise_epochs, recipe.cluster_start, recipe.std_end
    )
    # The network answers with snapped weights while the clusters form, so that each weight learns
    # which centre it should go to, and what the first phase has sent to zero stays there.
    network = StraightThrough(job.model, prior, zero)
    job.train("quantise", recipe.quantise_epochs, recipe.quantise_lr, prior, schedule, network)
    return prior


@torch.no_grad()
def snap_(job: Job, prior: MixturePrior, zero: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Set each weight to its centre, near and rare clusters merged; the cluster of each weight."""
    index = {}
    for name, p in job.weights.items():
        mixture = prior.mixtures[name]
        j = assign(mixture, p).masked_fill(zero[name], 0)
        p.copy_(mixture.mean[j])  # the values that the network has learned with
        nearest = job.recipe.merge * job.unit[name]
        index[name] = clusters.merge_clusters(j, p, nearest=nearest, rare=job.recipe.rare)
        clusters.set_to_centres_(p, index[name])
    return index


def finetune_(job: Job, index: Mapping[str, Tensor], phase: str = "finetune") -> None:
    """Train the centres and what the prior does not see; no weight leaves its cluster."""
    handles = [tie(p, index[name]) for name, p in job.weights.items()]
    try:
        if job.recipe.finetune_epochs:
            job.train(phase, job.recipe.finetune_epochs, job.recipe.finetune_lr)
    finally:
        for handle in handles:
            handle.remove()
    for name, p in job.weights.items():
        clusters.set_to_centres_(p, index[name])


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """The number of batches in an epoch."""
    if is_pair(data):
        return -(-len(data[0]) // batch_size)
    if not isinstance(data, Sized):
        raise ValueError(
            "the data need a length, the number of batches in an epoch: give two tensors, a list "
            f"of batches or a DataLoader over a sized data set; got {type(data).__name__}"
        )
    return len(data)
