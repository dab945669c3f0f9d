"""How well chains agree on a quantity: R-hat and effective sizes, between chains and within each.

R-hat compares the spread of a quantity's means with its spread inside the chains: rank-normalised,
of the values and of their distances from the median, the larger (Vehtari et al. 2021). Three ways
of cutting the draws give three numbers:

    R-hat       all chains, each cut into halves: the field's number
    between     whole chains: above 1, the chains are in different regions
    within      the two halves of one chain: above 1, this chain has not settled
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from swsmix.bayes.layout import Array


@dataclass(frozen=True)
class Agreement:
    """How well chains agree on a quantity; of a quantity of several numbers, the worst.

    Attributes:
        rhat: R-hat of all chains, each cut into halves.
        between: R-hat of the whole chains; nan with one chain.
        within: R-hat of the two halves of each chain (chains,).
        ess: the effective sample size of all chains together.
        tail_ess: the same of the 5 % and 95 % quantiles, the smaller.
    """

    rhat: float
    between: float
    within: tuple[float, ...]
    ess: float
    tail_ess: float

    @property
    def several(self) -> bool:
        """Whether there are several chains."""
        return len(self.within) > 1

    @property
    def worst(self) -> float:
        """The larger R-hat, of the halves of all chains or of whole chains; nan if neither is."""
        return float(np.fmax(self.rhat, self.between))

    @property
    def drift(self) -> float:
        """The largest R-hat within a chain; nan if nothing varies."""
        return float(np.fmax.reduce(self.within))

    @classmethod
    def of(cls, values: Tensor | Array) -> Agreement:
        """Of draws (chains, draws, ...); nan where nothing varies, or there are fewer than 4.

        R-hat is infinite where a draw is nan or inf, and where each chain stands still at a place
        of its own.
        """
        draws = np.asarray(values, dtype=np.float64)
        draws = draws.reshape(*draws.shape[:2], -1)
        half = draws.shape[1] // 2
        if half < 2:
            return cls(math.nan, math.nan, (math.nan,) * len(draws), math.nan, math.nan)
        if not np.isfinite(draws).all():
            return cls(math.inf, math.inf, (math.inf,) * len(draws), 0.0, 0.0)
        halves = np.stack([draws[:, :half], draws[:, -half:]])
        ess, tail = _effective_sizes(draws)
        return cls(
            rhat=_largest_rhat(halves.reshape(-1, *halves.shape[2:])),
            between=_largest_rhat(draws) if len(draws) > 1 else math.nan,
            within=tuple(_largest_rhat(halves[:, chain]) for chain in range(len(draws))),
            ess=ess,
            tail_ess=tail,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Agreement:
        """The one whose `to_dict` gave these values."""
        within = tuple(map(float, values["within"]))
        rest = {name: float(values[name]) for name in ("rhat", "between", "ess", "tail_ess")}
        return cls(within=within, **rest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same after a way through JSON."""
        return asdict(self) | {"within": list(self.within)}


def _largest_rhat(chains: Array) -> float:
    """The largest rank-normalised R-hat of chains (m, n, q), which are not cut."""
    away = np.abs(chains - np.median(chains, axis=(0, 1)))
    both = (_plain_rhat(_normal_scores(part)) for part in (chains, away))
    return float(np.fmax.reduce([*both], axis=None))


def _normal_scores(values: Array) -> Array:
    from scipy import stats

    flat = values.reshape(-1, values.shape[-1])
    rank = (stats.rankdata(flat, axis=0) - 0.375) / (len(flat) + 0.25)
    scores: Array = stats.norm.ppf(rank).reshape(values.shape)
    return scores


@np.errstate(divide="ignore", invalid="ignore")
def _plain_rhat(chains: Array) -> Array:
    """sqrt((n - 1) / n + B / (n W)) of each quantity (q,)."""
    n = chains.shape[1]
    still = (chains == chains[:, :1]).all(1)  # whose variance rounding must not make
    inside = np.where(still, 0.0, chains.var(axis=1, ddof=1)).mean(0)
    means = np.where(still, chains[:, 0], chains.mean(1))
    ratio: Array = np.sqrt((n - 1.0) / n + means.var(axis=0, ddof=1) / inside)
    return ratio


def _effective_sizes(draws: Array) -> tuple[float, float]:
    """The smallest bulk and tail ESS of draws (chains, draws, q), by ArviZ."""
    from arviz_stats.base.array import array_stats

    varies = (draws != draws[:1, :1]).any(axis=(0, 1))
    if not varies.any():
        return math.nan, math.nan
    with np.errstate(all="ignore"):
        bulk, tail = (
            array_stats.ess(draws[..., varies], chain_axis=0, draw_axis=1, method=m, prob=prob)
            for m, prob in (("bulk", None), ("tail", (0.05, 0.95)))
        )
    return float(np.fmin.reduce(bulk, axis=None)), float(np.fmin.reduce(tail, axis=None))


def energy_fraction(energy: Tensor) -> float:
    """E-BFMI of the chain that has the least, from energies (chains, draws); nan if they are still.

    The mean squared step of the energy over its variance: about 1 where momenta alone move it.
    """
    from arviz_stats.base.array import array_stats

    with np.errstate(all="ignore"):
        fractions = array_stats.bfmi(energy.double().numpy(), chain_axis=0, draw_axis=1)
    return float(np.fmin.reduce(fractions))
