"""A prior learned on one half of MNIST's classes, used for the other half with few cases.

    python figures/transfer.py               about five minutes on one core; goes on
    python figures/transfer.py --table       transfer.md again, from transfer.jsonl

The procedure, written before the first run:

1. *Source*: the digits 0 to 4 of MNIST's first 50,000 images. A network 784-300-100-5 is trained
   for three epochs under a prior of eight components per layer, with the defaults of `fit`. Its
   `LearnedPrior` is saved, and loaded for each of the target's networks.
2. *Target*: the digits 5 to 9, with 20 training images of each, drawn by the seed from the
   first 50,000. The same architecture with its own initial weights, 150 steps of AdamW on all cases
   (learning rate 1e-3). Everything else is one of the methods below.
3. Each method with a strength takes the one of least validation loss, on 1,000 images of 5 to 9
   from MNIST's last 10,000 training images, the same for all; ties take the weaker. Then the test
   images of 5 to 9 are read once, by the network of that strength.
4. Seeds 0 to 4: source, cases, initial weights. Development used seed 100 and validation alone,
   with 300 steps and 10 or 50 images of each digit, which took too long.

Methods:
    none          nothing
    weight decay  AdamW's, 0.3 to 30 (0.03 to 10 before, where 10 was chosen in development)
    by itself     `MixturePrior(net, 8)` with the defaults of `attach`: no strength to choose
    fresh         eight components per layer, placed on the initial weights, EM every 20 steps from
                  the start, the prior from step 50 on; tau 1e-5 to 1e-2
    learned       the learned mixtures, which stay as they are, from the first step; the same tau
    goes on       the same with EM every 20 steps, the learned mixtures worth 10,000 weights
    one Gaussian  each layer's learned mixture replaced by one component of the same mean and
                  variance, else as "learned": is it the scales alone that help?
"""

import argparse
import json
import statistics
import time
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swsmix import GaussianMixture, HyperPrior, MixturePrior, Schedule, fit
from swsmix.prior import LearnedPrior
from swsmix.problems.mnist import mnist, mnist_tensors

HERE = Path(__file__).parent
OUT = HERE / "transfer.jsonl"
SEEDS, CASES, STEPS = range(5), (20,), 150
DECAYS = (0.3, 1.0, 3.0, 10.0, 30.0)
TAUS = (1e-5, 1e-4, 1e-3, 1e-2)
METHODS = {
    "none": (0.0,),
    "weight decay": DECAYS,
    "by itself": (0.0,),
    "fresh": TAUS,
    "one Gaussian": TAUS,
    "learned": TAUS,
    "goes on": TAUS,
}
LAYERS = ("fc1", "fc2", "fc3")


def network(seed):
    torch.manual_seed(seed)
    layers = OrderedDict(
        fc1=nn.Linear(784, 300), relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100), relu2=nn.ReLU(),
        fc3=nn.Linear(100, 5),
    )  # fmt: skip
    return nn.Sequential(layers)


def half(x, y, low):
    """The images of the digits low to low + 4, and their labels from 0 on."""
    mine = (y >= low) & (y < low + 5)
    return x[mine].reshape(-1, 784), y[mine] - low


def source(data, seed, path):
    net = network(1000 + seed)
    prior = MixturePrior(net, 8, groups={layer: f"{layer}.weight" for layer in LAYERS})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    fit(net, cross_entropy, data, optimizer=optimizer, epochs=3, prior=prior, seed=seed,
        progress=False)  # fmt: skip
    LearnedPrior.of(prior).save(path)


def gaussian(learned):
    """The learned prior with one component per group, of the same mean and variance."""
    mixtures = {}
    for group, m in learned.mixtures.items():
        mean = (m.mixing * m.mean).sum()
        std = (m.mixing * (m.std.square() + (m.mean - mean).square())).sum().sqrt()
        mixtures[group] = GaussianMixture([1.0], mean[None], std[None])
    hyper = {group: HyperPrior(std=float(m.std)) for group, m in mixtures.items()}
    return LearnedPrior(mixtures, hyper, learned.groups)


