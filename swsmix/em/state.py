"""What EM keeps from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from swsmix.em.hyper_prior import HyperPrior
from swsmix.em.moments import Moments
from swsmix.mixture import GaussianMixture

_MOMENTS = ("centre", "count", "first", "second")
_HYPER = tuple(f.name for f in fields(HyperPrior))


class EMState(nn.Module):
    """What EM keeps from step to step: a mixture, its hyper-prior and its running moments.

    Args:
        mixture: its components.
        hyper: the hyper-prior of its M step.
        start_std: the weights' std at the start; 0 if unknown.
    """

    def __init__(self, mixture: GaussianMixture, hyper: HyperPrior, start_std: float = 0.0) -> None:
        super().__init__()
        self.mixture = mixture
        for name, value in hyper.expanded(mixture).items():
            self.register_buffer(f"hyper_{name}", value.clone())
        for name in _MOMENTS:
            empty = torch.full_like(self.hyper_std, torch.nan)
            self.register_buffer(f"running_{name}", empty)
        steps = torch.zeros((), dtype=torch.int64, device=mixture.mean.device)
        self.register_buffer("steps", steps)
        self.register_buffer("start_std", torch.full_like(self.hyper_std[0], start_std))

    hyper_std: Tensor
    start_std: Tensor
    running_count: Tensor
    steps: Tensor  # EM steps taken

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMState:
        # Statistics follow the mixture to its device, but stay in float64.
        own = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in own.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(self.mixture.mean.device)
        return self

    @property
    def hyper(self) -> HyperPrior:
        """The hyper-prior."""
        return HyperPrior.known(**{name: getattr(self, f"hyper_{name}") for name in _HYPER})

    @property
    def running(self) -> Moments | None:
        """The running moments; None before the first EM step."""
        if self.running_count.isnan().any():
            return None
        return Moments(*(getattr(self, f"running_{name}").clone() for name in _MOMENTS))

    def forget_(self) -> None:
        """Forget the running moments: the components are others now."""
        for name in _MOMENTS:
            getattr(self, f"running_{name}").fill_(torch.nan)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # Runs of before have no count and no start.
        state.setdefault(f"{prefix}steps", torch.zeros_like(self.steps))
        state.setdefault(f"{prefix}start_std", self.start_std)
        super()._load_from_state_dict(state, prefix, *args)
        replace(self.hyper)  # which checks its ranges

    def keep_(self, moments: Moments) -> None:
        """Count an EM step, and make these the running moments."""
        self.steps += 1
        for name in _MOMENTS:
            getattr(self, f"running_{name}").copy_(getattr(moments, name))
