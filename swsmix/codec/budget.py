"""What a file may cost, and context models may spend, so that writing and reading end in time."""

from __future__ import annotations

import threading

from swsmix.codec.stream import StreamEncoder

# Without being asked for: 268 million, a gigabyte in float32, or what a large file honestly holds.
MAX_WEIGHTS, _HONEST_PER_BYTE = 1 << 28, 16
_FREE_WEIGHTS, _WEIGHTS_PER_BYTE = 1 << 25, 256
_FREE_STEPS, _STEPS_PER_BYTE = 1 << 22, 2048
_STEPS_PER_ALLOWED_WEIGHT = 4


def limits(size: int, max_weights: int | None = None) -> tuple[int, int]:
    """What a file of `size` bytes may cost: numbers, and steps; `max_weights` allows more of both.

    A file of a few bytes may hold a large tensor of equal values; any other costs what it holds.
    A step is a decision of a context model, or as much work: about a microsecond.
    """
    steps = _FREE_STEPS + _STEPS_PER_BYTE * size
    if max_weights is None:
        most = max(MAX_WEIGHTS, _HONEST_PER_BYTE * size)
        return min(most, _FREE_WEIGHTS + _WEIGHTS_PER_BYTE * size), steps
    return max_weights, steps + _STEPS_PER_ALLOWED_WEIGHT * max_weights


def max_weights_for(size: int, numbers: int, steps: int) -> int | None:
    """The least `max_weights` for a file of this cost; None if it is read without."""
    free_numbers, free_steps = limits(size)
    if numbers <= free_numbers and steps <= free_steps:
        return None
    return max(numbers, -(-(steps - free_steps) // _STEPS_PER_ALLOWED_WEIGHT))


class ContextBudget:
    """What context models may still spend in one file, in decisions of some microseconds each.

    Decisions are counted, not timed, so that every machine writes the same bytes.

    Args:
        left: the number of decisions; when coding, a step of a scan counts as `STEP` of them.
        to_read: what reading may cost, in the same unit; None for no limit.
        allowed_for: what allows so much, in words.
    """

    STEP = 500

    def __init__(self, left: int, to_read: int | None = None, allowed_for: str = "") -> None:
        self.left = left
        self.allowed_for = allowed_for
        self.to_read = to_read
        self.read = 0
        self._lock = threading.Lock()

    def read_(self, cost: int) -> None:
        """Add what reading costs, before it is spent.

        Raises:
            ValueError: if it is more than may be spent.
        """
        with self._lock:  # blocks are read in threads
            self.read += cost
        if self.to_read is not None and self.read > self.to_read:
            raise ValueError(
                f"reading it takes more than {self.to_read:,} steps of about a microsecond, the "
                f"most for {self.allowed_for}: give a larger max_weights (--max-weights "
                "of `swsmix decompress` and `inspect`) if you trust it"
            )

    def spend(self, stream: StreamEncoder, steps: int) -> None:
        """Subtract the cost of what has been coded."""
        self.left -= stream.decisions + self.STEP * steps
