"""The mixture's scalar functions evaluated directly, in float64: O(N K), a chunk at a time.

How far rounding can carry them, with u = 2^-53, L = max_j |log pi_j| + |log sigma_j| + 1 over the
live components and kappa = |f(w)| + 2 L + log K:

- z_j = (w - mu_j) / sigma_j is one subtraction and one division, whatever cancels in it: off by
  at most 2 u |z_j|. So log pi_j N_j = log pi_j - log sigma_j - z_j^2 / 2 is off by
  delta_j <= 7 u (z_j^2 / 2 + L).
- The log-sum-exp moves by at most sum_j gamma_j delta_j, and sum_j gamma_j z_j^2 / 2 <= |f| + L +
  log K: |error of f| <= 16 u kappa <= `rounding` (1 + |f|), the sum over K included.
- gamma_j is off by a factor of delta_j + sum_k gamma_k delta_k. With Cauchy and Schwarz,
  |error of f'| <= 64 u (1 + kappa)^(3/2) sqrt(a). That is below 2^-23 sqrt(a) while |w - mu| /
  sigma stays below about 300. Further out it is reached only where several components are equally
  responsible, far from all: elsewhere f' is the pull of one, off by 6 u |f'|.
- A gamma_j below e^-708 may be 0: the compiled exponential knows no denormal numbers.

Far out, where delta_j would be large, the components are compared by z_j^2 - z_r^2 =
(z_j - z_r) (z_j + z_r), which is never worse and keeps the tails; see `_log_odds`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swsmix._log_odds import FAR, LARGE, LOG_SQRT_2PI, log_odds, standardised
from swsmix.tables import backends
from swsmix.tables.threads import one_thread_for_torch

P = ParamSpec("P")
T = TypeVar("T")
_MOST = sys.float_info.max


def eager(method: Callable[P, T]) -> Callable[P, T]:
    """A graph break in torch.compile, which is not loaded for it: that takes seconds.

    Returns:
        The same method.
    """
    disabled: list[Callable[P, T]] = []  # a list: torch.compile may trace this at the first call

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.compiler.is_compiling():
            return method(*args, **kwargs)
        if disabled:
            found = disabled[0]
        else:  # first a variable: torch 2.6 warns where the call is appended in one line
            found = cast(Callable[P, T], torch.compiler.disable(method))
            disabled.append(found)
        return found(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Switch off autograd and autocast, and compute in one thread.

    The code here sets its own precision, and starts its own threads; see `threads`.
    """
    if torch.get_num_threads() == 1 and not torch.is_grad_enabled() and not _is_autocast():
        yield  # as it is already: a step calls this many times
        return
    cpu, gpu = (torch.autocast(device, enabled=False) for device in ("cpu", "cuda"))
    with one_thread_for_torch(), torch.no_grad(), cpu, gpu:
        yield


def _is_autocast() -> bool:
    return any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


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


class Around(NamedTuple):
    """The mixture's functions at some weights, and how the components differ around them."""

    value: Tensor  # f (n,)
    gradient: Tensor  # f' (n,)
    curvature: Tensor  # a (n,)
    log_gamma: Tensor  # log responsibilities (k, n)
    gamma: Tensor  # responsibilities (k, n)
    slope: Tensor  # x: each component's own f', minus its mean under gamma (k, n)
    bend: Tensor  # y: each component's own f'', minus its mean under gamma (k, n)
    noise: Tensor  # delta: how far rounding can carry log gamma (k, n)


