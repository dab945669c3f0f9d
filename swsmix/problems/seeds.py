"""Train a built-in problem from several seeds side by side, and weight decay beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from swsmix.prior import MixturePrior, Mode
from swsmix.problems.decay import fit_networks, networks, weight_decay
from swsmix.problems.experiments import Outcome, make_prior, on_device, snapped_measures
from swsmix.problems.recipes import Problem
from swsmix.training.ensemble import Ensemble
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

    Raises:
        ValueError: if the network has batch norms, which cannot be trained side by side.
    """
    if problem.dense is not None:
        raise ValueError(
            f"{problem.dense.name} has batch norms and must be trained alone, got {len(seeds)} "
            "seeds: train one after the other (`swsmix train --seeds 1`)"
        )
    problem = on_device(problem, device)
    nets = networks(problem, seeds)
    priors = [make_prior(problem, net, mode) for net in nets]
    _, start = _snapped(problem, nets, priors)
    ensemble = fit_networks(
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
        std, decayed = weight_decay(problem, seeds, progress=baseline_progress)
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
