#!/usr/bin/env python3
"""What decides: LeNet-300-100 raw, seed 0, with one step of the method changed at a time.

    papers/ullrich2017/ablation.py recipe gradient posterior one-phase global

    recipe      two phases, EM of the mixtures, at the maximum of the posterior, one for each tensor
    one-phase   all components from the start, closing together, in as many epochs; the network
                answers with its weights as they are; -weak: with a quarter of the strength
    gradient    the mixtures' means and mixing are moved by Adam, with the weights
    posterior   EM over the posterior of each weight, its variance from Adam's second moments
    global      one mixture for all tensors

All begin with the same pretrained network and have the same epochs and strengths. Then what is left
up to the limit of errors on the validation images is spent, so that all are compared at the same
error. Appends a line for each to ablation.jsonl. The test images are not read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":  # import `papers` and `swsmix` from this checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from papers.ullrich2017 import settings, work
from papers.ullrich2017.images import Images, training_images
from swsmix import GaussianMixture, HyperPrior, MixturePrior, Schedule, fit
from swsmix.codec import encode
from swsmix.compression import clusters
from swsmix.compression.phases import Job, finetune_, quantise_, snap_, sparsify_
from swsmix.compression.snap import assign
from swsmix.compression.spending import Spender, curvatures, spend_to_bound
from swsmix.compression.straight_through import StraightThrough
from swsmix.training.evaluation import evaluate
from swsmix.training.history import History

HERE = Path(__file__).resolve().parent
KEPT = HERE / "ablation.jsonl"
SETTING = replace(
    settings.PLAIN,
    name="ablation",
    recipe=replace(settings.PLAIN.recipe, sparsify_epochs=16, quantise_epochs=6, finetune_epochs=1),
    limit=1.9,
)
RATES = {"mean": 1e-4, "std": 3e-3, "mixing": 3e-3}  # of mixtures by gradient, as published
ROUNDS = 3  # of spending


@dataclass(frozen=True)
class Variant:
    """One way to do it.

    Attributes:
        phases: two, or one in which all components close together.
        mode: how the mixtures learn.
        moments: EM at the maximum of the posterior, or over it.
        shared: whether all tensors have one mixture.
        strength: a factor of the first phase's strength, where one phase needs a weaker prior.
    """

    phases: int = 2
    mode: str = "em"
    moments: str = "maximum"
    shared: bool = False
    strength: float = 1.0


VARIANTS = {
    "recipe": Variant(),
    "one-phase": Variant(phases=1),
    "one-phase-weak": Variant(phases=1, strength=0.25),
    "gradient": Variant(mode="gradient"),
    "posterior": Variant(moments="posterior"),
    "global": Variant(shared=True),
}


@dataclass(frozen=True)
class Trial(Job):
    """The job of `compress_` with a variant; a shared mixture is that of the group "all"."""

    variant: Variant = Variant()

    def prior(self, mixtures: dict[str, GaussianMixture], *, std: float) -> MixturePrior:
        """A prior with these mixtures."""
        hyper = {group: HyperPrior(std=std * self.unit[group]) for group in mixtures}
        groups = "global" if self.variant.shared else "tensor"
        return MixturePrior(
            self.model, groups=groups, initial=mixtures, hyper=hyper, mode=self.variant.mode,
            **self.prior_options,
        )  # fmt: skip

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
        """Train by Adam, the mixtures too where they learn by gradient."""
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters()), "lr": lr}]
        for name, p in () if prior is None else prior.named_parameters():
            (what,) = (w for w in RATES if f".{w}." in f".{name}.")
            groups.append({"params": [p], "lr": RATES[what]})
        optimizer = torch.optim.Adam(groups)
        self.histories[phase] = fit(
            network or self.model, self.loss, self.data, optimizer=optimizer, epochs=epochs,
            lr_scheduler=CosineAnnealingLR(optimizer, epochs, lr / 20.0), prior=prior,
            schedule=schedule, moments="maximum" if prior is None else self.variant.moments,
            seed=self.seed + len(self.histories), callback=callback, **self.fit_options,
        )  # fmt: skip


def clustered_(job: Trial) -> dict[str, Tensor]:
    """All phases up to the fine-tuned centres; the cluster of each weight, 0 for zero."""
    if job.variant.phases == 1:
        zero, prior = one_phase_(job)
    elif job.variant.shared:
        zero, prior = shared_(job)
    else:
        zero = sparsify_(job)
        prior = quantise_(job, zero)
    index = snap_(job, _by_tensor(job, prior), zero)
    finetune_(job, index)
    return index


def one_phase_(job: Trial) -> tuple[dict[str, Tensor], MixturePrior]:
    """Zero's component and the clusters close together, from the start; no weight must be zero."""
    recipe = job.recipe
    mixtures = {}
    for name, p in job.weights.items():
        slab = clusters.spike_and_slab(
            recipe.zero_start * job.unit[name], recipe.slab * job.unit[name]
        )
        mixtures[name] = clusters.split_slab(
            assign(slab, p) == 0, p, recipe.num_components - 1,
            recipe.zero_start * job.unit[name], job.seed,
        )  # fmt: skip
    prior = job.prior(mixtures, std=recipe.std_end)
    epochs = recipe.sparsify_epochs + recipe.quantise_epochs
    schedule = job.schedule(
        job.variant.strength * recipe.sparsify_tau, epochs, recipe.zero_start, recipe.std_end,
        warmup=job.steps_per_epoch * recipe.warmup_epochs,
    )  # fmt: skip
    job.train("retrain", epochs, recipe.sparsify_lr, prior, schedule)
    return {name: torch.zeros_like(p, dtype=torch.bool) for name, p in job.weights.items()}, prior


