"""EM over the posterior against EM over its maximum and tuned weight decay, on small data sets.

    python figures/evidence.py           (11 minutes of one core)

It appends one line per set, split and method to `figures/evidence.jsonl`, goes on where it stopped,
and writes the tables of `figures/evidence.md`. `--table` only writes the tables, `--splits 2` makes
fewer. The procedure, fixed before the first result:

*Sets.* shift (100 training cases of 2,040, the others are the test cases); sunspots (the years
1712-1920 in five consecutive blocks, each the test block twice, with two starts; never the years
after 1920); diabetes (half of 442 cases); iris and wine (60 cases); breast cancer (100 cases).
Inputs, and targets of a regression, are standardised by the training cases. Ten splits each; split
s draws its cases and starts from seed s.

*Networks.* One hidden layer of ten tanh units, in float64, with torch's initial weights. Gaussian
noise with a learned variance (started at 1) for regression, logistic or softmax for classification.

*Methods.* All train on all training cases, by full-batch L-BFGS, at tau = 1, and predict with the
weights at the end of training. No method sees a test case, none but weight decay validation cases.
- `decay`: weight decay lambda / 2 |w|^2 on all weights but the biases, in nats over the training
  set; lambda of 10^-3, 10^-2.5, ..., 10^2 is the best on a random quarter of the training cases by
  negative log likelihood, trained on the other three quarters; then trained on all. 500 iterations.
- `map-1`, `map-4`: the prior with K = 1 and 4 (one mixture for all weights), 25 rounds of 25
  iterations with an EM step after each, `Schedule(em_every=1)`: tau = 1 from the first round.
- `post-1`, `post-4`: the same with `moments="posterior"`, from N(0, 1), and from four components
  with the means 0, 0, -1, 1 and the stds .1, 1, .3, .3: as broad as weights that have spoken.
- `post-tensor`: the same from N(0, 1) for each tensor.
- `evidence`: K = 1 with the mean 0 and a std of .1, .2, .5, 1, 2, 4 that stays; 12 rounds; the one
  of the best score. It is weight decay whose strength the evidence chooses.
- `post-best`: of the four above the one of the best score.

*The score* is the log evidence at the mode, plus the log number of its equivalents (h! / (h - a)!
2^a for permuted and sign-flipped hidden units; a of the h units lie 4 or more of their posterior
stds from their mirror image), less half a log of the number of weights for each free parameter of
the mixtures.

Probes on the splits 0 and 1 of shift and diabetes and 0 of iris went before this procedure: they
set the broad starts, the score's a and that parameters of the loss move by EM alone.

*Measures on the test cases.* Negative log likelihood per case in nats; errors in percent, or mean
squared error over the training targets' variance. Differences are paired by split, with 95 %
t-intervals over the ten splits. (Splits share cases, and blocks come twice: intervals are too
narrow by an unknown amount.)
"""

import argparse
import json
import math
import resource
import time
from pathlib import Path

import torch
from torch import nn

from swsmix import GaussianMixture, GaussianNoise, MixturePrior, Schedule, fit
from swsmix.bayes.laplace import curvature, laplace
from swsmix.problems.data import shift, sunspots
from swsmix.training.rounds import minimize_

HERE = Path(__file__).parent
SETS = ("shift", "sunspots", "diabetes", "iris", "wine", "cancer")
SIZES = {"shift": 100, "diabetes": 221, "iris": 60, "wine": 60, "cancer": 100}
BROAD = {
    1: ([1.0], [0.0], [1.0]),
    4: ([0.25] * 4, [0.0, 0.0, -1.0, 1.0], [0.1, 1.0, 0.3, 0.3]),
}
PRIORS = {
    "map-1": ("maximum", 1, "global"),
    "map-4": ("maximum", 4, "global"),
    "post-1": ("posterior", 1, "global"),
    "post-4": ("posterior", 4, "global"),
    "post-tensor": ("posterior", 1, "tensor"),
}
RUN = ("decay", *PRIORS, "evidence")
CHOSEN_FROM = ("post-1", "post-4", "post-tensor", "evidence")
METHODS = (*RUN, "post-best")
STRENGTHS = [10.0 ** (e / 2) for e in range(-6, 5)]
STDS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
ROUNDS, ITERATIONS = 25, 25


