"""What torch's optimisers and the wrappers around them hold, and whether they step at all."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from swsmix import _shards

# The code of the function that torch puts around every `step`, and that calls the hooks.
_HOOKED = cast(Any, Optimizer.profile_hook_step(lambda *_: None)).__code__


def innermost(optimizer: Any, held: set[int]) -> list[Optimizer]:
    """The optimisers that make the steps within a wrapper, at any depth, or the given one itself.

    Accelerate, Lightning, SAM and others keep the optimiser that they wrap in an attribute; the
    wrappers have no hooks of their own, or their `step` is never called. One whose inner optimisers
    hold a part of its tensors alone (ZeRO's shard) steps itself.

    Raises:
        TypeError: if there is no optimiser, or it has not been initialised.
    """
    found = _steppers(optimizer, held, {})
    if not found and isinstance(optimizer, Optimizer):
        found = [optimizer]
    if not found:
        raise TypeError(
            "attach needs a torch.optim.Optimizer, or a wrapper that keeps one in an attribute, of "
            "the network's own parameters (not of copies of them in float32); got "
            f"{type(optimizer).__name__}"
        )
    for each in found:
        if not hasattr(each, "_optimizer_step_pre_hooks"):
            raise TypeError(
                f"{type(each).__name__} has no hooks: its __init__ must call super().__init__"
            )
    return found


def _steppers(optimizer: Any, held: set[int], known: dict[int, list[Optimizer]]) -> list[Optimizer]:
    if id(optimizer) in known:
        return known[id(optimizer)]
    known[id(optimizer)] = []  # those that refer to each other
    inner = {
        id(found): found
        for each in _kept_by(optimizer)
        if hasattr(each, "step")
        for found in _steppers(each, held, known)
    }
    if isinstance(optimizer, Optimizer):
        mine = held.intersection(map(id, parameters_of(optimizer)))
        if not mine <= {id(p) for found in inner.values() for p in parameters_of(found)}:
            inner = {id(optimizer): optimizer}
    known[id(optimizer)] = list(inner.values())
    return known[id(optimizer)]


def _kept_by(wrapper: Any) -> Iterator[Any]:
    """What an object keeps in its attributes, and in lists and mappings there."""
    slots = (getattr(kind, "__slots__", ()) for kind in type(wrapper).__mro__)
    names = [n for s in slots for n in ([s] if isinstance(s, str) else s)]
    named = (getattr(wrapper, n, None) for n in (*names, "optimizer", "base_optimizer"))
    for value in (*getattr(wrapper, "__dict__", {}).values(), *named):
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def within_own_step(optimizer: Optimizer) -> bool:
    """Whether a hook was called by a step within a step of the same optimiser: `super().step()`.

    torch puts its hooks around the `step` of each class of which there has been an instance, so
    that a subclass which calls its parent's step runs them twice. The stack decides, since a count
    would stay wrong after a step that raised.
    """
    frame: FrameType | None = sys._getframe(1)
    steps = 0
    while frame is not None:
        if frame.f_code is _HOOKED and any(v is optimizer for v in frame.f_locals.values()):
            steps += 1
        frame = frame.f_back
    return steps > 1


def parameters_of(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def scale(optimizer: Optimizer) -> float:
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def skipped(optimizer: Optimizer) -> bool:
    # A fused optimiser runs its hooks even for the steps that a gradient scaler skips.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def make_gradient_dense(optimizer: Optimizer, p: nn.Parameter) -> Tensor:
    """Give a parameter a gradient that can be added to in place, and return it."""
    grad = p.grad
    if grad is None:
        with torch.inference_mode(False):  # what is made inside it could never change again
            grad = torch.zeros_like(p)
    elif grad.layout is not torch.strided:  # the sum of a sparse and the prior's dense one
        if isinstance(optimizer, torch.optim.SparseAdam):
            raise ValueError(
                "the prior pulls at every weight, so its gradient is dense, and SparseAdam takes "
                "sparse gradients only: use Adam or Adagrad, or leave the embedding out of the "
                "prior with exclude="
            )
        grad = grad.to_dense()
    elif 0 in grad.stride():  # expanded: its elements share memory
        grad = grad.clone(memory_format=torch.contiguous_format)
    p.grad = grad
    return grad


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

    def __init__(self, attachment: Clocked, watched: Iterable[nn.Parameter]) -> None:
        self.inside = False  # a closure may be evaluated many times within one step
        self._attachment = weakref.ref(attachment)
        # Backward passes since the last tick, and a few weights at the second, by parameter.
        self._seen: dict[int, tuple[int, Tensor | None]] = {}
        self._handles = [
            p.register_post_accumulate_grad_hook(self._after_backward)
            for p in watched
            if p.is_leaf and p.requires_grad
        ]

    def tick(self) -> None:
        """Begin to count anew."""
        self._seen.clear()

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _after_backward(self, p: Tensor) -> None:
        attachment = self._attachment()
        if attachment is None:
            self.remove()
            return
        if self.inside:
            return
        passes, start = self._seen.get(id(p), (0, None))
        passes += 1
        if passes == 2:  # in a loop that ticks there is no second one
            start = _few_weights(p)
        self._seen[id(p)] = passes, start
        if start is None or passes % 16 or torch.equal(_few_weights(p), start):
            return  # gradients are being accumulated
        self.remove()
        warnings.warn(
            f"the prior's clock stands at tick {attachment.tick} for {passes} backward passes "
            f"although the weights have moved: the step of {attachment.waiting} was not called. "
            "Attach the prior to the optimisers whose .step() moves the weights, and to no others",
            stacklevel=2,
        )


def _few_weights(p: Tensor) -> Tensor:
    w = _shards.local(p.detach()).reshape(-1)
    return w[:: max(1, len(w) // 64)][:64].to("cpu", torch.float64, copy=True)
