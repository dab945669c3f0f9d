"""The Bayesian section: posteriors of the sunspot net under mixture priors, by NUTS.

`score` judges one model on training years; `final` samples the chosen model on all training
years and predicts 1921-55 and 1956-79. Nothing after 1920 is read by `score`, nothing after 1979
by `final`.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papers.nowlan1992.forecasts import FLOAT, Scale, digits, numbers
from papers.nowlan1992.methods import sharing
from papers.nowlan1992.nets import Cases, train
from papers.nowlan1992.penalties import Decay
from papers.nowlan1992.sunspots import HIDDEN, SHARING, folds
from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, Posterior, clusters, held_out, loo, sample
from swsmix.em import fit_mixture_
from swsmix.problems import data, nets


@dataclass(frozen=True)
class Model:
    """A prior and a scale.

    Attributes:
        components: K; 1 is a single Gaussian about zero, its width learned.
        divisor: of the sunspot numbers.
        std: s of the hyper-prior.
        std_count: nu.
        mean_count: kappa.
        concentration: alpha.
        other_std: of the biases' normal prior.
        tau: 1 is Bayes.
        fixed: empirical Bayes: hold the mixture at the EM fit of one net (`sunspots.SHARING`).
        target_accept: of the sampler's steps.
    """

    components: int = 8
    divisor: float = 191.0
    std: float = 0.1
    std_count: float = 2.0
    mean_count: float = 0.05
    concentration: float = 1.0
    other_std: float = 3.0
    tau: float = 1.0
    fixed: bool = False
    target_accept: float = 0.8


@dataclass(frozen=True)
class Length:
    """How long to sample.

    Attributes:
        chains: each from a start of its own.
        draws: kept of each chain.
        warmup: before them.
        max_depth: at most 2^max_depth steps per draw.
        jumps: whether weights jump between the components after each trajectory.
    """

    chains: int = 4
    draws: int = 1000
    warmup: int = 1000
    max_depth: int = 8
    jumps: bool = True


def joints(model: Model, x: Tensor, y: Tensor, chains: int) -> tuple[list[Joint], Tensor]:
    """The model, and a start for each chain: nets trained under weight decay from `chains` seeds.

    Returns:
        One joint, and z (chains, d).
    """
    scale = Scale(divisor=model.divisor)
    inputs, targets = scale.there(x), scale.there(y)
    cases = Cases(inputs, targets, torch.ones(chains, len(y), dtype=FLOAT), "gaussian", HIDDEN)
    theta, _ = train(
        cases, cases.start(range(chains), 0.3), Decay(torch.full((chains,), 0.5, dtype=FLOAT)), 150
    )
    n, h = cases.num_weights, HIDDEN
    hyper = HyperPrior(
        concentration=model.concentration, mean=0.0, mean_count=model.mean_count,
        std=model.std, std_count=model.std_count,
    )  # fmt: skip
    initial = em_fit(cases, model) if model.fixed else None
    made = []
    for row in theta:
        net = nets.sunspot_net(dtype=FLOAT)
        with torch.no_grad():
            net.hidden.weight.copy_(row[: n - h].view(h, -1))
            net.output.weight.copy_(row[n - h : n].view(1, -1))
            net.hidden.bias.copy_(row[n : n + h])
            net.output.bias.copy_(row[n + h : n + h + 1])
        prior = MixturePrior(
            net, model.components, zero=model.components == 1, hyper=hyper, tau=model.tau,
            initial=initial, method="quantiles",
        )  # fmt: skip
        (mixture,) = prior.mixtures.values()
        if initial is None:
            fit_mixture_(mixture, row[:n], hyper, max_steps=20)
        prior.em_step_()
        made.append(Joint(net, prior, inputs, targets, other_std=model.other_std))
    starts = torch.from_numpy(np.stack([j.start() for j in made]))
    return made[0], starts


def em_fit(cases: Cases, model: Model) -> GaussianMixture:
    """The mixture that soft weight-sharing fits by EM to one net (seed 0), all of it pinned.

    Returns:
        The mixture.
    """
    one = Cases(cases.inputs, cases.targets, cases.share[:1], "gaussian", HIDDEN)
    recipe = replace(SHARING, components=model.components)
    _, prior, _ = sharing(one, one.start([0], 0.3), recipe)
    fitted, pins = prior.mixture.member(0), [True] * model.components
    return GaussianMixture(
        fitted.mixing, fitted.mean, fitted.std,
        pinned_mixing=pins, pinned_mean=pins, pinned_std=pins,
    )  # fmt: skip


def posterior(
    model: Model,
    x: Tensor,
    y: Tensor,
    length: Length,
    *,
    seed: int = 0,
) -> tuple[Posterior, nn.Module]:
    """Sample the posterior given cases in sunspot numbers.

    Returns:
        The posterior, and the network's module.
    """
    joint, starts = joints(model, x, y, length.chains)
    drawn = sample(
        joint, chains=length.chains, draws=length.draws, warmup=length.warmup,
        start=starts.numpy(), jitter=0.01, seed=seed, target_accept=model.target_accept,
        max_depth=length.max_depth, jumps=length.jumps, progress=False,
    )  # fmt: skip
    return drawn, joint.net


MODELS = {
    "8 components, full Bayes": Model(components=8),
    "8 components, nu = 10": Model(components=8, std_count=10.0, target_accept=0.95),
    "8 components, empirical Bayes": Model(components=8, fixed=True),
    "one Gaussian, full Bayes": Model(components=1),
    "3 components, full Bayes": Model(components=3),
}
LENGTHS = {
    "bayes": Length(draws=4000),
    "bayes-rolling": Length(chains=2, draws=500, warmup=500, jumps=False),
}
BANDS = {50: (0.25, 0.75), 90: (0.05, 0.95)}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def stamp(table: str, name: str) -> dict[str, Any]:
    """What a result depends on.

    Returns:
        Plain values.
    """
    return asdict(MODELS[name]) | asdict(LENGTHS[table])


def score(name: str, length: Length) -> dict[str, Any]:
    """The log predictive density of the rolling origin: 35 years ahead of 1815, 1850 and 1885.

    Nothing after 1920 is read.

    Returns:
        For each fold the nats, the cases and the arv (over 1535) of the posterior mean there.
    """
    model = MODELS[name]
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    learned, held = folds(len(y))["rolling"]
    scale = Scale(divisor=model.divisor)
    scores: dict[str, Any] = {"elpd": [], "cases": [], "arv": []}
    for past, ahead in zip(learned, held, strict=True):
        drawn, net = posterior(model, x[past], y[past], length)
        inputs, targets = scale.there(x[ahead]), scale.there(y[ahead])
        density = held_out(in_numbers(drawn.log_likelihood(net, inputs, targets), model))
        mean = scale.back(drawn.outputs(net, inputs).mean((0, 1)), torch.zeros(()))
        scores["elpd"].append(digits(torch.tensor(density.elpd)))
        scores["cases"].append(int(ahead.sum()))
        scores["arv"].append(digits((mean - y[ahead]).square().mean() / data.VARIANCE_1535))
    return scores


def final(name: str, length: Length) -> dict[str, Any]:
    """Sample on all training years, then predict 1921-55 and 1956-79; nothing after 1979 is read.

    Returns:
        All that the tables and figures show.
    """
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    began = time.process_time()
    drawn, net = posterior(MODELS[name], x, y, length)
    return report(name, drawn, net) | {"cpu_seconds": round(time.process_time() - began, 1)}


def report(name: str, drawn: Posterior, net: nn.Module) -> dict[str, Any]:
    """What a posterior of the training years comes to.

    Returns:
        As `final`.
    """
    model = MODELS[name]
    scale = Scale(divisor=model.divisor)
    result: dict[str, Any] = {"setting": asdict(model)}
    for split in ("train", "test", "late"):
        x, y = numbers(*data.SUNSPOT_SPLITS[split])
        result[split] = forecast(drawn, net, scale, x, y)
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    likelihood = drawn.log_likelihood(net, scale.there(x), scale.there(y))
    density = loo(in_numbers(likelihood, model))
    result["loo"] = {
        "elpd": round(density.elpd, 2), "se": round(density.se, 2),
        "unreliable": density.num_unreliable, "pointwise": _round(density.pointwise, 4),
    }  # fmt: skip
    agreement = drawn.summary(("predictions", drawn.outputs(net, scale.there(x))))
    result["diagnostics"] = {key: float(f"{value:.5g}") for key, value in agreement.items()}
    result["sigma_y"] = _round(
        drawn.noise_std.flatten().quantile(torch.tensor(QUANTILES, dtype=FLOAT)) * model.divisor,
        2,
    )
    occupied = clusters(drawn.thinned(400))
    result["clusters"] = {
        "occupied": {str(k): round(v, 4) for k, v in occupied.probabilities().items()},
        "effective": _round(
            occupied.effective.flatten().quantile(torch.tensor(QUANTILES, dtype=FLOAT)), 3
        ),
    }
    thin = drawn.thinned(100)
    result["draws"] = {
        "weights": _rows(thin.weights().flatten(0, 1)),
        **{n: _rows(t.flatten(0, 1)) for n, t in thin.mixture()._asdict().items()},
    }
    result["fan"] = fan(drawn, net, scale)
    return result


def forecast(
    drawn: Posterior, net: nn.Module, scale: Scale, x: Tensor, y: Tensor
) -> dict[str, Any]:
    """One-step forecasts of some years: mean, intervals, their coverage, the arv with its error.

    Returns:
        In sunspot numbers; the arv over 1535 with its Monte Carlo standard error.
    """
    from scipy.stats import binomtest

    predicted = drawn.predict(net, scale.there(x), quantiles=QUANTILES)
    mean = predicted.mean * scale.divisor
    error = arv_error(drawn.outputs(net, scale.there(x)) * scale.divisor, y)
    coverage = {}
    for level, (low, high) in BANDS.items():
        ends = [predicted.quantiles[q] * scale.divisor for q in (low, high)]
        inside = int(((ends[0] <= y) & (y <= ends[1])).sum())
        interval = binomtest(inside, len(y)).proportion_ci(0.95)
        coverage[str(level)] = [inside, len(y), round(interval.low, 3), round(interval.high, 3)]
    return {
        "arv": digits((mean - y).square().mean() / data.VARIANCE_1535),
        "arv_error": digits(torch.tensor(error)),
        "coverage": coverage,
        "ranks": _round((predicted.samples * scale.divisor < y).double().mean(0), 4),
        "mean": _round(mean, 2),
        "quantiles": {str(q): _round(v * scale.divisor, 2) for q, v in predicted.quantiles.items()},
    }


def arv_error(outputs: Tensor, y: Tensor, stretches: int = 5) -> float:
    """The Monte Carlo standard error of the arv of a posterior mean.

    A jackknife over stretches of the chains, each longer than draws remember, so that correlated
    draws do not count as independent ones.

    Args:
        outputs: what the networks compute (chains, draws, n).
        y: the targets (n,).
        stretches: of each chain.

    Returns:
        The error, over 1535.
    """
    parts = torch.cat([part.mean(1) for part in outputs.chunk(stretches, 1)])
    others = (parts.sum(0) - parts) / (len(parts) - 1)
    arvs = (others - y).square().mean(1) / data.VARIANCE_1535
    return float(((len(parts) - 1) * arvs.var(correction=0)).sqrt())


def fan(drawn: Posterior, net: nn.Module, scale: Scale, most: int = 35) -> dict[str, Any]:
    """Iterated forecasts from 1920 on: each draw's path feeds on its own noisy forecasts.

    Returns:
        Quantiles and means by years ahead, in sunspot numbers.
    """
    series = data.sunspots(scale=1.0, dtype=FLOAT)
    last = series.series[(series.years >= 1909) & (series.years <= 1920)]
    thin = drawn.thinned(1000)
    flat, noise = thin.z.flatten(0, 1), thin.noise_std.flatten()
    generator = torch.Generator().manual_seed(0)
    windows = scale.there(last).repeat(len(flat), 1)
    networks = thin.layout.network(flat)
    paths = []
    for _ in range(most):
        with torch.no_grad():
            w, b = networks["hidden.weight"], networks["hidden.bias"]
            active = torch.tanh(torch.einsum("dhi,di->dh", w, windows) + b)
            out = (active * networks["output.weight"][:, 0]).sum(1) + networks["output.bias"][:, 0]
        out = out + noise * torch.randn(len(out), generator=generator, dtype=FLOAT)
        paths.append(out * scale.divisor)
        windows = torch.cat([windows[:, 1:], out[:, None]], 1)
    forecasts = torch.stack(paths, 1)
    levels = forecasts.quantile(torch.tensor(QUANTILES, dtype=FLOAT), dim=0)
    return {
        "mean": _round(forecasts.mean(0), 2),
        "quantiles": {str(q): _round(v, 2) for q, v in zip(QUANTILES, levels, strict=True)},
    }


def in_numbers(log_likelihood: Tensor, model: Model) -> Tensor:
    """Log densities of scaled targets as those of sunspot numbers, comparable across scales.

    Returns:
        The same shape.
    """
    return log_likelihood - math.log(model.divisor)


def _round(values: Any, places: int) -> list[float]:
    return [round(float(v), places) for v in values]


def _rows(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.4g}") for v in row] for row in values.tolist()]
