"""Compress a network by soft weight-sharing, from its pretrained weights to few values.

    sparsify   each tensor's weights under a narrow component pinned at zero and a wide one, the
               *slab*, whose mixing is learned: the zero component's std falls, and what the data
               do not hold outside it goes to zero
    quantise   k-means splits the slab into components, and all stds fall until each weight sits
               on its centre; meanwhile the network answers as if each weight sat there already
    snap       each weight to the centre of its most responsible component; centres that are
               nearly equal, and those of hardly any weights, merge
    fine-tune  the centres and whatever the prior does not see, with the assignments fixed

All stds falling together would freeze the assignments long before the network has become sparse;
hence the two phases. After Ullrich, Meeds & Welling (2017), who retrain in one phase.

In the second phase the gradient is taken at the snapped weights and moves the weights themselves
(straight through: Bengio, Leonard & Courville 2013). Such weights would hop between two centres
for ever; the prior's pull, stronger as the stds fall, is what settles them. Without snapped
answers the weights stiffen at their centres wherever these are, and the error grows with every
epoch (`papers/ullrich2017/attempts.jsonl`, m1 and t0).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swsmix.compression.centres import centre_sums, tie
from swsmix.compression.snap import assign, snap_to_grid
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
        sparsify_epochs: epochs of the first phase, which is where patience pays.
        warmup_epochs: of these, how many the prior takes to come to its full strength.
        quantise_epochs: epochs of the second.
        finetune_epochs: epochs of fine-tuning the centres.
        sparsify_lr: Adam's learning rate at the start of the first phase; in each phase it falls
            by a cosine to a twentieth.
        quantise_lr: the same of the second phase.
        finetune_lr: the same of the third.
        zero_start: the zero component's std at the start of the first phase, in units of the std
            of the tensor's pretrained weights.
        zero_end: the same at nine tenths of that phase, and from then on. Small, since a
            thousand nearly-zeros add up to what a network can use.
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
                "wanted zero_start >= zero_end >= std_end > 0; got "
                f"{self.zero_start}, {self.zero_end}, {self.std_end}"
            )
        if not math.inf > self.cluster_start >= self.std_end:
            raise ValueError(
                f"wanted cluster_start >= std_end; got {self.cluster_start}, {self.std_end}"
            )


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `compress_` made of a network.

    Attributes:
        prior: the prior over the snapped network, one mixture a tensor, whose means are its
            values: what `save_compressed` wants.
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
    codebook a tensor (on a grid of 8 bits where that holds it), and mostly zeros. Write it with
    `swsmix.compression.save_compressed(path, model, compressed.prior)`.

    Args:
        model: the pretrained network, changed in place.
        loss: `loss(model(x), y)`, the mean negative log likelihood of a batch.
        data: the training data, as for `fit`: two tensors, or a sized iterable of batches.
        recipe: how hard and how long; `Recipe()` by default.
        include: patterns of the parameters to compress; by default every trainable
            floating-point parameter of at least two dimensions. `"*"` takes the biases too.
        exclude: patterns of those to leave out.
        tau: a factor of the prior's strength; one number, or one a tensor.
        num_data: the number of training examples; by default that of `data`.
        batch_size: for two tensors.
        validation: as `data`; only measured.
        measure: `measure(model(x), y)`, lower is better; the loss by default.
        run: a folder for checkpoints, one run folder a phase in it.
        resume: continue from it.
        seed: for shuffling and k-means.
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
    recipe = recipe or Recipe()
    if resume and run is None:
        raise ValueError("resume wants the run folder in run=")
    steps = _steps_an_epoch(data, batch_size)
    names = select(model, include=include, exclude=exclude).names
    weights = resolve(model, names)
    for name, p in weights.items():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name} holds nan or inf: the network wants finite weights")
    # The unit of all stds: the spread of each tensor's pretrained weights.
    unit = {name: _spread(p) for name, p in weights.items()}
    histories: dict[str, History] = {}

    def train(
        phase: str,
        prior: MixturePrior | None,
        epochs: int,
        lr: float,
        schedule: Schedule | None,
        network: nn.Module = model,
    ) -> None:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
        histories[phase] = fit(
            network, loss, data, optimizer=optimizer, epochs=epochs, prior=prior, schedule=schedule,
            num_data=num_data, batch_size=batch_size, validation=validation, measure=measure,
            lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, lr / 20.0),
            measure_train=False, seed=seed + len(histories), progress=progress,
            run=None if run is None else Path(run) / phase, resume=resume,
        )  # fmt: skip

    def prior_of(mixtures: dict[str, GaussianMixture], std: float) -> MixturePrior:
        hyper = {name: HyperPrior(std=std * unit[name]) for name in names}
        return MixturePrior(
            model, include=include, exclude=exclude, groups="tensor", tau=tau,
            initial=mixtures, hyper=hyper,
        )  # fmt: skip

    spikes = {name: _spike_and_slab(unit[name], recipe) for name in names}
    prior = prior_of(spikes, recipe.zero_end)
    schedule = Schedule(
        tau=recipe.sparsify_tau,
        warmup=steps * recipe.warmup_epochs,
        em_every=recipe.em_every,
        std_start={name: recipe.zero_start * unit[name] for name in names},
        std_end={name: recipe.zero_end * unit[name] for name in names},
        std_floor=1.0,  # EM alone would close the zero component on the first exact zeros
        anneal=round(0.9 * steps * recipe.sparsify_epochs),
    )
    train("sparsify", prior, recipe.sparsify_epochs, recipe.sparsify_lr, schedule)

    zero = {name: assign(prior.mixtures[name], p) == 0 for name, p in weights.items()}
    clusters = {
        name: _split_slab(
            zero[name],
            p,
            recipe.num_components - 1,
            recipe.cluster_start * unit[name],
            seed,
        )
        for name, p in weights.items()
    }
    prior = prior_of(clusters, recipe.std_end)
    schedule = Schedule(
        tau=recipe.quantise_tau,
        em_every=recipe.em_every,
        std_start={name: recipe.cluster_start * unit[name] for name in names},
        std_end={name: recipe.std_end * unit[name] for name in names},
        std_floor=1.0,  # a zero narrower than its neighbours would lose weights to them
        anneal=round(0.9 * steps * recipe.quantise_epochs),
    )
    # The network answers with snapped weights while the clusters form, so that each weight learns
    # which centre it should go to, and what the first phase has sent to zero stays there.
    snapped = _Snapped(model, prior, zero)
    train("quantise", prior, recipe.quantise_epochs, recipe.quantise_lr, schedule, snapped)

    index = {}
    for name, p in weights.items():
        mixture = prior.mixtures[name]
        j = assign(mixture, p).masked_fill(zero[name], 0)
        with torch.no_grad():
            p.copy_(mixture.mean[j])  # the values that the network has learned with
        index[name] = _merged(j, p.detach(), recipe, unit[name])
    _snap_(weights, index)
    handles = [tie(p, index[name]) for name, p in weights.items()]
    try:
        if recipe.finetune_epochs:
            train("finetune", None, recipe.finetune_epochs, recipe.finetune_lr, None)
    finally:
        for handle in handles:
            handle.remove()
    _snap_(weights, index)
    prior = prior_of({n: _codebook(index[n], p.detach()) for n, p in weights.items()}, 1.0)
    return Compressed(prior, index, histories)


class _Snapped(nn.Module):
    """A network that answers with its weights snapped, and learns with them as they are.

    In each forward pass each weight outside zero takes its most responsible component's mean; the
    gradient there is the weight's own (straight through). The prior's pull damps the weights that
    would hop between two centres for ever.
    """

    def __init__(self, model: nn.Module, prior: MixturePrior, zero: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.prior = model, [prior]  # in a list: no submodule
        self.at = {name: (~z).reshape(-1).nonzero().reshape(-1) for name, z in zero.items()}
        with torch.no_grad():
            for name, z in zero.items():
                model.get_parameter(name).masked_fill_(z, 0.0)

    # Its checkpoints are the network's own.
    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The network's."""
        return self.model.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Into the network."""
        return self.model.load_state_dict(*args, **options)

    def forward(self, *args: Tensor) -> Tensor:
        """The answers with snapped weights."""
        values = {}
        for name, at in self.at.items():
            p, mixture = self.model.get_parameter(name), self.prior[0].mixtures[name]
            flat = p.reshape(-1)
            w = flat[at]
            with torch.no_grad():
                change = mixture.mean[assign(mixture, w)].to(w.dtype) - w
            value = torch.zeros_like(flat).index_put((at,), w + change)
            values[name] = value.view_as(p)
        answer: Tensor = torch.func.functional_call(self.model, values, args)
        return answer


def _steps_an_epoch(data: Data, batch_size: int) -> int:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        return -(-len(data[0]) // batch_size)
    if not isinstance(data, Sized):
        raise ValueError(
            "the data want a length, the number of batches in an epoch: give two tensors, a list "
            "of batches or a DataLoader over a sized data set"
        )
    return len(data)


def _spread(p: Tensor) -> float:
    w = p.detach().double()
    return w.std(correction=0).item() or w.abs().max().item() or 1.0


def _spike_and_slab(unit: float, recipe: Recipe) -> GaussianMixture:
    """A zero component, its std the schedule's, and a wide one that stays as it is."""
    return GaussianMixture(
        torch.tensor([0.5, 0.5]),
        torch.zeros(2),
        torch.tensor([recipe.zero_start * unit, recipe.slab * unit]),
        pinned_mean=[True, True],
        pinned_std=[False, True],
    )


