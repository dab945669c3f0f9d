"""How each method trains a batch of networks: its schedule, with one setting per network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from papers.nowlan1992.nets import Cases, Penalty, train
from papers.nowlan1992.penalties import Decay, Sharing
from swsmix import GaussianMixture, HyperPrior

Watch = Callable[[int, Tensor, Sharing], None]


@dataclass(frozen=True)
class SharingRecipe:
    """Soft weight-sharing: warm up under weak decay, then let the prior enter gradually.

    Attributes:
        components: k.
        mode: `"em"`, one EM step a round (ours), or `"gradient"`, everything at once (theirs).
        warm_iterations: L-BFGS iterations before the prior enters.
        warm_std: of the weak weight decay during them.
        rounds: of the prior; tau and EM change between rounds.
        iterations: L-BFGS iterations in a round.
        ramp: rounds over which tau rises linearly to its full value.
        tau: the full strength.
        spread: the means start evenly over +-spread.
        std: the components' first std.
        hyper_std: s of the hyper-prior.
        hyper_count: nu of the hyper-prior.
        pace: of the mixture in mode "gradient", see `Sharing`.
    """

    components: int = 10
    mode: str = "em"
    warm_iterations: int = 120
    warm_std: float = 30.0
    rounds: int = 40
    iterations: int = 40
    ramp: int = 20
    tau: float = 1.0
    spread: float = 2.0
    std: float = 0.5
    hyper_std: float = 0.1
    hyper_count: float = 1.0
    pace: float = 1.0

    def prior(self, num: int, **settings: Tensor) -> Sharing:
        """The mixtures to start from; settings (tau, hyper_std, hyper_count) per network.

        Returns:
            The prior of `num` networks.
        """
        k, like = self.components, {"dtype": torch.float64}
        defaults = {name: getattr(self, name) for name in ("tau", "hyper_std", "hyper_count")}
        given = {n: torch.full((num,), v, **like) for n, v in defaults.items()} | settings
        end = self.spread * (k > 1)
        mixture = GaussianMixture(
            torch.full((num, k), 1.0 / k, **like),
            torch.linspace(-end, end, k, **like).repeat(num, 1),
            torch.full((num, k), self.std, **like),
        )
        hyper = HyperPrior(std=given["hyper_std"][:, None], std_count=given["hyper_count"][:, None])
        return Sharing(mixture, hyper, given["tau"], pace=self.pace)


def sharing(
    cases: Cases,
    theta: Tensor,
    recipe: SharingRecipe,
    *,
    warm: bool = True,
    watch: Watch | None = None,
    **settings: Tensor,
) -> tuple[Tensor, Sharing, Tensor]:
    """Train under soft weight-sharing.

    Args:
        cases: the data.
        theta: the start (b, p).
        recipe: the schedule.
        warm: make the warm-up; False if theta has had it.
        watch: called as watch(round, theta, prior) after the warm-up (0) and every round.
        settings: of `SharingRecipe.prior`, one per network.

    Returns:
        theta (b, p), the prior, and the objectives (b,) in nats.
    """
    if warm:
        theta = decay(
            cases, theta, torch.full((len(theta),), recipe.warm_std), recipe.warm_iterations
        )
    prior = recipe.prior(len(theta), **settings)
    full, p, n = prior.tau, cases.num_parameters, cases.num_weights
    value = torch.zeros(len(theta), dtype=theta.dtype)
    if watch is not None:
        watch(0, theta, prior)
    for number in range(1, recipe.rounds + 1):
        prior.tau = full * min(1.0, number / max(recipe.ramp, 1))
        rest = prior.rest() if recipe.mode == "gradient" else theta[:, :0]
        both, value = train(cases, torch.cat([theta, rest], 1), prior, recipe.iterations)
        theta = both[:, :p]
        if recipe.mode == "gradient":
            prior.take_(both[:, p:])
        elif number < recipe.rounds:
            prior.em_step_(theta[:, :n])
        if watch is not None:
            watch(number, theta, prior)
    return theta, prior, value


def decay(cases: Cases, theta: Tensor, std: Tensor, iterations: int) -> Tensor:
    """Train under weight decay, a Gaussian prior of the given std.

    Returns:
        theta (b, p).
    """
    return train(cases, theta, Decay(std.to(theta.dtype)), iterations)[0]


def snapshots(
    cases: Cases, theta: Tensor, iterations: Sequence[int], penalty: Penalty | None = None
) -> Tensor:
    """Train without a prior (or with one) and keep the networks after these iterations.

    Returns:
        (len(iterations), b, p).
    """
    kept: dict[int, Tensor] = {0: theta}

    def keep(iteration: int, x: Tensor) -> None:
        if iteration in iterations:
            kept[iteration] = x

    train(cases, theta, penalty, max(iterations), each=keep)
    return torch.stack([kept[i] for i in iterations])
