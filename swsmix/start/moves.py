"""Split and merge: a component that says what others say goes to where the mixture fits worst.

EM is local: components that begin as twins stay twins. A *move* merges two components into one of
their joint moments and splits a third (Ueda, Nakano, Ghahramani & Hinton 2000). It is tried by EM
on the cells of the weights, and kept only if the penalised likelihood is better for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.em import HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.start.cell_em import e_step_on_cells, fit_cells_
from swsmix.start.cells import Cells

# How many mergers and splits are combined, and the EM steps of each trial.
_TRIED, _STEPS = 3, 10
# Nested splits: what lies within so many stds, and the rest.
_INNER = (0.5, 1.0, 2.0)


@torch.no_grad()
def moved(mixture: GaussianMixture, cells: Cells, hyper: HyperPrior) -> GaussianMixture | None:
    """The mixture after the best move, or None where no move is better than EM alone.

    Better means: after some EM steps on the cells its log likelihood lies above that of the given
    mixture after as many, by more than a component costs (BIC: 3 / 2 log n for n weights). So no
    component goes to a few weights that lie far out by chance. A pinned component is never split;
    one whose mean alone is pinned may take another's weights.

    Args:
        mixture: a plain mixture, not changed.
        cells: the weights.
        hyper: the hyper-prior.

    Returns:
        A new mixture with as many components and the same pins, or None.

    Example:
        >>> from swsmix.start.cells import cells_of
        >>> w = torch.cat([torch.randn(900) * 0.01, 1.0 + torch.randn(100) * 0.01, -torch.ones(9)])
        >>> twins = GaussianMixture([0.5, 0.4, 0.1], [0.0, 0.0, 1.0], [0.01, 0.02, 0.3])
        >>> better = moved(twins, cells_of(w, 256), HyperPrior(std=0.01))
        >>> better.mean.sort().values.round(decimals=1) + 0.0  # no -0
        tensor([-1.,  0.,  1.], dtype=torch.float64)
    """
    pins = {name: getattr(mixture, name).cpu() for name in _PINS}
    start = torch.stack([getattr(mixture, name).double().cpu() for name in _VALUES])
    moves = _moves(GaussianMixture(*start, **pins), cells)
    trials = torch.stack([start, *moves], 1)  # (3, b, k): the given mixture, then its moves
    each = {name: pinned.expand_as(trials[0]) for name, pinned in pins.items()}
    batch = GaussianMixture(*trials, **each)
    fit_cells_(batch, cells, hyper, _STEPS)
    # Not the log posterior: its density over sigma^2 is higher for a narrow component, used or not.
    value = e_step_on_cells(batch, cells)[0]
    value[0] += 1.5 * math.log(cells.count.sum())
    if not (best := int(value.argmax())):
        return None
    result = batch.member(best)
    result.to(mixture.mean.device, mixture.mean.dtype)
    return result


def mergers(mixture: GaussianMixture, cells: Cells) -> Iterator[GaussianMixture]:
    """The mixture with two components as one, the mergers that cost least at once first."""
    values = torch.stack([mixture.mixing, mixture.mean, mixture.std])
    joint = _log_joint(cells, values)
    for _, (keeps, goes), union in _mergers(
        mixture, cells, values, joint, joint.logsumexp(1)
    ).best():
        after = values.clone()
        after[:, keeps] = union
        stays = torch.arange(len(mixture.mean), dtype=torch.int64, device="cpu") != goes
        pins = {name: getattr(mixture, name)[stays] for name in _PINS}
        yield GaussianMixture(*after[:, stays], **pins)


_VALUES = ("mixing", "mean", "std")
_PINS = ("pinned_mixing", "pinned_mean", "pinned_std")


class _Options(NamedTuple):
    """What components could become, the best first.

    Attributes:
        gain: the log likelihood's rise by each option alone (o,), in nats.
        which: the components that it replaces (o, 2); for a split twice the same.
        values: mixing, mean and std of what it makes (o, 3) or (o, 2, 3).
    """

    gain: Float[Tensor, " o"]
    which: Tensor
    values: Tensor

    def best(self) -> Iterator[tuple[float, list[int], Tensor]]:
        """The best options, one by one."""
        for row in self.gain.argsort(descending=True)[:_TRIED].tolist():
            if self.gain[row].isfinite():
                yield self.gain[row].item(), self.which[row].tolist(), self.values[row]


def _moves(mixture: GaussianMixture, cells: Cells) -> Iterator[Tensor]:
    """Mixing, mean and std (3, k) after the moves that raise the log likelihood most at once."""
    values = torch.stack([mixture.mixing, mixture.mean, mixture.std])
    joint = _log_joint(cells, values)
    log_p = joint.logsumexp(1)
    mergers = _mergers(mixture, cells, values, joint, log_p)
    splits = _splits(mixture, cells, values, joint, log_p)
    scored = [
        (loss + gain, pair, union, k, parts)
        for loss, pair, union in mergers.best()
        for gain, (k, _), parts in splits.best()
        if k not in pair
    ]
    for _, (keeps, goes), union, k, parts in sorted(scored, key=lambda s: -s[0])[:_TRIED]:
        after = values.clone()
        after[:, keeps], after[:, goes], after[:, k] = union, parts[0], parts[1]
        free = ~mixture.pinned_mixing
        after[0, free] *= (1.0 - after[0, ~free].sum()) / after[0, free].sum()
        yield after


def _log_joint(cells: Cells, values: Float[Tensor, "3 o"]) -> Float[Tensor, "c o"]:
    """Log pi + log N of each cell's weights on average, up to a constant."""
    mixing, mean, std = values
    square = (cells.mean[:, None] - mean).square() + (cells.scatter / cells.count)[:, None]
    joint: Tensor = mixing.log() - std.log() - 0.5 * square / std.square()
    return joint