def shared_(job: Trial) -> tuple[dict[str, Tensor], MixturePrior]:
    """Both phases under one mixture, whose stds are in units of all weights' std."""
    recipe, unit = job.recipe, job.unit["all"]
    spike = clusters.spike_and_slab(recipe.zero_start * unit, recipe.slab * unit)
    prior = job.prior({"all": spike}, std=recipe.zero_end)
    schedule = job.schedule(
        recipe.sparsify_tau, recipe.sparsify_epochs, recipe.zero_start, recipe.zero_end,
        warmup=job.steps_per_epoch * recipe.warmup_epochs,
    )  # fmt: skip
    job.train("sparsify", recipe.sparsify_epochs, recipe.sparsify_lr, prior, schedule)
    zero = {name: assign(prior.mixtures["all"], p) == 0 for name, p in job.weights.items()}
    split = clusters.split_slab(
        torch.cat([z.reshape(-1) for z in zero.values()]),
        torch.cat([p.detach().reshape(-1) for p in job.weights.values()]),
        recipe.num_components - 1, recipe.cluster_start * unit, job.seed,
    )  # fmt: skip
    prior = job.prior({"all": split}, std=recipe.std_end)
    schedule = job.schedule(
        recipe.quantise_tau, recipe.quantise_epochs, recipe.cluster_start, recipe.std_end
    )
    network = StraightThrough(job.model, _by_tensor(job, prior), zero)
    job.train("quantise", recipe.quantise_epochs, recipe.quantise_lr, prior, schedule, network)
    return zero, prior


class ByTensor(MixturePrior):
    """A prior of one mixture, read as if each tensor had its own; for what only reads mixtures."""

    def __init__(self, prior: MixturePrior, names: Iterable[str]) -> None:
        nn.Module.__init__(self)  # a prior's own would make mixtures anew
        self.shared, self.names = (prior,), tuple(names)

    @property
    def mixtures(self) -> dict[str, GaussianMixture]:
        """The shared mixture, by the tensors' names."""
        return dict.fromkeys(self.names, self.shared[0].mixtures["all"])


