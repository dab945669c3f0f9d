"""Single networks with their whole history, for the figures that show one net."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from papers.nowlan1992 import forecasts, shift, sunspots
from papers.nowlan1992.methods import SharingRecipe, sharing
from papers.nowlan1992.nets import Cases, Likelihood, train
from papers.nowlan1992.penalties import Decay, Sharing
from swsmix.problems import data

SHARED = {
    f"{problem}-{components}-{mode}": (problem, components, mode)
    for problem, sizes in (("shift", (5, 10)), ("sunspots", (3, 8)))
    for components in sizes
    for mode in ("em", "gradient")
}
PLAIN = {
    f"{problem}-{method}": (problem, method)
    for problem in ("shift", "sunspots")
    for method in ("plain", "decay")
}


def shared(problem: str, components: int, mode: str, *, restarts: int = 10) -> dict[str, Any]:
    """Train under soft weight-sharing and keep what happened to the net of lowest objective.

    Args:
        problem: "shift" or "sunspots".
        components: k.
        mode: "em" or "gradient".
        restarts: nets to choose from.

    Returns:
        `rounds`: by round, tau, the objective at full tau (nats), the weights and the mixture.
    """
    cases, recipe, theta, value, seen = _watched(problem, components, mode, restarts)
    fits = _fits(cases, theta)
    best = int(torch.where(fits == fits.max(), value, torch.inf).argmin())
    names = ("tau", "objective", "data_term", "weights", "mixing", "mean", "std")
    rounds = [
        {name: _plain(part[best]) for name, part in zip(names, parts, strict=True)}
        for parts in seen
    ]
    return {"iterations": recipe.iterations, "rounds": rounds, "net": _plain(theta[best])}


def objectives(problem: str, components: int, mode: str, *, restarts: int = 10) -> dict[str, Any]:
    """The objective over training of every restart, for the spread of its figure.

    Args:
        problem: "shift" or "sunspots".
        components: k.
        mode: "em" or "gradient".
        restarts: nets.

    Returns:
        `objectives` (nats, at full tau), by round and restart, and `taus`, by round.
    """
    _, recipe, _, _, seen = _watched(problem, components, mode, restarts)
    return {
        "iterations": recipe.iterations,
        "taus": [_plain(parts[0][0]) for parts in seen],
        "objectives": [_plain(parts[1]) for parts in seen],
    }


def _watched(
    problem: str, components: int, mode: str, restarts: int
) -> tuple[Cases, SharingRecipe, Tensor, Tensor, list[tuple[Tensor, ...]]]:
    """Nets under soft weight-sharing, their objectives, and what happened to them by round."""
    cases, recipe, start = _problem(problem, restarts, mode)
    recipe = replace(recipe, components=components, mode=mode)
    seen: list[tuple[Tensor, ...]] = []
    n, p = cases.num_weights, cases.num_parameters
    everyone = torch.arange(restarts)

    def watch(_: int, theta: Tensor, prior: Sharing) -> None:
        full = replace(prior, tau=torch.full_like(prior.tau, recipe.tau))
        data_term, _ = cases.data_term(theta[:, :p], everyone)
        penalty, _, _ = full(theta[:, :n], theta[:, :0], everyone)
        m = prior.mixture
        parts = (data_term + penalty, data_term, theta[:, :n], m.mixing, m.mean, m.std)
        seen.append(tuple(part.clone() for part in (prior.tau, *parts)))

    theta, _, value = sharing(cases, start, recipe, watch=watch)
    return cases, recipe, theta, value, seen


def plain(problem: str, method: str) -> dict[str, Any]:
    """One net without soft weight-sharing, from the same start.

    Returns:
        `net`, its theta.
    """
    cases, _, start = _problem(problem, 1)
    std = {"shift": 30.0, "sunspots": 0.3}[problem]
    penalty = Decay(torch.full((1,), std, dtype=start.dtype)) if method == "decay" else None
    return {"net": _plain(train(cases, start, penalty, 350)[0][0])}


def _problem(problem: str, restarts: int, mode: str = "em") -> tuple[Cases, SharingRecipe, Tensor]:
    like: Likelihood
    if problem == "shift":
        drawn = shift.sample(0, shift.PROBLEMS["n100"])
        x, y, like, hidden = drawn.x, drawn.y, "binary", shift.HIDDEN
        # One schedule and one tau for both modes, so that their objectives can be compared.
        recipe = replace(shift.SHARING["em"], pace=shift.SHARING[mode].pace)
    else:
        x, y = forecasts.numbers(*data.SUNSPOT_SPLITS["train"])
        scale = forecasts.Scale()
        x, y, like, hidden = scale.there(x), scale.there(y), "gaussian", sunspots.HIDDEN
        recipe = sunspots.SHARING
    cases = Cases(x, y, torch.ones(restarts, len(y), dtype=torch.float64), like, hidden)
    return cases, recipe, cases.start(range(restarts), 0.3)


def _fits(cases: Cases, theta: Tensor) -> Tensor:
    """Training accuracy of classifiers; regression nets are all alike."""
    if cases.likelihood == "gaussian":
        return torch.zeros(len(theta))
    return ((cases.outputs(theta) > 0) == (cases.targets > 0)).double().mean(1)


def _plain(values: Tensor) -> Any:
    rounded = [float(f"{v:.6g}") for v in values.reshape(-1).tolist()]
    return rounded if values.ndim else rounded[0]
