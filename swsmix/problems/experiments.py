"""Train a built-in problem, measure it, and compare it with weight decay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from swsmix.compression.snap import bits_per_weight, quantize, within_share
from swsmix.prior import MixturePrior, Mode
from swsmix.problems.decay import weight_decay
from swsmix.problems.dense import batches, start_network
from swsmix.problems.recipes import Problem
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Batch, evaluate
from swsmix.training.fitting import fit
from swsmix.training.history import History


@dataclass(frozen=True)
class Outcome:
    """The results of training a problem.

    Attributes:
        net: the trained network, not snapped.
        prior: its prior.
        history: the history.
        rows: name -> measure on `train`, `validation` and `test`, for the network, the snapped
            network, and weight decay; of several seeds the means.
        facts: further numbers, by a name with the unit.
        spread: of several seeds, the standard deviations, by the names of the rows.
    """

    net: nn.Module
    prior: MixturePrior
    history: History
    rows: dict[str, dict[str, float]]
    facts: dict[str, float]
    spread: dict[str, dict[str, float]] = field(default_factory=dict)


def train(
    problem: Problem,
    *,
    seed: int = 0,
    mode: Mode = "em",
    device: str = "cpu",
    run: str | None = None,
    resume: bool = False,
    progress: bool | str = True,
    baseline: bool = True,
    baseline_progress: bool = True,
    callback: Callable[[int, History], None] | None = None,
) -> Outcome:
    """Train a problem by its recipe, and for comparison the same network under weight decay.

    Args:
        problem: from `load_problem`; change it by `dataclasses.replace`.
        seed: seed of the initial weights and of the order of the batches.
        mode: `"em"` or `"gradient"`.
        device: the device to train on.
        run: a folder for checkpoints.
        resume: continue the run in that folder.
        progress: show a progress bar; a string is its label.
        baseline: train the weight-decay networks too.
        baseline_progress: show a progress bar for each of them.
        callback: as in `fit`.

    Raises:
        ValueError: if the problem has no baseline, and one is asked for.
    """
    problem = on_device(problem, device)
    if baseline and not problem.decay_stds:
        raise ValueError(
            "baseline must be False for a problem without networks under weight decay, got True: "
            "omit it (`swsmix train --no-baseline`)"
        )
    net = start_network(problem, seed, run=run, progress=progress is not False)
    prior = make_prior(problem, net, mode)
    _, start = snapped_measures(problem, net, prior)
    history = _fit(
        problem, net, prior, problem.schedule, seed,
        run=run, resume=resume, progress=progress, callback=callback,
    )  # fmt: skip
    snapped, end = snapped_measures(problem, net, prior)
    rows = {
        "soft weight-sharing": measures(problem, net),
        "the same, snapped to its centres": snapped,
    }
    facts = {
        f"{name}, {when}": value
        for when, numbers in (("start", start), ("end", end))
        for name, value in numbers.items()
    }
    facts["clusters (components that claim a weight)"] = sum(
        float(history.num_clusters(g)[-1]) for g in history.groups
    )
    if baseline:
        std, decayed = weight_decay(problem, [seed], progress=baseline_progress)
        rows[f"weight decay, std {std:g}, by validation"] = measures(problem, decayed.models[0])
    return Outcome(net, prior, history, rows, facts)


def on_device(problem: Problem, device: str) -> Problem:
    """The problem with its data on a device."""

    def moved(part: Batch) -> Batch:
        return part[0].to(device), part[1].to(device)

    return replace(
        problem,
        train=moved(problem.train),
        validation=moved(problem.validation),
        test=moved(problem.test),
    )


def make_prior(problem: Problem, net: nn.Module, mode: Mode) -> MixturePrior:
    """The prior of a network at the start, by the problem's recipe."""
    k = problem.num_components
    initial = None if problem.initial is None else problem.initial(k)
    return MixturePrior(net, k, mode=mode, method="spread", initial=initial, hyper=problem.hyper)


def measures(problem: Problem, net: nn.Module) -> dict[str, float]:
    """The measure of a network on `"train"`, `"validation"` and `"test"`."""
    parts = {"train": problem.train, "validation": problem.validation, "test": problem.test}
    return {name: evaluate(net, problem.measure, part) for name, part in parts.items()}


def _fit(
    problem: Problem,
    net: nn.Module,
    prior: MixturePrior,
    schedule: Schedule,
    seed: int,
    **more: Any,
) -> History:
    loss = problem.make_loss().to(problem.train[0].device)
    optimizer: Any = "l-bfgs"
    if problem.lr is not None:
        groups = [{"params": [*net.parameters(), *loss.parameters()]}]
        if prior.mode == "gradient":
            groups.append({"params": [*prior.parameters()]})
        optimizer = torch.optim.Adam(groups, lr=problem.lr)
    return fit(
        net,
        loss,
        batches(problem, seed + 7919),  # other batches than before the prior came
        optimizer=optimizer,
        epochs=problem.epochs,
        prior=prior,
        schedule=schedule,
        update=problem.update,
        batch_size=problem.batch_size,
        iterations=problem.iterations,
        validation=problem.validation,
        measure=problem.measure,
        measure_train=problem.augment is None,  # augmented images are no measure, and cost a pass
        seed=seed,
        **more,
    )


def snapped_measures(
    problem: Problem, net: nn.Module, prior: MixturePrior
) -> tuple[dict[str, float], dict[str, float]]:
    """The measures with each weight snapped to its centre, and numbers that show the collapse."""
    shares = [(within_share(m, prior.flat_weights(g)), g) for g, m in prior.mixtures.items()]
    before = copy.deepcopy(net.state_dict())
    # The published experiments count the mixture's components, merged or not.
    snapped = quantize(prior, distortion=0.0)
    index = torch.cat([each.index.reshape(-1) for each in snapped.values()])
    with torch.no_grad():
        for name, each in snapped.items():
            net.get_parameter(name).copy_(each.values)
    rows = measures(problem, net)
    values = sum(len(prior.flat_weights(g).unique()) for g in prior.mixtures)
    net.load_state_dict(before)
    sizes = {g: len(prior.flat_weights(g)) for g in prior.mixtures}
    within = sum(share * sizes[g] for share, g in shares) / sum(sizes.values())
    return rows, {
        "within-cluster / total variance": within,
        "bits per weight after snapping": bits_per_weight(index),
        "distinct values after snapping": values,
        f"validation {problem.measure_name} after snapping": rows["validation"],
    }
