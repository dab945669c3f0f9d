#!/usr/bin/env python3
"""What was looked at before the procedure was frozen: every attempt, logged in exploration/.

    python papers/nowlan1992/explore.py shift       data sets 1000-1005, ten restarts
    python papers/nowlan1992/explore.py sunspots    held-out training years, seeds 100-105
    python papers/nowlan1992/explore.py evidence    does evidence rank seeds?
    python papers/nowlan1992/explore.py posterior   do its chains agree?
    python papers/nowlan1992/explore.py rules       how well rules of selection choose

Nothing here reads a year after 1920 or a data set of the run. What is in the log is not run again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Import `papers` and `swsmix` from this checkout, and nothing from this folder.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from papers.nowlan1992 import attempts, bayes, shift, sunspots
from papers.nowlan1992.forecasts import FLOAT, Scale, digits, numbers, predict
from papers.nowlan1992.methods import SharingRecipe, sharing
from papers.nowlan1992.nets import Cases, train
from papers.nowlan1992.penalties import Decay, Elimination
from papers.nowlan1992.sampling import sample
from papers.runner import run_units
from papers.units import Unit
from swsmix.bayes import loo
from swsmix.problems import data

HERE = Path(__file__).resolve().parent

SEEDS = range(100, 106)
LOG = HERE / "exploration"


class Student(Cases):
    """Noise of Student's t with four degrees of freedom, sigma_y its scale."""

    def misfit(
        self, f: Tensor, log_variance: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-log p(targets | f) up to a constant, and its gradients."""
        degrees, off = 4.0, f - self.targets[:, None]
        scaled = degrees * log_variance.exp() + off.square()
        far = 0.5 * (degrees + 1.0) * (scaled.log() - math.log(degrees) - log_variance)
        value = (share * (far + 0.5 * log_variance)).sum(0)
        by_noise = (share * (0.5 - 0.5 * (degrees + 1.0) * off.square() / scaled)).sum(0)
        return value, share * (degrees + 1.0) * off / scaled, by_noise[:, None]


def attempt(name: str, setting: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """`sunspots.validate` with more to try.

    Args:
        name: of the method.
        setting: as there, and `noise` ("student", or "level": a variance that grows with last
            year's number), `bagged` (each net learns from cases of random weight), `posterior`
            (keyword arguments of `sampling.sample`, started from the trained nets).
        seeds: of the initial weights.

    Returns:
        As `sunspots.scored`.
    """
    setting = dict(setting)
    noise, bagged, posterior = (setting.pop(k, None) for k in ("noise", "bagged", "posterior"))
    scale, num = Scale(**setting.get("scale", {})), len(seeds)
    cases, held = sunspots.held_out(scale, num)
    if bagged:
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(num, len(cases.targets), generator=generator, dtype=FLOAT)
        cases = replace(cases, share=cases.share * -uniform.log().repeat(len(held), 1))
    if noise == "level":
        x, _ = numbers(*data.SUNSPOT_SPLITS["train"])
        precision = 1.0 / (30.0 + x[:, -1])
        cases = replace(cases, share=cases.share * precision / precision.mean())
    if noise == "student":
        cases = Student(**vars(cases))
    theta, prior, _ = sunspots.fit(name, setting, cases, [*seeds] * len(held))
    shape = (len(held), num, -1)
    if posterior is None:
        return sunspots.scored(predict(cases, theta, scale).view(shape))
    assert prior is not None
    drawn = sample(cases, theta, prior, **posterior)[::5]
    mean = torch.stack([predict(cases, each, scale) for each in drawn]).mean(0)
    return sunspots.scored(mean.view(shape))


def evidence(setting: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Do the objective and Laplace's evidence know which of a fold's nets predict best?

    Evidence: log p(data) ~ -objective + p/2 log 2 pi - 1/2 log det H at the net, H by central
    differences of the gradient over all of theta, its eigenvalues taken no smaller than 1.

    Returns:
        By fold, the rank correlation with the held-out error over seeds (1 = evidence is right,
        -1 = it is wrong), and the arv over all folds of the mean net, of the net of lowest
        objective, of highest evidence, and of the best in hindsight.
    """
    from scipy.stats import spearmanr

    scale = Scale(**setting.get("scale", {}))
    cases, held = sunspots.held_out(scale, len(seeds))
    method = "soft-sharing" if "components" in setting else "weight decay"
    theta, prior, value = sunspots.fit(method, setting, cases, [*seeds] * len(held))
    n, rows = cases.num_weights, torch.arange(len(theta))
    penalty = prior or Decay(torch.full((len(theta),), setting["std"], dtype=FLOAT))

    def gradient(x: Tensor) -> Tensor:
        _, slope = cases.data_term(x, rows)
        _, by_weights, _ = penalty(x[:, :n], x[:, :0], rows)
        slope[:, :n] += by_weights
        return slope

    unit = 1e-5 * torch.eye(theta.shape[1], dtype=FLOAT)
    hessian = torch.stack([(gradient(theta + e) - gradient(theta - e)) / 2e-5 for e in unit], 1)
    curved = torch.linalg.eigvalsh(0.5 * (hessian + hessian.mT)).clamp_min(1.0)
    log_evidence = -value - 0.5 * curved.log().sum(1)

    shape = (len(held), len(seeds))
    y = numbers(*data.SUNSPOT_SPLITS["train"])[1]
    off = (predict(cases, theta, scale).view(*shape, -1) - y).square() * held[:, None]
    errors = off.sum(2)
    count = held.sum() * data.VARIANCE_1535

    def of(index: Tensor) -> float:
        return digits(errors.gather(1, index[:, None]).sum() / count)

    ranks = {"objective": value.view(shape), "evidence": -log_evidence.view(shape)}
    return {
        name: [round(float(spearmanr(a, b).statistic), 2) for a, b in zip(by, errors, strict=True)]
        for name, by in ranks.items()
    } | {
        "mean": digits(errors.mean(1).sum() / count),
        "by objective": of(ranks["objective"].argmin(1)),
        "by evidence": of(ranks["evidence"].argmin(1)),
        "in hindsight": of(errors.argmin(1)),
    }


def mixing(std_count: float, target_accept: float, draws: int) -> dict[str, Any]:
    """Do four chains of the posterior of 8 components, given all training years, agree?

    Returns:
        The diagnostics of `Posterior.summary`, divergences by chain, PSIS-LOO in nats, and the
        posterior median of the narrowest component's std.
    """
    model = bayes.Model(std_count=std_count, target_accept=target_accept)
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    drawn, net = bayes.posterior(model, x, y, bayes.Length(draws=draws), seed=1)
    scale = Scale(divisor=model.divisor)
    x, y = scale.there(x), scale.there(y)
    summary = drawn.summary(("predictions", drawn.outputs(net, x)))
    density = loo(bayes.in_numbers(drawn.log_likelihood(net, x, y), model))
    return {name: float(f"{value:.4g}") for name, value in summary.items()} | {
        "by chain": drawn.steps["diverged"].sum(1).tolist(),
        "PSIS-LOO": round(density.elpd, 1),
        "narrowest std": digits(drawn.mixture().std.amin(-1).median()),
    }


def shift_attempt(
    name: str, method: str, options: Mapping[str, Any], seeds: Sequence[int], restarts: int = 10
) -> dict[str, Any]:
    """One method's setting on data sets that the run does not use.

    Args:
        name: of the shift problem.
        method: "sharing", "decay" (std), "elimination" (strength) or "plain" (iterations).
        options: of `SharingRecipe`, or the method's only one.
        seeds: of the data sets.
        restarts: initial nets per data set.

    Returns:
        Means over the data sets of what `shift.measured` gives.
    """
    problem, runs = shift.PROBLEMS[name], []
    for seed in seeds:
        drawn = shift.sample(seed, problem)
        cases = shift.cases_of(drawn, problem, restarts)
        start = cases.start([1000 * seed + r for r in range(restarts)], 0.3)
        one = torch.ones(restarts, dtype=FLOAT)
        if method == "sharing":
            theta, _, value = sharing(cases, start, SharingRecipe(**options))
        elif method == "decay":
            theta, value = train(cases, start, Decay(options["std"] * one), 350)
        elif method == "elimination":
            penalty = Elimination(options["strength"] * one, one)
            theta, value = train(cases, start, penalty, 350)
        else:
            theta, value = train(cases, start, None, options["iterations"])
        runs.append(shift.measured(cases, theta, value, drawn))
    return {k: round(sum(f[k] for f in runs) / len(runs), 2) for k in runs[0]}


def units(what: str) -> list[Unit]:
    """The units of work of a part of the exploration.

    Returns:
        One per attempt.
    """
    if what == "evidence":
        seeds = range(100, 120)
        return [
            Unit("evidence", key, evidence, (setting, seeds), {}, {"setting": setting})
            for key, setting in attempts.EVIDENCE.items()
        ]
    if what == "shift":
        seeds = range(1000, 1006)
        return [
            Unit("shift", key, shift_attempt, (name, method, options, seeds), {}, options)
            for name, tried in attempts.SHIFT.items()
            for method, options in tried
            for text in [", ".join(f"{k} {v}" for k, v in options.items())]
            for key in [f"{name}: {method}, {text}"]
        ]
    if what == "posterior":
        return [
            Unit("posterior", key, mixing, tried, {}, {"tried": [*tried]})
            for key, tried in attempts.POSTERIOR.items()
        ]
    return [
        Unit("sunspots", key, attempt, (name, setting, SEEDS), {}, {"setting": setting})
        for key, (name, setting) in (attempts.SAMPLED | attempts.sunspots()).items()
    ]


def main() -> None:
    """Make the attempts that are not in the log."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["shift", "sunspots", "evidence", "posterior", "rules"])
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    if asked.what == "rules":
        from papers.nowlan1992.rules import report

        print(report(LOG))
    else:
        run_units(units(asked.what), LOG, asked.jobs)


if __name__ == "__main__":
    main()