class ExactMixture:
    """A mixture in float64, with its own copy of the numbers."""

    def __init__(self, mixing: Tensor, mean: Tensor, std: Tensor) -> None:
        if mean.ndim != 1:
            raise ValueError(
                f"this needs one mixture, of K components; got {tuple(mean.shape)}: take a member "
                "of the batch, `mixture.member(i)`"
            )
        self.mixing, self.mean, self.std = (
            t.detach().double().clone() for t in (mixing, mean, std)
        )
        self.size = len(self.mean)  # K
        self.level = self.mixing.log() - self.std.log()
        self.precision = (1 / self.std / self.std).clamp_max_(_MOST)  # 0 times inf is nan
        self.scale = 1 / torch.where(self.mixing > 0, self.std, 0.0).max()  # of the widest
        # Entries of N x K; on a GPU more, see `chunk_on`.
        at_once = 1 << (15 if mixing.device.type == "cpu" else 20)
        self.rows = max(1, at_once // len(mixing))

    @functools.cached_property
    def packed(self) -> Tensor:
        """Three numbers per component, as one vector: for the GPU's loops."""
        return torch.stack([self.level, self.mean, self.std], 1).reshape(-1)

    @functools.cached_property
    def as_array(self) -> NDArray[np.float64]:
        """Level, mean, std, 1 / std and precision (5, k): for the processor's loops."""
        rows = (self.level, self.mean, self.std, 1 / self.std, self.precision)
        return cast("NDArray[np.float64]", torch.stack(rows).numpy())

    @functools.cached_property
    def extent(self) -> tuple[float, float, float]:
        """The smallest and largest std, and the largest |mu|, of the live components."""
        parts = zip(*(each.tolist() for each in (self.mixing, self.mean, self.std)), strict=True)
        live = [(std, abs(mean)) for mixing, mean, std in parts if mixing > 0]
        stds, means = zip(*live, strict=True)
        return min(stds), max(stds), max(means)

    @functools.cached_property
    def levels(self) -> float:
        """L: how large the logarithms of live components are."""
        live = self.mixing > 0
        sizes = self.mixing[live].log().abs() + self.std[live].log().abs()
        return float(sizes.max()) + 1.0

    @functools.cached_property
    def rounding(self) -> float:
        """The bound of f's error for one weight, relative to 1 + |f|; derived above."""
        return 2.0**-49 * (1.0 + 2.0 * self.levels + math.log(len(self.mean)))

    def __reduce__(self) -> tuple[type[ExactMixture], tuple[Tensor, ...]]:
        """For copies and pickles: the mixture alone."""
        return ExactMixture, (self.mixing, self.mean, self.std)

    def cpu(self) -> ExactMixture:
        """The same mixture on the CPU."""
        if self.mean.device.type == "cpu":
            return self
        return ExactMixture(self.mixing.cpu(), self.mean.cpu(), self.std.cpu())

    def at(self, w: Tensor) -> Evaluation:
        """All functions at weights (n,); NaN where one is not finite."""
        w = w.double()[:, None]
        z = standardised(w, self.mean, self.std)
        odds = log_odds(w, z, self.level, self.mean, self.std)
        # The largest is subtracted first: far out, log 2 would vanish beside it.
        top, nearest = odds.max(1, keepdim=True)
        log_gamma = odds.sub_(top)
        gamma = log_gamma.exp()
        total = gamma.sum(1, keepdim=True)
        gamma /= total
        log_gamma -= total.log()
        nearest_z = z.gather(1, nearest)
        overflows = nearest_z.abs() >= LARGE
        half_square = (0.5 * nearest_z * nearest_z).masked_fill_(overflows, math.inf)
        log_norm = self.level[nearest] - 0.5 * math.log(2 * math.pi)
        bad = w - w  # NaN for what is not finite
        value = half_square - log_norm - total.log() + bad
        gradient = (gamma * z).div_(self.std).sum(1)
        wild = overflows[:, 0] | gradient.isnan()
        if bool(wild.any()):
            gradient[wild] = self._overflowing(w[wild], gamma[wild])
        return Evaluation(
            value[:, 0], gradient + bad[:, 0], gamma @ self.precision + bad[:, 0], log_gamma
        )

    def _overflowing(self, w: Tensor, gamma: Tensor) -> Tensor:
        """The gradient f' where pulls may be infinite: those of responsible components alone."""
        pull = (0.5 * w - 0.5 * self.mean) / self.std / self.std * 2.0
        gradient = torch.where(gamma > 0, gamma * pull, 0.0).sum(1)
        bounded = (gamma * pull.clamp(-_MOST, _MOST)).sum(1)  # where opposite infinities meet
        return torch.where(gradient.isnan(), bounded, gradient)

    def around(self, w: Tensor) -> Around:
        """How the components differ around finite weights (n,), for stds that are not extreme.

        The longest axis last, which is the fastest.
        """
        w, mean, std = w.double(), self.mean[:, None], self.std[:, None]
        inverse = 1 / std
        z = (w - mean).div_(std)
        odds = torch.addcmul(self.level[:, None], z, z, value=-0.5)
        top, nearest = odds.max(0)
        if bool((far := top < FAR).any()):  # there the squares lose their differences
            odds[:, far] = self._far_odds(w[far], z[:, far])
            top, nearest = odds.max(0)
        log_gamma = odds.sub_(top)
        gamma = log_gamma.exp()
        total = gamma.sum(0)
        gamma /= total
        log_gamma -= (log_total := total.log())
        mean_r, std_r = self.mean[nearest], self.std[nearest]
        offset, inverse_r = w - mean_r, 1 / std_r
        z_r = offset / std_r
        value = (0.5 * z_r * z_r).sub_(self.level[nearest] - LOG_SQRT_2PI).sub_(log_total)
        # Each as a difference, and in parts that do not cancel far out; the smaller is exact.
        one = (std_r - std).mul_(inverse).mul_(offset * inverse_r)  # offset (1 / sigma_j - 1 / ..)
        other = (mean_r - mean).mul_(inverse)
        size, size_r = z.abs(), z_r.abs()
        whole = size + size_r
        reach = torch.minimum(one.abs().add_(other.abs()), whole).mul_(whole)
        if bool((value <= -FAR).any()):
            reach = torch.where(value > -FAR, reach, size.square_().add_(z_r.square()))
        noise = reach.add_(2.0 * self.levels).mul_(2.0**-51)
        pull, pull_r = z.mul_(inverse), z_r * inverse_r
        one.mul_(inverse + inverse_r)
        other.mul_(inverse)
        by_parts = one.abs().add_(other.abs()) < pull.abs().add_(pull_r.abs())
        slope = torch.where(by_parts, one.add_(other), pull - pull_r)
        slope -= (gamma * slope).sum(0)
        curvature = self.precision @ gamma
        bend = self.precision[:, None] - curvature
        gradient = pull.mul_(gamma).sum(0)
        return Around(value, gradient, curvature, log_gamma, gamma, slope, bend, noise)

    def _far_odds(self, w: Tensor, z: Tensor) -> Tensor:
        """What `_log_odds.log_odds` returns far out, where nothing overflows (k, n)."""
        level, mean, std = self.level[:, None], self.mean[:, None], self.std[:, None]
        size = z.abs()
        odds = -size.masked_fill(level == -math.inf, math.inf)
        for _ in range(2):  # relative to the nearest one, then to the most responsible of those
            nearest = odds.argmax(0)
            mean_r, std_r, z_r = self.mean[nearest], self.std[nearest], z.gather(0, nearest[None])
            one = (std_r - std).div_(std).mul_((w - mean_r) / std_r)
            other = (mean_r - mean).div_(std)
            by_parts = one.abs().add_(other.abs()) <= size + z_r.abs()
            gap = torch.where(by_parts, one.add_(other), z - z_r)
            odds = level - gap.mul_(z + z_r).mul_(0.5).clamp_min_(-1e300)
        return odds

    def chunks(self, w: Tensor) -> Iterator[tuple[slice, Evaluation]]:
        """`at`, chunk by chunk, in bounded memory."""
        for start in range(0, len(w), self.rows):
            part = slice(start, start + self.rows)
            yield part, self.at(w[part])

    def slopes(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient f' and the curvature a, each (n,)."""
        if numba := backends.numba_exact_for(w):
            out: Tensor = numba.slopes(self, w)
            if bool((left := out[0].isnan()).any()):
                out[:, left] = self._slopes(w[left])
        else:
            out = self._slopes(w)
        return out[0], out[1]

    def _slopes(self, w: Tensor) -> Tensor:
        out = self.mean.new_empty(2, len(w))
        for part, p in self.chunks(w):
            out[0, part], out[1, part] = p.gradient, p.curvature
        return out

    def sums(self, w: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of weights (n,), each counted `mass` times."""
        if mass is None and (numba := backends.numba_exact_for(w)):
            value, moments, left_out = numba.sums(self, w)
            if len(left_out):
                more = self._sums(w[left_out], among=len(w))
                value, moments = value + more[0], moments + more[1]
            return value, moments
        return self._sums(w, mass)

    def _sums(
        self, w: Tensor, mass: Tensor | None = None, among: int | None = None
    ) -> tuple[Tensor, Tensor]:
        mass = self.mean.new_ones(()).expand(len(w)) if mass is None else mass
        if bad := int(mass[~w.isfinite()].sum()):
            total = int(mass.sum()) if among is None else among
            raise ValueError(
                f"weights must be finite; got {bad} infinite or NaN ones among {total}"
            )
        value, moments = self.mean.new_zeros(()), self.mean.new_zeros(3, len(self.mean))
        for part, p in self.chunks(w):
            terms, away = p.log_gamma.exp() * mass[part, None], w[part, None].double() - self.mean
            away.clamp_(-_MOST, _MOST)  # 0 times inf is nan
            value += p.value @ mass[part]
            for moment in moments:
                moment += terms.sum(0)
                terms *= away
        return value, moments
