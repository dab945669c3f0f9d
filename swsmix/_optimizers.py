"""What torch's optimisers and the wrappers around them hold, and whether they step at all."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards


def innermost(optimizer: Any, held: set[int], seen: tuple[int, ...] = ()) -> Iterator[Optimizer]:
    """The optimisers that make the steps within a wrapper, at any depth, or the given one itself.

    Accelerate, Lightning, SAM and others keep the optimiser that they wrap in an attribute; the
    wrappers have no hooks of their own, or their `step` is never called.

    Raises:
        TypeError: if there is no optimiser.
    """
    named = [getattr(optimizer, name, None) for name in ("optimizer", "base_optimizer")]
    kept = [*getattr(optimizer, "__dict__", {}).values(), *named]
    several = (v if isinstance(v, list | tuple) else [v] for v in kept)
    inner = {
        id(o): o
        for values in several
        for o in values
        if hasattr(o, "param_groups")
        and hasattr(o, "step")
        and id(o) not in (*seen, id(optimizer))
        and any(id(p) in held for p in parameters_of(o))
    }
    if inner:
        for each in inner.values():
            yield from innermost(each, held, (*seen, id(optimizer)))
    elif isinstance(optimizer, Optimizer):
        yield optimizer
    else:
        raise TypeError(
            "attach needs a torch.optim.Optimizer, or a wrapper that keeps one in an attribute; "
            f"got {type(optimizer).__name__}"
        )


def parameters_of(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def scale(optimizer: Optimizer) -> float:
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def skipped(optimizer: Optimizer) -> bool:
    # A fused optimiser runs its hooks even for the steps that a gradient scaler skips.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def check_takes_dense(optimizer: Optimizer) -> None:
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            "the prior pulls at every weight, so its gradient is dense, and SparseAdam takes "
            "sparse gradients only: use Adam or Adagrad, or leave the embedding out of the prior "
            "with exclude="
        )


@runtime_checkable
class Clocked(Protocol):
    """An attachment, as far as the watch needs it."""

    tick: int

    @property
    def waiting(self) -> list[str]:
        """The optimisers that have not stepped since the last tick, by their types."""


class Watch:
    """Says so when the weights move and the attachment never ticks: its optimiser does not step.

    Some wrappers move the weights by themselves and never call the `step` that has the hooks.
    Counted are the backward passes since the last tick; a look at a few weights says whether they
    have moved.
    """

    def __init__(self, attachment: Clocked, watched: Mapping[str, nn.Parameter]) -> None:
        self.backwards = 0
        self.inside = False  # a closure may be evaluated many times within one step
        self._attachment = weakref.ref(attachment)
        self._start: Tensor | None = None
        (self._parameter,) = watched.values()
        self.handle: Any = None
        if self._parameter.is_leaf and self._parameter.requires_grad:
            self.handle = self._parameter.register_post_accumulate_grad_hook(self._after_backward)

    def remove(self) -> None:
        """Stop watching."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def _after_backward(self, _: Tensor) -> None:
        attachment = self._attachment()
        if attachment is None:
            self.remove()
            return
        if self.inside:
            return
        self.backwards += 1
        if self.backwards == 1:
            self._start = self._few_weights()
        elif self.backwards % 16 == 0 and self._start is not None:
            if torch.equal(self._few_weights(), self._start):
                return  # gradients are being accumulated
            self.remove()
            warnings.warn(
                f"the prior has been at rest for {self.backwards} backward passes although the "
                f"weights have moved: the step of {attachment.waiting} was not called (tick "
                f"{attachment.tick}). Attach the prior to the optimiser whose .step() moves the "
                "weights",
                stacklevel=2,
            )

    def _few_weights(self) -> Tensor:
        w = _shards.local(self._parameter.detach()).reshape(-1)
        return w[:: max(1, len(w) // 64)][:64].clone()
