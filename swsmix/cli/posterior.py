"""`swsmix train --posterior`: sample what was trained, and say what came out."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.bayes import Posterior
    from swsmix.problems.recipes import Outcome, Problem

FILE = "posterior.safetensors"
_SMALL = ("sunspots", "shift")


class Method(StrEnum):
    """How the posterior is computed."""

    nuts = "nuts"
    svi = "svi"


def check(method: Method | None, data: str, tau: float | None) -> None:
    """Refuse what has no posterior before anything is loaded or trained; tau None is the default.

    Raises:
        ValueError: for a large problem, or a strength of 0.
    """
    if method is None:
        return
    if data not in _SMALL:
        raise ValueError(
            f"--posterior is for the small problems, {' and '.join(_SMALL)}; for {data} use "
            "swsmix.bayes.fit_guide in Python"
        )
    if tau is not None and not tau > 0.0:
        raise ValueError("--posterior wants a prior: --tau above 0")


def write(
    problem: Problem, outcome: Outcome, out: Path, *, data: str, method: Method, chains: int,
    draws: int, seed: int, quiet: bool,
) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """Sample the posterior around a trained network, save it, and draw what it predicts.

    The means get a proper prior for it, N(0, sigma^2 / 0.05), and tau is 1, which is Bayes.

    Returns:
        Facts for the table of results, and the names of the pictures.
    """
    from swsmix import bayes, plots
    from swsmix.prior import MixturePrior

    hyper = replace(problem.hyper, mean=0.0, mean_count=0.05)
    prior = MixturePrior(outcome.net, initial=outcome.prior.mixtures, hyper=hyper)
    prior.em_step_()
    regression = data == "sunspots"
    joint = bayes.Joint(
        outcome.net, prior, *problem.train, likelihood="gaussian" if regression else "binary"
    )
    if method is Method.nuts:
        posterior = bayes.sample(
            joint, chains=chains, draws=draws, warmup=draws, max_depth=8, seed=seed,
            progress=not quiet,
        )  # fmt: skip
    else:
        posterior = bayes.fit_guide(
            joint, epochs=3000, batch_size=len(problem.train[0]), lr=5e-3, mixture_every=1,
            draws=draws, seed=seed, progress=not quiet,
        )  # fmt: skip
    posterior.save(out / FILE)
    x, y = problem.test
    predicted = posterior.predict(outcome.net, x)
    mean = predicted.mean if regression else predicted.mean.logit()
    facts = {f"posterior mean, test {problem.measure_name}": float(problem.measure(mean, y))}
    pictures = []
    if regression:
        for low, high in ((0.25, 0.75), (0.05, 0.95)):
            inside = (predicted.quantiles[low] <= y) & (y <= predicted.quantiles[high])
            facts[f"test targets in the {100 * (high - low):.0f} % interval (%)"] = float(
                100.0 * inside.double().mean()
            )
        band = plots.predictive_band(
            _years(len(y)), predicted.quantiles, mean=predicted.mean, target=y
        )
        band.axes[0].set(xlabel="year", ylabel="sunspot number / 191")
        pictures.append("posterior-band.png")
        plots.save(band, out / pictures[-1])
    for name, figure in drawn(posterior).items():
        pictures.append(f"{name}.png")
        plots.save(figure, out / pictures[-1])
    predictions = ("predictions", posterior.outputs(outcome.net, problem.train[0]))
    return facts | described(posterior, predictions), pictures


def described(posterior: Posterior, *quantities: tuple[str, Tensor]) -> dict[str, float]:
    """A posterior in a few numbers.

    Args:
        posterior: the draws.
        quantities: what the chains should agree on, beside the noise and the energy.

    Returns:
        name -> number.
    """
    from swsmix import bayes

    facts: dict[str, float] = {"posterior draws": float(posterior.num_draws)}
    summary = posterior.summary(*quantities)
    facts |= {name: value for name, value in summary.items() if isfinite(value)}
    for group in posterior.layout.groups:
        found = bayes.clusters(posterior.thinned(400), group)
        of = "" if len(posterior.layout.groups) == 1 else f" of {group}"
        facts[f"clusters with a weight{of}, posterior mean"] = float(found.occupied.double().mean())
        facts[f"effective clusters{of}, posterior mean"] = float(found.effective.mean())
    return facts


def shown(run: Path) -> Posterior | None:
    """The posterior in a run folder, if there is one.

    Returns:
        None if there is not.
    """
    from swsmix.bayes import Posterior

    return Posterior.load(run / FILE) if (run / FILE).is_file() else None


def drawn(posterior: Posterior) -> dict[str, Any]:
    """Pictures of a posterior that need no data.

    Returns:
        name -> figure.
    """
    from swsmix import plots

    pictures: dict[str, Any] = {}
    thin = posterior.thinned(400)
    for group in posterior.layout.groups:
        mixture = [t.flatten(0, 1) for t in thin.mixture(group)]
        end = "" if len(posterior.layout.groups) == 1 else f"-{group}"
        weights = thin.weights(group)
        pictures[f"posterior-mixture{end}"] = plots.mixture_band(weights, *mixture)
    return pictures


def _years(number: int) -> Any:
    import torch

    from swsmix.problems.data import SUNSPOT_SPLITS

    first = SUNSPOT_SPLITS["test"][0]
    return torch.arange(first, first + number).double()
