"""Training under the prior in anyone's loop: hooks around the optimiser's step.

Two ways to let the prior move the weights, at strength t = tau / num_data:

`"gradient"` adds t dR/dw to each gradient before the optimiser's step, exactly as if the penalty
had been added to the loss.

`"proximal"` lets the optimiser step on the data loss alone and then makes the proximal step of
`swsmix.proximal`, stable for every sigma. A tensor that got no gradient from the loss is not moved.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards, proximal
from swsmix.schedule import Schedule
from swsmix.selection import resolve

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

Update = Literal["gradient", "proximal"]


class Attachment:
    """A prior at work inside one or several optimisers; made by `MixturePrior.attach`.

    *One clock.* It ticks when every attached optimiser has stepped once since the last tick; the
    schedule counts its ticks, and all mixtures make their EM steps together.

    *Accumulated gradients.* The prior acts once for each `optimizer.step()`, not for each
    `backward()`.

    *Clipping.* What you clip between `backward()` and `step()` is the data gradient alone; the
    prior comes after it.

    *Gradient scalers.* The prior's gradient is multiplied by the scale where a fused optimiser
    unscales inside its step. A step that the scaler skips is no step: no update, no tick.

    *Closures* (L-BFGS, Lightning). The closure is wrapped, so that each evaluation returns the
    data loss plus the penalty and its gradient.

    *Mode "gradient".* The mixtures' parameters, `prior.parameters()`, must be in an optimiser
    too, as a rule in a parameter group with its own learning rate.

    Args:
        prior: the prior.
        optimizers: those that hold its tensors.
        num_data: the number of training examples over which the loss is a mean.
        schedule: tau, EM and annealing.
        update: `"gradient"` or `"proximal"`; None takes the proximal step where it can be made.

    Raises:
        ValueError: if a tensor of the prior is in no optimiser, num_data is not positive, an
            update is unknown, or the proximal step is asked for where it cannot be made.
    """

    def __init__(
        self,
        prior: MixturePrior,
        optimizers: Sequence[Optimizer],
        *,
        num_data: int,
        schedule: Schedule,
        update: Update | None,
    ) -> None:
        if not num_data > 0:
            raise ValueError(f"num_data must be positive; got {num_data}")
        if update is None:
            known = prior.mode == "em" and all(
                isinstance(_unwrapped(o), proximal.KNOWN) for o in optimizers
            )
            update = "proximal" if known else "gradient"
        if update not in ("gradient", "proximal"):
            raise ValueError(f"update must be 'gradient' or 'proximal'; got {update!r}")
        self.prior = prior
        self.num_data = num_data
        self.schedule = schedule
        self.update = update
        self.tick = 0
        self._optimizers = [_unwrapped(optimizer) for optimizer in optimizers]
        self._waiting = set(map(id, self._optimizers))
        self._before: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the memory of _before, for the next step
        self._joint: dict[int, Tensor] = {}
        self._check()
        self._number = {id(o): len(self._names(o)) for o in self._optimizers}
        _LIVE.add(self)
        self._handles = [
            handle
            for optimizer in self._optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
        ]

    def _check(self) -> None:
        mine = set(map(id, self._optimizers))
        others = (a for a in _LIVE if a.prior is self.prior)
        if len(mine) < len(self._optimizers) or any(
            not mine.isdisjoint(map(id, other._optimizers)) for other in others if other is not self
        ):
            raise ValueError(
                "this prior is attached to this optimiser already and would act twice: .remove() "
                "the other attachment first (fit makes one of its own)"
            )
        held = {id(p) for optimizer in self._optimizers for p in _parameters(optimizer)}
        wanted = resolve(self.prior._model[0], self.prior.selection.names)
        missing = [name for name, p in wanted.items() if id(p) not in held]
        if missing:
            raise ValueError(
                f"these tensors of the prior are in no attached optimiser: {missing}. Give the "
                "optimiser the model's current parameters (after any wrapping), or leave the "
                "tensors out of the prior with exclude="
            )
        if self.prior.mode == "gradient" and not all(
            id(p) in held for p in self.prior.parameters()
        ):
            raise ValueError(
                "in mode 'gradient' an optimiser must hold the mixtures too: add a parameter group "
                "{'params': prior.parameters(), 'lr': ...}"
            )
        if any(g.get("maximize") for o in self._optimizers for g in o.param_groups):
            raise ValueError("the prior is minimised; got an optimiser with maximize=True")
        if self.update == "proximal":
            if self.prior.mode == "gradient":
                raise ValueError("the proximal step wants mode='em'; use update='gradient'")
            for optimizer in self._optimizers:
                if not isinstance(optimizer, proximal.KNOWN):
                    raise ValueError(
                        "the proximal step wants SGD, Adam or AdamW, whose "
                        f"effective step is known; got {type(optimizer).__name__}: use "
                        "update='gradient'"
                    )

    def remove(self) -> None:
        """Take the prior out of the optimisers; the mixtures stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._before.clear()
        self._kept.clear()
        _LIVE.discard(self)

    def state_dict(self) -> dict[str, int]:
        """The clock, for a checkpoint; the mixtures are in `prior.state_dict()`.

        Returns:
            A dictionary for `load_state_dict`.
        """
        return {"tick": self.tick}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the clock.

        Args:
            state: from `state_dict`.
        """
        self.tick = state["tick"]

    # -- the hooks ----------------------------------------------------------------------------

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        strength = self.schedule.tau_at(self.tick) / self.num_data
        if strength == 0.0 or _skipped(optimizer):
            return None
        if self.update == "proximal":
            # gamma belongs to the weights before the step; only then is the fixed point exact.
            for name, p, _ in self._held(optimizer):
                w, kept = _shards.local(p).detach(), self._kept.get(name)
                if kept is None or _make(kept) != _make(w):
                    kept = self._kept[name] = torch.empty_like(w)
                self._before[name] = kept.copy_(w)
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._add_gradient(optimizer, strength * _scale(optimizer))
            return None

        def with_penalty() -> Any:
            # A closure zeroes the gradients, hence after it; and each time.
            loss = closure()
            self._add_gradient(optimizer, strength)
            if loss is None or isinstance(optimizer, proximal.KNOWN):
                return loss  # these make no use of the value
            with torch.no_grad():
                return loss + strength * self.prior.penalty().to(loss)

        if len(args) > 1:
            return (args[0], with_penalty, *args[2:]), kwargs
        return args, {**kwargs, "closure": with_penalty}

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if _skipped(optimizer):
            self._before.clear()
            return
        if self._before:
            strength = self.schedule.tau_at(self.tick) / self.num_data
            proximal.step_(self.prior, optimizer, self._held(optimizer), self._before, strength)
            self._before.clear()
        self._waiting.discard(id(optimizer))
        if self._waiting:
            return
        self._waiting = set(map(id, self._optimizers))
        self._joint.clear()
        self.tick += 1
        advance_(self.prior, self.schedule, self.tick)

    def _names(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter, str]]:
        held = {id(p) for p in _parameters(optimizer)}
        return [
            (name, p, group)
            for group in self.prior.selection.groups
            for name, p in self.prior.parameters_of(group).items()
            if id(p) in held
        ]

    def _held(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter, str]]:
        """The prior's tensors in this optimiser, those frozen since then left out.

        Returns:
            name, parameter, group of the prior.
        """
        found = self._names(optimizer)
        if len(found) != self._number[id(optimizer)]:
            self._check()  # a Parameter was replaced: say which one
        return [entry for entry in found if entry[1].requires_grad]

    @torch.no_grad()
    def _add_gradient(self, optimizer: Optimizer, strength: float) -> None:
        if self.prior.mode == "gradient":
            self._add_joint_gradient(optimizer, strength)
            return
        by_group: dict[str, list[nn.Parameter]] = {}
        for _, p, group in self._held(optimizer):
            by_group.setdefault(group, []).append(p)
        for group, params in by_group.items():
            for p in params:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            self.prior.add_gradient_(group, params, strength)

    def _add_joint_gradient(self, optimizer: Optimizer, strength: float) -> None:
        """Mode "gradient": weights and mixtures together, taken once a tick at one point."""
        if not self._joint or len(self._optimizers) == 1:
            params = [p for o in self._optimizers for _, p, _ in self._held(o)]
            if self.schedule.mixture_moves_at(self.tick):
                params += list(self.prior.parameters())
            with torch.enable_grad():
                gradients = torch.autograd.grad(self.prior.penalty(), params)
            self._joint = {id(p): g for p, g in zip(params, gradients, strict=True)}
        for p in _parameters(optimizer):
            if id(p) in self._joint:
                gradient = strength * self._joint[id(p)]
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)


_LIVE: weakref.WeakSet[Attachment] = weakref.WeakSet()


def advance_(prior: MixturePrior, schedule: Schedule, tick: int) -> None:
    """What the schedule asks of the mixtures when the clock reaches a tick: EM, annealing.

    Args:
        prior: the prior, changed in place.
        schedule: the schedule.
        tick: the clock.
    """
    if prior.mode == "em" and schedule.em_at(tick):
        prior.em_step_(schedule.em_rate)
    for group, mixture in prior.mixtures.items():
        cap = schedule.std_cap_at(tick, group)
        if cap is not None and (schedule.anneals_at(tick) or prior.mode == "gradient"):
            mixture.cap_std_(cap, floor=schedule.std_floor * cap)


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    # Accelerate and Lightning wrap optimisers in such that have no hooks of their own.
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def _make(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _scale(optimizer: Optimizer) -> float:
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _skipped(optimizer: Optimizer) -> bool:
    # A fused optimiser runs its hooks even for the steps that a gradient scaler skips.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
