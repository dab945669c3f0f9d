"""What the clock asks of the mixtures: EM steps and annealing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swsmix.schedule import Schedule

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior


def advance_(
    prior: MixturePrior,
    schedule: Schedule,
    tick: int,
    em_step_: Callable[[float], None] | None = None,
) -> None:
    """What the schedule asks of the mixtures when the clock reaches a tick: EM, annealing.

    Args:
        prior: the prior, changed in place.
        schedule: the schedule.
        tick: the clock.
        em_step_: an EM step at a rate; by default the prior's own, on the weights as they are.
    """
    if prior.mode == "em" and schedule.em_at(tick):
        (em_step_ or prior.em_step_)(schedule.em_rate)
    if schedule.std_start is None:
        return
    for group, mixture in prior.mixtures.items():
        cap = schedule.std_cap_at(tick, group)
        if cap is not None and (schedule.anneals_at(tick) or prior.mode == "gradient"):
            mixture.cap_std_(cap, floor=schedule.std_floor * cap)
