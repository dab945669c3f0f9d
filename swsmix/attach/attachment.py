"""Training under the prior in anyone's loop: hooks around the optimiser's step.

Two ways to let the prior move the weights, at strength t = tau / num_data:

`"gradient"` adds t dR/dw to each gradient before the optimiser's step, exactly as if the penalty
had been added to the loss.

`"proximal"` lets the optimiser step on the data loss alone and then makes the proximal step of
`swsmix.attach.proximal`, stable for every sigma. A tensor that got no
gradient from the loss is not moved.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards
from swsmix.attach import _optimizers, checks, gradients, proximal, second_moments
from swsmix.attach.clock import advance_
from swsmix.attach.entry import Entry, checked
from swsmix.attach.watching import Watch
from swsmix.schedule import Schedule
from swsmix.selection import resolve

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

Update = Literal["gradient", "proximal"]
MomentsOf = Literal["maximum", "posterior"]
MOMENTS = ("maximum", "posterior")


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

    *Steps within steps.* Where a subclass's `step` calls `super().step()`, or clips the gradients
    before it, the prior comes once, before the outermost.

    *Mode "gradient".* The mixtures' parameters, `prior.parameters()`, must be in an optimiser
    too, as a rule in a parameter group with its own learning rate.

    Args:
        prior: the prior.
        optimizers: those that hold its tensors.
        num_data: the number of training examples over which the loss is a mean.
        schedule: tau, EM and annealing.
        entry: decides tau in the schedule's place; by default the schedule does.
        update: `"gradient"` or `"proximal"`; None takes the proximal step where it can be made.
        moments: EM over the `"maximum"` or, with variances from `swsmix.attach.second_moments`,
            over the `"posterior"` of each weight.
        batch_size: examples per step, for moments="posterior".

    Raises:
        TypeError: if one is not an optimiser and does not hold one.
        ValueError: if a tensor of the prior is in no optimiser, num_data is not positive, an
            update is unknown, the proximal step is asked for where it cannot be made, or the
            optimisers' second moments give no posterior variances.
    """

    def __init__(
        self,
        prior: MixturePrior,
        optimizers: Sequence[object],
        *,
        num_data: int,
        schedule: Schedule,
        update: Update | None,
        moments: MomentsOf = "maximum",
        batch_size: int | None = None,
        entry: Entry | None = None,
    ) -> None:
        if not num_data > 0:
            raise ValueError(f"num_data must be positive; got {num_data}")
        wanted = resolve(prior._model[0], prior.selection.names)
        held = set(map(id, [*wanted.values(), *prior.parameters()]))
        self._optimizers = [inner for o in optimizers for inner in _optimizers.innermost(o, held)]
        if update is None:
            known = prior.mode == "em" and all(map(proximal.is_known, self._optimizers))
            update = "proximal" if known else "gradient"
        if update not in ("gradient", "proximal"):
            raise ValueError(f"update must be 'gradient' or 'proximal'; got {update!r}")
        self.prior = prior
        self.num_data = num_data
        self.schedule = schedule
        self.entry = entry
        self.update = update
        self.tick = 0
        self._waiting = set(map(id, self._optimizers))
        self._before: dict[str, Tensor] = {}
        # What `_held` said when _before was taken, by optimiser.
        self._moving: dict[int, list[tuple[str, nn.Parameter, str]]] = {}
        self._kept: dict[str, Tensor] = {}  # the memory of _before, for the next step
        self._joint: dict[int, Tensor] = {}
        self.diagnosis = Watch(prior)
        self._gradients: dict[int, int] = {}  # taken in this tick, by optimiser
        self._check()
        if moments not in MOMENTS:
            raise ValueError(f"moments must be one of {MOMENTS}; got {moments!r}")
        if moments == "posterior":
            batch_size = second_moments.check(
                self._optimizers, num_data, batch_size, update, schedule.tau
            )
        self.moments, self.batch_size = moments, batch_size
        self._number = {id(o): len(self._members(o)) for o in self._optimizers}
        self._handles = [
            handle
            for optimizer in self._optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
        ]
        for other in self._others():
            other._watch.remove()  # this one takes its place
        _LIVE.add(self)
        self._watch: _optimizers.Watch = _optimizers.Watch(self, wanted.values())

    def _check(self) -> None:
        others = [o for other in self._others() for o in other._optimizers]
        checks.check_alone(self._optimizers, others)
        checks.check_held(self.prior, self._optimizers)
        for optimizer in self._optimizers:
            checks.check_minimises(optimizer)
        if self.update == "proximal":
            checks.check_proximal(self.prior, self._optimizers)

    def _others(self) -> list[Attachment]:
        return [a for a in _LIVE if a.prior is self.prior and a is not self]

    @property
    def waiting(self) -> list[str]:
        """The optimisers that have not stepped since the last tick, by their types."""
        return [type(o).__name__ for o in self._optimizers if id(o) in self._waiting]

    @property
    def tau(self) -> float:
        """The strength at which the prior acts in the next step."""
        return self.schedule.tau_at(self.tick) if self.entry is None else self.entry.tau

    def observe(self, loss: object) -> None:
        """Tell the prior the data loss of this step, from which it sees when to enter.

        Without a schedule the prior decides from the gradients when to enter; from losses it
        decides better, and it steps back where they rise. With a schedule they change nothing.

        Args:
            loss: the mean data loss of the batch, without the penalty; of several processes,
                their mean.

        Raises:
            TypeError: if it is not a number.
            ValueError: if it is not one finite number.
        """
        value = checked(loss)
        if self.entry is not None:
            self.entry.observe(value)

    def remove(self) -> None:
        """Take the prior out of the optimisers; the mixtures stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._watch.remove()
        self._before.clear()
        self._moving.clear()
        self._kept.clear()
        _LIVE.discard(self)

    def state_dict(self) -> dict[str, Any]:
        """The clock, for a checkpoint; the mixtures are in `prior.state_dict()`."""
        clock: dict[str, Any] = {"tick": self.tick}
        if seen := self.diagnosis.state_dict():
            clock["diagnosis"] = seen
        return clock if self.entry is None else {**clock, "entry": self.entry.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the clock to that of a `state_dict`.

        Raises:
            ValueError: if the one has a schedule, and the other lets the data decide.
        """
        checks.check_clock(state, scheduled=self.entry is None)
        self.tick = state["tick"]
        if self.entry is not None:
            self.entry.load_state_dict(state["entry"])
            late = self.entry.tau > 0.0
        else:
            late = self.tick > 0 and self.schedule.tau_at(self.tick - 1) > 0.0
        self.diagnosis.load_state_dict(state.get("diagnosis", {}), late=late)

    def __reduce_ex__(self, protocol: object) -> Any:
        """Refuse to be copied or pickled: a copy would be hooked into no optimiser."""
        raise TypeError(
            "an attachment is bound to its optimiser and cannot be copied or pickled: copy the "
            "prior and the optimiser, attach the one to the other, and load_state_dict the clock"
        )

    # -- the hooks ----------------------------------------------------------------------------

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if _optimizers.within_own_step(optimizer):
            return None
        strength = self.tau / self.num_data
        acts = strength != 0.0 and not _optimizers.skipped(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._feel(optimizer)
            if acts:
                self._act(optimizer, strength)
            return None

        def with_penalty() -> Any:
            self._watch.inside = True
            try:
                loss = closure()
            finally:
                self._watch.inside = False
            self._feel(optimizer)
            if not acts:
                return loss
            # A closure zeroes the gradients, hence after it; and each time.
            self._joint.clear()
            self._act(optimizer, strength)
            if proximal.is_known(optimizer) or not isinstance(loss, Tensor | float):
                return loss  # these make no use of the value
            with torch.no_grad():
                penalty = strength * self.prior.penalty()
                return loss + (penalty.to(loss) if isinstance(loss, Tensor) else penalty.item())

        if len(args) > 1:
            return (args[0], with_penalty, *args[2:]), kwargs
        return args, {**kwargs, "closure": with_penalty}

    def _feel(self, optimizer: Optimizer) -> None:
        """Show the data's gradients to the entry, before the prior's come to them."""
        if self.entry is None or _optimizers.skipped(optimizer):
            return
        self._gradients[id(optimizer)] = self._gradients.get(id(optimizer), 0) + 1
        if self.entry.waits and self._gradients[id(optimizer)] == 1:
            held = ((name, p) for name, p, _ in self._held(optimizer))
            self.entry.feel(held, _optimizers.scale(optimizer))

    def _act(self, optimizer: Optimizer, strength: float) -> None:
        """Before the step, when the data's gradients are there."""
        checks.check_minimises(optimizer)
        if self.update == "gradient":
            self._add_gradient(optimizer, strength * _optimizers.scale(optimizer))
            return
        # gamma belongs to the weights before the step; only then is the fixed point exact.
        held = self._moving[id(optimizer)] = self._held(optimizer)
        for name, p, _ in held:
            if p.grad is None:
                continue  # the optimiser does not move it and has no step size for it
            w, kept = _shards.local(p).detach(), self._kept.get(name)
            if kept is None or _shards.memory_of(kept) != _shards.memory_of(w):
                with torch.inference_mode(False):  # what is made inside it could never change
                    kept = self._kept[name] = torch.empty_like(w)
            self._before[name] = kept.copy_(w)

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if _optimizers.within_own_step(optimizer):
            return
        if _optimizers.skipped(optimizer):
            self._before.clear()
            return
        if self._before:
            strength = self.tau / self.num_data
            held = self._moving.pop(id(optimizer))
            self.diagnosis.see(held, self._before, _optimizers.scale(optimizer))
            rounding = None if self.entry is None else self.tick
            unknown = proximal.step_(self.prior, optimizer, held, self._before, strength, rounding)
            self._before.clear()
            if unknown:
                self._fall_back(optimizer, unknown)
        self._waiting.discard(id(optimizer))
        if self._waiting:
            return
        self._waiting = set(map(id, self._optimizers))
        self._joint.clear()
        self.tick += 1
        self._watch.tick()
        if self.entry is not None:
            self.entry.tick(max(self._gradients.values(), default=1))
            self._gradients.clear()
        em_step_ = self._posterior_em_step_ if self.moments == "posterior" else None
        advance_(self.prior, self.schedule, self.tick, em_step_)
        self.diagnosis.look(self.schedule, self.tick)

    def _posterior_em_step_(self, rate: float) -> None:
        tau = self.tau or (self.schedule.tau if self.entry is None else self.entry.allowed)
        members = [(o, *member) for o in self._optimizers for member in self._members(o)]
        precision = float(self.num_data * (self.batch_size or 1))
        self.prior.em_step_(rate, second_moments.variance(self.prior, members, precision, tau))

    def _fall_back(self, optimizer: Optimizer, names: list[str]) -> None:
        self.update = "gradient"
        self._kept.clear()
        warnings.warn(
            f"the effective step of {type(optimizer).__name__} is not known or not finite for "
            f"{names}: from now on the prior's gradient is added to the data's "
            "(update='gradient')",
            stacklevel=4,
        )

    def _members(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter, str]]:
        held = {id(p) for p in _optimizers.parameters_of(optimizer)}
        return [
            (name, p, group)
            for group in self.prior.selection.groups
            for name, p in self.prior.parameters_of(group).items()
            if id(p) in held
        ]

    def _held(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter, str]]:
        """Name, parameter and group of the prior's tensors in this optimiser, unless frozen."""
        members = self._members(optimizer)
        if len({id(p) for _, p, _ in members}) != self._number[id(optimizer)]:
            self._check()  # a Parameter was replaced, or tied to another: say which one
        return [entry for entry in members if entry[1].requires_grad]

    @torch.no_grad()
    def _add_gradient(self, optimizer: Optimizer, strength: float) -> None:
        if self.prior.mode == "em":
            gradients.add_(self.prior, optimizer, self._held(optimizer), strength)
            return
        # Weights and mixtures together, taken once a tick at one point.
        if not self._joint or len(self._optimizers) == 1:
            params: list[Tensor] = [p for o in self._optimizers for _, p, _ in self._held(o)]
            if self.schedule.mixture_moves_at(self.tick):
                params += [p for p in self.prior.parameters() if p.requires_grad]
            self._joint = gradients.joint(self.prior, params)
        gradients.add_joint_(optimizer, self._joint, strength)


_LIVE: weakref.WeakSet[Attachment] = weakref.WeakSet()
