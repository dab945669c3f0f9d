"""The multiplier of a constraint: tau, while a bound on the validation data is kept.

Rezende & Viola (2018, section 3): minimise R subject to C <= 0 by a multiplier that moves while the
moving average of C is above or below. Here the prior's strength is the multiplier: it rises while
the network has something to spare, and falls while it has not.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from swsmix.schedule import Schedule
from swsmix.training import runs
from swsmix.training.history import History


class Multiplier:
    """A strength that follows a history: log tau += rate * room, after every epoch.

    room is what is left of the allowance, goal - mean, in units of it, cut to [-2, 1]: the mean is
    the moving average of (validation measure - start) / allowance.

    Args:
        tau: where it begins.
        rate: the largest rise of log tau in one epoch.
        start: the validation measure of the network before compression.
        allowance: how much it may rise.
        goal: the share of the allowance to be used.
        least: where it stops to fall.
    """

    def __init__(
        self,
        tau: float,
        rate: float,
        *,
        start: float,
        allowance: float,
        goal: float,
        least: float,
    ) -> None:
        self.tau, self.least = tau, least
        self.rate, self.start, self.allowance, self.goal = rate, start, allowance, goal
        self.mean = 0.0

    def follow(self, epoch: int, history: History) -> None:
        """Move by a record of the history; its first one is the start."""
        value = history.scalars["validation_measure"][epoch]
        used = (value - self.start) / self.allowance
        # A value that is not finite, or far off, must not outweigh many epochs.
        used = min(max(used, -10.0), 10.0) if math.isfinite(used) else 10.0
        self.mean = 0.5 * self.mean + 0.5 * used
        room = self.goal - self.mean
        log = math.log(self.tau) + self.rate * min(max(room, -2.0), 1.0)
        self.tau = math.exp(max(log, math.log(self.least)))

    def resume(self, folder: str | os.PathLike[str]) -> None:
        """Move as it did in an interrupted run: it is a function of the history alone."""
        if runs.has_checkpoint(folder):
            history = runs.load_run(folder, resumable=True).history
            for epoch in range(1, len(history)):
                self.follow(epoch, history)


@dataclass(frozen=True)
class LedSchedule(Schedule):
    """A schedule whose tau is a multiplier's, beside warm-up and the other factors.

    Attributes:
        multiplier: it changes between epochs.
    """

    multiplier: Multiplier | None = None

    def tau_at(self, tick: int) -> float:
        """The strength of the prior at a tick: the schedule's, times the multiplier."""
        factor = 1.0 if self.multiplier is None else self.multiplier.tau
        return super().tau_at(tick) * factor