def _mergers(
    mixture: GaussianMixture, cells: Cells, values: Tensor, joint: Tensor, log_p: Tensor
) -> _Options:
    """All pairs as one component of their joint moments; a pinned mean stays where it is."""
    bound = mixture.pinned_mixing | mixture.pinned_std
    goes = ~(bound | mixture.pinned_mean)
    # Of two free components the first one stays: the order is no matter of rounding.
    allowed = goes & ~bound[:, None]
    which = (allowed.triu(1) | (allowed & mixture.pinned_mean[:, None])).nonzero()
    i, j = which.T
    one, other = values[:, i], values[:, j]
    mixing = one[0] + other[0]
    mean = one[1] + other[0] / mixing * (other[1] - one[1])
    mean = torch.where(mixture.pinned_mean[i], one[1], mean)
    square = sum(v[0] * (v[2].square() + (v[1] - mean).square()) for v in (one, other)) / mixing
    union = torch.stack([mixing, mean, square.sqrt()])
    share = (joint - log_p[:, None]).exp()
    after = 1.0 - share[:, i] - share[:, j] + (_log_joint(cells, union) - log_p[:, None]).exp()
    gain = cells.count @ after.clamp_min(1e-300).log()
    return _Options(gain, which, union.T)


def _splits(
    mixture: GaussianMixture, cells: Cells, values: Tensor, joint: Tensor, log_p: Tensor
) -> _Options:
    """Each free component as two: left and right of the best cut, or inner and outer."""
    free = (~(mixture.pinned_mixing | mixture.pinned_mean | mixture.pinned_std)).nonzero()[:, 0]
    share = (joint[:, free] - log_p[:, None]).exp()
    own = values[:, free]
    off = cells.mean[:, None] - own[1]
    weight = cells.count[:, None] * share
    sums = torch.stack([weight, weight * off, weight * off.square()])
    sums[2] += share * cells.scatter[:, None]
    total = sums.sum(1)
    left = sums.cumsum(1)
    cut = (_cost(left, cells.floor) + _cost(total[:, None] - left, cells.floor)).argmin(0)
    halves = [left.gather(1, cut.expand(3, 1, -1))[:, 0]]
    halves += [(sums * (off.abs() < r * own[2])).sum(1) for r in _INNER]
    parts = torch.stack([torch.stack([half, total - half]) for half in halves])  # (h, 2, 3, k)
    count = parts[:, :, 0].clamp_min(1e-300)
    mean = parts[:, :, 1] / count
    std = (parts[:, :, 2] / count - mean.square()).clamp_min(cells.floor**2).sqrt()
    made = torch.stack([count / cells.count.sum(), mean + own[1], std], 3)
    made = made.permute(0, 2, 1, 3).flatten(0, 1)  # (h k, 2, 3)
    density = sum((_log_joint(cells, made[:, s].T) - log_p[:, None]).exp() for s in (0, 1))
    number = torch.arange(len(free), dtype=torch.int64, device="cpu").repeat(len(halves))
    gain = cells.count @ (1.0 - share[:, number] + density).clamp_min(1e-300).log()
    gain = gain.masked_fill(count.amin(1).flatten() < 2.0, -math.inf)
    return _Options(gain, free[number][:, None].expand(-1, 2), made)


def _cost(sums: Float[Tensor, "3 c k"], floor: float) -> Float[Tensor, "c k"]:
    """The cost n / 2 log s^2 - n log n; inf for fewer than two weights."""
    count = sums[0].clamp_min(1e-300)
    variance = (sums[2] / count - (sums[1] / count).square()).clamp_min(floor**2)
    cost = 0.5 * count * variance.log() - count * count.log()
    return cost.masked_fill(sums[0] < 2.0, math.inf)
