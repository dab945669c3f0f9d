"""Simulation-based calibration of the posterior (Talts et al. 2018) on a tiny model.

Draw a mixture from its hyper-prior, weights from the mixture, data from the weights; sample the
posterior; the rank of what was drawn among the posterior's draws must be uniform.

    python figures/sbc.py            400 simulations; writes figures/sbc.json
    python figures/sbc.py --wrong    60 with a wrong hyper-prior, figures/sbc-wrong.json: must fail

The tests check the ranks in both files (tests/bayes).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, PosteriorWarning, sample

HYPER = HyperPrior(concentration=2.0, mean=0.0, mean_count=0.25, std=0.5, std_count=8.0)
OTHER_STD, NOISE_STD, NOISE_COUNT = 0.5, 0.4, 8.0
NUM_WEIGHTS, NUM_CASES, RANKS = 6, 8, 19
FLOAT = torch.float64


def draw_model(rng):
    """A mixture from the hyper-prior, weights and bias of a linear model, its data."""
    share = rng.dirichlet([HYPER.concentration] * 2)
    variance = HYPER.std_count * HYPER.std**2 / rng.chisquare(HYPER.std_count, 2)
    mean = HYPER.mean + np.sqrt(variance / HYPER.mean_count) * rng.standard_normal(2)
    j = rng.choice(2, NUM_WEIGHTS, p=share)
    w = mean[j] + np.sqrt(variance[j]) * rng.standard_normal(NUM_WEIGHTS)
    bias = OTHER_STD * rng.standard_normal()
    noise = NOISE_STD * np.sqrt(NOISE_COUNT / rng.chisquare(NOISE_COUNT))
    x = rng.standard_normal((NUM_CASES, NUM_WEIGHTS))
    y = x @ w + bias + noise * rng.standard_normal(NUM_CASES)
    return (share, mean, np.sqrt(variance)), w, bias, noise, x, y


def quantities(w, bias, noise, mixing, mean, std):
    """What is ranked, none of it dependent on the components' order; (draws, q)."""
    first = (mixing * mean).sum(-1)
    second = (mixing * (std**2 + mean**2)).sum(-1) - first**2
    return np.stack(
        [w[..., 0], w.std(-1), bias, noise, mean.max(-1), std.min(-1), mixing.max(-1), second], -1
    )


NAMES = (
    "a weight", "spread of the weights", "the bias", "sigma_y", "largest mean", "smallest std",
    "largest share", "variance of the mixture",
)  # fmt: skip


def ranks(seed, *, hyper=HYPER, draws=RANKS, thin=4, warmup=120):
    """The ranks, 0 to `draws`, of one simulation's quantities under the model with `hyper`."""
    rng = np.random.default_rng([seed, 0])
    (mixing, mean, std), w, bias, noise, x, y = draw_model(rng)
    net = nn.Sequential(nn.Linear(NUM_WEIGHTS, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(w)[None])
        net[0].bias.fill_(bias)
    mixture = GaussianMixture(*(torch.from_numpy(v) for v in (mixing, mean, std)))
    prior = MixturePrior(net, initial=mixture, hyper=hyper)
    prior.em_step_()  # only the start; the sampler has its warm-up
    joint = Joint(
        net, prior, torch.from_numpy(x), torch.from_numpy(y), other_std=OTHER_STD,
        noise_scale=NOISE_STD, noise_count=NOISE_COUNT,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # one chain: the ranks judge it
        drawn = sample(
            joint, chains=1, draws=draws * thin, warmup=warmup, seed=seed, target_accept=0.9,
            max_depth=7, progress=False,
        )  # fmt: skip
    kept = drawn.z[0, ::thin]
    posterior = quantities(
        drawn.layout.weights(kept, "all").numpy(),
        drawn.layout.network(kept)["0.bias"][:, 0].numpy(),
        drawn.layout.noise(kept).numpy(),
        *(t.numpy() for t in drawn.layout.mixture(kept, "all")),
    )
    truth = quantities(w, np.asarray(bias), np.asarray(noise), mixing, mean, std)
    return (posterior < truth).sum(0).tolist(), drawn.divergences


def uniformity(table, bins=5):
    """The p-value of each quantity's ranks being uniform (chi-squared over equal bins)."""
    counts = np.asarray(table) * bins // (RANKS + 1)
    return [stats.chisquare(np.bincount(c, minlength=bins)).pvalue for c in counts.T]


def wrong(hyper):
    """Not the hyper-prior of the data: stds half as large, held three times as hard."""
    return replace(hyper, std=hyper.std / 2, std_count=3 * hyper.std_count)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, help="400, or 60 of the wrong one")
    parser.add_argument("--wrong", action="store_true", help="a wrong hyper-prior: must fail")
    parser.add_argument("--out", type=Path, help="figures/sbc.json, or figures/sbc-wrong.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hyper = wrong(HYPER) if arguments.wrong else HYPER
    began, table, divergences = time.process_time(), [], 0
    simulations = arguments.simulations or (60 if arguments.wrong else 400)
    for seed in range(simulations):
        row, diverged = ranks(seed, hyper=hyper)
        table.append(row)
        divergences += diverged
        print(f"\r{seed + 1} of {simulations}", end="", file=sys.stderr, flush=True)
    values = uniformity(table)
    for name, p in zip(NAMES, values, strict=True):
        print(f"{name:>24}: p = {p:.3g}")
    result = {
        "names": NAMES, "draws": RANKS, "wrong": arguments.wrong, "divergences": divergences,
        "cpu_seconds": round(time.process_time() - began, 1), "ranks": table,
    }  # fmt: skip
    name = "sbc-wrong.json" if arguments.wrong else "sbc.json"
    path = arguments.out or Path(__file__).parent / name
    path.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