def _by_tensor(job: Trial, prior: MixturePrior) -> MixturePrior:
    return ByTensor(prior, job.weights) if job.variant.shared else prior


def spend_(job: Job, index: dict[str, Tensor], limit: float) -> tuple[dict[str, Tensor], bool]:
    """Weights to cheaper values until the errors are at the limit, the centres fine-tuned between.

    Returns:
        The clusters of the smallest network within the limit, in place; and whether there is one.
    """

    def value() -> float:
        return evaluate(job.model, work.errors, job.fit_options["validation"])

    best: tuple[int, dict[str, Tensor], dict[str, Tensor]] | None = None
    for number in range(1 + ROUNDS):
        if number:
            finetune_(job, index, f"finetune-{number}")
            curvature = curvatures(
                job.model, job.loss, job.data, job.weights, job.fit_options["batch_size"]
            )
            spender = Spender(job.weights, index, curvature)

            def used(trial: dict[str, Tensor], spender: Spender = spender) -> float:
                spender.place_(trial)
                return value() / limit

            chosen, _ = spend_to_bound(spender, used, full=1.0 - 0.01 / limit, fits=1.0)
            index = spender.place_(chosen)
        state = {n: t.detach().clone() for n, t in job.model.state_dict().items()}
        size = len(encode(state))
        if value() <= limit and (best is None or size < best[0]):
            best = size, state, index
    if best is None:
        return index, False
    job.model.load_state_dict(best[1])
    return best[2], True


def attempt(name: str, scratch: Path, subset: int | None = None) -> dict[str, Any]:
    """Compress the network by one variant; what came out, on validation images alone."""
    began = time.process_time()
    variant, seed, setting = VARIANTS[name], 0, SETTING
    assert setting.recipe is not None and setting.limit is not None
    train, validation = training_images(seed, subset)
    net = work.network(setting, seed)
    net.load_state_dict(load_file(work.dense_file(setting, seed, scratch)))
    weights = dict(net.named_parameters())
    unit = {n: clusters.spread(p) for n, p in weights.items()}
    if variant.shared:
        unit["all"] = clusters.spread(torch.cat([p.reshape(-1) for p in weights.values()]))
    images = Images(*train, setting, 7919 + seed)
    job = Trial(
        net, work.loss, images, setting.recipe, weights=weights, unit=unit,
        steps_per_epoch=len(images), prior_options={"include": "*"},
        fit_options={
            "num_data": None, "batch_size": setting.batch_size, "validation": validation,
            "measure": work.errors, "measure_train": False, "progress": False,
        },
        run=None, seed=seed, variant=variant,
    )  # fmt: skip
    index = clustered_(job)
    before = _shape(job, index, validation)
    index, met = spend_(job, index, setting.limit)
    return {
        "variant": name,
        "seed": seed,
        "limit_percent": setting.limit,
        "met": met,
        **_shape(job, index, validation),
        "after_the_phases": before,
        "by_phase": {k: h.scalars["validation_measure"][-1] for k, h in job.histories.items()},
        "recipe": asdict(setting.recipe),
        "processor_seconds": round(time.process_time() - began),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _shape(
    job: Trial, index: dict[str, Tensor], validation: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Bytes, errors in percent and non-zero weights of the network as it is."""
    state, _ = work.smallest(SETTING, job.model, index, validation[0][:1000])
    return {
        "size_bytes": len(encode(state)),
        "validation_error_percent": work.errors_of(SETTING, state, validation),
        "nonzero": sum(int((t != 0).sum()) for t in state.values()),
    }


def main() -> None:
    """Make the attempts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant", nargs="+", choices=VARIANTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scratch = HERE.parents[1] / "runs" / HERE.name
    if not work.dense_file(SETTING, 0, scratch).is_file():
        work.pretrain(SETTING, 0, scratch, None)
    for name in arguments.variant:
        line = attempt(name, scratch)
        with KEPT.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
