"""What a prior keeps for each of its groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from swsmix.em import HyperPrior, Moments
from swsmix.mixture import GaussianMixture

_MOMENTS = ("centre", "count", "first", "second")


class Member(nn.Module):
    """A mixture with its hyper-prior and its running moments, in one `state_dict`.

    Args:
        mixture: its components.
        hyper: the hyper-prior of its M step.
    """

    def __init__(self, mixture: GaussianMixture, hyper: HyperPrior) -> None:
        super().__init__()
        self.mixture = mixture
        for name, value in hyper.expanded(mixture).items():
            self.register_buffer(f"hyper_{name}", value.clone())
        for name in _MOMENTS:
            empty = torch.full_like(self.hyper_std, torch.nan)
            self.register_buffer(f"running_{name}", empty)

    hyper_std: Tensor
    running_count: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Member:
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
        prefix = "hyper_"
        values = {n[len(prefix) :]: b for n, b in self.named_buffers() if n.startswith(prefix)}
        return HyperPrior(**values)

    @property
    def running(self) -> Moments | None:
        """The running moments; None before the first EM step."""
        if self.running_count.isnan().any():
            return None
        return Moments(*(getattr(self, f"running_{name}").clone() for name in _MOMENTS))

    def keep_(self, moments: Moments) -> None:
        """Make these the running moments."""
        for name in _MOMENTS:
            getattr(self, f"running_{name}").copy_(getattr(moments, name))