def train(method, strength, data, learned, seed):
    x, y = data
    net = network(seed)
    decay = strength if method == "weight decay" else 0.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=decay)
    frozen = Schedule(tau=strength, em_start=STEPS + 1)
    if method == "by itself":
        MixturePrior(net, 8).attach(optimizer, num_data=len(x))
    elif method == "fresh":
        prior = MixturePrior(net, 8, groups={layer: f"{layer}.weight" for layer in LAYERS})
        schedule = Schedule(tau=strength, start=50, em_start=0, em_every=20)
        prior.attach(optimizer, num_data=len(x), schedule=schedule)
    elif method in ("learned", "one Gaussian"):
        chosen = gaussian(learned) if method == "one Gaussian" else learned
        chosen.on(net).attach(optimizer, num_data=len(x), schedule=frozen)
    elif method == "goes on":
        schedule = Schedule(tau=strength, em_start=0, em_every=20)
        prior = learned.on(net, worth=10_000.0)
        prior.attach(optimizer, num_data=len(x), schedule=schedule)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


@torch.no_grad()
def measured(net, data):
    """Mean nats per case, and errors in percent."""
    x, y = data
    logits = net(x)
    wrong = (logits.argmax(-1) != y).double().mean().item()
    return cross_entropy(logits, y).item(), 100.0 * wrong


def unit(digits, learned, seed, cases, method, *, test=True):
    """A line of the results."""
    x, y = half(digits.x_train, digits.y_train, 5)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    few = torch.cat([order[y[order] == label][:cases] for label in range(5)])
    validation = [t[:1000] for t in half(digits.x_validation, digits.y_validation, 5)]
    start, rows = time.process_time(), []
    for strength in METHODS[method]:
        net = train(method, strength, (x[few], y[few]), learned, seed)
        rows.append((*measured(net, validation), strength, net))
    best = min(rows, key=lambda row: row[0])
    row = {
        "seed": seed, "cases": cases, "method": method, "strength": best[2],
        "validation": {f"{r[2]:g}": r[:2] for r in rows},
        "seconds": round(time.process_time() - start, 1),
    }  # fmt: skip
    if test:
        row["test_nll"], row["test_errors"] = measured(
            best[3], half(digits.x_test, digits.y_test, 5)
        )
    return row


def write_page(rows):
    lines = [
        "# A prior learned on the digits 0 to 4, used for 5 to 9",
        "",
        "The procedure is in the docstring of `figures/transfer.py`. Means over five seeds and "
        "their standard deviations; differences are within a seed, with their standard errors.",
        "",
        "| training images of a class | method | test errors, % | less than weight decay, points | "
        "test nats per case | strengths chosen |",
        "|---:|---|---:|---:|---:|---|",
    ]
    for cases in CASES:
        found = {m: [r for r in rows if r["cases"] == cases and r["method"] == m] for m in METHODS}
        for method, mine in found.items():
            errors = [row["test_errors"] for row in mine]
            nll = [row["test_nll"] for row in mine]
            base = [row["test_errors"] for row in found["weight decay"]]
            less = [b - a for a, b in zip(errors, base, strict=True)]
            chosen = ", ".join(f"{row['strength']:g}" for row in mine)
            lines.append(
                f"| {cases} | {method} | {statistics.mean(errors):.2f} ± "
                f"{statistics.stdev(errors):.2f} | {statistics.mean(less):+.2f} ± "
                f"{statistics.stdev(less) / len(less) ** 0.5:.2f} | {statistics.mean(nll):.3f} | "
                f"{chosen if len(METHODS[method]) > 1 else ''} |"
            )
    (HERE / "transfer.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true", help="write the page alone")
    parser.add_argument("--develop", action="store_true", help="seed 100, validation alone")
    given = parser.parse_args()
    lines = OUT.read_text().splitlines() if OUT.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["seed"], row["cases"], row["method"]) for row in rows}
    if not given.table:
        torch.set_num_threads(1)
        digits = mnist_tensors(mnist())
        for seed in [100] if given.develop else SEEDS:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "digits.prior"
                source(half(digits.x_train, digits.y_train, 0), seed, path)
                learned = LearnedPrior.load(path)
            if given.develop:
                print(learned)
            for cases in CASES:
                for method in METHODS:
                    if given.develop:
                        print(unit(digits, learned, seed, cases, method, test=False), flush=True)
                    elif (seed, cases, method) not in done:
                        rows.append(unit(digits, learned, seed, cases, method))
                        with OUT.open("a") as file:
                            file.write(json.dumps(rows[-1]) + "\n")
    if not given.develop:
        write_page(rows)


if __name__ == "__main__":
    main()
