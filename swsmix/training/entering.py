"""When the prior enters full-batch rounds and how strong it becomes, where no schedule says it.

The rule is that of `swsmix.attach.entry`, and simpler, since the loss of every round is known
exactly. *The data have spoken* after a round, the second or a later one, that lowered the loss by
at most a tenth of its fall in all. Then tau rises linearly, over as many rounds as the wait took,
to the ceiling of `swsmix.attach.entry`. While the loss lies above its level at the entry by more
than a tenth of the fall, tau goes back at the same pace.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from swsmix.attach.entry import SHARE


@dataclass
class _Progress:
    """All numbers of an entry, as a checkpoint keeps them."""

    losses: list[float] = field(default_factory=list)  # at the start and after each round, waiting
    entered: int | None = None  # the round after which the prior entered
    reference: float = 0.0  # the loss at the entry
    tolerance: float = 0.0  # how far above it is too far
    done: int = 0  # of the ramp, in rounds


class RoundEntry:
    """The strength of a prior that enters full-batch rounds by itself.

    Args:
        allowed: the ceiling of tau.

    Example:
        >>> entry = RoundEntry(0.5)
        >>> taus = []
        >>> for loss in (2.0, 1.0, 0.99, 0.99, 0.98):  # at the start, and after four rounds
        ...     entry.see(loss)
        ...     taus.append(entry.tau)
        >>> taus
        [0.0, 0.0, 0.25, 0.5, 0.5]
    """

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed
        self._state = _Progress()

    @property
    def tau(self) -> float:
        """The strength in the next round: 0 while waiting, at most `allowed`."""
        state = self._state
        return 0.0 if state.entered is None else self.allowed * (state.done / state.entered)

    @property
    def begun(self) -> bool:
        """Whether the loss at the start is known."""
        return bool(self._state.losses)

    def see(self, loss: float) -> None:
        """Take note of the data loss at the start, and then after every round.

        Args:
            loss: the mean over all training examples, without the penalty.
        """
        state = self._state
        if state.entered is not None:
            pace = -1 if loss > state.reference + state.tolerance else 1
            state.done = min(state.entered, max(0, state.done + pace))
            return
        state.losses.append(loss)
        rounds = len(state.losses) - 1
        fall = max(state.losses) - loss
        if rounds >= 2 and state.losses[-2] - loss <= SHARE * fall:
            state.entered, state.reference = rounds, loss
            state.tolerance = SHARE * (fall if fall > 0.0 else abs(loss))
            state.done = 1

    def state_dict(self) -> dict[str, Any]:
        """All that the next rounds depend on."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if a field is missing or is something else.
        """
        wanted = asdict(_Progress())
        if not isinstance(state, dict) or state.keys() != wanted.keys():
            raise ValueError(f"an entry's state has the fields {sorted(wanted)}")
        losses, entered = state["losses"], state["entered"]
        numbers: list[Any] = (
            [*losses, state["reference"], state["tolerance"]] if _is(losses, list) else [""]
        )
        rounds = [state["done"], 0 if entered is None else entered]
        if (
            not all(_is(x, int, float) and math.isfinite(x) for x in numbers)
            or not all(_is(x, int) and 0 <= x <= len(losses) for x in rounds)
            or (entered == 0 or state["done"] > (entered or 0))
        ):
            raise ValueError(f"an entry's state is not what it saves; got {state!r:.80}")
        self._state = _Progress(**{**state, "losses": list(losses)})


def _is(value: object, *kinds: type) -> bool:
    return type(value) in kinds
