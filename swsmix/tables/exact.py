"""The mixture's scalar functions evaluated exactly, in float64: O(N K), a chunk at a time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def eager(method: Callable[P, T]) -> Callable[P, T]:
    """A graph break in torch.compile.

    Returns:
        The same method.
    """
    return cast(Callable[P, T], torch.compiler.disable(method))


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Switch off autograd and autocast, and compute in one thread.

    The code here sets its own precision. Its many short operations on cached chunks gain nothing
    from a second thread, but wait for it: up to a hundred times longer on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cpu, gpu = (torch.autocast(device, enabled=False) for device in ("cpu", "cuda"))
        with torch.no_grad(), cpu, gpu:
            yield
    finally:
        torch.set_num_threads(threads)


def run_isolated(method: Callable[P, T]) -> Callable[P, T]:
    """The method, run in `isolated` and outside torch.compile."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with isolated():
            return method(*args, **kwargs)

    return eager(wrapped)


class Evaluation(NamedTuple):
    """The mixture's functions at some weights."""

    value: Tensor  # f = -log p (n,)
    gradient: Tensor  # f' = sum gamma (w - mu) / sigma^2 (n,)
    curvature: Tensor  # a = sum gamma / sigma^2 (n,)
    log_gamma: Tensor  # log responsibilities (n, k)
    slope: Tensor  # x: each component's own f', minus its mean under gamma (n, k)
    bend: Tensor  # y: each component's own f'', minus its mean under gamma (n, k)


class ExactMixture:
    """A mixture in float64, relative to its widest component so that far tails do not cancel."""

    def __init__(self, mixing: Tensor, mean: Tensor, std: Tensor) -> None:
        self.mixing, self.mean, self.std = (t.detach().double() for t in (mixing, mean, std))
        scale = 1 / self.std
        log_norm = self.mixing.log() + scale.log() - 0.5 * math.log(2 * math.pi)
        widest = torch.where(self.mixing > 0, self.std, 0.0).argmax()
        self.centre, self.scale, self.log_norm = self.mean[widest], scale[widest], log_norm[widest]
        self.log_ratio, self.d_scale = log_norm - self.log_norm, scale - self.scale
        self.shift, self.d_bend = scale * (self.centre - self.mean), scale**2 - self.scale**2
        self.shift_slope, self.precision = scale * self.shift, scale**2
        # Entries of N x K; on a GPU more, see `chunk_on`.
        at_once = 1 << (15 if mixing.device.type == "cpu" else 20)
        self.rows = max(1, at_once // len(mixing))

    @functools.cached_property
    def packed(self) -> Tensor:
        """Centre, scale, then five numbers per component, as one vector: for the GPU's loops."""
        each = [self.log_ratio, self.d_scale, self.shift, self.mean, self.precision]
        common = torch.stack([self.centre, self.scale])
        return torch.cat([common, torch.stack(each, 1).reshape(-1)])

    def cpu(self) -> ExactMixture:
        """The same mixture on the CPU."""
        if self.mean.device.type == "cpu":
            return self
        return ExactMixture(self.mixing.cpu(), self.mean.cpu(), self.std.cpu())

    def at(self, w: Tensor) -> Evaluation:
        """All functions at weights (n,)."""
        offset = (w.double() - self.centre)[:, None]
        z = offset * self.scale
        dz = torch.addcmul(self.shift, offset, self.d_scale)  # z_j - z of the widest
        log_gamma = torch.addcmul(self.log_ratio, dz, dz + 2 * z, value=-0.5)
        top = log_gamma.amax(
            1, keepdim=True
        )  # subtracted first: far out, log 2 would vanish beside it
        log_gamma -= top
        gamma = log_gamma.exp()
        total = gamma.sum(1, keepdim=True)
        gamma /= total
        log_gamma -= total.log()
        pull = (w.double()[:, None] - self.mean).mul_(self.precision)  # exact at the centres
        slope = torch.addcmul(self.shift_slope, offset, self.d_bend)
        mean_slope, mean_bend = (gamma * slope).sum(1, True), (gamma @ self.d_bend)[:, None]
        return Evaluation(
            (0.5 * z * z - self.log_norm - top - total.log())[:, 0],
            pull.mul_(gamma).sum(1),
            (self.scale**2 + mean_bend)[:, 0],
            log_gamma,
            slope - mean_slope,
            self.d_bend - mean_bend,
        )

    def chunks(self, w: Tensor) -> Iterator[tuple[slice, Evaluation]]:
        """`at`, chunk by chunk, in bounded memory."""
        for start in range(0, len(w), self.rows):
            part = slice(start, start + self.rows)
            yield part, self.at(w[part])

    def slopes(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient f' and the curvature a, each (n,)."""
        out = self.mean.new_empty(2, len(w))
        for part, p in self.chunks(w):
            out[0, part], out[1, part] = p.gradient, p.curvature
        return out[0], out[1]

    def sums(self, w: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of weights (n,), each counted `mass` times."""
        mass = self.mean.new_ones(()).expand(len(w)) if mass is None else mass
        if bad := int(mass[~w.isfinite()].sum()):
            total = int(mass.sum())
            raise ValueError(
                f"weights must be finite; got {bad} infinite or NaN ones among {total}"
            )
        value, moments = self.mean.new_zeros(()), self.mean.new_zeros(3, len(self.mean))
        for part, p in self.chunks(w):
            terms, away = p.log_gamma.exp() * mass[part, None], w[part, None].double() - self.mean
            value += p.value @ mass[part]
            for moment in moments:
                moment += terms.sum(0)
                terms *= away
        return value, moments
