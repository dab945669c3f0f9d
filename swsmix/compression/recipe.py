"""Compress a network by soft weight-sharing, from its pretrained weights to few values.

    sparsify   each tensor's weights under a narrow component pinned at zero and a wide one, the
               *slab*, whose mixing is learned: the zero component's std falls, and what the data
               do not hold outside it goes to zero
    quantise   k-means splits the slab into components, and all stds fall until each weight sits
               on its centre; meanwhile the network answers as if each weight sat there already
    snap       each weight to the centre of its most responsible component; centres that are
               nearly equal, and those of hardly any weights, merge
    fine-tune  the centres and everything that the prior does not see, with the assignments fixed

All stds falling together would freeze the assignments long before the network has become sparse;
hence the two phases. After Ullrich, Meeds & Welling (2017), who retrain in one phase.

In the second phase the gradient is taken at the snapped weights and moves the weights themselves
(straight through: Bengio, Leonard & Courville 2013). Such weights would hop between two centres
for ever; the prior's pull, which grows as the stds fall, settles them. Without snapped answers
the weights freeze at their centres, wherever these are, and the error grows with every epoch
(`papers/ullrich2017/attempts.jsonl`, m1 and t0).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swsmix.compression import clusters
from swsmix.compression.centres import tie
from swsmix.compression.snap import assign
from swsmix.compression.straight_through import StraightThrough
from swsmix.em import HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior
from swsmix.schedule import Schedule
from swsmix.selection import Patterns, resolve, select
from swsmix.training.evaluation import Data, Loss
from swsmix.training.fitting import fit
from swsmix.training.history import History


@dataclass(frozen=True)
class Recipe:
    """How hard to compress, and how long; the defaults suit a network of 10^5 to 10^7 weights.

    Attributes:
        num_components: K of each tensor's final mixture, the zero component included.
        sparsify_tau: the strength of the prior while it sparsifies: the knob of the trade-off
            between size and error. 0.03 is gentle, 0.3 hard.
        quantise_tau: its strength while it quantises.
        sparsify_epochs: epochs of the first phase, where more epochs help most.
        warmup_epochs: how many of these the prior takes to reach its full strength.
        quantise_epochs: epochs of the second phase.
        finetune_epochs: epochs of fine-tuning the centres.
        sparsify_lr: Adam's learning rate at the start of the first phase; in each phase it falls
            by a cosine to a twentieth.
        quantise_lr: the same for the second phase.
        finetune_lr: the same for fine-tuning.
        zero_start: the zero component's std at the start of the first phase, in units of the std
            of the tensor's pretrained weights.
        zero_end: the same at nine tenths of that phase, and from then on. It is small,
            since a thousand weights near zero add up to something that a network can use.
        cluster_start: the std of all components at the start of the second phase, in the same
            units.
        slab: the std of the wide component, in the same units.
        std_end: the stds at the end of the second phase, in the same units.
        em_every: steps between EM steps.
        merge: clusters of a tensor whose centres are nearer than this merge, in the same units.
        rare: clusters of fewer weights than this merge into the nearest one.

    Raises:
        ValueError: if a value is outside its range.

    Example:
        >>> Recipe(sparsify_tau=0.03).num_components
        6
    """

    num_components: int = 6
    sparsify_tau: float = 0.1
    quantise_tau: float = 0.03
    sparsify_epochs: int = 25
    warmup_epochs: int = 1
    quantise_epochs: int = 10
    finetune_epochs: int = 2
    sparsify_lr: float = 2e-3
    quantise_lr: float = 2e-3
    finetune_lr: float = 1e-4
    zero_start: float = 0.7
    zero_end: float = 0.01
    cluster_start: float = 0.3
    slab: float = 3.0
    std_end: float = 0.01
    em_every: int = 50
    merge: float = 0.03
    rare: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_components < 2:
            raise ValueError(f"num_components must be at least 2; got {self.num_components}")
        for name, least in (
            ("sparsify_epochs", 1),
            ("warmup_epochs", 0),
            ("quantise_epochs", 1),
            ("finetune_epochs", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        for name in ("sparsify_lr", "quantise_lr", "finetune_lr", "slab"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if not math.inf > self.zero_start >= self.zero_end >= self.std_end > 0.0:
            raise ValueError(
                "the stds need zero_start >= zero_end >= std_end > 0; got "
                f"{self.zero_start}, {self.zero_end}, {self.std_end}"
            )
        if not math.inf > self.cluster_start >= self.std_end:
            raise ValueError(
                f"the stds need cluster_start >= std_end; got {self.cluster_start}, {self.std_end}"
            )


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress_` made of a network.

    Attributes:
        prior: the prior over the snapped network, one mixture per tensor, whose means are
            its values: what `save_compressed` needs.
        index: name -> the component of each weight.
        histories: phase -> its history.
    """

    prior: MixturePrior
    index: dict[str, Tensor]
    histories: dict[str, History]

    @property
    def nonzero(self) -> dict[str, float]:
        """The share of the weights that are not zero, by name."""
        return {
            name: (self.prior.mixtures[name].mean[j] != 0).double().mean().item()
            for name, j in self.index.items()
        }


