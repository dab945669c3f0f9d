"""Cheaper values for the weights of a snapped network: rate against distortion.

    j_i = argmin_k  h_i (w_i - c_k)^2 + lambda * bits_k        bits_k = -log2(share of cluster k)

With the codebook fixed, the multiplier lambda is the one knob between the file's size and the
network's error (entropy-constrained quantisation: Chou, Lookabaugh & Gray 1989). h_i is the
curvature of the data loss, from its squared gradients; clusters that nothing pays for die out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from swsmix.compression import clusters
from swsmix.compression.snap import bits_per_weight
from swsmix.training.evaluation import Data, Loss, is_pair

Index = dict[str, Tensor]
Changes = Int[Tensor, "2 n"]  # of which tensor, and of which of its weights
_BATCHES = 32  # for the squared gradients
_ROUNDS = 4  # of assignment and bits
_TRIES = 24  # values of lambda
_FILLS = 24  # groups of weights tried by themselves
_CELLS = 1 << 17  # costs in memory at a time


def curvatures(
    model: nn.Module, loss: Loss, data: Data, names: Mapping[str, Tensor], batch_size: int
) -> dict[str, Tensor]:
    """The squared gradient of each weight, averaged over batches, plus its tensor's mean.

    The mean holds the weights whose own gradient says too little: none is free to move.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    if is_pair(data):
        data = zip(data[0].split(batch_size), data[1].split(batch_size), strict=True)
    total = {name: torch.zeros_like(p) for name, p in names.items()}
    for x, y in islice(iter(data), _BATCHES):
        value = loss(model(x.to(device)), y.to(device))
        gradients = torch.autograd.grad(value, list(names.values()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
    model.train(training)
    smallest = torch.finfo(torch.float32).tiny
    return {n: (t + t.mean()).double().clamp_min(smallest) for n, t in total.items()}


class Spender:
    """Reassigns the weights of a snapped network that are not zero.

    Args:
        weights: name -> the snapped tensor, changed by `place_`.
        index: name -> the cluster of each weight; 0 is zero's.
        curvature: name -> h of each weight.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], index: Index, curvature: Mapping[str, Tensor]
    ) -> None:
        self.weights, self.index, self.curvature = weights, index, curvature
        self.centre: dict[str, Tensor] = {}
        for name, p in weights.items():
            j, w = index[name].reshape(-1), p.detach().reshape(-1).double()
            centre = w.new_zeros(int(j.max()) + 1)
            centre[j] = w
            centre[0] = 0.0
            self.centre[name] = centre

    def scale(self) -> float:
        """What setting an average weight to zero costs: where lambda begins to matter."""
        cost, count = 0.0, 0
        for name in self.index:
            c, j, h = self._outside(name)
            cost += float((h * c[j].square()).sum())
            count += len(j)
        return cost / max(count, 1)

    def assign(self, multiplier: float) -> Index:
        """The cluster of each weight at this lambda, in curvature times squared weight per bit."""
        found = {}
        for name, index in self.index.items():
            c, start, h = self._outside(name)
            away, j = (c[:, None] - c).square(), start
            rows = max(_CELLS // len(c), 1)
            zeros = index.numel() - len(start)
            for _ in range(_ROUNDS):
                count = torch.bincount(j, minlength=len(c)).double()
                count[0] += zeros
                bits = -(count / index.numel()).clamp_min(0.5 / index.numel()).log2()
                parts = zip(start.split(rows), h.split(rows), strict=True)
                price = multiplier * bits
                nearest = torch.cat(
                    [away[at].mul_(each[:, None]).add_(price).min(1).indices for at, each in parts]
                )
                if torch.equal(nearest, j):
                    break
                j = nearest
            flat = index.reshape(-1).clone()
            flat[flat != 0] = j
            found[name] = flat.view(index.shape)
        return found

    def _outside(self, name: str) -> tuple[Float[Tensor, " k"], Int[Tensor, " n"], Tensor]:
        """The centres, and clusters and curvatures of the weights that are not zero."""
        j = self.index[name].reshape(-1)
        at = j != 0
        return self.centre[name], j[at], self.curvature[name].reshape(-1)[at]

    @torch.no_grad()
    def place_(self, index: Index) -> Index:
        """Set the weights to their new clusters' centres; the clusters, numbered anew."""
        placed = {}
        for name, p in self.weights.items():
            p.copy_(self.centre[name][index[name]])
            placed[name] = clusters.merge_clusters(index[name], p, nearest=0.0, rare=0)
            clusters.set_to_centres_(p, placed[name])
        return placed

    def changes(self, index: Index, other: Index) -> Changes:
        """Where two assignments differ, what costs least first."""
        costs: list[Tensor] = []
        numbers: list[Tensor] = []
        places: list[Tensor] = []
        for number, (name, j) in enumerate(index.items()):
            a, b = j.reshape(-1), other[name].reshape(-1)
            at = (a != b).nonzero().reshape(-1)
            c, h = self.centre[name], self.curvature[name].reshape(-1)[at]
            costs.append((h * (c[a[at]] - c[b[at]]).square()).cpu())
            numbers.append(torch.full_like(at, number).cpu())
            places.append(at.cpu())
        order = torch.cat(costs).argsort(stable=True)
        return torch.stack([torch.cat(numbers)[order], torch.cat(places)[order]])


def replaced(index: Index, other: Index, changes: Changes) -> Index:
    """The first assignment, but for some weights the second one."""
    result = {}
    for number, (name, j) in enumerate(index.items()):
        at = changes[1, changes[0] == number].to(j.device)
        flat = j.reshape(-1).clone()
        flat[at] = other[name].reshape(-1)[at]
        result[name] = flat.view(j.shape)
    return result


def entropy_bytes(index: Index) -> float:
    """The zero-order entropy of the cluster numbers of all tensors, in bytes."""
    return sum(bits_per_weight(j) * j.numel() for j in index.values()) / 8.0


def spend_to_bound(
    spender: Spender, used: Callable[[Index], float], *, full: float, fits: float
) -> tuple[Index, float]:
    """The dearest assignment that a bound allows: lambda rises until it is crossed, then halves.

    Where one step of lambda crosses much of the bound, as in small networks, the weights between
    are tried by themselves, those that cost least per bit first.

    Args:
        spender: where the weights are.
        used: places an assignment and measures it: the share of what is allowed.
        full: stop at this share.
        fits: the largest share that is within the bound.

    Returns:
        The clusters of the weights, and lambda.
    """
    best, lower, share = spender.index, 0.0, -math.inf
    price = 1e-3 * spender.scale()
    crossed: Index | None = None
    upper = math.inf
    for _ in range(_TRIES):
        index = spender.assign(price)
        if _same(index, best):
            lower = price
        elif (now := used(index)) > fits:
            crossed, upper = index, price
        else:
            best, lower, share = index, price, now
        if share >= full or (crossed is None and not any(j.any() for j in index.values())):
            return best, lower
        price = 4.0 * price if crossed is None else math.sqrt(max(lower, upper / 64.0) * upper)
        if upper < 1.02 * lower:
            break
    if crossed is None:
        return best, lower
    return _fill(spender, best, crossed, used, full=full, fits=fits), lower


def _fill(
    spender: Spender, best: Index, crossed: Index, used: Callable[[Index], float], *,
    full: float, fits: float,
) -> Index:  # fmt: skip
    """As many of the changes between two assignments as the bound allows, cheap ones first."""
    changes = spender.changes(best, crossed)
    first, size = 0, max(1, changes.shape[1] // 2)
    for _ in range(_FILLS):
        if first >= changes.shape[1]:
            break
        index = replaced(best, crossed, changes[:, first : first + size])
        now = used(index)
        if now <= fits:
            best, first = index, first + size
            if now >= full:
                break
        elif size > 1:
            size = max(1, size // 4)
        else:
            first += 1
    return best


def spend_to_size(
    spender: Spender, encoded: Callable[[Index], int], *, size: int, fixed: int, low: float,
    high: float, rough: bool = False,
) -> tuple[Index, float]:  # fmt: skip
    """An assignment whose file has between low and high bytes, or the nearest one below.

    Files are costly: lambda is found on the entropy of the clusters, which is put right by what
    the last file took.

    Args:
        spender: where the weights are.
        encoded: places an assignment and encodes it, in bytes.
        size: the bytes of the file as it is.
        fixed: the bytes that no assignment saves.
        low: the smallest size that will do.
        high: the largest one.
        rough: encode nothing: between the two by the entropy alone.

    Returns:
        The clusters of the weights, and lambda.
    """
    best, price = spender.index, 0.0
    if size <= high:
        return best, price  # nothing has to be saved
    goal = 0.5 * (low + high)
    nearest = math.inf
    above = spender.index
    per_byte = max(size - fixed, 1) / max(entropy_bytes(spender.index), 1.0)
    for _ in range(5):
        wanted = max(goal - fixed, 0.0) / per_byte
        lower, upper = 1e-6 * spender.scale(), 1e6 * spender.scale()
        for _ in range(40):
            middle = math.sqrt(lower * upper)
            if entropy_bytes(spender.assign(middle)) > wanted:
                lower = middle
            else:
                upper = middle
        index = spender.assign(upper)
        if rough:
            return index, upper
        size = encoded(index)
        if size > high:
            above = index
        elif high - size < nearest:
            best, price, nearest = index, upper, high - size
        if low <= size <= high:
            break
        entropy = entropy_bytes(index)
        if entropy == 0.0 and size > high:
            return index, upper  # nothing is left to save
        per_byte = max(size - fixed, 1) / max(entropy, 1.0)
    if low <= high - nearest or nearest == math.inf:
        return best, price
    # One step of lambda crosses both: some of its changes.
    below, changes = best, spender.changes(above, best)
    first, last = 0, changes.shape[1]
    for _ in range(8):
        middle = (first + last) // 2
        if middle in {first, last}:
            break
        index = replaced(above, below, changes[:, :middle])
        size = encoded(index)
        if size > high:
            first = middle
        else:
            last = middle
            if high - size < nearest:
                best, nearest = index, high - size
            if size >= low:
                break
    return best, price


def _same(index: Index, other: Index) -> bool:
    return all(torch.equal(j, other[name]) for name, j in index.items())
