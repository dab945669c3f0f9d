"""The tables of a mixture, looked up for many weights: value, gradient, moments, proximal step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swsmix.tables import backends
from swsmix.tables.bits import bit_cells
from swsmix.tables.cells import Cells, Error, Histogram, Room, chunk_on
from swsmix.tables.direct import Mixture, plain
from swsmix.tables.grid import grid_cells

DIRECT = 1 << 16  # N x K up to which direct evaluation is about as fast, on a processor


@contextlib.contextmanager
def _flat(target: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Tensors of one shape in one dimension, in the target's memory order; it may be written to."""
    strides = target.stride()
    order = sorted(range(len(strides)), key=lambda d: -strides[d])
    views = [each.detach().permute(order) for each in (target, *others)]
    flat = [view.reshape(-1) for view in views]
    yield flat
    if flat[0].data_ptr() != target.data_ptr():  # a copy, because its memory has gaps
        views[0].copy_(flat[0].view(views[0].shape))


def _all_halves(dtype: torch.dtype, device: torch.device) -> Tensor:
    """All the 65,536 values of a 16-bit type, in the order of their bits."""
    return torch.arange(1 << 16, device=device).to(torch.int16).view(dtype)


Moments = tuple[Tensor, Tensor, Tensor]  # sum_i gamma_ij (w_i - mu_j)^n, n = 0, 1, 2, each (k,)


class Full(NamedTuple):
    """All that `Tables` knows of some weights."""

    value: Tensor
    gradient: Tensor
    moments: Moments


class Adaptive(NamedTuple):
    """One step size a weight, rate / (sqrt(second) + eps), as Adam has it."""

    second: Tensor
    rate: float
    eps: float