def cases(name, split):
    """Training and test cases of one split, standardised: (x, y), (x, y)."""
    draw = torch.Generator().manual_seed(split)
    if name == "shift":
        x, y = shift(2040, generator=draw, dtype=torch.float64)
        order = torch.arange(2040)
    elif name == "sunspots":
        x, y = sunspots(dtype=torch.float64).split("train")
        blocks = torch.arange(len(x)).tensor_split(5)
        test = blocks[split % 5]
        order = torch.cat([torch.cat([b for b in blocks if b is not test]), test])
    else:
        from sklearn import datasets

        load = {"cancer": "breast_cancer"}.get(name, name)
        x, y = getattr(datasets, f"load_{load}")(return_X_y=True)
        x, y = torch.as_tensor(x).double(), torch.as_tensor(y)
        order = torch.randperm(len(x), generator=draw)
        y = y.double() if name in ("diabetes", "cancer") else y.long()
    n = SIZES.get(
        name, len(order) - len(order) // 5 if name != "sunspots" else len(order) - len(test)
    )
    train, test = order[:n], order[n:]
    mean, std = x[train].mean(0), x[train].std(0)
    x = (x - mean) / std.clamp_min(1e-3)
    if name in ("sunspots", "diabetes"):
        y = (y - y[train].mean()) / y[train].std()
    if y.is_floating_point():
        y = y[:, None]
    return (x[train], y[train]), (x[test], y[test])


