"""The prior: one or several mixtures bound to the weights of a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swsmix import _shards, tables
from swsmix.attach import Attachment, MomentsOf, Update
from swsmix.attach.entry import Entry
from swsmix.em import EMState, HyperPrior, Moments, log_hyper_prior, m_step_, variational
from swsmix.em.variational import Variance
from swsmix.mixture import GaussianMixture
from swsmix.prior import evaluation, keys, moving
from swsmix.prior.built_from import BuiltFrom
from swsmix.prior.description import description, html_description, representation
from swsmix.prior.evaluation import Evaluation
from swsmix.prior.placing import check_sizes, for_group, initial_state
from swsmix.schedule import Schedule
from swsmix.selection import Groups, Patterns, resolve, select
from swsmix.start import Initialisation, NumComponents
from swsmix.tables import Tables

Mode = Literal["em", "gradient"]


class MixturePrior(nn.Module):
    """A learned Gaussian-mixture prior on the weights of a network.

        R(w; phi) = -sum_i log sum_j pi_j N(w_i | mu_j, sigma_j^2)   [nats]
        objective = -log p(data | w) + tau * (R(w; phi) - log p(phi))

    The mixtures start from the network's current weights. The network is neither changed nor
    registered as a submodule, so that `state_dict()` holds the mixtures alone.

    Args:
        model: the network.
        num_components: K of each mixture, the zero component included; one for all groups, or
            group -> K; `"auto"` counts the clusters of the weights.
        groups: `"global"` (one mixture), `"tensor"` (one per tensor), or group -> name patterns.
        include: patterns of the parameters to take (shell-style, `"fc*.weight"`); by default
            every trainable floating-point parameter of at least two dimensions.
        exclude: patterns of the parameters to leave out.
        tau: the relative strength of each group; multiplies its share of the penalty.
        mode: `"em"` (the mixtures are buffers, moved by `em_step_`) or `"gradient"` (they are
            parameters, moved by your optimiser, as in Nowlan & Hinton 1992).
        zero: pin the first component's mean at 0, for pruning.
        zero_mixing: its mixing proportion, then fixed; free if None.
        method: how the means are placed, see `swsmix.start.initial_mixture`.
        initial: mixtures to start from (copied), instead of placing `num_components` on the
            weights; they bring their own pins.
        hyper: the hyper-prior; by default `HyperPrior` with its means at the initial ones and its
            std at a twentieth of the weights' standard deviation, or, placed by "auto", at the
            std of its narrowest component of at least 20 weights, if that is smaller.
        seed: for the initialisation.

    Raises:
        TypeError: if a tensor that was asked for is not floating-point.
        ValueError: if the network has no suitable weights, a pattern matches nothing, a tensor
            that was asked for is frozen, there are fewer weights than components, or weights are
            not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 1))
        >>> prior = MixturePrior(net, num_components=4)
        >>> loss = net(torch.randn(8, 20)).square().mean() + 1.0 / 8 * prior.penalty()
        >>> loss.backward()
        >>> prior.em_step_()
    """

    def __init__(
        self,
        model: nn.Module,
        num_components: NumComponents | Mapping[str, NumComponents] = 16,
        *,
        groups: Groups = "global",
        include: Patterns | None = None,
        exclude: Patterns = (),
        tau: float | Mapping[str, float] = 1.0,
        mode: Mode = "em",
        zero: bool = False,
        zero_mixing: float | None = None,
        method: Initialisation = "auto",
        initial: GaussianMixture | Mapping[str, GaussianMixture] | None = None,
        hyper: HyperPrior | Mapping[str, HyperPrior] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode not in ("em", "gradient"):
            raise ValueError(f"mode must be 'em' or 'gradient'; got {mode!r}")
        self.mode = mode
        self.held: dict[str, float] = {}  # see swsmix.attach.watching
        self.moves = mode == "em" and method == "auto" and initial is None
        self._tables: dict[str, tuple[BuiltFrom, Tables]] = {}
        self._log_hyper_priors: dict[str, tuple[BuiltFrom, Tensor]] = {}
        self.last_passes: dict[tuple[Any, ...], evaluation.LastPass] = {}
        self.selection = select(model, include=include, exclude=exclude, groups=groups)
        self._model = (model,)  # in a tuple, lest nn.Module registers it
        self.tau = {group: for_group(tau, group, "tau") for group in self.selection.groups}
        for group, value in self.tau.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(
                    f"tau of group {group!r} must be finite and at least 0; got {value}"
                )
        self.groups = nn.ModuleDict()
        if initial is None:
            check_sizes(
                {g: sum(p.numel() for p in self.parameters_of(g).values()) for g in self.tau},
                {g: for_group(num_components, g, "num_components") for g in self.tau},
            )
        with torch.inference_mode(False):  # what is made inside it could never change again
            for group in self.selection.groups:
                state = initial_state(
                    self.flat_weights(group),
                    for_group(num_components, group, "num_components"),
                    for_group(initial, group, "initial"),
                    for_group(hyper, group, "hyper"),
                    moves=self.moves,
                    method=method,
                    zero=zero,
                    zero_mixing=zero_mixing,
                    seed=seed,
                )
                if mode == "gradient":
                    state.mixture.trainable_()
                self.groups[keys.key(group)] = state

    # -- what it is bound to ------------------------------------------------------------------

    @property
    def mixtures(self) -> dict[str, GaussianMixture]:
        """The mixtures by group."""
        return {group: self._state(group).mixture for group in self.selection.groups}

    @property
    def hyper_priors(self) -> dict[str, HyperPrior]:
        """The hyper-priors by group."""
        return {group: self._state(group).hyper for group in self.selection.groups}

    def _state(self, group: str) -> EMState:
        state = self.groups[keys.key(group)]
        assert isinstance(state, EMState)
        return state

    def parameters_of(self, group: str) -> dict[str, nn.Parameter]:
        """The network's parameters under the mixture of a group, by name.

        Returns:
            name -> parameter, looked up afresh.
        """
        return resolve(self._model[0], self.selection.groups[group])

    def flat_weights(self, group: str) -> Float[Tensor, " n"]:
        """A copy of the weights of a group as one vector, in the order of the names.

        Returns:
            The weights (n,).
        """
        params = self.parameters_of(group).values()
        return torch.cat([_shards.whole(p.detach()).reshape(-1) for p in params])

    # -- the penalty --------------------------------------------------------------------------

    def terms(self) -> dict[str, dict[str, Float[Tensor, ""]]]:
        """The parts of the penalty, by group, in nats.

        Returns:
            group -> `"nll"`, R(w; phi) = -sum_i log p(w_i), and `"hyper_prior"`, -log p(phi).
        """
        return {
            group: {
                "nll": evaluation.nll(self, group),
                "hyper_prior": -self._log_hyper_prior(group),
            }
            for group in self.selection.groups
        }

    def penalty(self) -> Float[Tensor, ""]:
        """sum_groups tau_g (R(w; phi) - log p(phi)), in nats.

        Add `tau / num_data * prior.penalty()` to a mean negative log likelihood. O(N) in the
        weights and differentiable, once: in the weights always, in the mixtures in mode
        "gradient". The hyper-prior belongs to it: without it, gradient descent on R lets sigma
        collapse to 0.

        Returns:
            A scalar.
        """
        return evaluation.penalty_of(self.tau, self.terms())

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """The penalty, its terms and every group's moments, from one pass over the weights.

        What `penalty`, `terms` and `moments` return, for reports: it takes a third of the time of
        the three, but has no gradient.

        Raises:
            ValueError: if weights are not finite, or not on their mixture's device.

        Example:
            >>> prior = MixturePrior(nn.Linear(20, 10), num_components=4)
            >>> state = prior.evaluate()
            >>> round(state.moments["all"].count.sum().item())
            200
            >>> bool(state.penalty == prior.penalty())
            True
        """
        terms, moments = {}, {}
        for group in self.selection.groups:
            nll, moments[group] = evaluation.nll_and_moments(self, group)
            terms[group] = {"nll": nll, "hyper_prior": -self._log_hyper_prior(group)}
        return Evaluation(evaluation.penalty_of(self.tau, terms), terms, moments)

    def _log_hyper_prior(self, group: str) -> Tensor:
        """Log p(phi); where it needs no graph it is kept while nothing in it changes."""
        state, built = self._state(group), self._log_hyper_priors.get(group)
        mixture, hyper = state.mixture, state.hyper
        if mixture.is_trainable:
            return log_hyper_prior(mixture, hyper).to(mixture.mean.dtype)
        now = *mixture.buffers(), *vars(hyper).values()
        if built is None or not built[0].is_still(now):
            # In this order: to leave inference mode turns gradients on.
            with torch.inference_mode(False), torch.no_grad():
                value = log_hyper_prior(mixture, hyper).to(mixture.mean.dtype)
                built = self._log_hyper_priors[group] = BuiltFrom(now), value
        return built[1]

    def tables_of(self, group: str, *, wait: bool = True) -> Tables:
        """The tabulated scalar functions of a group's mixture, built again when it has changed.

        Args:
            group: the group.
            wait: for a GPU, to compare values; see `swsmix.prior.built_from`.
        """
        mixture, built = self._state(group).mixture, self._tables.get(group)
        now = mixture.mixing, mixture.mean, mixture.std
        if built is None or not built[0].is_still(now, wait=wait):
            with torch.no_grad(), torch.inference_mode(False):
                kept = BuiltFrom(now)
                number = sum(p.numel() for p in self._local(group).values())
                made = tables.build(*kept.values, num_weights=number)
                built = self._tables[group] = kept, made
        return built[1]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the tables, which are large and quickly made again."""
        return {**self.__dict__, "_tables": {}, "_log_hyper_priors": {}, "last_passes": {}}

    def _local(self, group: str) -> dict[str, Tensor]:
        """The group's parameters; of a sharded one, the part on this machine."""
        return {name: _shards.local(p) for name, p in self.parameters_of(group).items()}

    # -- EM -----------------------------------------------------------------------------------

    @torch.no_grad()
    def em_step_(self, rate: float = 1.0, variance: Variance | None = None) -> None:
        """One EM step of every mixture on the current weights, in place.

        With posterior variances the step is one of EM over the posterior N(w_i, s_i^2) rather than
        its maximum: the stds then do not collapse with the weights (see `swsmix.em.e_step`). On a
        *sample* of the weights (IVON, samplers) leave them out: its moments contain s^2. Split and
        merge rest in a step with variances.

        Args:
            rate: rho of the running moments in (0, 1]; at 1 the moments are fresh, and the
                objective never rises for fixed weights. Smaller values average over the past,
                while the weights move.
            variance: s^2 of each tensor of the prior, by name, of the tensor's shape and in its
                squared units; of a sharded tensor, of the part on this machine.

        Raises:
            RuntimeError: in mode "gradient", where the optimiser moves the mixtures.
            ValueError: if weights are not finite, or not on the mixtures' device, or variances are
                missing, negative, not finite or of another shape; the mixtures are then unchanged.

        Example:
            >>> net = nn.Linear(20, 10)
            >>> prior = MixturePrior(net, num_components=4)
            >>> prior.em_step_(variance={"weight": torch.full((10, 20), 0.01)})
        """
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"the rate of the running moments must lie in (0, 1]; got {rate}")
        if self.mode == "gradient":
            raise RuntimeError(
                "mode 'gradient' has no EM step: give prior.parameters() to an optimiser, or make "
                "the prior with mode='em'"
            )
        if variance is None:
            fresh = {group: self.moments(group) for group in self.selection.groups}
        else:
            variational.check_names(self.selection.names, variance)
            fresh = {
                g: evaluation.expected_moments(self, g, variance) for g in self.selection.groups
            }
        for group, moments in fresh.items():
            state = self._state(group)
            if rate < 1.0 and (running := state.running) is not None:
                moments = running.damped(moments, rate)
            m_step_(state.mixture, moments, state.hyper)
            state.keep_(moments)
            if self.moves and variance is None and moving.is_due(int(state.steps)):
                moving.move_(self, group)

    def expected_penalty(self, variance: Variance) -> Float[Tensor, ""]:
        """The penalty of weights that are known up to a variance, in nats.

            sum_groups tau_g (F(w, s^2; phi) - log p(phi)),   F >= -E log p(w), w ~ N(w_i, s_i^2)

        What EM over the posterior minimises; `penalty()` where s = 0. It is differentiable in the
        weights and takes N x K memory, hence is for small networks. F: `swsmix.em.variational`.

        Args:
            variance: s^2 of each tensor of the prior, by name, see `em_step_`.

        Returns:
            A scalar.

        Raises:
            ValueError: if variances are missing, negative, not finite or of another shape.
        """
        variational.check_names(self.selection.names, variance)
        terms = {g: evaluation.expected_terms(self, g, variance) for g in self.selection.groups}
        return evaluation.penalty_of(self.tau, terms)

    @torch.no_grad()
    def moments(self, group: str) -> Moments:
        """The E step of one group: its moments over all its tensors (and shards).

        Returns:
            Moments centred on the mixture's means.

        Raises:
            ValueError: if weights are not finite, or not on the mixture's device.
        """
        return evaluation.nll_and_moments(self, group)[1]

    def check_weights(self, group: str) -> None:
        """Check that a group's weights are finite and on their mixture's device.

        Raises:
            ValueError: if not; the message names the tensor.
        """
        evaluation.check_weights(self, group)

    # -- in training loops --------------------------------------------------------------------

    def attach(
        self,
        optimizer: object,
        *,
        num_data: int,
        tau: float | None = None,
        em_every: int | None = None,
        schedule: Schedule | None = None,
        update: Update | None = None,
        moments: MomentsOf = "maximum",
        batch_size: int | None = None,
    ) -> Attachment:
        """Let an optimiser train under the prior: the two lines for anyone's training loop.

        Every `optimizer.step()` then minimises the data loss plus tau / num_data * penalty(), with
        no graph and no N x K memory, and the EM step runs every `em_every` steps. See
        `swsmix.attach.Attachment` for clipping, scalers, closures and several optimisers.

        Args:
            optimizer: the optimiser, a wrapper that keeps it in an attribute (Accelerate,
                Lightning, SAM), or several that share the prior's tensors.
            num_data: the number of training examples (tokens for a language model) over which
                your loss is a mean; 1 if your loss is a sum over all of them.
            tau: the strength that you ask for, 1 by default, which is Bayes. Without a schedule
                the prior enters by itself when the loss has fallen, and tau rises to the least of
                this and of what N and `num_data` allow, see `swsmix.attach.entry`; `.tau` of the
                attachment says where it is.
            em_every: optimiser steps between EM steps, 100 by default.
            schedule: tau as you say, from the step that you say, with burn-in and annealing;
                excludes `tau` and `em_every`. `Schedule()` is tau = 1 from the first step on.
            update: how the prior moves the weights, see `swsmix.attach`: `"gradient"`, exactly as
                if you had added the penalty to the loss, or `"proximal"`, stable for every sigma.
                By default the proximal step where it can be made (SGD, Adam, AdamW; mode "em").
            moments: what EM is over: the `"maximum"`, the weights as they are, or the
                `"posterior"` of each, whose variance comes from the second moments of Adam or
                AdamW (`swsmix.attach.second_moments`); with others, give it to `em_step_` yourself.
            batch_size: the number of examples over which each step's loss is a mean; needed by
                moments="posterior".

        Returns:
            The attachment; `.remove()` takes the prior out again.

        Raises:
            TypeError: if there is no optimiser in what was given.
            ValueError: if a tensor of the prior is in no optimiser, num_data is not positive,
                the schedule is given twice, or the optimiser's second moments are no estimate of
                posterior variances.

        Example:
            >>> net = nn.Linear(20, 1)
            >>> optimizer = torch.optim.Adam(net.parameters())
            >>> attachment = MixturePrior(net, 4).attach(optimizer, num_data=1000, em_every=10)
            >>> attachment.remove()
        """
        if schedule is not None and (tau is not None or em_every is not None):
            raise ValueError("give tau and em_every inside the schedule, not beside it")
        entry = None
        if schedule is None:
            given: dict[str, Any] = {"tau": tau, "em_every": em_every}
            schedule = Schedule(em_start=0, **{k: v for k, v in given.items() if v is not None})
            entry = Entry(schedule.tau, num_weights=self._weighted_size(), num_data=num_data)
        several = optimizer.values() if isinstance(optimizer, Mapping) else optimizer
        optimizers = list(several) if isinstance(several, Iterable) else [optimizer]
        return Attachment(
            self, optimizers, num_data=num_data, schedule=schedule, update=update,
            moments=moments, batch_size=batch_size, entry=entry,
        )  # fmt: skip

    def _weighted_size(self) -> float:
        """N, each weight counted with the tau of its group."""
        return math.fsum(
            self.tau[group] * p.numel()
            for group in self.selection.groups
            for p in self.parameters_of(group).values()
        )

    # -- what it says -------------------------------------------------------------------------

    def responsibilities(self) -> dict[str, Float[Tensor, "..."]]:
        """Gamma of every weight, by tensor. This one does take N x K memory.

        Returns:
            name -> (*shape, k).
        """
        result = {}
        for group in self.selection.groups:
            mixture = self._state(group).mixture
            for name, w in self._local(group).items():
                result[name] = mixture.responsibilities(w.detach().to(mixture.mean.dtype)).detach()
        return result

    @torch.no_grad()
    def describe(self) -> str:
        """A table of what the prior sees and how its components share it.

        Returns:
            Lines for `print`: each tensor with its size, its mixture and the share of each
            component (N_j / N, in percent, ordered as the centres above it); then the tensors
            left out, with the reason.
        """
        return description(self)

    def __repr__(self) -> str:
        """A line for each mixture; the module's own would show the groups' escaped keys."""
        return representation(self)

    def _repr_html_(self) -> str:
        return html_description(self)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load mixtures, hyper-priors and running moments saved by `state_dict`.

        Returns:
            The missing and unexpected keys, as `torch.nn.Module.load_state_dict`.

        Raises:
            ValueError: if the saved prior had other groups or another mode than this one.
        """
        if strict:
            keys.check_saved(state_dict, self.selection.groups, self.mode)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
