"""The mixture priors of an ensemble, side by side: one penalty, one EM step for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from swsmix.em import EMState, HyperPrior, Moments, e_step, m_step_
from swsmix.em.hyper_prior import log_density
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior, moving
from swsmix.tables import Adaptive, BatchTables, neg_log_prior
from swsmix.training.ensemble.stacking import Stack

_PHI = ("mixing", "mean", "std")
_NAMES = ("centre", "count", "first", "second")


class Mixtures:
    """The mixtures of b priors, one per member, each group's as one batch of mixtures.

    Args:
        priors: one per network of the stack, alike but for their values.
        stack: the networks.

    Raises:
        ValueError: if the priors differ in their groups, numbers of components or mode, or belong
            to other networks.
    """

    def __init__(self, priors: Sequence[MixturePrior], stack: Stack) -> None:
        self.priors = list(priors)
        _check_priors(self.priors, stack.models)
        self.mode = priors[0].mode
        self.groups = tuple(priors[0].selection.groups)
        self.columns = {g: stack.columns(list(priors[0].parameters_of(g))) for g in self.groups}
        like = stack.theta()
        self.mixtures: dict[str, GaussianMixture] = {}
        self.hyper: dict[str, HyperPrior] = {}
        self.tau: dict[str, Tensor] = {}
        self.running: dict[str, Moments] = {}  # nan where there was no EM step yet
        for g in self.groups:
            states = [prior._state(g) for prior in self.priors]
            plain = [state.mixture.plain_copy().to(like) for state in states]
            self.mixtures[g] = GaussianMixture.stacked(plain)
            values = [state.hyper.expanded(state.mixture) for state in states]
            self.hyper[g] = HyperPrior(
                **{name: torch.stack([each[name] for each in values]) for name in values[0]}
            )
            self.tau[g] = like.new_tensor([prior.tau[g] for prior in self.priors])
            self.running[g] = _stacked([_running(state) for state in states])
        self.steps = torch.tensor(
            [int(prior._state(self.groups[0]).steps) for prior in self.priors], device="cpu",
            dtype=torch.int64,
        )  # fmt: skip
        if self.mode == "gradient":
            for mixture in self.mixtures.values():
                mixture.trainable_()
        # Of each group's mixtures as they are: the tables, and log p(phi).
        self._tables: dict[str, tuple[BatchTables, Tensor]] = {}

    # -- mode "gradient": the mixtures are columns of theta ---------------------------------------

    def phi(self) -> Float[Tensor, "b q"]:
        """The parameters of the mixtures that an optimiser moves; none in mode "em"."""
        parts = [p.detach() for g in self.groups for p in self._originals(g)]
        return (
            torch.cat(parts, 1)
            if parts
            else self.tau[self.groups[0]].new_zeros(len(self.priors), 0)
        )

    @torch.no_grad()
    def take_(self, phi: Float[Tensor, "b q"]) -> None:
        """Set the mixtures to such parameters."""
        originals = [p for g in self.groups for p in self._originals(g)]
        parts = phi.split([p.shape[1] for p in originals], 1) if originals else ()
        for p, part in zip(originals, parts, strict=True):
            p.copy_(part)

    def _originals(self, group: str) -> list[nn.Parameter]:
        if self.mode == "em":
            return []
        return [_link(self.mixtures[group], name).original for name in _PHI]

    # -- the penalty ------------------------------------------------------------------------------

    def penalty(
        self, theta: Float[Tensor, "r p"], phi: Float[Tensor, "r q"], rows: Int[Tensor, " r"]
    ) -> tuple[Float[Tensor, " r"], Float[Tensor, "r p"], Float[Tensor, "r q"]]:
        """sum_g tau_g (R(w; phi) - log p(phi)) of some members, in nats, and its gradients."""
        value = theta.new_zeros(len(theta))
        by_theta, by_phi = torch.zeros_like(theta), torch.zeros_like(phi)
        begin = 0
        for g in self.groups:
            w, tau = theta[:, self.columns[g]], self.tau[g][rows]
            if self.mode == "em":
                table, density = self._tables_of(g, rows)
                full = table.full(w)
                value += tau * (full.value - density).to(value)
                by_theta[:, self.columns[g]] = tau[:, None] * full.gradient
                continue
            size = 3 * self.mixtures[g].num_components
            own = slice(begin, begin + size)
            begin += size
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in (w, phi[:, own])]
                terms = self._terms_of(g, leaves[0], leaves[1], rows)
                slopes = torch.autograd.grad((tau * terms).sum(), leaves)
            value += (tau * terms).detach()
            by_theta[:, self.columns[g]], by_phi[:, own] = slopes
        return value, by_theta, by_phi

    def _terms_of(self, group: str, w: Tensor, phi: Tensor, rows: Tensor) -> Tensor:
        """R - log p(phi) of some members, differentiable in both."""
        mixture, values = self.mixtures[group], []
        for name, part in zip(_PHI, phi.chunk(3, 1), strict=True):
            (link,) = _link(mixture, name)
            of_rows = type(link)(link.pins[rows], link.mask[rows])
            values.append(of_rows(part))
        pins = [getattr(mixture, f"pinned_{name}")[rows] for name in _PHI]
        hyper = {n: t[rows] for n, t in self.hyper[group].expanded(mixture).items()}
        return neg_log_prior(w, *values) - log_density(hyper, *values, *pins).to(w)

    def _tables_of(self, group: str, rows: Tensor) -> tuple[BatchTables, Tensor]:
        if group not in self._tables:
            m = self.mixtures[group]
            self._tables[group] = BatchTables(m.mixing, m.mean, m.std), self._density(group)
        table, density = self._tables[group]
        everyone = len(rows) == len(self.priors)
        return (table, density) if everyone else (table.rows(rows), density[rows])

    @torch.no_grad()
    def _density(self, group: str) -> Tensor:
        m = self.mixtures[group]
        pins = (m.pinned_mixing, m.pinned_mean, m.pinned_std)
        return log_density(self.hyper[group].expanded(m), m.mixing, m.mean, m.std, *pins)

    # -- what moves --------------------------------------------------------------------------------

    def proximal_(
        self, theta: Tensor, before: Tensor, step: float | Adaptive, strength: Float[Tensor, " b"]
    ) -> None:
        """The proximal step of `swsmix.attach.proximal` on all members; mode "em"."""
        everyone = torch.arange(len(theta), dtype=torch.int64, device=theta.device)
        for g, columns in self.columns.items():
            w, own = theta[:, columns], step
            if isinstance(step, Adaptive):
                own = step._replace(second=step.second[:, columns])
            table, _ = self._tables_of(g, everyone)
            table.proximal_(w, before[:, columns], own, strength * self.tau[g])
            theta[:, columns] = w

    @torch.no_grad()
    def em_step_(self, theta: Float[Tensor, "b p"], rate: Float[Tensor, " b"]) -> None:
        """One EM step of the members whose rate is not 0; the others stay as they are.

        Raises:
            ValueError: if weights are not finite.
        """
        moves = rate > 0
        if not bool(moves.any()):
            return
        for g in self.groups:
            mixture, running = self.mixtures[g], self.running[g]
            fresh = e_step(mixture, theta[:, self.columns[g]])
            known = ~running.count.isnan().any(1)
            old = _chosen(known, running.recentred(fresh.centre), fresh)
            share = torch.where(known & moves, rate, 1.0).to(fresh.count)[:, None]
            fresh = Moments(
                fresh.centre,
                *(
                    torch.lerp(getattr(old, n), getattr(fresh, n), share)
                    for n in ("count", "first", "second")
                ),
            )
            before = {name: getattr(mixture, name).clone() for name in _PHI}
            m_step_(mixture, fresh, self.hyper[g])
            for name, value in before.items():
                getattr(mixture, name).copy_(
                    torch.where(moves[:, None], getattr(mixture, name), value)
                )
            self.running[g] = _chosen(moves, fresh, running)
        self.steps += moves.cpu().long()
        self._tables.clear()

    @torch.no_grad()
    def cap_std_(self, group: str, cap: Float[Tensor, " b"], floor: Float[Tensor, " b"]) -> None:
        """Cut the stds of a group into [floor, cap], member by member; pinned ones stay.

        A cap of infinity and a floor of 0 leave a member as it is.
        """
        mixture = self.mixtures[group]
        low, high = (t.to(mixture.std)[:, None] for t in (floor, cap))
        capped = torch.minimum(torch.maximum(mixture.std, low), high)
        capped = torch.where(mixture.pinned_std, mixture.std, capped)
        if mixture.is_trainable:
            mixture.std = capped
        else:
            mixture.std.copy_(capped)
        self._tables.pop(group, None)

    def due(self, moved: Bool[Tensor, " b"]) -> list[int]:
        """The members that have just made an EM step after which split and merge are tried."""
        return [
            i
            for i, prior in enumerate(self.priors)
            if moved[i] and prior.moves and moving.is_due(int(self.steps[i]))
        ]

    @torch.no_grad()
    def move_(self, member: int) -> None:
        """Split and merge a member's mixtures, as `MixturePrior.em_step_` does.

        Its prior and network must hold the member's state, see `write_`.
        """
        for g in self.groups:
            state = self.priors[member]._state(g)
            moving.move_(self.priors[member], g)
            if state.running is None:  # it has moved
                for name in _PHI:
                    getattr(self.mixtures[g], name)[member] = getattr(state.mixture, name)
                for t in _fields(self.running[g]):
                    t[member] = torch.nan
        self._tables.clear()

    @torch.no_grad()
    def write_(self) -> None:
        """Put the mixtures, running moments and numbers of steps back into the priors."""
        for g in self.groups:
            for i, prior in enumerate(self.priors):
                state, mixture = prior._state(g), self.mixtures[g]
                for name in _PHI:
                    if mixture.is_trainable:  # the logits themselves: they are free by a constant
                        value = _link(mixture, name).original[i]
                        _link(state.mixture, name).original.copy_(value)
                    else:
                        getattr(state.mixture, name).copy_(getattr(mixture, name)[i])
                running = self.running[g]
                if running.count[i].isnan().any():
                    state.forget_()
                else:
                    state.keep_(Moments(*(t[i] for t in _fields(running))))
                state.steps.fill_(int(self.steps[i]))

    def moments_of(self, group: str, theta: Float[Tensor, "b p"]) -> Moments:
        """The E step of a group, member by member."""
        return e_step(self.plain(group), theta[:, self.columns[group]])

    def terms(self, theta: Float[Tensor, "b p"]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """R(w; phi) and -log p(phi) by group, in nats, each (b,)."""
        nll, hyper = {}, {}
        for g in self.groups:
            m = self.plain(g)
            table = BatchTables(m.mixing, m.mean, m.std)
            nll[g] = table.full(theta[:, self.columns[g]]).value.to(theta)
            hyper[g] = -self._density(g).to(theta)
        return nll, hyper

    def state_dict(self) -> dict[str, Any]:
        """The mixtures, running moments and numbers of steps."""
        return {
            "mixtures": {g: dict(self.plain(g).state_dict()) for g in self.groups},
            "running": {
                g: dict(zip(_NAMES, _fields(moments), strict=True))
                for g, moments in self.running.items()
            },
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; in mode "gradient" `take_` sets the mixtures."""
        for g in self.groups:
            if self.mode == "em":
                self.mixtures[g].load_state_dict(state["mixtures"][g])
            self.running[g] = Moments(**state["running"][g])
        self.steps = state["steps"]
        self._tables.clear()

    def plain(self, group: str) -> GaussianMixture:
        """The mixtures of a group as they are now, their tensors buffers."""
        mixture = self.mixtures[group]
        return mixture.plain_copy() if mixture.is_trainable else mixture


