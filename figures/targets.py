"""Targets: LeNet-300-100 and LeNet-5 on MNIST compressed to three targets each.

    python figures/targets.py               both networks; goes on where it was stopped
    python figures/targets.py --net lenet-5-caffe
    python figures/targets.py --smoke       a few images and epochs, to see that it runs

Writes targets.jsonl, one line per unit, and targets.md.

The procedure, written before the first run:

1. Training and validation images are drawn by seed 0 from MNIST's 60,000 training images: 2,000 and
   1,000 for LeNet-300-100, 1,500 and 1,000 for LeNet-5. So few, that both networks and all targets
   take minutes of one core; the errors are those of networks trained on so few.
2. Each network is trained with Adam for 12 epochs (its validation loss is not looked at).
3. One plain `compress_` with the recipe below, and one for each of the targets: the validation
   loss at most 0.02 nats higher, the validation errors at most 0.5 percentage points more, and a
   file of a 150th of the float32 network.
   All with the same recipe (shorter than the default), seed 0, from the same pretrained weights.
4. The last step of a unit reads the test images, once, for the network decoded from its file; the
   dense network's are read in its own unit.

Run more than once: the first algorithm gave LeNet-300-100 39,844 and 20,519 bytes for the bounds;
the second, whose trials after the recipe's own were led from a gentle strength, gave LeNet-5 29,424
and 83,924. Now a quarter and a sixteenth of the recipe's strength come next, and a sparse network
that quantising spoils is snapped to many values. All was changed on validation data alone.

Seconds are the processor's (one thread), which a busy machine changes less than the clock's.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from swsmix import fit
from swsmix.compression import (
    Recipe,
    Target,
    TargetError,
    compress_,
    load_compressed,
    save_compressed,
)
from swsmix.problems.mnist import mnist, mnist_tensors
from swsmix.problems.nets import lenet_5_caffe, lenet_300_100

HERE = Path(__file__).parent
SEED = 0
NETS = {  # maker, training images, validation images, batch
    "lenet-300-100": (lenet_300_100, 2_000, 1_000, 64),
    "lenet-5-caffe": (lenet_5_caffe, 1_500, 1_000, 64),
}
RECIPE = Recipe(sparsify_epochs=16, quantise_epochs=6, finetune_epochs=1, em_every=25)
SMOKE = Recipe(sparsify_epochs=2, quantise_epochs=1, finetune_epochs=1, em_every=5)
EPOCHS = 12  # of pretraining
UNITS = ("dense", "plain", "loss + 0.02", "errors + 0.5 points", "size / 150")
SHARE = 150  # float32 bytes over the bytes asked for


def loss(logits, target):
    return nn.functional.cross_entropy(logits, target)


def errors(logits, target):
    """Errors in percent."""
    return 100.0 * (logits.argmax(-1) != target).double().mean()


def targets(net):
    size = sum(4 * t.numel() for t in net.state_dict().values())
    return {
        "plain": None,
        "loss + 0.02": Target(loss_increase=0.02),
        "errors + 0.5 points": Target(measure_increase=0.5),
        "size / 150": Target(size_bytes=size // SHARE),
    }


@torch.no_grad()
def score(net, x, y):
    net.eval()
    logits = torch.cat([net(part) for part in x.split(1000)])
    return {"loss": loss(logits, y).item(), "errors_percent": errors(logits, y).item()}


def images(name, smoke):
    """Training, validation and test images of a network."""
    _, num_train, num_validation, _ = NETS[name]
    if smoke:
        num_train, num_validation = 300, 200
    generator = torch.Generator().manual_seed(SEED)
    digits = mnist_tensors(mnist(), num_validation=num_validation, generator=generator)
    train = digits.x_train[:num_train], digits.y_train[:num_train]
    return train, (digits.x_validation, digits.y_validation), (digits.x_test, digits.y_test)


def pretrained(name, train, batch_size, smoke):
    net = NETS[name][0](generator=torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    epochs = 1 if smoke else EPOCHS
    fit(
        net, loss, train, optimizer=optimizer, epochs=epochs, batch_size=batch_size,
        measure_train=False, seed=SEED, progress=False,
    )  # fmt: skip
    return net


def unit(net, target, train, validation, test, batch_size, smoke):
    """Compress a copy of the network, and measure what its file holds."""
    net = copy.deepcopy(net)
    began = time.process_time()
    row = {}
    try:
        done = compress_(
            net, loss, train, target=target, recipe=SMOKE if smoke else RECIPE,
            batch_size=batch_size, validation=validation, measure=errors, seed=SEED, progress=False,
        )  # fmt: skip
        reached = done.reached
        state, prior = net, done.prior
    except TargetError as error:
        reached, state, prior = error.nearest, error.state, None
        row["not_met"] = str(error)
    row["seconds"] = time.process_time() - began
    with TemporaryDirectory() as folder:
        row["size_bytes"] = save_compressed(f"{folder}/net.sws", state, prior)
        net.load_state_dict(load_compressed(f"{folder}/net.sws"))
    if reached is not None:
        row |= {"tau": reached.tau, "used": reached.used}
        row["path"] = [[s.phase, s.multiplier, s.value, s.size_bytes] for s in reached.path]
    return row | {"validation": score(net, *validation), "test": score(net, *test)}


def run(name, file, smoke):
    """All units of one network that the file does not have yet."""
    done = {(row["net"], row["unit"]) for row in read(file)}
    train, validation, test = images(name, smoke)
    batch_size = NETS[name][3]
    net = pretrained(name, train, batch_size, smoke)
    common = {
        "net": name, "seed": SEED, "train": len(train[0]), "validation_images": len(validation[0]),
        "machine": "2-core virtual x86-64, one thread, shared with other work",
    }  # fmt: skip
    if (name, "dense") not in done:
        size = sum(4 * t.numel() for t in net.state_dict().values())
        scores = {"validation": score(net, *validation), "test": score(net, *test)}
        write(file, {**common, "unit": "dense", "size_bytes": size, "seconds": 0.0, **scores})
    for label, target in targets(net).items():
        if (name, label) not in done:
            row = unit(net, target, train, validation, test, batch_size, smoke)
            write(file, {**common, "unit": label, "asked": target and str(target), **row})


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write(file, row):
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    print({k: v for k, v in row.items() if k != "path"}, flush=True)


def page(rows):
    """The table, as Markdown."""
    lines = [
        "# Targets",
        "",
        "*Generated by `python figures/targets.py`, whose docstring has the procedure (seed 0; "
        "2-core virtual x86-64, one thread, shared with other work).*",
        "",
        "Minutes are the processor's, and beside them those over the plain run's. Loss and errors: "
        "the network decoded from the file. *Used* is the share of the allowed increase, or of the "
        "bytes asked for.",
    ]
    for name, (_, num_train, num_validation, _) in NETS.items():
        found = {row["unit"]: row for row in rows if row["net"] == name}
        if not found:
            continue
        lines += [
            "",
            f"## {name}, {num_train:,} training and {num_validation:,} validation images",
            "",
            "| asked | used | validation loss | errors % | test loss | errors % | bytes | tau "
            "| minutes | over plain |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        plain = found.get("plain", {}).get("seconds")
        for label, row in found.items():
            v, t = row["validation"], row["test"]
            met = " (not met)" if "not_met" in row else ""
            lines.append(
                f"| {row.get('asked') or label}{met} | {_number(row.get('used'), '.2f')} "
                f"| {v['loss']:.4f} | {v['errors_percent']:.2f} | {t['loss']:.4f} "
                f"| {t['errors_percent']:.2f} | {row['size_bytes']:,} "
                f"| {_number(row.get('tau'), '.3g')} | {row['seconds'] / 60:.1f} "
                f"| {_number(plain and row['seconds'] / plain, '.1f')} |"
            )
        if missing := [label for label in UNITS if label not in found]:
            lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _number(value, form):
    return "" if value is None else format(value, form)


def main(arguments=None, folder=HERE):
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=NETS, action="append")
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file = folder / "targets.jsonl"
    for name in chosen.net or NETS:
        run(name, file, chosen.smoke)
    (folder / "targets.md").write_text(page(read(file)))


if __name__ == "__main__":
    main()
