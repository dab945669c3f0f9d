"""The values that something was made from, and whether a mixture still has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class BuiltFrom:
    """Parameters of a mixture, and of its hyper-prior, as they were.

    Their values decide, not the tensors' version counters: `.data`, inference mode and copies go
    past those. Who cannot wait for a GPU gets what memory and counters say; the values are compared
    meanwhile, and what went past the counters is seen at the next call.

    Args:
        now: the parameters, which are copied.

    Example:
        >>> std = torch.ones(2)
        >>> built = BuiltFrom((torch.tensor([0.5, 0.5]), torch.zeros(2), std))
        >>> std.data[0] = 2.0
        >>> built.is_still((torch.tensor([0.5, 0.5]), torch.zeros(2), std))
        False
    """

    def __init__(self, now: tuple[Tensor, ...]) -> None:
        self.values = tuple(each.detach().clone() for each in now)
        self._marks = [_mark(each) for each in now]
        self._asked: tuple[Tensor, Any] | None = None

    def is_still(self, now: tuple[Tensor, ...], *, wait: bool = True) -> bool:
        """Whether the parameters are what they were.

        Args:
            now: the parameters.
            wait: for a GPU, if they are on one.
        """
        if wait or not _is_on_gpu(now[0]):
            return self._has_values(now)
        marks = [_mark(each) for each in now]
        if marks != self._marks:  # after an EM step, or where they were loaded
            self._marks, self._asked = marks, None
            return self._has_values(now)
        changed = False
        if self._asked is not None:
            answer, event = self._asked
            if event is not None and not event.query():
                return True
            changed = bool(answer)
        different = [
            (one.detach() != other).any() for one, other in zip(now, self.values, strict=True)
        ]
        answer = torch.stack(different).any().to("cpu", non_blocking=True)
        self._asked = answer, _recorded(now[0])
        return not changed

    def _has_values(self, now: tuple[Tensor, ...]) -> bool:
        return all(
            one.dtype == other.dtype and one.device == other.device and one.equal(other)
            for one, other in zip(now, self.values, strict=True)
        )


def _is_on_gpu(t: Tensor) -> bool:
    return t.is_cuda


def _mark(t: Tensor) -> tuple[Any, ...]:
    # What is made in inference mode has no version.
    return t.data_ptr(), t.dtype, t.device, None if t.is_inference() else t._version


def _recorded(t: Tensor) -> Any | None:
    """An event at the end of what a GPU was asked to do so far; None on a CPU, which is done."""
    return torch.cuda.current_stream(t.device).record_event() if t.is_cuda else None
