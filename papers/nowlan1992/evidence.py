#!/usr/bin/env python3
"""What the evidence says of 1, 3, 5, 8 and 10 components, beside PSIS-LOO and held-out cases.

    papers/nowlan1992/evidence.py              writes exploration/components.jsonl, prints the table
    papers/nowlan1992/evidence.py --table      the table of what is there

Laplace's evidence needs mixtures that are held (`swsmix.bayes.modes`). For each number of
components eight networks are trained by soft weight-sharing at tau = 1; the mixtures of the first
three are held in turn, and the evidence is summed over the modes that all eight lead to. PSIS-LOO
is that of a short posterior under the first mixture. Held out are, of the sunspots, the last 35
training years (1886-1920) of networks trained on those before, as the average network's arv (over
1535); of shift, data set 0, the 1000 test cases of its tables, as the average accuracy of the eight
in percent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":  # import `papers` and `swsmix` from this checkout
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from torch import Tensor, nn

from papers.nowlan1992 import shift, sunspots
from papers.nowlan1992.forecasts import FLOAT, Scale, numbers
from papers.nowlan1992.methods import SharingRecipe, sharing
from papers.nowlan1992.nets import Cases
from papers.nowlan1992.penalties import Sharing
from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, PosteriorWarning, loo, sample
from swsmix.bayes.modes import mode_evidence
from swsmix.problems import data, nets

COMPONENTS, NETS, HELD = (1, 3, 5, 8, 10), 8, 3
OUT = Path(__file__).parent / "exploration" / "components.jsonl"


@dataclass(frozen=True)
class Problem:
    """A problem's cases, recipe and network.

    Attributes:
        cases: for `NETS` networks.
        recipe: of soft weight-sharing.
        make: an untrained network.
        noise: a fixed sigma_y; None learns it.
    """

    cases: Cases
    recipe: SharingRecipe
    make: Any
    noise: float | None = None


def the_sunspots(before: int | None = None) -> Problem:
    """All training years, or the first of them."""
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    scale = Scale(divisor=191.0)
    inputs, targets = scale.there(x)[:before], scale.there(y)[:before]
    share = torch.ones(NETS, len(targets), dtype=FLOAT)
    cases = Cases(inputs, targets, share, "gaussian", sunspots.HIDDEN)
    return Problem(cases, sunspots.SHARING, nets.sunspot_net)


def the_shifts() -> Problem:
    """Data set 0."""
    drawn = shift.sample(0, shift.PROBLEMS["n100"])
    cases = shift.cases_of(drawn, shift.PROBLEMS["n100"], NETS)
    return Problem(cases, replace(shift.SHARING["em"], tau=1.0), nets.shift_net)


def trained(problem: Problem, components: int) -> tuple[Tensor, Sharing]:
    """The networks theta (b, p) and their mixtures."""
    recipe = replace(problem.recipe, components=components)
    theta, prior, _ = sharing(problem.cases, problem.cases.start(range(NETS), 0.3), recipe)
    return theta, prior


def joints(problem: Problem, theta: Tensor, prior: Sharing, held: int) -> tuple[Joint, np.ndarray]:
    """The model under one network's mixture, and a start from every network."""
    cases, recipe = problem.cases, problem.recipe
    n, h = cases.num_weights, cases.hidden
    fitted = prior.mixture.member(held)
    pins = [True] * len(fitted.mean)
    mixture = GaussianMixture(
        fitted.mixing, fitted.mean, fitted.std,
        pinned_mixing=pins, pinned_mean=pins, pinned_std=pins,
    )  # fmt: skip
    hyper = HyperPrior(mean_count=0.05, std=recipe.hyper_std, std_count=recipe.hyper_count)
    starts, joint = [], None
    for row in theta:
        net: nn.Module = problem.make(dtype=FLOAT)
        with torch.no_grad():
            net.hidden.weight.copy_(row[: n - h].view(h, -1))
            net.output.weight.copy_(row[n - h : n].view(1, -1))
            net.hidden.bias.copy_(row[n : n + h])
            net.output.bias.copy_(row[n + h : n + h + 1])
        under = MixturePrior(net, initial=mixture, hyper=hyper, zero=False)
        under.em_step_()
        if joint is None:
            joint = Joint(
                net, under, cases.inputs, cases.targets, likelihood=cases.likelihood,
                noise_std=cases.noise,
            )  # fmt: skip
        starts.append(joint.start_at(net, under))
    assert joint is not None
    return joint, np.stack(starts)


def held_out(name: str, components: int) -> float:
    """The arv of the average network on the last training years, or the accuracy in percent."""
    if name == "shift":
        problem = the_shifts()
        theta, _ = trained(problem, components)
        drawn = shift.sample(0, shift.PROBLEMS["n100"])
        right = (problem.cases.outputs(theta, drawn.x_test) > 0) == (drawn.y_test > 0.5)
        return 100.0 * float(right.double().mean())
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    before = len(y) - 35
    problem = the_sunspots(before)
    theta, _ = trained(problem, components)
    outputs = problem.cases.outputs(theta, Scale(divisor=191.0).there(x[before:]))
    error = (191.0 * outputs.mean(0) - y[before:]).square().mean()
    return float(error / data.VARIANCE_1535)


def unit(name: str, components: int) -> dict[str, Any]:
    """All measures of one number of components."""
    began = time.process_time()
    problem = the_shifts() if name == "shift" else the_sunspots()
    theta, prior = trained(problem, components)
    found, ks, modes = [], [], []
    for held in range(HELD):
        joint, starts = joints(problem, theta, prior, held)
        evidence = mode_evidence(joint, list(starts))
        found.append(round(evidence.log_evidence, 2))
        ks.append(round(evidence.pareto_k, 2))
        modes.append(len(evidence.modes))
    joint, starts = joints(problem, theta, prior, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # short; its R-hat is in the table
        drawn = sample(
            joint, chains=2, draws=300, warmup=200, max_depth=8, jitter=0.01, seed=0,
            start=starts[:2], progress=False,
        )  # fmt: skip
    density = loo(drawn.log_likelihood(joint.net, joint.x, joint.y))
    return {
        "problem": name, "components": components, "log_evidence": found, "pareto_k": ks,
        "modes": modes, "loo": round(density.elpd, 2), "loo_se": round(density.se, 2),
        "rhat": round(drawn.agreements["predictions"].rhat, 3),
        "held_out": round(held_out(name, components), 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def table(lines: Iterable[dict[str, Any]]) -> list[str]:
    """In Markdown."""
    rows = [
        "| | components | log evidence, three mixtures held (Pareto k) | modes | PSIS-LOO (R-hat) |"
        " held out |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        evidence = ", ".join(
            f"{value:.1f} ({k:.2f})"
            for value, k in zip(line["log_evidence"], line["pareto_k"], strict=True)
        )
        rows.append(
            f"| {line['problem']} | {line['components']} | {evidence} |"
            f" {', '.join(map(str, line['modes']))} |"
            f" {line['loo']:.1f} ± {line['loo_se']:.1f} ({line['rhat']:.2f}) |"
            f" {line['held_out']:.3g} |"
        )
    return rows


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--out", type=Path, default=OUT, help="where the lines go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    if arguments.out.exists():
        lines = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    done = {(line["problem"], line["components"]) for line in lines}
    for name in ("sunspots", "shift"):
        for components in COMPONENTS:
            if arguments.table or (name, components) in done:
                continue
            lines.append(unit(name, components))
            print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
