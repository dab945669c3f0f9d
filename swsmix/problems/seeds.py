"""Train a built-in problem from several seeds side by side, and weight decay beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from swsmix.prior import MixturePrior, Mode
from swsmix.problems.experiments import (
    Outcome,
    gaussian_prior,
    make_prior,
    on_device,
    snapped_measures,
)
from swsmix.problems.recipes import Problem
from swsmix.schedule import Schedule
from swsmix.training.ensemble import Ensemble, fit_ensemble
from swsmix.training.history import History

_PARTS = ("train", "validation", "test")


def train_seeds(
    problem: Problem,
    seeds: Sequence[int],
    *,
    mode: Mode = "em",
    device: str = "cpu",
    run: str | None = None,
    resume: bool = False,
    progress: bool | str = True,
    baseline: bool = True,
    baseline_progress: bool = True,
    callback: Callable[[int, History], None] | None = None,
) -> Outcome:
    """Train a problem by its recipe from several seeds, and the same networks under weight decay.

    All seeds are one tensor program, and so are all seeds and strengths of weight decay, whose
    strength is the best on validation data on average over the seeds. The network, prior and
    history of the outcome are those of the middle seed by validation; the rows are means over
    seeds, and those of the ensembles, whose predictions are averaged.

    Args:
        problem: from `load_problem`.
        seeds: of the initial weights.
        mode: `"em"` or `"gradient"`.
        device: the device to train on.
        run: a folder for checkpoints, see `fit_ensemble`.
        resume: continue the run in that folder.
        progress: show a progress bar; a string is its label.
        baseline: train the weight-decay networks too.
        baseline_progress: show a progress bar for them.
        callback: as in `fit_ensemble`.
    """
    problem = on_device(problem, device)
    nets = _networks(problem, seeds, device)
    priors = [make_prior(problem, net, mode) for net in nets]
    _, start = _snapped(problem, nets, priors)
    ensemble = _fit(
        problem, nets, priors, problem.schedule,
        run=run, resume=resume, progress=progress, callback=callback,
    )  # fmt: skip
    snapped, end = _snapped(problem, nets, priors)
    rows = {
        "soft weight-sharing": _measures(problem, ensemble),
        "the same, snapped to its centres": snapped,
    }
    together = {"soft weight-sharing, ensemble": _together(problem, ensemble)}
    if baseline:
        std, decayed = _weight_decay(problem, seeds, device, progress=baseline_progress)
        rows[f"weight decay, std {std:g}, by validation"] = _measures(problem, decayed)
        together["weight decay, ensemble"] = _together(problem, decayed)
    facts = {
        f"{what}, {when}": values.mean().item()
        for when, numbers in (("start", start), ("end", end))
        for what, values in numbers.items()
    }
    groups = ensemble.histories[0].groups
    counts = [sum(float(h.num_clusters(g)[-1]) for g in groups) for h in ensemble.histories]
    facts["clusters (components that claim a weight)"] = sum(counts) / len(counts)
    facts["seed of the run folder, the middle one by validation"] = seeds[ensemble.middle]
    return Outcome(
        nets[ensemble.middle],
        priors[ensemble.middle],
        ensemble.histories[ensemble.middle],
        _means(rows) | together,
        facts,
        _spreads(rows),
    )


def _networks(problem: Problem, seeds: Sequence[int], device: str) -> list[nn.Module]:
    return [problem.make_net(torch.Generator().manual_seed(seed)).to(device) for seed in seeds]


def _fit(
    problem: Problem,
    nets: Sequence[nn.Module],
    priors: Sequence[MixturePrior],
    schedule: Schedule,
    **more: Any,
) -> Ensemble:
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


def _weight_decay(
    problem: Problem, seeds: Sequence[int], device: str, *, progress: bool
) -> tuple[float, Ensemble]:
    """The std that is best on validation, averaged over seeds, and the networks under it."""
    stds = [std for std in problem.decay_stds for _ in seeds]
    nets = _networks(problem, [*seeds] * len(problem.decay_stds), device)
    priors = [gaussian_prior(net, std) for net, std in zip(nets, stds, strict=True)]
    all_ = _fit(
        problem, nets, priors, Schedule(em_every=problem.schedule.em_every),
        record=False, progress="weight decay, all stds" if progress else False,
    )  # fmt: skip
    measured = all_.measures(problem.measure, problem.validation)
    best = int(measured.view(len(problem.decay_stds), -1).mean(1).argmin())
    chosen = slice(best * len(seeds), (best + 1) * len(seeds))
    few = Ensemble(
        all_.models[chosen], all_.priors[chosen], all_.losses[chosen], [], all_.objective[chosen], 0
    )
    return problem.decay_stds[best], few


def _parts(problem: Problem) -> dict[str, Any]:
    return {"train": problem.train, "validation": problem.validation, "test": problem.test}


def _measures(problem: Problem, ensemble: Ensemble) -> dict[str, torch.Tensor]:
    """The measure of every network on each part of the data."""
    return {n: ensemble.measures(problem.measure, part) for n, part in _parts(problem).items()}


def _together(problem: Problem, ensemble: Ensemble) -> dict[str, float]:
    """The measure of the networks' averaged predictions."""
    return {
        name: float(problem.measure(problem.average(ensemble.predict(x)), y))
        for name, (x, y) in _parts(problem).items()
    }


def _snapped(
    problem: Problem, nets: Sequence[nn.Module], priors: Sequence[MixturePrior]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """`snapped_measures` of every network: one number per network by name."""
    pairs = [snapped_measures(problem, *each) for each in zip(nets, priors, strict=True)]
    rows, facts = (
        {n: torch.tensor([each[n] for each in found], dtype=torch.float64, device="cpu")
         for n in found[0]}
        for found in zip(*pairs, strict=True)
    )  # fmt: skip
    return rows, facts


def _means(rows: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, float]]:
    return {n: {part: row[part].mean().item() for part in _PARTS} for n, row in rows.items()}


def _spreads(rows: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, float]]:
    return {
        n: {part: row[part].std(correction=min(1, len(row[part]) - 1)).item() for part in _PARTS}
        for n, row in rows.items()
    }
