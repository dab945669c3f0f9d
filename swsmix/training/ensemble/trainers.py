"""The two ways to train an ensemble: rounds of L-BFGS on all cases, or Adam over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix.attach import Update, proximal
from swsmix.attach.entry import Entry, ceiling
from swsmix.schedule import Schedule
from swsmix.training.ensemble.lbfgs import minimise
from swsmix.training.ensemble.mixtures import Mixtures
from swsmix.training.ensemble.stacking import Stack
from swsmix.training.entering import RoundEntry


class Ensembled:
    """What both ways of training share: theta, the mixtures and the clock."""

    def __init__(
        self,
        stack: Stack,
        mixtures: Mixtures | None,
        schedules: Sequence[Schedule] | None,
        default: Schedule,
        new_entry: Callable[[float, int], Any],
    ) -> None:
        self.stack, self.mixtures = stack, mixtures
        self.schedules = list(schedules or [default] * len(stack.models))
        self.entries: list[Any] = []
        if schedules is None and mixtures is not None:  # the prior enters by itself, as in `fit`
            sizes = [prior._weighted_size() for prior in mixtures.priors]
            cases = map(round, stack.num_data().tolist())
            self.entries = [new_entry(*each) for each in zip(sizes, cases, strict=True)]
        self.theta = stack.theta()
        self.phi = self.theta[:, :0] if mixtures is None else mixtures.phi()
        self.num_data = stack.num_data()
        self.steps = 0

    @property
    def everyone(self) -> Tensor:
        """The numbers of all members."""
        return torch.arange(len(self.theta), dtype=torch.int64, device=self.theta.device)

    def tau(self) -> Float[Tensor, " b"]:
        """The strength at which each member's prior acts in the next step."""
        if self.entries:
            return self.theta.new_tensor([entry.tau for entry in self.entries])
        return self.theta.new_tensor([s.tau_at(self.steps) for s in self.schedules])

    def show_losses(self) -> None:
        """Show every member's data loss to its entry, if the prior enters rounds by itself."""
        losses = (self.stack.value(self.theta) / self.num_data).tolist() if self.entries else []
        for entry, loss in zip(self.entries, losses, strict=True):
            entry.see(loss)

    def objective(
        self, theta: Tensor, phi: Tensor, rows: Tensor, tau: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Data term + tau * penalty of some members, in nats, and the gradients by both."""
        value, by_theta = self.stack.value_and_gradient(theta, rows, batch)
        if self.mixtures is None:
            return value, by_theta, torch.zeros_like(phi)
        more, by_weights, by_phi = self.mixtures.penalty(theta, phi, rows)
        t = tau[rows]
        return value + t * more, by_theta + t[:, None] * by_weights, t[:, None] * by_phi

    def advance_(self) -> None:
        """What the schedules ask of the mixtures when the clock has reached the next tick."""
        self.steps += 1
        if self.mixtures is None:
            return
        if self.mixtures.mode == "em":
            rates = [s.em_rate if s.em_at(self.steps) else 0.0 for s in self.schedules]
            self.mixtures.em_step_(self.theta, self.theta.new_tensor(rates))
            due = self.mixtures.due(torch.tensor(rates, dtype=torch.float64, device="cpu") > 0)
            if due:
                self.write_()
            for member in due:
                self.mixtures.move_(member)
        else:
            self.mixtures.take_(self.phi)
        for g in self.mixtures.groups:
            caps, floors = [], []
            for s in self.schedules:
                cap = s.std_cap_at(self.steps, g)
                acts = s.anneals_at(self.steps) or self.mixtures.mode == "gradient"
                caps.append(math.inf if cap is None or not acts else cap)
                floors.append(0.0 if cap is None or not acts else s.std_floor * cap)
            if min(caps) < math.inf:
                self.mixtures.cap_std_(
                    g, self.theta.new_tensor(caps), self.theta.new_tensor(floors)
                )
                if self.mixtures.mode == "gradient":
                    self.phi = self.mixtures.phi()

    def write_(self) -> None:
        """Put everything back into the networks, losses and priors."""
        self.stack.write_(self.theta)
        if self.mixtures is not None:
            self.mixtures.take_(self.phi)
            self.mixtures.write_()

    def check_finite(self, value: Tensor, epoch: int) -> None:
        """Raise if a member's objective or parameters are no longer finite."""
        good = value.isfinite() & self.theta.isfinite().all(1)
        if not bool(good.all()):
            bad = (~good).nonzero()[:, 0].tolist()
            raise FloatingPointError(
                f"the objective of the members {bad} is no longer finite in epoch {epoch}: lower "
                "tau or the learning rate, or raise std_count of the hyper-prior; the last "
                "checkpoint is intact"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that the next epochs depend on."""
        state: dict[str, Any] = {"theta": self.theta, "phi": self.phi, "steps": self.steps}
        if self.mixtures is not None:
            state["mixtures"] = self.mixtures.state_dict()
        if self.entries:
            state["entries"] = {str(i): e.state_dict() for i, e in enumerate(self.entries)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("theta", "phi"):
            getattr(self, name).copy_(state[name])
        self.steps = int(state["steps"])
        if self.mixtures is not None:
            self.mixtures.load_state_dict(state["mixtures"])
        for i, entry in enumerate(self.entries):
            entry.load_state_dict(state["entries"][str(i)])


class RoundsOfAll(Ensembled):
    """An epoch is one round of L-BFGS on all cases."""

    def __init__(
        self,
        stack: Stack,
        mixtures: Mixtures | None,
        schedules: Sequence[Schedule] | None,
        iterations: int,
    ) -> None:
        super().__init__(stack, mixtures, schedules, Schedule(em_every=1), _of_rounds)
        self.iterations = iterations

    def epoch(self, number: int) -> None:
        """One round."""
        if self.steps == 0:
            self.show_losses()
        tau, p = self.tau(), self.theta.shape[1]
        held = [not s.mixture_moves_at(self.steps) for s in self.schedules]
        still = torch.tensor(held, dtype=torch.bool, device=self.theta.device)

        def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, by_theta, by_phi = self.objective(x[:, :p], x[:, p:], rows, tau)
            by_phi = torch.where(still[rows][:, None], 0.0, by_phi)  # held during the burn-in
            return value, torch.cat([by_theta, by_phi], 1)

        start = self.objective(self.theta, self.phi, self.everyone, tau)
        self.check_finite(start[0] + start[1].sum(1), number)
        both, value = minimise(objective, torch.cat([self.theta, self.phi], 1), self.iterations)
        self.check_finite(value, number)
        self.theta, self.phi = both[:, :p].clone(), both[:, p:].clone()
        self.show_losses()
        self.advance_()


class BatchesOfAll(Ensembled):
    """An epoch is one pass of Adam over batches that all members share."""

    def __init__(
        self,
        stack: Stack,
        mixtures: Mixtures | None,
        schedules: Sequence[Schedule] | None,
        lr: float,
        batch_size: int,
        update: Update | None,
        seed: int,
    ) -> None:
        super().__init__(stack, mixtures, schedules, Schedule(em_start=0), _of_batches)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        em = mixtures is not None and mixtures.mode == "em"
        update = update or ("proximal" if em else "gradient")
        if update not in ("gradient", "proximal"):
            raise ValueError(f"update must be 'gradient' or 'proximal'; got {update!r}")
        if update == "proximal" and not em:
            raise ValueError("the proximal step needs priors in mode 'em'; use update='gradient'")
        self.update, self.batch_size, self.seed = update, batch_size, seed
        self.theta, self.phi = nn.Parameter(self.theta), nn.Parameter(self.phi)
        self.optimizer = torch.optim.Adam([self.theta, self.phi], lr=lr)

    def epoch(self, number: int) -> None:
        """One pass over the batches."""
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(
            self.stack.num_cases, generator=shuffle, dtype=torch.int64, device="cpu"
        )
        for batch in order.to(self.theta.device).split(self.batch_size):
            self._step(batch, number)

    @torch.no_grad()
    def _step(self, batch: Tensor, number: int) -> None:
        everyone, theta = self.everyone, self.theta.data
        value, gradient = self.stack.value_and_gradient(theta, everyone, batch)
        weights = self.stack.weights
        count = torch.full_like(value, len(batch))
        if weights is not None:
            count = weights[:, batch].sum(1).clamp_min(1e-12)
        gradient = gradient / count[:, None]
        self.check_finite(value, number)
        strength = self.tau() / self.num_data
        losses = (value / count).tolist()
        seen = (count > 1e-9).tolist()  # a batch may hold none of a member's cases
        for entry, loss, has in zip(self.entries, losses, seen, strict=False):
            if has:
                entry.observe(loss)
        acts = self.mixtures is not None and bool((strength > 0).any())
        # As in `fit`: Adam counts no step of mixtures that are held.
        self.theta.grad, self.phi.grad = gradient, None
        before = theta.clone() if acts and self.update == "proximal" else None
        if acts and self.mixtures is not None and before is None:
            _, by_theta, by_phi = self.mixtures.penalty(theta, self.phi.data, everyone)
            held = [not s.mixture_moves_at(self.steps) for s in self.schedules]
            still = torch.tensor(held, dtype=torch.bool, device=theta.device)[:, None]
            self.theta.grad += strength[:, None] * by_theta
            if not bool(still.all()):
                self.phi.grad = torch.where(still, 0.0, strength[:, None] * by_phi)
        self.optimizer.step()
        if before is not None and self.mixtures is not None:
            settings = self.optimizer.param_groups[0]
            step = proximal.effective_step(
                self.optimizer, self.optimizer.state[self.theta], settings
            )
            assert step is not None  # it is Adam's
            self.mixtures.proximal_(theta, before, step, strength)
        if self.mixtures is not None and self.mixtures.mode == "gradient":
            self.mixtures.take_(self.phi.data)
        for entry in self.entries:
            entry.tick()
        self.advance_()

    def advance_(self) -> None:
        """As for rounds; theta and phi stay the optimiser's own tensors."""
        theta, phi = self.theta, self.phi
        self.theta, self.phi = theta.data, phi.data
        super().advance_()
        phi.data.copy_(self.phi)
        self.theta, self.phi = theta, phi

    def state_dict(self) -> dict[str, Any]:
        """With the optimiser's moments."""
        state = super().state_dict()
        state |= {"theta": self.theta.data, "phi": self.phi.data}
        return {**state, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


def _of_rounds(num_weights: float, num_data: int) -> RoundEntry:
    """What decides tau of one member where there is no schedule, as for rounds in `fit`."""
    return RoundEntry(ceiling(1.0, num_weights=num_weights, num_data=num_data))


def _of_batches(num_weights: float, num_data: int) -> Entry:
    """The same, as for batches."""
    return Entry(1.0, num_weights=num_weights, num_data=num_data)
