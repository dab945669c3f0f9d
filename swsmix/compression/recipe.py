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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from swsmix.compression import clusters
from swsmix.compression.phases import (
    Job,
    finetune_,
    quantise_,
    snap_,
    sparsify_,
    steps_per_epoch,
)
from swsmix.compression.search import reach_
from swsmix.compression.targets import Reached, Target
from swsmix.prior import MixturePrior
from swsmix.selection import Patterns, resolve, select
from swsmix.training.evaluation import Data, Loss
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
        reached: with a target, what was asked, what came out, and the multipliers on the way.
    """

    prior: MixturePrior
    index: dict[str, Tensor]
    histories: dict[str, History]
    reached: Reached | None = None

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
    target: Target | None = None,
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
        target: how much the validation loss or measure may rise, or how large the file may be;
            then the strength is found, see `Target`. This takes up to 4 times as long.
        recipe: how hard and how long; `Recipe()` by default. With a target, `sparsify_tau` is
            only where the search begins, and the default is longer where an epoch has few steps.
        include: patterns of the parameters to compress; by default every trainable
            floating-point parameter of at least two dimensions. `"*"` takes the biases too.
        exclude: patterns of those to omit.
        tau: a factor of the prior's strength; one number, or one per tensor.
        num_data: the number of training examples; by default that of `data`.
        batch_size: for two tensors.
        validation: as `data`; only measured. A target needs it, and is chosen by it: the test
            data should be others.
        measure: `measure(model(x), y)`, lower is better; the loss by default.
        run: a folder for checkpoints, with one run folder per phase.
        resume: continue from it.
        seed: for shuffling, and the sample of very many weights.
        progress: show a progress bar for each phase.

    Returns:
        The prior with the final codebooks, the assignments and the histories; with a target, what
        was reached.

    Raises:
        ValueError: for arguments that do not fit together, or if training diverges.
        TargetError: if a target is not met (a ValueError, which has the nearest state). Then, as
            after any interruption of a call with a target, the network is what it was before.

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
    if target is not None:
        _check_target(target, validation, measure)
    names = select(model, include=include, exclude=exclude).names
    weights = dict(resolve(model, names))
    for name, p in weights.items():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name} holds nan or inf: only finite weights can be compressed")
    steps = steps_per_epoch(data, batch_size)
    bounded = loss if target is not None and target.measure_increase is None else measure
    job = Job(
        model,
        loss,
        data,
        recipe or (Recipe() if target is None else _recipe_of(steps)),
        weights=weights,
        unit={name: clusters.spread(p) for name, p in weights.items()},
        steps_per_epoch=steps,
        prior_options={"include": include, "exclude": exclude, "tau": tau},
        fit_options={
            "num_data": num_data, "batch_size": batch_size, "validation": validation,
            "measure": bounded, "measure_train": False, "resume": resume, "progress": progress,
        },
        run=None if run is None else Path(run),
        seed=seed,
    )  # fmt: skip
    reached = None
    if target is None:
        zero = sparsify_(job)
        index = snap_(job, quantise_(job, zero), zero)
        finetune_(job, index)
    else:
        index, reached = reach_(job, target, bounded or loss)
    codebooks = {n: clusters.codebook_mixture(index[n], p.detach()) for n, p in weights.items()}
    return Compressed(job.prior(codebooks, std=1.0), index, job.histories, reached)


def _check_target(target: Target, validation: Data | None, measure: Loss | None) -> None:
    if validation is None:
        raise ValueError(
            f"the target {target} is met on validation data: pass validation=(x, y), cases that "
            "are neither trained on nor tested on"
        )
    if target.measure_increase is not None and measure is None:
        raise ValueError(
            "measure_increase needs the measure: pass measure=, a function of (prediction, target) "
            "where lower is better, such as the share of errors; or ask for a loss_increase"
        )


def _recipe_of(steps_per_epoch: int) -> Recipe:
    """The default, with more epochs where they have few steps: weights need steps to move."""
    plain = Recipe()

    def epochs(steps: int, least: int) -> int:
        return max(least, math.ceil(steps / steps_per_epoch))

    sparsify = epochs(1500, plain.sparsify_epochs)
    return replace(
        plain,
        sparsify_epochs=sparsify,
        quantise_epochs=epochs(600, plain.quantise_epochs),
        finetune_epochs=epochs(100, plain.finetune_epochs),
        em_every=min(plain.em_every, max(1, sparsify * steps_per_epoch // 50)),
    )
