"""Explicit gradient against proximal step: one table, one figure.

    python figures/updates.py            about five minutes; needs the MNIST files
    python figures/updates.py --draw     only draws the figure again, from updates.json

Writes updates.json and updates.png beside this program, or into the folder that `--out` names.
LeNet-300-100 on 12,000 MNIST images: one epoch on the data alone, then three under the prior,
whose stds anneal to a final value. Measured on 10,000 images held out of the training data, after
each weight was snapped to its centre.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch

from swsmix import MixturePrior, Schedule, fit, plots, snap_
from swsmix.compression.snap import assign
from swsmix.plots import style
from swsmix.problems import nets
from swsmix.problems.mnist import mnist, mnist_tensors
from swsmix.training.evaluation import evaluate

FIGURES = Path(__file__).parent
STDS = (0.03, 0.01, 0.003, 0.001, 0.0003)
RATES = (3e-4, 1e-3, 3e-3)


def errors(logits, target):
    return 100.0 * (logits.argmax(-1) != target).double().mean()


def measure(digits, update, std, rate, seed):
    """Validation errors after snapping, and the distance of the weights from their centres."""
    train = digits.x_train[:12_000], digits.y_train[:12_000]
    validation = digits.x_validation, digits.y_validation
    net = nets.lenet_300_100(generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    epoch = 94  # steps
    schedule = Schedule(
        tau=0.03, start=epoch, em_every=20,
        std_start=0.1, std_end=std, anneal_start=epoch, anneal=2 * epoch,
    )  # fmt: skip
    prior = MixturePrior(net, 16, method="spread", seed=seed)
    fit(
        net, torch.nn.CrossEntropyLoss(), train, optimizer=optimizer, epochs=4, prior=prior,
        schedule=schedule, update=update, seed=seed, progress=False,
    )  # fmt: skip
    (mixture,) = prior.mixtures.values()
    w = prior.flat_weights("all")
    j = assign(mixture, w)
    distance = ((w - mixture.mean[j]) / mixture.std[j]).square().mean().sqrt().item()
    snap_(prior, distortion=0.0)
    return evaluate(net, errors, validation), distance


@style.styled
def draw(rows, path):
    """A column for each learning rate; lines are means over seeds, bands their whole range."""
    figure, axes = style.make_panels(
        None, 2 * len(RATES), width=plots.FULL, row=1.7, columns=len(RATES), sharex=True
    )
    seeds = len({row["seed"] for row in rows})
    for place, rate in enumerate(RATES):
        pair = axes[place], axes[place + len(RATES)]
        for axis, name in zip(pair, ("errors", "distance"), strict=True):
            for update, colour in (("gradient", plots.POSITIVE), ("proximal", plots.NEGATIVE)):
                chosen = [r for r in rows if r["update"] == update and r["rate"] == rate]
                x = sorted({r["std"] for r in chosen})
                found = [[r[name] for r in chosen if r["std"] == s] for s in x]
                axis.fill_between(
                    x, [min(f) for f in found], [max(f) for f in found], color=colour, alpha=0.2,
                    lw=0, label="_range",
                )  # fmt: skip
                axis.plot(
                    x, [statistics.fmean(f) for f in found], color=colour, marker="o",
                    markersize=2.5, label=update,
                )  # fmt: skip
            axis.set_xscale("log")
        pair[0].set_ylim(0.0, 1.05 * max(r["errors"] for r in rows))
        pair[1].axhline(1.0, color="0.8", zorder=0)
        pair[1].set(yscale="log", xlabel="final std of the components")
        distances = [r["distance"] for r in rows]
        pair[1].set_ylim(0.7 * min(distances), 1.4 * max(distances))
        pair[0].set_title(f"learning rate {rate:g}", y=1.0 if place else 1.12)
    axes[0].set_ylabel("errors, snapped (%)")
    axes[len(RATES)].set_ylabel("distance to centre (std)")
    style.add_legend(axes[0])
    axes[-1].text(
        0.98, 0.03, f"bands: all {seeds} seeds", transform=axes[-1].transAxes, ha="right",
        fontsize=6.5, color=style.GREY,
    )  # fmt: skip
    plots.save(figure, path)


def measured(seeds, quick):
    """A row for each setting and seed, printed on the way."""
    digits = mnist_tensors(mnist())
    updates, rates, stds = ("gradient", "proximal"), RATES, STDS
    if quick:
        rates, stds = RATES[1:2], STDS[2:3]
    rows = []
    print(f"{'update':<10}{'lr':>8}{'std':>8}{'seed':>6}{'errors %':>10}{'distance / std':>16}")
    for update, rate, std, seed in itertools.product(updates, rates, stds, range(seeds)):
        try:
            wrong, distance = measure(digits, update, std, rate, seed)
        except (FloatingPointError, ValueError) as error:
            print(error)
            wrong, distance = 90.0, float("nan")
        rows.append({"update": update, "rate": rate, "std": std, "seed": seed,
                     "errors": wrong, "distance": distance})  # fmt: skip
        print(f"{update:<10}{rate:>8g}{std:>8g}{seed:>6}{wrong:>10.2f}{distance:>16.3g}",
              flush=True)  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one learning rate and std")
    parser.add_argument("--draw", action="store_true", help="only draw, from updates.json")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.draw:
        rows = json.loads((FIGURES / "updates.json").read_text())
    else:
        rows = measured(arguments.seeds, arguments.quick)
        (arguments.out / "updates.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, arguments.out / "updates.png")


if __name__ == "__main__":
    main()
