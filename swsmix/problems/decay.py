"""The networks of a problem side by side, and the same ones under tuned weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from swsmix.prior import MixturePrior
from swsmix.problems.recipes import Problem
from swsmix.schedule import Schedule
from swsmix.training.ensemble import Ensemble, fit_ensemble


def networks(problem: Problem, seeds: Sequence[int]) -> list[nn.Module]:
    """The problem's network from each seed, on the device of its data."""
    device = problem.train[0].device
    return [problem.make_net(torch.Generator().manual_seed(seed)).to(device) for seed in seeds]


def fit_networks(
    problem: Problem,
    nets: Sequence[nn.Module],
    priors: Sequence[MixturePrior],
    schedule: Schedule,
    **more: Any,
) -> Ensemble:
    """Train networks side by side by the problem's recipe."""
    return fit_ensemble(
        nets,
        problem.make_loss().to(problem.train[0].device),
        problem.train,
        optimizer="l-bfgs" if problem.lr is None else "adam",
        epochs=problem.epochs,
        iterations=problem.iterations,
        lr=problem.lr or 1e-3,
        batch_size=problem.batch_size,
        priors=priors,
        schedule=schedule,
        validation=problem.validation,
        measure=problem.measure,
        **more,
    )


def gaussian_prior(net: nn.Module, std: float) -> MixturePrior:
    """Weight decay as a mixture of one fixed component N(0, std^2): R(w) = w.w / (2 std^2) + c."""
    prior = MixturePrior(net, 1, zero=True, method="quantiles")
    (mixture,) = prior.mixtures.values()
    mixture.std.fill_(std)
    mixture.pinned_std.fill_(True)
    return prior


def weight_decay(
    problem: Problem, seeds: Sequence[int], *, progress: bool
) -> tuple[float, Ensemble]:
    """The std that is best on validation, averaged over seeds, and the networks under it.

    All strengths and seeds are one ensemble.
    """
    stds = [std for std in problem.decay_stds for _ in seeds]
    nets = networks(problem, [*seeds] * len(problem.decay_stds))
    priors = [gaussian_prior(net, std) for net, std in zip(nets, stds, strict=True)]
    label = f"weight decay, {len(problem.decay_stds)} strengths"
    every = fit_networks(
        problem, nets, priors, Schedule(em_every=problem.schedule.em_every),
        record=False, progress=label if progress else False,
    )  # fmt: skip
    measured = every.measures(problem.measure, problem.validation)
    best = int(measured.view(len(problem.decay_stds), -1).mean(1).argmin())
    chosen = slice(best * len(seeds), (best + 1) * len(seeds))
    parts = (every.models[chosen], every.priors[chosen], every.losses[chosen])
    return problem.decay_stds[best], Ensemble(*parts, [], every.objective[chosen], 0)