class Tables:
    """A mixture's f(w) = -log p(w), its derivative and its EM moments, for many weights.

    Made by `build` or `direct`. Weights of any shape and memory order, in float16, bfloat16,
    float32 or float64. Where a weight is infinite or NaN, so is its gradient (NaN); sums over such
    weights are refused.

    Example:
        >>> tables = build(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.ones(2))
        >>> tables.gradient(torch.tensor([0.5, -9.0]))
        tensor([ 0.0000, -9.0001])
    """

    def __init__(self, mixture: Mixture, tolerance: float) -> None:
        self._mixture, self._tolerance = mixture, tolerance
        self._half: dict[torch.dtype, tuple[Tensor, ...]] = {}
        self._rooms: dict[bool, Room] = {}

    @functools.cached_property
    def _grid(self) -> Cells | None:
        return self._cut(grid_cells)

    @functools.cached_property
    def _bits(self) -> Cells | None:
        return self._cut(bit_cells)

    def _cut(self, cut: Callable[[Mixture, float, torch.device], Cells | None]) -> Cells | None:
        mixture = self._mixture
        return cut(mixture.cpu(), self._tolerance, mixture.mean.device) if self._tolerance else None

    @property
    @plain
    def error(self) -> Error:
        """Certified error bounds for float32 weights; of direct evaluation, its rounding."""
        kinds = [cells.error for cells in (self._grid, self._bits) if cells]
        rounding = Error(gradient=2.0**-23, value=2.0**-40, curvature=2.0**-23)
        return Error(*map(max, zip(rounding, *kinds, strict=True))) if kinds else rounding

    def _few(self, w: Tensor) -> bool:
        limit = DIRECT if w.device.type == "cpu" else 16 * DIRECT  # there in one go
        return w.numel() * len(self._mixture.mean) <= limit

    def _cells_for(self, w: Tensor) -> Cells | None:
        if self._few(w) or w.dtype != torch.float32:
            return None
        return self._grid or self._bits

    def _room(self, w: Tensor, *, curvature: bool = False) -> Room:
        """Scratch memory, kept: to get it anew from the system costs as much as the work in it."""
        room = self._rooms.get(curvature)
        if room is None or room.floats.shape[1] < min(len(w), chunk_on(w.device)):
            room = self._rooms[curvature] = Room(len(w), w.device, curvature=curvature)
        return room

    def _beyond(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative f' and a of weights (n,) that lie in no cell of the grid, or of any."""
        if self._few(w) or not self._grid or not self._bits:
            return self._mixture.slopes(w)
        out = w.new_empty(2, len(w))
        room, size = Room(len(w), w.device, curvature=True), chunk_on(w.device)
        for start in range(0, len(w), size):
            part = slice(start, start + size)
            place = self._bits.address.find(w[part], room)
            found = self._bits.slopes(w[part], place, room, self._mixture.slopes)
            out[0, part], out[1, part] = found
        return out[0], out[1]

    def _slopes(
        self, w: Tensor, histogram: Histogram | None = None, a: bool = False
    ) -> Iterator[Any]:
        """Chunk by chunk of flat weights: its place, f' and, if asked for, a."""
        cells = self._cells_for(w)
        room, size = self._room(w, curvature=a) if cells else None, chunk_on(w.device)
        for start in range(0, len(w), size):
            part = slice(start, start + size)
            if cells and room:
                place = cells.address.find(w[part], room)
                yield part, *cells.slopes(w[part], place, room, self._beyond)
                if histogram:
                    histogram.add_(*place[:2])
            elif w.dtype.itemsize == 2:
                bits = w[part].view(torch.uint16).long()
                yield part, *(each.index_select(0, bits) for each in self._halves(w.dtype)[: 1 + a])
            else:
                yield part, *self._mixture.slopes(w[part])[: 1 + a]

    def _write_gradient_(
        self, target: Tensor, w: Tensor, scale: float | None, histogram: Histogram | None = None
    ) -> None:
        """Write f' of flat weights or, with a scale, add scale * f'."""
        cells, kernels = self._cells_for(w), backends.numba_for(target, w)
        if fused := backends.triton_for(target, w):
            fused.write_gradient_(self._mixture, cells, target, w, scale)
            if histogram:
                self._count_(histogram, w)
            return
        if not cells or not kernels:
            for part, slope in self._slopes(w, histogram):
                if scale is None:
                    target[part].copy_(slope)
                else:
                    target[part].add_(slope, alpha=scale)
            return
        if kernels.write_gradient_(cells, target, w, scale):
            gaps = cells.gaps(w)
            slope = self._beyond(w[gaps])[0].float()
            target[gaps] = slope if scale is None else target[gaps] + scale * slope
        if histogram:
            self._count_(histogram, w)

    def _halves(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The derivative f' and a of all the values of a 16-bit type, by their bits."""
        if dtype not in self._half:
            slopes = self._mixture.slopes(_all_halves(dtype, self._mixture.mean.device))
            self._half[dtype] = tuple(each.float() for each in slopes)
        return self._half[dtype]

    def _sums(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the moments (3, k) of flat weights."""
        if cells := self._cells_for(w):
            return self._counted(w, cells)
        if w.dtype.itemsize == 2 and len(w) > 1 << 12:
            count = torch.zeros(1 << 16, dtype=torch.int64, device=w.device)
            for part in w.split(chunk_on(w.device)):
                count += torch.bincount(part.view(torch.uint16).int(), minlength=1 << 16)
            used = count.nonzero()[:, 0]
            return self._mixture.sums(_all_halves(w.dtype, w.device)[used], count[used].double())
        return self._mixture.sums(w)

    def _count_(self, histogram: Histogram, w: Tensor) -> None:
        """Count flat weights into a histogram."""
        if kernels := backends.numba_for(w):
            kernels.count_(histogram, w)
            return
        room = self._room(w)
        for part in w.split(chunk_on(w.device)):
            histogram.add_(*histogram.cells.address.find(part, room)[:2])

    def _counted(
        self, w: Tensor, cells: Cells, histogram: Histogram | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, from the histogram over the cells."""
        if histogram is None:
            histogram = Histogram(cells, len(w))
            self._count_(histogram, w)
        value, moments, missing = histogram.sums()
        value, moments = value.to(w.device), moments.to(w.device)
        if missing:
            gaps = w[cells.gaps(w)]
            harder = None if self._few(gaps) or cells is self._bits else self._bits
            more = self._counted(gaps, harder) if harder else self._mixture.sums(gaps)
            value, moments = value + more[0], moments + more[1]
        return value, moments

    @plain
    def value_and_moments(self, w: Tensor) -> tuple[Tensor, Moments]:
        """R and the moments.

        Returns:
            What `value` and `moments` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        with _flat(w) as (flat,):
            value, (count, first, second) = self._sums(flat)
        return value, (count, first, second)

    def value(self, w: Tensor) -> Tensor:
        """R = sum_i f(w_i), in nats.

        Returns:
            A float64 scalar.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        return self.value_and_moments(w)[0]

    def moments(self, w: Tensor) -> Moments:
        """The moments of the responsibilities for the weights, centred on the means.

        Returns:
            count, first and second (k,), in float64.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        return self.value_and_moments(w)[1]

    @plain
    def gradient(self, w: Tensor, out: Tensor | None = None) -> Tensor:
        """dR/dw_i = f'(w_i) = sum_j gamma_ij (w_i - mu_j) / sigma_j^2.

        Returns:
            The gradient, of w's shape and type, in `out` if given.
        """
        out = torch.empty_like(w, requires_grad=False) if out is None else out
        with _flat(out, w) as (target, flat):
            self._write_gradient_(target, flat, None)
        return out

    @plain
    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float) -> None:
        """Add scale * dR/dw to `grad`, in place, with no memory that grows with N.

        Args:
            grad: a tensor of w's shape.
            w: the weights.
            scale: tau / num_data, as a rule.
        """
        with _flat(grad, w) as (target, flat):
            self._write_gradient_(target, flat, scale)

    @plain
    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/dw.

        Returns:
            What `value` and `gradient` return, from one pass.
        """
        value, gradient, _ = self.full(w)
        return value, gradient

    @plain
    def full(self, w: Tensor, out: Tensor | None = None) -> Full:
        """The value, the gradient (in `out` if given) and the moments.

        Returns:
            What `value`, `gradient` and `moments` return, from one pass.

        Raises:
            ValueError: if weights are infinite or NaN.
        """
        gradient = torch.empty_like(w, requires_grad=False) if out is None else out
        with _flat(gradient, w) as (target, flat):
            cells = self._cells_for(flat)
            histogram = Histogram(cells, len(flat)) if cells else None
            self._write_gradient_(target, flat, None, histogram)
            value, moments = self._counted(flat, cells, histogram) if cells else self._sums(flat)
        return Full(value, gradient, (moments[0], moments[1], moments[2]))

    @plain
    def proximal_(self, w: Tensor, at: Tensor, step: float | Adaptive, scale: float) -> None:
        """The proximal step of EM's quadratic majoriser, stable for every sigma and step size.

            w <- (w + t b) / (1 + t a) = w + t (a (at - w) - f'(at)) / (1 + t a),  t = step * scale
            a = sum_j gamma_j / sigma_j^2,  b = sum_j gamma_j mu_j / sigma_j^2 = a at - f'(at)

        Args:
            w: the weights, changed in place.
            at: the weights whose responsibilities gamma count: w itself, or before the data step.
            step: the step size, or one for each weight.
            scale: tau / num_data, as a rule.
        """
        second = step.second if isinstance(step, Adaptive) else None
        rate, eps = (step.rate, step.eps) if isinstance(step, Adaptive) else (step, 0.0)
        with _flat(w, at, w if second is None else second) as (target, where, other):
            cells, kernels = self._cells_for(where), backends.numba_for(target, where, other)
            pull = functools.partial(_pull_, rate=rate * scale, eps=eps)
            second = None if second is None else other
            if fused := backends.triton_for(target, where, other):
                fused.proximal_(self._mixture, cells, target, where, second, rate * scale, eps)
                return
            if not cells or not kernels:
                for part, slope, a in self._slopes(where, a=True):
                    each = None if second is None else second[part]
                    pull(target[part], where[part], slope, a, each)
            elif kernels.proximal_(cells, target, where, second, rate * scale, eps):
                gaps = cells.gaps(where)
                slope, a = (exact.float() for exact in self._beyond(where[gaps]))
                each = None if second is None else second[gaps]
                target[gaps] = pull(target[gaps], where[gaps], slope, a, each)


def _pull_(
    w: Tensor, at: Tensor, slope: Tensor, a: Tensor, second: Tensor | None, rate: float, eps: float
) -> Tensor:
    """The proximal step with t = rate / (sqrt(second) + eps), or the rate itself."""
    inverse = 1.0 if second is None else second.to(a.dtype).sqrt().add_(eps)
    pull = (at - w).to(a.dtype).mul_(a).sub_(slope).mul_(rate)
    return w.add_(pull.div_(inverse + a * rate))


def build(mixing: Tensor, mean: Tensor, std: Tensor, *, tolerance: float = 1e-5) -> Tables:
    """The tables of a mixture, made when many weights first need them.

    Args:
        mixing: pi (k,), entries may be zero.
        mean: mu (k,).
        std: sigma (k,).
        tolerance: what the certified bounds of the gradient and the value must meet.

    Returns:
        The tables, to be used until the mixture changes.

    Example:
        >>> tables = build(torch.tensor([0.9, 0.1]), torch.zeros(2), torch.tensor([1e-3, 0.1]))
        >>> tables.error.gradient < 1e-5
        True
    """
    return Tables(Mixture(mixing, mean, std), tolerance)


def direct(mixing: Tensor, mean: Tensor, std: Tensor) -> Tables:
    """The same operations without tables: O(N K) in float64, a bounded chunk at a time.

    Args:
        mixing: pi (k,), entries may be zero.
        mean: mu (k,).
        std: sigma (k,).

    Returns:
        Exact `Tables`.
    """
    return Tables(Mixture(mixing, mean, std), tolerance=0.0)