def _split_slab(zero: Tensor, p: Tensor, most: int, std: float, seed: int) -> GaussianMixture:
    """The zero component and at most so many clusters of the weights outside it, of one std."""
    w = p.detach().reshape(-1)
    outside = w[~zero.reshape(-1)]
    k = min(most, len(outside.unique()))
    mixing, mean = torch.ones(1).to(w.device), torch.zeros(1).to(w.device)
    if k:
        clusters = GaussianMixture.from_weights(outside, k, method="kmeans", seed=seed)
        share = len(outside) / len(w)
        mixing = torch.cat([(1.0 - share) * mixing, share * clusters.mixing])
        mean = torch.cat([mean, clusters.mean])
    return GaussianMixture(
        mixing, mean, torch.full_like(mean, std), pinned_mean=[True] + [False] * k
    )


def _merged(index: Tensor, w: Tensor, recipe: Recipe, unit: float) -> Tensor:
    """Assignments with near-equal and rare clusters merged, 0 for zero, then by centre."""
    flat, j = w.reshape(-1).double(), index.reshape(-1)
    while True:
        count = torch.bincount(j)
        live = count.nonzero().reshape(-1)
        centre = torch.bincount(j, flat) / count.clamp_min(1)
        centre[0] = 0.0  # pinned, whatever the mean of its weights is
        order = live[centre[live].argsort()]
        if len(order) < 2:
            break
        gaps = centre[order].diff()
        rare = count[order] < recipe.rare
        rare[order == 0] = False
        # A gap beside a rare cluster closes in any case.
        close = (gaps < recipe.merge * unit) | rare[1:] | rare[:-1]
        if not close.any():
            break
        first = int(torch.where(close, gaps, torch.inf).argmin())
        one, other = sorted(order[first : first + 2].tolist())
        j = torch.where(j == other, one, j)  # 0 is the smallest: it swallows its neighbour
    number = torch.zeros(len(count), dtype=torch.long, device=j.device)
    rest = order[order != 0]
    number[rest] = torch.arange(1, len(rest) + 1, device=j.device)
    return number[j].view(index.shape)


