"""What context models may spend in one file, so that writing and reading it end in time."""

from __future__ import annotations

from swsmix.codec.stream import StreamEncoder


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

    def read_(self, cost: int) -> None:
        """Add what reading costs, before it is spent.

        Raises:
            ValueError: if it is more than may be spent.
        """
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