def new_net(name, data, split):
    """The network, from the split's seed, and its loss."""
    x, y = data
    outputs = 1 if y.is_floating_point() else int(y.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(1000 + split)
        net = nn.Sequential(nn.Linear(x.shape[1], 10), nn.Tanh(), nn.Linear(10, outputs)).double()
    if name in ("sunspots", "diabetes"):
        return net, GaussianNoise(1.0).double()
    return net, nn.BCEWithLogitsLoss() if outputs == 1 else nn.CrossEntropyLoss()


@torch.no_grad()
def measured(net, loss, data):
    """Negative log likelihood, and errors in percent or the mean squared error."""
    x, y = data
    f = net(x)
    nll = float(loss(f, y))
    if isinstance(loss, GaussianNoise):
        return {"nll": nll, "error": float((f - y).square().mean())}
    wrong = (f > 0) != (y > 0.5) if y.is_floating_point() else f.argmax(1) != y
    return {"nll": nll, "error": 100.0 * float(wrong.double().mean())}


def with_decay(name, data, split, strength, iterations):
    """The network trained with weight decay."""
    net, loss = new_net(name, data, split)
    x, y = data
    weights = [p for p in net.parameters() if p.ndim > 1]

    def objective():
        square = sum(w.square().sum() for w in weights)
        return len(x) * loss(net(x), y) + 0.5 * strength * square

    moving = [*net.parameters(), *loss.parameters()]
    minimize_(objective, moving, method="l-bfgs", iterations=iterations)
    return net, loss


def tuned_decay(name, data, split, iterations):
    """Weight decay whose strength is the best on a quarter of the training cases."""
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(split))
    held, rest = order[: len(x) // 4], order[len(x) // 4 :]
    scores = {}
    for strength in STRENGTHS:
        net, loss = with_decay(name, (x[rest], y[rest]), split, strength, iterations)
        scores[strength] = measured(net, loss, (x[held], y[held]))["nll"]
    best = min(scores, key=lambda s: scores[s] if math.isfinite(scores[s]) else math.inf)
    return *with_decay(name, data, split, best, iterations), {"strength": best}


def with_prior(name, data, split, method, rounds):
    """The network trained under the prior; of the posterior methods also the evidence."""
    moments, k, groups = PRIORS[method]
    initial = GaussianMixture(*BROAD[k]).double() if moments == "posterior" else None
    free = 3 * k - 1
    return trained(name, data, split, rounds, free, moments, k, groups=groups, initial=initial)


def by_evidence(name, data, split, rounds):
    """One Gaussian whose std is the best by evidence."""
    found = []
    for std in STDS:
        initial = GaussianMixture([1.0], [0.0], [std]).double()
        initial.pinned_mean[:] = initial.pinned_std[:] = True
        net, loss, said = trained(name, data, split, rounds, 1, "posterior", 1, initial=initial)
        found.append((said["score"], net, loss, said))
    return max(found, key=lambda each: each[0])[1:]


def trained(name, data, split, rounds, free, moments, k, **options):
    """A network trained under a prior, its loss, and what to say of them."""
    net, loss = new_net(name, data, split)
    prior = MixturePrior(net, k, **options)
    fit(
        net, loss, data, optimizer="l-bfgs", epochs=rounds, iterations=ITERATIONS, prior=prior,
        schedule=Schedule(em_every=1), moments=moments, measure_train=False, progress=False,
    )  # fmt: skip
    said = {"std": [[round(s, 5) for s in m.std.tolist()] for m in prior.mixtures.values()]}
    if moments == "posterior":
        found = laplace(curvature(net, loss, data), prior)
        size = sum(p.numel() for g in prior.mixtures for p in prior.parameters_of(g).values())
        said["log_evidence"] = found.log_evidence()
        said["determined"] = found.num_determined
        said["equivalents"] = equivalents(net, found.variance)
        penalty = 0.5 * len(prior.mixtures) * free * math.log(size)
        said["score"] = said["log_evidence"] + said["equivalents"] - penalty
    return net, loss, said


def equivalents(net, variance):
    """Log of how many modes are this one with hidden units permuted or their signs flipped."""
    into, out = (
        net.get_parameter(name).detach().square() / variance[name]
        for name in ("0.weight", "2.weight")
    )
    hidden = len(into)
    active = int((into.sum(1) + out.sum(0) > 4.0).sum())  # the distance is twice the root
    return math.lgamma(hidden + 1) - math.lgamma(hidden - active + 1) + active * math.log(2.0)


def run(name, split, method, *, rounds=ROUNDS, iterations=500):
    """One line of the file."""
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    train, test = cases(name, split)
    try:
        if method == "decay":
            net, loss, said = tuned_decay(name, train, split, iterations)
        elif method == "evidence":
            net, loss, said = by_evidence(name, train, split, max(1, rounds // 2))
        else:
            net, loss, said = with_prior(name, train, split, method, rounds)
        said |= {f"train_{k}": v for k, v in measured(net, loss, train).items()}
        said |= measured(net, loss, test)
    except (ArithmeticError, ValueError) as error:
        said = {"failed": f"{type(error).__name__}: {error}"}
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
    return {"set": name, "split": split, "method": method, **said, "seconds": round(seconds, 2)}


# -- the tables -------------------------------------------------------------------------------


def with_best(rows):
    """The rows by (set, split, method), those of the best evidence with them."""
    table = {(r["set"], r["split"], r["method"]): r for r in rows}
    for name, split in {(r["set"], r["split"]) for r in rows}:
        found = [table.get((name, split, m), {}) for m in CHOSEN_FROM]
        if all("score" in row for row in found):
            table[name, split, "post-best"] = max(found, key=lambda row: row["score"])
    return table


def interval(values):
    """Mean and half the 95 % t-interval."""
    from scipy import stats

    values = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * float(values.std()) / math.sqrt(len(values))
    return float(values.mean()), float(half)


def tables(rows):
    """Means per method, and paired differences to `decay` and to `map-4`, as Markdown."""
    table = with_best(rows)
    lines = []
    for measure, title in (
        ("error", "Errors (%), or mean squared error"),
        ("nll", "Nats per case"),
    ):
        lines += [f"## {title}", "", "| set | splits | " + " | ".join(METHODS) + " |"]
        lines += ["|---|---:|" + "---:|" * len(METHODS)]
        for name in SETS:
            splits = sorted({s for n, s, _ in table if n == name})
            cells = []
            for method in METHODS:
                values = [table.get((name, s, method), {}).get(measure) for s in splits]
                values = [v for v in values if v is not None]
                cells.append(f"{sum(values) / len(values):.3g}" if values else "-")
            lines.append(f"| {name} | {len(splits)} | " + " | ".join(cells) + " |")
        for other in ("decay", "map-4"):
            ours = METHODS[METHODS.index("post-1") :]
            lines += [
                "",
                f"Difference to `{other}`, paired, with its 95 % interval (negative: better)",
            ]
            lines += ["", "| set | " + " | ".join(ours) + " |", "|---|" + "---:|" * len(ours)]
            for name in SETS:
                cells = []
                for method in ours:
                    pairs = [
                        (table.get((name, s, method), {}), table.get((name, s, other), {}))
                        for s in range(100)
                    ]
                    gaps = [
                        a[measure] - b[measure] for a, b in pairs if measure in a and measure in b
                    ]
                    mean, half = interval(gaps) if gaps else (math.nan, math.nan)
                    said = f"{mean:+.3g}" if gaps else "-"
                    cells.append(f"{said} ± {half:.2g}" if len(gaps) > 1 else said)
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    failed = sum("failed" in row for row in rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    lines.append(f"{len(rows)} runs, {failed} failed, {minutes:.0f} minutes of one core.")
    return "\n".join(lines) + "\n"


def write_tables(rows, path):
    """Replace what stands below the mark in the Markdown file."""
    mark = "<!-- below: written by figures/evidence.py -->\n"
    head = path.read_text().split(mark)[0] if path.is_file() else "# Evidence\n\n"
    path.write_text(head + mark + "\n" + tables(rows))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--methods", nargs="+", choices=RUN, default=RUN)
    parser.add_argument("--out", type=Path, default=HERE / "evidence.jsonl")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        [json.loads(x) for x in options.out.read_text().splitlines()]
        if options.out.is_file()
        else []
    )
    done = {(r["set"], r["split"], r["method"]) for r in rows}
    end = time.monotonic() + 60 * options.minutes
    jobs = [
        (name, split, method)
        for split in range(0 if options.table else options.splits)
        for name in options.sets
        for method in options.methods
        if (name, split, method) not in done
    ]
    for job in jobs:
        if time.monotonic() > end:
            break
        rows.append(run(*job))
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    write_tables(rows, options.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
