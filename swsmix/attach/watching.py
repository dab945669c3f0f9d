"""What goes wrong with an attached prior, seen while it trains, and said once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swsmix import _shards
from swsmix.diagnosis import AGREE, GAIN, HELD, PULLED, Kind, PriorWarning, findings, stride
from swsmix.schedule import Schedule

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

_SEEN = 256  # weights per tensor whose steps are followed
_EACH, _SELDOM = 16, 8  # looks at each of so many EM steps, then at every eighth
_OFTEN = 8  # steps between looks at how far they have come


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
                every = stride(before[name].numel(), _SEEN)
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