def compress_(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    recipe: Recipe | None = None,
    include: Patterns | None = None,
    exclude: Patterns = (),
    tau: float | Mapping[str, float] = 1.0,
    num_data: int | None = None,
    batch_size: int = 128,
    validation: Data | None = None,
    measure: Loss | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Compressed:
    """Sparsify, quantise, snap and fine-tune a pretrained network, in place.

    The network stays the plain module it is; its tensors under the prior hold few values, one
    codebook per tensor (on a grid of 8 bits where that is enough), mostly zeros. Write it with
    `swsmix.compression.save_compressed(path, model, compressed.prior)`.

    Args:
        model: the pretrained network, changed in place.
        loss: `loss(model(x), y)`, the mean negative log likelihood of a batch.
        data: the training data, as for `fit`: two tensors, or a sized iterable of batches.
        recipe: how hard and how long; `Recipe()` by default.
        include: patterns of the parameters to compress; by default every trainable
            floating-point parameter of at least two dimensions. `"*"` takes the biases too.
        exclude: patterns of those to omit.
        tau: a factor of the prior's strength; one number, or one per tensor.
        num_data: the number of training examples; by default that of `data`.
        batch_size: for two tensors.
        validation: as `data`; only measured.
        measure: `measure(model(x), y)`, lower is better; the loss by default.
        run: a folder for checkpoints, with one run folder per phase.
        resume: continue from it.
        seed: for shuffling, and the sample of very many weights.
        progress: show a progress bar for each phase.

    Returns:
        The prior with the final codebooks, the assignments and the histories.

    Raises:
        ValueError: for arguments that do not fit together, or if training diverges.

    Example:
        >>> x = torch.randn(64, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> short = Recipe(num_components=4, sparsify_epochs=2, quantise_epochs=2)
        >>> done = compress_(net, nn.functional.cross_entropy, (x, y), recipe=short,
        ...                  progress=False)
        >>> len(net[0].weight.unique()) <= 4
        True
    """
    if resume and run is None:
        raise ValueError("resume needs the folder of the run to continue: pass run=")
    names = select(model, include=include, exclude=exclude).names
    weights = dict(resolve(model, names))
    for name, p in weights.items():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name} holds nan or inf: only finite weights can be compressed")
    job = _Job(
        model,
        loss,
        data,
        recipe or Recipe(),
        weights=weights,
        unit={name: clusters.spread(p) for name, p in weights.items()},
        steps_per_epoch=_steps_per_epoch(data, batch_size),
        prior_options={"include": include, "exclude": exclude, "tau": tau},
        fit_options={
            "num_data": num_data, "batch_size": batch_size, "validation": validation,
            "measure": measure, "measure_train": False, "resume": resume, "progress": progress,
        },
        run=None if run is None else Path(run),
        seed=seed,
    )  # fmt: skip
    zero = _sparsify_(job)
    prior = _quantise_(job, zero)
    index = _snap_(job, prior, zero)
    _finetune_(job, index)
    codebooks = {n: clusters.codebook_mixture(index[n], p.detach()) for n, p in weights.items()}
    return Compressed(job.prior(codebooks, std=1.0), index, job.histories)


@dataclass(frozen=True)
class _Job:
    """What the phases of one `compress_` share; `unit` is the std of the pretrained weights."""

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

    def prior(self, mixtures: dict[str, GaussianMixture], *, std: float) -> MixturePrior:
        """A prior with these mixtures; the hyper-prior's std is in units of each tensor's."""
        hyper = {name: HyperPrior(std=std * unit) for name, unit in self.unit.items()}
        return MixturePrior(
            self.model, groups="tensor", initial=mixtures, hyper=hyper, **self.prior_options
        )

    def schedule(self, tau: float, epochs: int, start: float, end: float, **more: Any) -> Schedule:
        """The stds fall from start to end, in units of each tensor's, in 9/10 of the phase."""
        return Schedule(
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
    ) -> None:
        """Train the model, or the network that wraps it, by Adam and record the history."""
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
            **self.fit_options,
        )


def _sparsify_(job: _Job) -> dict[str, Tensor]:
    """Train under a zero component that narrows and a slab; which weights are then zero."""
    recipe = job.recipe
    spikes = {
        name: clusters.spike_and_slab(recipe.zero_start * unit, recipe.slab * unit)
        for name, unit in job.unit.items()
    }
    prior = job.prior(spikes, std=recipe.zero_end)
    schedule = job.schedule(
        recipe.sparsify_tau,
        recipe.sparsify_epochs,
        recipe.zero_start,
        recipe.zero_end,
        warmup=job.steps_per_epoch * recipe.warmup_epochs,
    )
    job.train("sparsify", recipe.sparsify_epochs, recipe.sparsify_lr, prior, schedule)
    return {name: assign(prior.mixtures[name], p) == 0 for name, p in job.weights.items()}


def _quantise_(job: _Job, zero: Mapping[str, Tensor]) -> MixturePrior:
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
def _snap_(job: _Job, prior: MixturePrior, zero: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _finetune_(job: _Job, index: Mapping[str, Tensor]) -> None:
    """Train the centres and what the prior does not see; no weight leaves its cluster."""
    handles = [tie(p, index[name]) for name, p in job.weights.items()]
    try:
        if job.recipe.finetune_epochs:
            job.train("finetune", job.recipe.finetune_epochs, job.recipe.finetune_lr)
    finally:
        for handle in handles:
            handle.remove()
    for name, p in job.weights.items():
        clusters.set_to_centres_(p, index[name])


def _steps_per_epoch(data: Data, batch_size: int) -> int:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        return -(-len(data[0]) // batch_size)
    if not isinstance(data, Sized):
        raise ValueError(
            "the data need a length, the number of batches in an epoch: give two tensors, a list "
            f"of batches or a DataLoader over a sized data set; got {type(data).__name__}"
        )
    return len(data)
