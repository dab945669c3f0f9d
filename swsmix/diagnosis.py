"""What goes wrong with a prior in training: five findings, each a number above its threshold.

`diagnose` is a pure function of a mixture and its moments, O(K^2). `swsmix.attach.watching` says
each finding once while a prior trains, and sees the steps that tell whether it is frozen.

A component that nothing needs is nothing wrong. So *starved* and *duplicate* are findings only
where moving such a component elsewhere would describe the weights better; the default method makes
these moves by itself (`swsmix.start.moves`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from swsmix import _shards
from swsmix.em import HyperPrior, log_hyper_prior
from swsmix.mixture import GaussianMixture
from swsmix.start.cell_em import e_step_on_cells, fit_cells_
from swsmix.start.cells import cells_for, cells_of
from swsmix.start.moves import moved

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

Array = NDArray[np.float64]
Kind = Literal["frozen", "collapsed", "starved", "duplicate", "diverged"]
KINDS: tuple[Kind, ...] = get_args(Kind)

HELD = 0.965  # frozen: the prior takes back this share of the data's steps,
GAIN = 0.1  # which agree and would have lowered the loss by as many nats per case,
PULLED = 2.0  # or by so many, where it has pulled the weights the other way
AGREE = 0.25  # |sum of steps|^2 in units of what it would be if all were alike
NARROW = 0.02  # collapsed: the weights' std, in units of that at the start
OVERLAP = 0.98  # duplicate: the Bhattacharyya coefficient of two components
WASTE = 0.01  # starved, duplicate: what a move would gain, in nats per weight
GROWTH = 1000.0  # diverged: a centre or std, in units of the weights' std at the start,
LARGE = 10.0  # if it is at least as large as this
_SETTLED = 10  # EM steps before a component counts as starved or duplicate
_SAMPLE = 1 << 14  # weights on which a move is tried

_SENTENCES: dict[Kind, str] = {
    "frozen": "is frozen: its pull takes back {value:.0%} of what the data's steps add up to "
    "(threshold {0:.0%}), although these would lower the loss: lower tau, or let the prior enter "
    "later (Schedule(start=..., warmup=...))",
    "collapsed": "has collapsed: its weights spread {value:.2g} times as far as at the start "
    "(threshold {1:g}), all in one cluster: lower tau, let the prior enter later "
    "(Schedule(start=..., warmup=...)), or hold the stds up with HyperPrior(std=..., "
    "std_count=...)",
    "starved": "has {value:.0f} starved components, with less than one weight each (threshold 1), "
    "while others describe too much: use method='auto', which moves them, or fewer components",
    "duplicate": "has components that describe the same weights, overlap {value:.3f} (threshold "
    "{2:g}), while others describe too much: use method='auto', which moves them, or fewer "
    "components",
    "diverged": "has diverged: a centre or std is {value:.3g} times the weights' std at the start "
    "(threshold {3:g}): lower the learning rate or tau, and look for unscaled inputs or a loss "
    "that is no mean",
}


class PriorWarning(UserWarning):
    """Something goes wrong with a prior in training; the message says what, and what to do."""


@dataclass(frozen=True)
class Finding:
    """One thing that goes wrong with a mixture.

    Attributes:
        kind: `"frozen"`, `"collapsed"`, `"starved"`, `"duplicate"` or `"diverged"`.
        value: its number: the share of the data's steps that the prior takes back; the weights'
            std in units of that at the start; the number of starved components; the largest
            overlap; the largest centre or std in units of the weights' std at the start.

    Example:
        >>> print(Finding("starved", 3.0).message)
        has 3 starved components, with less than one weight each (threshold 1), while others \
describe too much: use method='auto', which moves them, or fewer components
    """

    kind: Kind
    value: float

    @property
    def message(self) -> str:
        """The rest of a sentence that begins with the mixture's name: number, threshold, remedy."""
        return _SENTENCES[self.kind].format(HELD, NARROW, OVERLAP, GROWTH, value=self.value)

    def __str__(self) -> str:
        """The kind and the number."""
        return f"{self.kind} ({self.value:.3g})"