def _link(mixture: GaussianMixture, name: str) -> Any:
    """The parametrization of a trainable mixture's tensor."""
    links: Any = mixture.parametrizations
    return links[name]


def _fields(moments: Moments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return moments.centre, moments.count, moments.first, moments.second


def _running(state: EMState) -> Moments:
    nothing = torch.full_like(state.mixture.mean, torch.nan, dtype=torch.float64).detach()
    return state.running or Moments(nothing, nothing, nothing, nothing)


def _stacked(each: Sequence[Moments]) -> Moments:
    return Moments(*(torch.stack(values) for values in zip(*map(_fields, each), strict=True)))


def _chosen(moves: Bool[Tensor, " b"], new: Moments, old: Moments) -> Moments:
    pairs = zip(_fields(new), _fields(old), strict=True)
    return Moments(*(torch.where(moves[:, None], a, b) for a, b in pairs))


def _check_priors(priors: Sequence[MixturePrior], models: Sequence[nn.Module]) -> None:
    if len(priors) != len(models):
        raise ValueError(f"{len(models)} networks need a prior each; got {len(priors)}")
    for number, (prior, model) in enumerate(zip(priors, models, strict=True)):
        if prior._model[0] is not model:
            raise ValueError(f"prior {number} belongs to another network than network {number}")
        first = priors[0]
        for what, own, wanted in (
            ("mode", prior.mode, first.mode),
            ("groups", dict(prior.selection.groups), dict(first.selection.groups)),
            (
                "numbers of components",
                {g: m.num_components for g, m in prior.mixtures.items()},
                {g: m.num_components for g, m in first.mixtures.items()},
            ),
        ):
            if own != wanted:
                raise ValueError(
                    f"the priors of an ensemble need the same {what}; number {number} has {own}, "
                    f"number 0 {wanted}"
                )
