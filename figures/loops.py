"""A matrix of hand-written training loops under the plain default: one table.

    python figures/loops.py              24 loops, two seeds: about ten minutes of one core
    python figures/loops.py --seeds 0    one seed
    python figures/loops.py --quick      two of them, shorter
    python figures/loops.py --only LSTM  those of a network or a type; other rows stay as they are
    python figures/loops.py --table      only writes the table again, from loops.jsonl

Writes loops.jsonl, and loops.md below its mark, beside this program or into the folder that
`--out` names.

Every loop trains a network twice from the same weights on the same batches: plainly, and after
`MixturePrior(net).attach(optimizer, num_data=n)`, with nothing else said. The plain network's
weights then get a mixture of the same K. What is asked of the prior:

- the validation loss is at most 10 % above the plain network's,
- tau at the end is at least .3 of what was allowed,
- R per weight is at least .3 nats below that of the plain network under the mixture fitted to it.

In "bfloat16" the weights themselves are in it, not only the products.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from swsmix import MixturePrior

FIGURES = Path(__file__).parent
STEPS = 1500
MARK = "<!-- below: written by figures/loops.py -->\n"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEY = ("network", "type", "optimizer", "seed")
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=2e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=2e-3),
}


class Rows(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        return self.head(self.cells(x.reshape(-1, 8, 8))[0][:, -1])


class Transformer(nn.Module):
    """A causal language model of two layers."""

    def __init__(self, symbols=12, length=31, width=32):
        super().__init__()
        self.symbol = nn.Embedding(symbols, width)
        self.place = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, symbols)

    def forward(self, x):
        length = x.shape[1]
        mask = torch.full((length, length), -torch.inf, dtype=self.head.weight.dtype).triu(1)
        h = self.symbol(x) + self.place.weight[:length]
        return self.head(self.layers(h, mask=mask)).flatten(0, 1)


def mlp():
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def digits():
    """The 1,797 images of 8 x 8 of scikit-learn: 1,000 to train on, 797 to validate."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x).float()[order] / 8.0 - 1.0, torch.tensor(y)[order]
    return (x[:1000], y[:1000]), (x[1000:], y[1000:]), 1000


