"""What goes wrong with a prior in training: five findings, each a number above its threshold.

`diagnose` is a pure function of a mixture and its moments, O(K^2). `Watch` sees the steps of an
attached optimiser, and says each finding once.

A component that nothing needs is nothing wrong. So *starved* and *duplicate* are findings only
where moving such a component elsewhere would describe the weights better; the default method makes
these moves by itself (`swsmix.start.moves`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from swsmix import _shards
from swsmix.em import HyperPrior, log_hyper_prior
from swsmix.mixture import GaussianMixture
from swsmix.schedule import Schedule
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
_SEEN = 256  # weights per tensor whose steps are followed
_EACH, _SELDOM = 16, 8  # looks at each of so many EM steps, then at every eighth
_OFTEN = 8  # steps between looks at how far they have come

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
    every = _odd(sum(map(len, parts)), _SAMPLE)
    return torch.cat([w[::every] for w in parts])


def _odd(size: int, most: int) -> int:
    """A stride that takes about so many weights, odd, to meet all columns of a matrix."""
    return max(1, size // most) | 1


class Watch:
    """Looks at a prior while it trains, and says each finding once per group.

    *Frozen.* Of a few hundred weights per tensor it adds up the data's steps d (what the optimiser
    did before the proximal step), from the step on with which the prior enters until they would
    have moved the weights as far as these are spread, |sum d| >= std. The share of them that the
    prior has taken back by then is

        held = 1 - <w - w_start, sum d> / |sum d|^2,

    if that is at least `HELD`, the steps agree, |sum d|^2 > `AGREE` n sum |d|^2 for n steps, and
    they would have lowered the loss, -<mean g, sum d> > `GAIN` nats per case (`PULLED`, if held is
    as far above 1: trained weights that settle elsewhere are nothing wrong); else 0. It is judged
    once, and only where the proximal step is made and no std is annealed.

    Args:
        prior: the prior.
    """

    def __init__(self, prior: MixturePrior) -> None:
        self.prior = prior
        prior.held = {}  # by group, once it is judged
        self._late = False  # the prior entered before this began
        # group -> tensor -> rows: the start, the moves so far, the data's steps, their squares, the
        # gradients and how many.
        self._seen: dict[str, dict[str, Tensor]] = {}
        self._said: set[tuple[str, Kind]] = set()

    def see(
        self,
        members: Sequence[tuple[str, nn.Parameter, str]],
        before: Mapping[str, Tensor],
        scale: float,
    ) -> None:
        """See a step of the data's, before the prior's.

        Args:
            members: name, parameter and group of the prior's tensors.
            before: name -> the weights before the step.
            scale: that of the gradients.
        """
        judged = self.prior.held
        followed = [m for m in members if m[2] not in judged and m[0] in before]
        if self._late or not followed:
            return
        # What is made in inference mode could never change again; to leave it turns gradients on.
        with torch.inference_mode(False), torch.no_grad():
            for name, p, group in followed:
                grad = None if p.grad is None else _shards.local(p.grad)
                if grad is None or grad.layout != torch.strided:
                    continue
                every = _odd(before[name].numel(), _SEEN)
                now, old, g = (
                    t.reshape(-1)[::every].float() for t in (_shards.local(p), before[name], grad)
                )
                rows = self._seen.setdefault(group, {})
                if name not in rows:
                    rows[name] = torch.stack([old, *[torch.zeros_like(old)] * 5])
                start, moves, steps, squares, gradients, number = rows[name].unbind()
                torch.sub(old, start, out=moves)
                step = now - old
                steps += step
                squares.addcmul_(step, step)
                gradients.add_(g, alpha=1.0 / scale)
                number += 1

    def look(self, schedule: Schedule, tick: int) -> None:
        """Warn of what is new, at the ticks of EM steps (later at some); judge the data's steps.

        Args:
            schedule: the schedule.
            tick: the clock.

        Warns:
            PriorWarning: once for each group and kind.
        """
        annealed = schedule.std_start is not None
        if tick % _OFTEN == 0:
            for group in [g for g in self._seen if g not in self.prior.held]:
                self._judge(group, annealed=annealed)
        if not schedule.em_at(tick):
            return
        for group in self.prior.selection.groups:
            steps = int(self.prior._state(group).steps)
            if steps > _EACH and steps % _SELDOM:
                continue
            for found in findings(self.prior, group, annealed=annealed):
                if (group, found.kind) not in self._said:
                    self._said.add((group, found.kind))
                    warnings.warn(
                        f"the prior's mixture {group!r} {found.message}", PriorWarning, stacklevel=2
                    )

    def _judge(self, group: str, *, annealed: bool) -> None:
        seen = self._seen[group]
        start, moved_, steps, squares, gradient, number = torch.cat([*seen.values()], 1)
        far = steps.square().sum()
        if not start.std(correction=0) > 0 or far < len(start) * start.var(correction=0):
            return
        # Large tensors are sampled more thinly.
        params = self.prior.parameters_of(group)
        local = {name: _shards.local(params[name]).numel() for name in seen}
        times = torch.cat(
            [(local[n] / s.shape[1]) * torch.ones_like(s[0]) for n, s in seen.items()]
        )
        # Of all weights, in nats per case.
        gain = -(times * gradient * steps / number).sum().item()
        kept = ((moved_ * steps).sum() / far).item()
        agree = (far / (number * squares).sum()).item()
        held = 1.0 - kept
        wanted = GAIN if held <= 2.0 - HELD else PULLED
        frozen = held > HELD and agree > AGREE and gain > wanted and not annealed
        self.prior.held[group] = held if frozen else 0.0
        del self._seen[group]

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, to continue; empty before the prior enters."""
        if not self.prior.held and not self._seen:
            return {}
        return {"held": dict(self.prior.held), "seen": {g: dict(s) for g, s in self._seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any], *, late: bool) -> None:
        """The inverse of `state_dict`.

        Args:
            state: from `state_dict`, or empty.
            late: whether the prior had entered by then; if nothing was seen of it, nothing is
                judged.
        """
        self.prior.held = dict(state.get("held", {}))
        self._seen = {
            g: {n: t.clone() for n, t in s.items()} for g, s in state.get("seen", {}).items()
        }
        self._late = late and not state
