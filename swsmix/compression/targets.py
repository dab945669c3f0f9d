"""What a compressed network should keep, or weigh, and what was reached; `search` finds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What a compressed network should keep, or weigh; exactly one of the three.

    Attributes:
        loss_increase: how much the mean loss on the validation data may rise above the given
            network's, in the loss's unit (nats).
        measure_increase: the same of the measure, in its unit: 0.01 of a measure in [0, 1] is one
            percentage point.
        size_bytes: the size of the whole file that `save_compressed` writes, at most.

    Raises:
        ValueError: if not exactly one is given, or it is out of range.

    Example:
        >>> Target(loss_increase=0.01)
        Target(loss_increase=0.01, measure_increase=None, size_bytes=None)
    """

    loss_increase: float | None = None
    measure_increase: float | None = None
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check that there is one, within its range."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                "a target is exactly one of loss_increase, measure_increase and size_bytes; got "
                f"{given or 'none'}"
            )
        for name in ("loss_increase", "measure_increase"):
            if name in given and not 0.0 <= given[name] < math.inf:
                raise ValueError(f"{name} must be finite and at least 0; got {given[name]}")
        if self.size_bytes is not None and not self.size_bytes >= 1:
            raise ValueError(f"size_bytes must be at least 1; got {self.size_bytes}")

    def __str__(self) -> str:
        """The one that is given."""
        return ", ".join(f"{n}={v}" for n, v in vars(self).items() if v is not None)

    @property
    def allowed(self) -> float | None:
        """The allowed increase, of the loss or of the measure; None for a size."""
        return self.measure_increase if self.loss_increase is None else self.loss_increase


@dataclass(frozen=True)
class Step:
    """One point on the way to a target.

    Attributes:
        phase: `sparsify` (an epoch of it), `snap`, `finetune` or `spend`, with the trial's number.
        multiplier: tau while sparsifying and when snapped; in `spend` the price of a bit (lambda),
            in curvature times squared weight.
        value: the validation loss, or the measure for a bound on it.
        size_bytes: of the whole file, where it was encoded.
    """

    phase: str
    multiplier: float
    value: float
    size_bytes: int | None = None


@dataclass(frozen=True)
class Reached:
    """What was asked of a network, and what came out.

    Attributes:
        target: what was asked.
        start: the validation loss of the given network, or its measure for a bound on that.
        value: the same of the snapped one.
        size_bytes: the size of its whole file.
        tau: the effective strength of the prior: at the end of the sparsifying phase that led here.
        path: the multipliers and what they led to, in order.
    """

    target: Target
    start: float
    value: float
    size_bytes: int
    tau: float
    path: tuple[Step, ...]

    @property
    def used(self) -> float:
        """The share of the allowed increase, or of the asked size, that was used."""
        if self.target.size_bytes is not None:
            return self.size_bytes / self.target.size_bytes
        increase, allowed = self.value - self.start, self.target.allowed or 0.0
        return increase / allowed if allowed else float(increase > 0.0)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.target}: {self.value:.6g} on validation data, {self.value - self.start:+.3g}; "
            f"{self.size_bytes:,} bytes; tau {self.tau:.3g}"
        )


class TargetError(ValueError):
    """A target that was not met; the network is what it was before.

    Attributes:
        nearest: what the nearest snapped network reached.
        state: that network's `state_dict`, snapped; `save_compressed(path, state)` writes it.
    """

    def __init__(self, nearest: Reached, state: dict[str, Tensor]) -> None:
        self.nearest, self.state = nearest, state
        size = nearest.target.size_bytes is not None
        ask = "a larger size_bytes" if size else "a larger increase"
        super().__init__(
            f"the target {nearest.target} was not met. The nearest snapped network has "
            f"{nearest.value:.6g} on the validation data, {nearest.value - nearest.start:+.3g} "
            f"against the network as given, and takes {nearest.size_bytes:,} bytes. Ask for {ask}, "
            "or train for more epochs (recipe=); the network is left as it was, and the nearest "
            "one is in this error's `state`"
        )
