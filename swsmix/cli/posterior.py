"""`swsmix train --posterior`: the posterior around a trained network, its numbers and figures."""

from __future__ import annotations

import warnings
from dataclasses import replace
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.bayes import Posterior
    from swsmix.problems.experiments import Outcome
    from swsmix.problems.recipes import Problem

_FILE = "posterior.safetensors"
_PROBLEMS = ("sunspots", "shift")


class Method(StrEnum):
    """How the posterior is computed."""

    nuts = "nuts"
    svi = "svi"


def check_settings(method: Method | None, data: str, tau: float | None) -> None:
    """Check, before anything is loaded or trained, that there is a posterior; tau may be None.

    Raises:
        ValueError: for a large problem, or tau = 0.
    """
    if method is None:
        return
    if data not in _PROBLEMS:
        raise ValueError(
            f"--posterior is for the small problems, {' and '.join(_PROBLEMS)}; for {data} use "
            "swsmix.bayes.fit_guide in Python"
        )
    if tau is not None and not tau > 0.0:
        raise ValueError("--posterior needs a prior: --tau above 0")


def sample_and_save(
    problem: Problem, outcome: Outcome, out: Path, *, data: str, method: Method, chains: int,
    draws: int, seed: int, quiet: bool,
) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """Sample the posterior around a trained network, save it, and draw its predictions.

    Returns facts for the table of results, and the file names of the figures. Warns, once, if the
    posterior is not to be trusted.
    """
    from swsmix.bayes import PosteriorWarning

    regression = data == "sunspots"
    posterior = _sample(
        problem, outcome, likelihood="gaussian" if regression else "binary", method=method,
        chains=chains, draws=draws, seed=seed, quiet=quiet,
    )  # fmt: skip
    posterior.save(out / _FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # the sampler has given it
        return _used(posterior, problem, outcome, out, regression=regression)


def _used(
    posterior: Posterior, problem: Problem, outcome: Outcome, out: Path, *, regression: bool
) -> tuple[dict[str, float], list[str]]:
    """What a posterior predicts, as facts and figures, see `sample_and_save`."""
    from swsmix import plots

    x, y = problem.test
    predicted = posterior.predict(outcome.net, x)
    mean = predicted.mean if regression else predicted.mean.logit()
    facts = {f"posterior mean, test {problem.measure_name}": float(problem.measure(mean, y))}
    figures = []
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
        figures.append("posterior-band.png")
        plots.save(band, out / figures[-1])
    for name, figure in draw_figures(posterior).items():
        figures.append(f"{name}.png")
        plots.save(figure, out / figures[-1])
    predictions = ("predictions", posterior.outputs(outcome.net, problem.train[0]))
    return facts | summarised(posterior, predictions), figures


def _sample(
    problem: Problem, outcome: Outcome, *, likelihood: str, method: Method, chains: int, draws: int,
    seed: int, quiet: bool,
) -> Posterior:  # fmt: skip
    """The posterior for tau = 1, with a proper prior on the means, N(0, sigma^2 / 0.05)."""
    from swsmix import bayes
    from swsmix.prior import MixturePrior

    hyper = replace(problem.hyper, mean=0.0, mean_count=0.05)
    prior = MixturePrior(outcome.net, initial=outcome.prior.mixtures, hyper=hyper)
    prior.em_step_()
    joint = bayes.Joint(outcome.net, prior, *problem.train, likelihood=likelihood)
    if method is Method.nuts:
        return bayes.sample(
            joint, chains=chains, draws=draws, warmup=draws, max_depth=8, seed=seed,
            progress=not quiet,
        )  # fmt: skip
    return bayes.fit_guide(
        joint, epochs=3000, batch_size=len(problem.train[0]), lr=5e-3, mixture_every=1,
        draws=draws, seed=seed, progress=not quiet,
    )  # fmt: skip


def summarised(posterior: Posterior, *quantities: tuple[str, Tensor]) -> dict[str, float]:
    """A posterior in a few numbers; `quantities` as in `Posterior.summary`."""
    from swsmix import bayes

    facts: dict[str, float] = {"posterior draws": float(posterior.num_draws)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bayes.PosteriorWarning)
        summary = posterior.summary(*quantities)
    facts |= {name: value for name, value in summary.items() if isfinite(value)}
    for group in posterior.layout.groups:
        counts = bayes.clusters(posterior.thinned(400), group)
        of = "" if len(posterior.layout.groups) == 1 else f" of {group}"
        facts[f"clusters with a weight{of}, posterior mean"] = float(
            counts.occupied.double().mean()
        )
        facts[f"effective clusters{of}, posterior mean"] = float(counts.effective.mean())
    return facts


def load_from(run: Path) -> Posterior | None:
    """The posterior in a run folder, without the warning that its verdict gives; None without."""
    if not (run / _FILE).is_file():
        return None  # and spare the import, half a second
    from swsmix.bayes import Posterior, PosteriorWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        return Posterior.load(run / _FILE)


def draw_figures(posterior: Posterior) -> dict[str, Any]:
    """The figures of a posterior that need no data: name -> figure."""
    from swsmix import plots

    figures: dict[str, Any] = {}
    thin = posterior.thinned(400)
    for group in posterior.layout.groups:
        mixture = [t.flatten(0, 1) for t in thin.mixture(group)]
        suffix = "" if len(posterior.layout.groups) == 1 else f"-{group}"
        weights = thin.weights(group)
        figures[f"posterior-mixture{suffix}"] = plots.mixture_band(weights, *mixture)
    return figures


def _years(number: int) -> Any:
    import torch

    from swsmix.problems.data import SUNSPOT_SPLITS

    first = SUNSPOT_SPLITS["test"][0]
    return torch.arange(first, first + number, dtype=torch.float64, device="cpu")