def chain():
    """A Markov chain of order two over 12 symbols: 600 sequences of 31 to train on, 300 others."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.softmax(2.0 * torch.randn(12, 12, 12, generator=generator), -1)
    seen = [torch.randint(12, (900,), generator=generator) for _ in range(2)]
    for _ in range(30):
        p = rows[seen[-2], seen[-1]]
        seen.append(torch.multinomial(p, 1, generator=generator)[:, 0])
    whole = torch.stack(seen, 1)
    x, y = whole[:, :-1], whole[:, 1:]
    return (x[:600], y[:600]), (x[600:], y[600:]), y[:600].numel()


NETS = {
    "MLP": (digits, mlp),
    "conv + batch norm": (digits, conv),
    "LSTM": (digits, Rows),
    "transformer": (chain, Transformer),
}


def train(name, dtype, optimizer, steps, seed, *, attach):
    """The network, its validation loss, and the attachment if there is one."""
    make_data, make_net = NETS[name]
    (x, y), (x_val, y_val), num_data = make_data()
    if x.is_floating_point():
        x, x_val = x.to(TYPES[dtype]), x_val.to(TYPES[dtype])
    torch.manual_seed(seed)
    net = make_net().to(TYPES[dtype])
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    attachment = MixturePrior(net).attach(optimizer, num_data=num_data) if attach else None
    batches = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64 if num_data == len(x) else 16,), generator=batches)
        optimizer.zero_grad()
        functional.cross_entropy(net(x[rows]).float(), y[rows].flatten()).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        validation = functional.cross_entropy(net(x_val).float(), y_val.flatten()).item()
    return net, validation, attachment


def nats_per_weight(prior):
    """R / N."""
    size = sum(len(prior.flat_weights(group)) for group in prior.selection.groups)
    return sum(terms["nll"].item() for terms in prior.terms().values()) / size


def fitted(net):
    """A mixture of the default's K at the maximum of the likelihood of a network's weights."""
    prior = MixturePrior(net)
    prior.moves = False
    for _ in range(15):
        prior.em_step_()
    return prior


def measure(name, dtype, optimizer, steps=STEPS, seed=0):
    """One loop: a row of the table."""
    began = time.process_time()
    plain, plain_loss, _ = train(name, dtype, optimizer, steps, seed, attach=False)
    _, loss, attachment = train(name, dtype, optimizer, steps, seed, attach=True)
    return {
        "network": name,
        "type": dtype,
        "optimizer": optimizer,
        "seed": seed,
        "steps": steps,
        "plain_loss": plain_loss,
        "loss": loss,
        "allowed": attachment.entry.allowed,
        "tau": attachment.tau,
        "entered": attachment.entry.state_dict()["entered"],
        "plain_nats": nats_per_weight(fitted(plain)),
        "nats": nats_per_weight(attachment.prior),
        "seconds": time.process_time() - began,
    }


def failures(row):
    """What a loop does not hold of what is asked, in words."""
    asked = {
        "loss": row["loss"] <= 1.1 * row["plain_loss"],
        "tau": row["tau"] >= 0.3 * row["allowed"],
        "R": row["nats"] <= row["plain_nats"] - 0.3,
    }
    return [what for what, holds in asked.items() if not holds]


def table(rows):
    minutes = sum(row["seconds"] for row in rows) / 60.0
    lines = [
        f"{len(rows)} loops, written by hand; {sum(not failures(r) for r in rows)} hold all that "
        "is asked: a validation loss at most 10 % above the plain network's, tau at the end at "
        "least .3 of what was allowed, R per weight at least .3 nats below the plain network's. "
        f"Seeds: {sorted({row['seed'] for row in rows})}.",
        "",
        "| network | type | optimizer | seed | validation loss, plain | with the prior | change | "
        "enters at step | tau / allowed | R per weight, plain | with the prior | fails |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        change = 100.0 * (row["loss"] / row["plain_loss"] - 1.0)
        lines.append(
            f"| {row['network']} | {row['type']} | {row['optimizer']} | {row['seed']} "
            f"| {row['plain_loss']:.4f} | {row['loss']:.4f} | {change:+.1f} % "
            f"| {row['entered'] or 'never'} of {row['steps']} | {row['tau']:.2g} "
            f"/ {row['allowed']:.2g} | {row['plain_nats']:.2f} | {row['nats']:.2f} "
            f"| {', '.join(failures(row)) or '-'} |"
        )
    lines += [
        "",
        f"*Generated by `python figures/loops.py` in {minutes:.0f} minutes of one core (a machine "
        "of two, no GPU; one thread).*",
    ]
    return "\n".join(lines) + "\n"


def in_order(rows):
    """The rows by network, type, optimiser and seed, as the tables name them."""
    places = [list(NETS), list(TYPES), list(OPTIMIZERS)]

    def place(key):
        return *(names.index(name) for names, name in zip(places, key[:3], strict=True)), key[3]

    return [rows[key] for key in sorted(rows, key=place)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=[*NETS, *TYPES], default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.out / "loops.jsonl"
    loops = list(itertools.product(NETS, TYPES, OPTIMIZERS))
    rows = {}
    if file.exists():
        read = [json.loads(line) for line in file.read_text().splitlines()]
        rows = {tuple(row[name] for name in KEY): row for row in read}
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        chosen = [loop for loop in loops if set(options.only) <= set(loop)]
        chosen.sort(key=lambda loop: list(OPTIMIZERS).index(loop[2]))
        if options.quick:
            chosen = [("MLP", "float32", "Adam"), ("MLP", "bfloat16", "SGD")]
        for seed, loop in itertools.product(options.seeds, chosen):
            row = measure(*loop, steps=400 if options.quick else STEPS, seed=seed)
            rows[*loop, seed] = row
            print(*loop, row, flush=True)
            file.write_text("".join(json.dumps(each) + "\n" for each in in_order(rows)))
    path = options.out / "loops.md"
    head = "# Training loops under the plain default\n\n"
    if path.exists() and MARK in path.read_text():
        head = path.read_text().split(MARK)[0]
    path.write_text(head + MARK + "\n" + table(in_order(rows)))


if __name__ == "__main__":
    main()
