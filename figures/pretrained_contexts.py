"""What code lengths that depend on row and column would save over one length per value.

    python figures/pretrained_contexts.py [NETWORK ...]

`quantize_state` prices a value by how common it is in its tensor. The file's context coder knows
more: rows and columns whose weights are large. Here each weight is assigned again, to the least

    (w - c_j)^2 + lambda b_j(row class, column class),

the lengths b of classes being counted and the weights assigned in turn, from the values, lambda and
assignment of `quantize_state`. Sizes are of whole files; without it, the file of `quantize_state`
at the same loss. `unlike-rows` is made here: four matrices whose rows have scales of e^0 to e^2.
"""

import sys
from collections.abc import Mapping

import torch
from pretrained_methods import small
from pretrained_networks import NETWORKS
from torch import Tensor

from swsmix.codec import encode
from swsmix.compression.codebooks import snapped
from swsmix.compression.rate import Network
from swsmix.compression.snap import Quantized

LOSSES = (0.02, 0.05, 0.1, 0.3)
CLASSES = (6, 4)  # of rows and of columns, by the mean distance from the commonest value
STEPS = 3
BESIDE = (-2, -1, 0, 1, 2)  # values tried, counted from the nearest
PRIOR = 20.0  # weights' worth of the tensor's own shares in each class


def unlike_rows() -> dict[str, Tensor]:
    """Matrices whose rows have unlike scales."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for k in range(4):
        scale = 0.02 * (2.0 * torch.rand(512, 1, generator=generator)).exp()
        state[f"{k}.weight"] = scale * torch.randn(512, 512, generator=generator)
    return state


def classes_of(size: Tensor, number: int) -> Tensor:
    """Classes of equally many, by size."""
    return size.argsort().argsort() * number // len(size)


def assigned_again(t: Tensor, found: Quantized, lam: float) -> Quantized:
    """A tensor's values and assignment by the lengths of its rows' and columns' classes."""
    w = t.reshape(len(t), -1).double()
    index, values = found.index.view(w.shape).long(), found.codebook.double()
    k, price = len(values), lam * float((w - w.mean()).square().sum())
    nearest = torch.bucketize(w, (values[1:] + values[:-1]) / 2)
    for _ in range(STEPS):
        commonest = torch.bincount(index.flatten(), minlength=k).argmax()
        away = (values[index] - values[commonest]).abs()
        rows, columns = classes_of(away.mean(1), CLASSES[0]), classes_of(away.mean(0), CLASSES[1])
        where = rows[:, None] * CLASSES[1] + columns
        cells = CLASSES[0] * CLASSES[1]
        count = torch.bincount((where * k + index).flatten(), minlength=cells * k).view(cells, k)
        share = (count.sum(0) + 0.5) / (count.sum() + 0.5 * k)
        bits = -((count + PRIOR * share) / (count.sum(1, keepdim=True) + PRIOR)).log2()
        least = torch.full_like(w, torch.inf)
        for step in BESIDE:
            j = (nearest + step).clamp(0, k - 1)
            cost = (w - values[j]).square() + price * bits[where, j]
            index = torch.where(cost < least, j, index)
            least = torch.minimum(cost, least)
        number = torch.bincount(index.flatten(), minlength=k)
        mean = torch.bincount(index.flatten(), w.flatten(), minlength=k) / number.clamp_min(1)
        values = torch.where((number > 0) & (values != 0.0), mean.half().double(), values)
    return Quantized(values.to(t.dtype), index.view(t.shape))


def loss_of(state: Mapping[str, Tensor], found: Mapping[str, Quantized]) -> float:
    """The mean over weights of their tensor's relative error, as `quantize_state` has it."""
    lost = count = 0.0
    for name, q in found.items():
        w = state[name].double()
        error = (w - q.values.double()).square().sum() / (w - w.mean()).square().sum()
        lost += w.numel() * float(error)
        count += w.numel()
    return lost / count


def main(names: list[str]) -> None:
    print("| network | loss | bytes | by row and column | change |\n|---|---:|---:|---:|---:|")
    for name in names:
        state = unlike_rows() if name == "unlike-rows" else small(NETWORKS[name]().state())
        network = Network(state)
        for loss in LOSSES:
            outcome = network.for_loss(loss)
            plain = network.quantized(outcome)
            again = {
                n: assigned_again(state[n], q, outcome.lam) if len(q.codebook) > 1 else q
                for n, q in plain.items()
            }
            reached = loss_of(state, again)
            size = len(encode(snapped(state, again)))
            before = len(encode(snapped(state, network.quantized(network.for_loss(reached)))))
            change = f"{100.0 * (size / before - 1.0):+.1f} %"
            print(f"| {name} | {reached:.3f} | {before:,} | {size:,} | {change} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["cnn", "magika", "unlike-rows"])
