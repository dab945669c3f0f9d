"""The one schedule of training under a prior: tau, the EM steps and the stds, against the clock.

The clock ticks once for each optimiser step (of all attached optimisers together), or once for
each round of a full-batch method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PerGroup = float | Mapping[str, float]


@dataclass(frozen=True)
class Schedule:
    """When the prior enters, when EM runs, how the stds anneal.

    Attributes:
        tau: the strength of the prior; 1 is Bayes, compression uses less (Ullrich et al. 2017
            temper it to about 0.005).
        start: the tick at which the prior enters; before it the network trains on the data alone.
        warmup: ticks over which tau then rises linearly from 0.
        em_start: the end of the mixture's burn-in: EM steps are made every `em_every` ticks after
            it, and in mode "gradient" the mixture is held until then. By default the tick at which
            the prior enters.
        em_every: ticks between EM steps.
        em_rate: rho of the running moments in (0, 1]; 1 uses fresh moments alone.
        std_start: from `anneal_start` on, stds above a cap are cut down to it every `em_every`
            ticks; the cap falls geometrically from `std_start` to `std_end` in `anneal` ticks.
            One value, or one per group of the prior. None: no cap.
        std_end: the last cap, in units of the weights; one value, or one per group.
        std_floor: stds below this share of the cap are raised to it; at 1 the schedule alone
            decides them, so that no component closes early. Pinned stds stay in any case.
        anneal_start: the tick at which the cap begins.
        anneal: the number of ticks that the cap takes to fall.

    Raises:
        ValueError: if a value is outside its range.

    Example:
        >>> Schedule(tau=0.1, warmup=10).tau_at(5)
        0.05
    """

    tau: float = 1.0
    start: int = 0
    warmup: int = 0
    em_start: int | None = None
    em_every: int = 100
    em_rate: float = 1.0
    std_start: PerGroup | None = None
    std_end: PerGroup | None = None
    std_floor: float = 0.0
    anneal_start: int = 0
    anneal: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.tau < float("inf"):
            raise ValueError(f"tau must be finite and at least 0; got {self.tau}")
        if self.em_every < 1:
            raise ValueError(f"em_every must be at least 1 tick; got {self.em_every}")
        if not 0.0 < self.em_rate <= 1.0:
            raise ValueError(f"em_rate must lie in (0, 1]; got {self.em_rate}")
        for name in ("start", "warmup", "em_start", "anneal_start", "anneal"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be at least 0 ticks; got {getattr(self, name)}")
        if (self.std_start is None) != (self.std_end is None):
            raise ValueError("annealing needs both std_start and std_end")
        if not 0.0 <= self.std_floor <= 1.0:
            raise ValueError(f"std_floor must lie in [0, 1]; got {self.std_floor}")
        for start, end in zip(_values(self.std_start), _values(self.std_end), strict=True):
            if not float("inf") > start >= end > 0.0:
                raise ValueError(f"annealing needs std_start >= std_end > 0; got {start} and {end}")
        for one, other in ((self.std_start, self.std_end), (self.std_end, self.std_start)):
            if isinstance(one, Mapping) and (
                not isinstance(other, Mapping) or list(one) != list(other)
            ):
                raise ValueError(
                    "std_start and std_end need one value each, or the same groups in the same "
                    f"order; got {self.std_start} and {self.std_end}"
                )

    def tau_at(self, tick: int) -> float:
        """The strength of the prior at a tick.

        Returns:
            tau, after warm-up.
        """
        if tick < self.start:
            return 0.0
        since = tick - self.start
        return self.tau * (min(1.0, since / self.warmup) if self.warmup else 1.0)

    def mixture_moves_at(self, tick: int) -> bool:
        """Whether the mixture is past its burn-in; in mode "gradient" it is held until then.

        Returns:
            True from `em_start` on.
        """
        return tick >= (self.start if self.em_start is None else self.em_start)

    def em_at(self, tick: int) -> bool:
        """Whether an EM step is due when the clock has reached a tick.

        Returns:
            True once every `em_every` ticks after the burn-in.
        """
        first = self.start if self.em_start is None else self.em_start
        return tick > first and (tick - first) % self.em_every == 0

    def anneals_at(self, tick: int) -> bool:
        """Whether the stds are cut down to the cap when the clock has reached a tick.

        With the EM steps, every `em_every` ticks: a mixture that changed with every tick would
        need new tables each time, which costs more than the training step.

        Returns:
            True once every `em_every` ticks from `anneal_start` on, if there is a cap.
        """
        if self.std_start is None or tick < self.anneal_start:
            return False
        first = self.start if self.em_start is None else self.em_start
        return (tick - first) % self.em_every == 0

    def std_cap_at(self, tick: int, group: str | None = None) -> float | None:
        """The largest std allowed at a tick, in units of the weights.

        Args:
            tick: the clock.
            group: the group of the prior, where the schedule has one cap for each.

        Returns:
            The cap, or None where there is none.

        Raises:
            ValueError: if the schedule has caps by group, but none for this one.
        """
        if self.std_start is None or self.std_end is None or tick < self.anneal_start:
            return None
        start, end = _of(self.std_start, group), _of(self.std_end, group)
        done = min(1.0, (tick - self.anneal_start) / self.anneal) if self.anneal else 1.0
        return float(start * (end / start) ** done)


def _values(value: PerGroup | None) -> list[float]:
    if value is None:
        return []
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _of(value: PerGroup, group: str | None) -> float:
    if not isinstance(value, Mapping):
        return value
    if group is None or group not in value:
        raise ValueError(f"the schedule has no std for the group {group!r}; it has {list(value)}")
    return value[group]
