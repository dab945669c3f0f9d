"""The shift experiment: which way was a strip of 10 bits shifted? 20-10-1, 100 training cases.

One unit of work is one fresh data set in one problem with every method on it: the same training
cases, the same initial weights. Every choice is made on the training cases (5-fold) or, where it
says so, on unlabelled cases; the test labels are only counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from papers.nowlan1992.methods import SharingRecipe, sharing, snapshots
from papers.nowlan1992.nets import Cases, Likelihood, train
from papers.nowlan1992.penalties import Decay, Elimination
from swsmix.problems import data

HIDDEN, FOLDS = 10, 5
STOPS = (2, 3, 5, 7, 10, 15, 20, 30, 45, 70, 100, 150, 230, 350)


@dataclass(frozen=True)
class Problem:
    """A data set's coding and size, and the likelihood.

    Attributes:
        num_cases: training cases.
        coding: of the bits, see `swsmix.problems.data.shift`.
        likelihood: of the labels (0, 1), or of the targets (-1, 1) if Gaussian.
        squashed: the output unit is a tanh.
        noise: sigma_y, fixed: a net that fits its 100 cases would make a learned one vanish.
        decay: the stds that weight decay chooses among.
        elimination: the strengths that weight elimination chooses among.
    """

    num_cases: int = 100
    coding: str = "01"
    likelihood: Likelihood = "binary"
    squashed: bool = False
    noise: float | None = None
    decay: tuple[float, ...] = (2.0, 8.0, 30.0, 60.0, 120.0, 250.0, 500.0, 1000.0, 2000.0)
    elimination: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


PROBLEMS = {
    "n100": Problem(),
    "squared": Problem(
        coding="pm1",
        likelihood="gaussian",
        noise=0.3,
        decay=(0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.5, 4.0),
        elimination=(0.1, 0.3, 1.0, 3.0, 6.0, 10.0, 30.0),
    ),
    "squashed": Problem(
        coding="pm1",
        likelihood="gaussian",
        squashed=True,
        noise=0.3,
        decay=(0.7, 2.5, 8.0, 30.0, 60.0, 120.0, 250.0, 500.0, 1000.0),
        elimination=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    ),
    "n50": Problem(50),
    "n200": Problem(200),
    "n400": Problem(400),
}
EFFORT: dict[str, dict[str, Any]] = {name: {"restarts": 10} for name in ("squared", "squashed")} | {
    name: {"restarts": 10, "modes": ["em"]} for name in ("n50", "n200", "n400")
}
"""Options of `unit` for the problems that make less than 20 restarts in both modes."""
SHARING = {
    "em": SharingRecipe(tau=2.0, iterations=80),
    "gradient": SharingRecipe(pace=0.03),
}
"""Soft weight-sharing by mode, frozen after the exploration on data sets 1000-1007."""
OTHERS = {
    "squared": {
        "em": SharingRecipe(tau=0.5, spread=1.0, warm_std=0.5),
        "gradient": SharingRecipe(spread=1.0, warm_std=0.5, pace=0.03),
    },
    "squashed": {"em": SharingRecipe(tau=0.5), "gradient": SharingRecipe(tau=0.5, pace=0.03)},
}
"""The same for the problems with squared error, frozen after the exploration on 1000-1005."""


@dataclass(frozen=True)
class Sample:
    """One data set: training cases, unlabelled cases to choose by, and test cases."""

    x: Tensor
    y: Tensor
    unlabelled: Tensor
    x_test: Tensor
    y_test: Tensor


def sample(seed: int, problem: Problem) -> Sample:
    """Draw a data set: disjoint training, 640 unlabelled and 1000 test cases out of the 2040.

    Returns:
        The data set, targets in the likelihood's coding.
    """
    x, y = data.shift(
        2040,
        generator=torch.Generator().manual_seed(seed),
        coding=problem.coding,
        dtype=torch.float64,
    )
    y = y if problem.likelihood == "binary" else 2.0 * y - 1.0
    n = problem.num_cases
    return Sample(x[:n], y[:n], x[400:1040], x[1040:], y[1040:])


def recipes(name: str) -> dict[str, SharingRecipe]:
    """Soft weight-sharing's recipes for a problem.

    Returns:
        mode -> recipe.
    """
    return OTHERS.get(name, SHARING)


def stamp(name: str, modes: Sequence[str] | None = None) -> dict[str, Any]:
    """What a problem's results depend on beside the options of `unit`.

    Args:
        name: of the problem.
        modes: of soft weight-sharing that are run; all by default.

    Returns:
        The grids of the baselines, and the recipes by mode.
    """
    problem = PROBLEMS[name]
    used = {m: asdict(r) for m, r in recipes(name).items() if modes is None or m in modes}
    grids = {"decay": [*problem.decay], "elimination": [*problem.elimination]}
    return grids | {"sharing": used}


def unit(
    seed: int,
    name: str,
    *,
    restarts: int = 10,
    modes: Sequence[str] = ("em", "gradient"),
    quick: bool = False,
) -> dict[str, Any]:
    """Every method on one data set.

    Args:
        seed: of the data set and the initial weights.
        name: of the problem.
        restarts: initial networks per method.
        modes: of soft weight-sharing.
        quick: fewer settings to choose among.

    Returns:
        method -> accuracies in percent, and what was chosen.
    """
    problem = PROBLEMS[name]
    drawn = sample(seed, problem)
    seeds = [1000 * seed + r for r in range(restarts)]
    cases = cases_of(drawn, problem, restarts)
    start = cases.start(seeds, 0.3)
    stop, decays, eliminations = _validated(drawn, problem, start, quick=quick)

    stds = torch.full((restarts,), decays, dtype=torch.float64)
    strengths = torch.full((restarts,), eliminations, dtype=torch.float64)
    plain = snapshots(cases, start, (stop, STOPS[-1]))
    nothing = torch.zeros(restarts, dtype=torch.float64)
    results = {
        "back-propagation": measured(
            cases, plain[1], cases.data_term(plain[1], _all(plain[1]))[0], drawn
        ),
        "early stopping": measured(cases, plain[0], nothing, drawn) | {"iterations": stop},
        "weight decay": measured(cases, *train(cases, start, Decay(stds), STOPS[-1]), drawn)
        | {"std": decays},
        "weight elimination": measured(
            cases,
            *train(cases, start, Elimination(strengths, torch.ones_like(stds)), STOPS[-1]),
            drawn,
        )
        | {"strength": eliminations},
    }
    for components in (5, 10):
        for mode in modes:
            recipe = replace(recipes(name)[mode], components=components, mode=mode)
            theta, _, value = sharing(cases, start, recipe)
            measures = measured(cases, theta, value, drawn)
            results[f"soft-sharing, {components} components, {mode}"] = measures
    return {"methods": results}


def measured(cases: Cases, theta: Tensor, objective: Tensor, drawn: Sample) -> dict[str, Any]:
    """Accuracies of a method's restarts, chosen in four ways.

    Restarts that miss the best training accuracy are dropped. `one` is then the mean over them,
    what one run gives; `objective` the one with the lowest objective; `agreement` the one that
    agrees most with their ensemble on the unlabelled cases; `ensemble` the mean output of all.

    Returns:
        Accuracies in percent, by the way of choosing; how many were kept; the training accuracy.
    """
    right = (cases.outputs(theta) > 0) == (cases.targets > 0)
    train_accuracy = right.double().mean(1)
    kept = train_accuracy == train_accuracy.max()
    theta, objective = theta[kept], objective[kept]
    outputs = cases.outputs(theta, drawn.x_test)
    truth = drawn.y_test > 0
    accuracy = 100.0 * ((outputs > 0) == truth).double().mean(1)
    votes = _vote(cases, cases.outputs(theta, drawn.unlabelled))
    agreement = ((votes > 0) == (votes.mean(0) > 0)).double().mean(1)
    lowest, nearest = int(objective.argmin()), int(agreement.argmax())
    ensemble = (_vote(cases, outputs).mean(0) > 0) == truth
    result = {
        "train": 100.0 * train_accuracy.mean().item(),
        "kept": int(kept.sum()),
        "one": accuracy.mean().item(),
        "objective": accuracy[lowest].item(),
        "agreement": accuracy[nearest].item(),
        "ensemble": 100.0 * ensemble.double().mean().item(),
        "values": distinct_values(theta[lowest, : cases.num_weights]),
    }
    return {name: round(v, 3) if isinstance(v, float) else v for name, v in result.items()}


def distinct_values(weights: Tensor, share: float = 0.01) -> int:
    """How many values the weights need: the fewest whose rounding leaves 1 % of the variance.

    Lloyd's algorithm from evenly spaced quantiles, for 1, 2, 3, ... values.

    Returns:
        The number of values.
    """
    w = weights.sort().values
    total = (w - w.mean()).square().sum()
    for k in range(1, len(w) + 1):
        centres = w.quantile((torch.arange(k, dtype=w.dtype) + 0.5) / k)
        for _ in range(50):
            nearest = (w[:, None] - centres).abs().argmin(1)
            count = torch.zeros_like(centres).index_add_(0, nearest, torch.ones_like(w))
            sums = torch.zeros_like(centres).index_add_(0, nearest, w)
            centres = torch.where(count > 0, sums / count.clamp_min(1.0), centres)
        if (w[:, None] - centres).abs().amin(1).square().sum() <= share * total:
            return k
    return len(w)


def _validated(
    drawn: Sample, problem: Problem, start: Tensor, *, quick: bool
) -> tuple[int, float, float]:
    """Iterations, decay and elimination by 5-fold accuracy on training cases; ties to the first."""
    every = 2 if quick else 1
    stds, strengths = problem.decay[::every], problem.elimination[::every]
    start = start[: 2 if quick else 5]
    folds = torch.arange(problem.num_cases) % FOLDS
    held = (folds[None, :] == torch.arange(FOLDS)[:, None]).repeat_interleave(len(start), 0)

    def score(theta: Tensor, settings: int) -> Tensor:
        cases = _cases(drawn, problem, (~held).double())
        right = (cases.outputs(theta) > 0) == (drawn.y > 0)
        mask = held.repeat(settings, 1)
        return (right & mask).reshape(settings, -1).sum(1) / held.sum()

    def scored(penalty: Decay | Elimination, settings: int) -> int:
        share = (~held).double().repeat(settings, 1)
        cases = _cases(drawn, problem, share)
        theta, _ = train(cases, start.repeat(FOLDS * settings, 1), penalty, STOPS[-1])
        return int(score(theta, settings).argmax())

    def spread(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(len(held))

    cases = _cases(drawn, problem, (~held).double())
    nets = snapshots(cases, start.repeat(FOLDS, 1), STOPS)
    by_stop = torch.stack([score(theta, 1)[0] for theta in nets])
    decay = scored(Decay(spread(stds)), len(stds))
    cost = spread(strengths)
    elimination = scored(Elimination(cost, torch.ones_like(cost)), len(strengths))
    return STOPS[int(by_stop.argmax())], stds[decay], strengths[elimination]


def cases_of(drawn: Sample, problem: Problem, num: int) -> Cases:
    """All training cases, for `num` networks.

    Returns:
        The cases.
    """
    return _cases(drawn, problem, torch.ones(num, problem.num_cases, dtype=torch.float64))


def _cases(drawn: Sample, problem: Problem, share: Tensor) -> Cases:
    like, noise = problem.likelihood, problem.noise
    return Cases(drawn.x, drawn.y, share, like, HIDDEN, noise, problem.squashed)


def _vote(cases: Cases, outputs: Tensor) -> Tensor:
    """Outputs on a scale on which averaging makes sense: probabilities - 1/2, or +-1 targets."""
    if cases.likelihood == "binary":
        return outputs.sigmoid() - 0.5
    return outputs.tanh() if cases.squashed else outputs.clamp(-1.0, 1.0)


def _all(theta: Tensor) -> Tensor:
    return torch.arange(len(theta))