@torch.no_grad()
def _snap_(weights: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> None:
    """Each weight to the mean of its cluster, on a grid of 8 bits if it holds them; 0 stays 0.

    Else in float16, or as it is where that overflows or loses more than its precision.
    """
    for name, p in weights.items():
        j = index[name]
        values = p.detach().double()
        centre = centre_sums(j, values) / centre_sums(j, torch.ones_like(values)).clamp_min(1.0)
        centre[0] = 0.0
        grid, half = snap_to_grid(centre, 8), centre.half().double()
        if len(grid.unique()) == len(centre.unique()) and torch.equal(grid, grid.half().double()):
            centre = grid
        else:
            centre = torch.where((half - centre).abs() <= 1e-3 * centre.abs(), half, centre)
        p.copy_(centre[j])


def _codebook(index: Tensor, w: Tensor) -> GaussianMixture:
    """The mixture of a snapped tensor: its values, so narrow that each weight is its own."""
    flat, j = w.reshape(-1).float(), index.reshape(-1)
    count = torch.bincount(j).float()
    mean = torch.zeros(len(count), device=w.device)
    mean[j] = flat
    gap = mean.sort().values.diff()
    narrow = (gap.min() / 50.0).item() if len(gap) else 1.0
    mixing = (count + 1.0) / (count + 1.0).sum()
    std = torch.full_like(mean, narrow)
    return GaussianMixture(mixing, mean, std, pinned_mean=[True] + [False] * (len(mean) - 1))