@np.errstate(all="ignore")
@torch.no_grad()
def diagnose(
    mixture: GaussianMixture, count: Float[Tensor, " k"], start_std: float, held: float = 0.0
) -> list[Finding]:
    """What is wrong by a mixture's own numbers, in O(K^2).

    *Starved* and *duplicate* are here whether or not the component is needed elsewhere; see
    `wasted`.

    Args:
        mixture: the mixture.
        count: N_j, the expected number of weights of each component.
        start_std: the weights' std at the start, in units of the weights; 0 if unknown.
        held: the share of the data's steps that the prior takes back, see `Watch`.

    Returns:
        The findings, at most one of each kind.

    Example:
        >>> twins = GaussianMixture([0.5, 0.4, 0.1], [0.0, 0.0, 1.0], [0.1, 0.1, 0.1])
        >>> diagnose(twins, 100 * twins.mixing, start_std=0.3)
        [Finding(kind='duplicate', value=1.0)]
    """
    # In numpy: a few numbers, and torch takes several times as long for each operation.
    mixing, mean, std, number = (
        v.detach().double().cpu().numpy()
        for v in (mixture.mixing, mixture.mean, mixture.std, count)
    )
    if not all(np.isfinite(v).all() for v in (mixing, mean, std, number)):
        return [Finding("diverged", math.inf)]
    found: list[Finding] = [Finding("frozen", held)] if held > HELD else []
    owns = number >= 1.0
    total = max(number.sum(), 1e-300)
    centre = (number * mean).sum() / total
    spread = math.sqrt((number * (std**2 + (mean - centre) ** 2)).sum() / total)
    if start_std > 0.0 and total >= 2.0 and spread < NARROW * start_std:
        found.append(Finding("collapsed", spread / start_std))
    free = ~(mixture.pinned_mixing | mixture.pinned_mean).cpu().numpy()
    if starved := int((~owns & free).sum()):
        found.append(Finding("starved", float(starved)))
    overlap = float(np.where(owns[:, None] & owns, _overlap(mean, std), 0.0).max())
    if overlap > OVERLAP:
        found.append(Finding("duplicate", overlap))
    largest = float(np.maximum(abs(mean), std)[owns].max()) if owns.any() else 0.0
    if largest > max(LARGE, GROWTH * start_std) and start_std > 0.0:
        found.append(Finding("diverged", largest / start_std))
    return found


def _overlap(mean: Array, std: Array) -> Array:
    """The Bhattacharyya coefficients of all pairs (k, k); 0 of a component with itself."""
    square = std**2 + std[:, None] ** 2
    same: Array = np.sqrt(2.0 * std * std[:, None] / square)
    same *= np.exp(-0.25 * (mean - mean[:, None]) ** 2 / square)
    np.fill_diagonal(same, 0.0)
    return same


@torch.no_grad()
def wasted(mixture: GaussianMixture, w: Float[Tensor, " n"], hyper: HyperPrior) -> bool:
    """Whether a component would describe the weights better elsewhere.

    Args:
        mixture: a plain mixture.
        w: the weights, or a sample of them.
        hyper: its hyper-prior.

    Returns:
        True if a move (`swsmix.start.moves`) gains more than `WASTE` nats per weight over EM alone.
    """
    cells = cells_of(w, cells_for(mixture.num_components))
    better = moved(mixture, cells, hyper)
    if better is None:
        return False
    values = (getattr(mixture, name).double().cpu() for name in ("mixing", "mean", "std"))
    pins = {n: getattr(mixture, n).cpu() for n in ("pinned_mixing", "pinned_mean", "pinned_std")}
    here = fit_cells_(GaussianMixture(*values, **pins), cells, hyper, 10)
    better.to("cpu", torch.float64)
    there = e_step_on_cells(better, cells)[0] + log_hyper_prior(better, hyper)
    return (there - here).item() > WASTE * len(w)


@torch.no_grad()
def findings(prior: MixturePrior, group: str, *, annealed: bool = False) -> list[Finding]:
    """What is wrong with a group of a prior now.

    The numbers of weights are those of the last EM step, so that no pass over the weights is
    needed; a sample of them is looked at only where a component is starved or a duplicate. Those
    two are not judged in mode "gradient", where a schedule narrows the stds, nor before the tenth
    EM step.

    Args:
        prior: the prior.
        group: its group.
        annealed: whether a schedule narrows the stds, and so empties and joins components.

    Returns:
        The findings.
    """
    state = prior._state(group)
    count = state.running_count
    if count.isnan().any():  # before the first EM step
        size = sum(p.numel() for p in prior.parameters_of(group).values())
        count = state.mixture.mixing.double() * size
    found = diagnose(state.mixture, count, state.start_std.item(), prior.held.get(group, 0.0))
    idle = [f for f in found if f.kind in ("starved", "duplicate")]
    judged = not (prior.mode != "em" or prior.moves or annealed) and int(state.steps) >= _SETTLED
    if idle and not (judged and wasted(state.mixture, _sample(prior, group), state.hyper)):
        found = [f for f in found if f not in idle]
    return found


def _sample(prior: MixturePrior, group: str) -> Tensor:
    """At most about so many weights, evenly drawn (on this machine)."""
    parts = [_shards.local(p).detach().reshape(-1) for p in prior.parameters_of(group).values()]
    every = stride(sum(map(len, parts)), _SAMPLE)
    return torch.cat([w[::every] for w in parts])


def stride(size: int, most: int) -> int:
    """A stride that takes about so many weights, odd, to meet all columns of a matrix."""
    return max(1, size // most) | 1
