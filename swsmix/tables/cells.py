"""Straight pieces of f' and a, cell by cell: what a weight looks up, and what EM counts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from swsmix.tables import taylor as polynomials
from swsmix.tables.direct import Mixture
from swsmix.tables.taylor import ORDER, Intervals

CHUNK = 1 << 17  # weights at a time
PACKED, COUNT = 1 << 22, 38  # a sum of so many numbers has so many bits, below their count
Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights -> f' and a


class Error(NamedTuple):
    """Certified bounds for any finite float32 w; for `value`, on average over a cell's weights.

    |error of f'| <= gradient (|f'(w)| + sqrt(a(w)))      |error of f| <= value (1 + |f(w)|)
    |error of a| <= curvature a(w)

    sqrt(a), the local 1 / std, is the absolute floor: at a centre f' is zero. The curvature a
    only scales the proximal step, whose fixed points are where f' and the data's gradient cancel.
    """

    gradient: float
    value: float
    curvature: float


class Needs(NamedTuple):
    """How finely intervals must be cut, each (t,). On an m-th part f' misses by line / m^2."""

    third: Tensor  # bound on |f'''| r^3
    line: Tensor  # the miss of one tangent, relative to the floor
    rounding: Tensor  # of float32 numbers across the interval, relative to the floor
    parts: Tensor  # log2 of the number of parts


def chunk_on(device: torch.device) -> int:
    """How many weights to take at a time.

    Returns:
        Of a processor's, so many that their scratch stays in the cache. On a GPU more: there each
        operation costs some ten microseconds before it starts.
    """
    return CHUNK if device.type == "cpu" else 16 * CHUNK


def needs(found: Intervals, tolerance: float) -> Needs:
    """How finely the intervals must be cut for straight pieces of f' within the tolerance.

    Returns:
        The needs; of open intervals, no parts.
    """
    n = torch.arange(3, ORDER + 1, device="cpu")[:, None]
    third = (n * (n - 1) * (n - 2) * 1.5 ** (n - 3) * found.taylor[3:].abs()).sum(0)
    third = third + found.rest / math.factorial(ORDER - 2)
    line = third / (2 * found.radius * found.floor)
    rounding = found.second / (found.radius * found.floor) * 2.0**-22
    parts = torch.maximum((line * (1.5 / tolerance)).sqrt(), rounding * (8 / tolerance))
    parts = parts.clamp_min(1.0).log2().ceil().nan_to_num(0.0, 0.0, 0.0)
    return Needs(third, line, rounding, parts)


class Room:
    """Scratch memory for a chunk of weights, reused so that it stays in the cache."""

    def __init__(self, n: int, device: torch.device, *, curvature: bool = False) -> None:
        n = min(n, chunk_on(device))
        self.ints = torch.empty(4, n, dtype=torch.int32, device=device)
        self.floats = torch.empty(3, n, device=device)
        self.lines = torch.empty(
            n, dtype=torch.complex128 if curvature else torch.complex64, device=device
        )


@runtime_checkable
class Address(Protocol):
    """The way from a float32 to its cell."""

    bits: int  # a cell has at most 2^bits numbers

    def find(self, w: Tensor, room: Room) -> tuple[Tensor, Tensor, Tensor]:
        """The cell of each weight, its number there, and its coordinate on the cell's line."""
        ...


class Layout(NamedTuple):
    """Where the cells lie in their intervals, in s = (w - centre) / radius; each (cells,)."""

    owner: Tensor  # the interval
    inner: Tensor  # s of number 0
    ulp: Tensor  # s from one number to the next
    middle: Tensor  # s of the cell's middle
    origin: Tensor  # s of coordinate 0
    shut: Tensor  # whether the line holds; else a weight there is evaluated otherwise


class Cells:
    """The lines f' = level + step * coordinate of all cells; level is NaN where none holds.

    They are certified on the CPU, in many short operations; the weights, and what these look up,
    may be on a GPU.

    Args:
        mixture: the mixture.
        found: its intervals.
        address: the way to a cell.
        layout: the cells.
        line: the certified error of f', by interval.
        value: the certified error of f, by interval.
        part: the largest part of an interval that a cell takes, by interval.
        device: where the weights are.
    """

    def __init__(
        self,
        mixture: Mixture,
        found: Intervals,
        address: Address,
        layout: Layout,
        *,
        line: Tensor,
        value: Tensor,
        part: Tensor,
        device: torch.device,
    ) -> None:
        self.mixture, self.found, self.address, self.layout = mixture, found, address, layout
        self.device, self.shut = device, layout.shut.to(device)
        self._errors = torch.stack([line + 2.0**-22, value]), part
        order = torch.arange(1, ORDER + 1, device="cpu")[:, None]
        self._gradient = self._lines(found.taylor[1:] * order / found.radius)
        self.lines = torch.stack(self._gradient, 1).to(device)

    def _lines(self, taylor: Tensor) -> tuple[Tensor, Tensor]:
        """Level and step of the tangents at the cells' middles of the intervals' polynomials."""
        at, s = self.layout, self.layout.middle
        level, slope = torch.zeros_like(s), torch.zeros_like(s)
        for row in taylor.flip(0):
            slope = torch.addcmul(level, slope, s)
            level = torch.addcmul(row.index_select(0, at.owner), level, s)
        level = (level + slope * (at.origin - s)).masked_fill_(~at.shut, math.nan)
        return level.float(), (slope * at.ulp).float()

    @functools.cached_property
    def _curvature(self) -> tuple[Tensor, Tensor, Tensor]:
        return polynomials.curvature(self.mixture, self.found)

    @functools.cached_property
    def both_lines(self) -> Tensor:
        """Level and step of f' and of a (cells, 4)."""
        curvature = self._lines(self._curvature[0])
        return torch.stack([*self._gradient, *curvature], 1).to(self.device)

    @functools.cached_property
    def error(self) -> Error:
        """Certified bounds where the lines hold."""
        (errors, part), (taylor, rest, low) = self._errors, self._curvature
        shut = ~self.found.rest.isinf()
        n = torch.arange(2, ORDER + 1, device="cpu")[:, None]
        bent = (n * (n - 1) * 1.5 ** (n - 2) * taylor[2:].abs()).sum(0)
        bent = bent + rest / math.factorial(ORDER - 1)
        miss = bent * part**2 / 2 + rest / math.factorial(ORDER + 1)
        slope = taylor[1].abs() + bent
        curvature = (miss + slope * part * 2.0 ** (1 - self.address.bits)) / low + 2.0**-20
        return Error(*torch.cat([errors, curvature[None]])[:, shut].amax(1).tolist())

    def slopes(
        self, w: Tensor, place: tuple[Tensor, Tensor, Tensor], room: Room, beyond: Slopes
    ) -> list[Tensor]:
        """The derivative f' of a chunk and, with room for it, a; in scratch memory.

        Args:
            w: the chunk.
            place: from `address.find`.
            room: the scratch memory.
            beyond: what evaluates the weights where no line holds.

        Returns:
            f' and, with room for it, a.
        """
        cell, _, coordinate = place
        curved = room.lines.dtype == torch.complex128
        lines = room.lines[: len(w)]
        # Gathered as one complex number: one look-up instead of two or four.
        table = (self.both_lines if curved else self.lines).view(lines.dtype)[:, 0]
        torch.index_select(table, 0, cell, out=lines)
        parts = lines.view(torch.float32).view(len(w), 4 if curved else 2).unbind(1)
        values = [
            torch.addcmul(level, step, coordinate, out=out[: len(w)])
            for level, step, out in zip(parts[::2], parts[1::2], room.floats[1:], strict=False)
        ]
        if bool(values[0].sum().isnan()):
            gaps = values[0].isnan().nonzero()[:, 0]
            for value, exact in zip(values, beyond(w[gaps]), strict=False):
                value[gaps] = exact.float()
        return values

    def gaps(self, w: Tensor) -> Tensor:
        """Which of the flat weights lie where no line holds.

        Returns:
            Their indices.
        """
        room, found, size = Room(len(w), w.device), [], chunk_on(w.device)
        for start in range(0, len(w), size):
            cell, *_ = self.address.find(w[start : start + size], room)
            found.append((~self.shut.index_select(0, cell)).nonzero()[:, 0] + start)
        return torch.cat(found)


class Histogram:
    """Of each cell's weights: how many, and the sums of their numbers and squares, exactly.

    The squares are those of number - 2^(bits - 1): they fit into 32 bits, where arithmetic is fast.
    """

    def __init__(self, cells: Cells, n: int) -> None:
        self.cells, self.pending = cells, 0
        total, device = len(cells.shut), cells.device
        n = min(n, chunk_on(device))
        self.room, self.wide = torch.empty(2, n, dtype=torch.int64, device=device)
        self.half = 1 << (cells.address.bits - 1)
        self.count, self.first, self.second, self.packed = torch.zeros(
            4, total, dtype=torch.int64, device=device
        )

    def add_(self, cell: Tensor, number: Tensor) -> None:
        """Count a chunk.

        Args:
            cell: from `address.find`.
            number: from `address.find`; changed.
        """
        if self.pending + len(cell) > PACKED:
            self.unpack_()
        self.pending += len(cell)
        where, wide = self.wide[: len(cell)].copy_(cell), self.room[: len(cell)]
        self.packed.scatter_add_(0, where, wide.copy_(number).add_(1 << COUNT))
        number.sub_(self.half)
        self.second.scatter_add_(0, where, wide.copy_(number.mul_(number)))

    def unpack_(self) -> None:
        """Move what is packed to its sums."""
        self.count += self.packed >> COUNT
        self.first += self.packed & ((1 << COUNT) - 1)
        self.packed.zero_()
        self.pending = 0

    def sums(self) -> tuple[Tensor, Tensor, bool]:
        """The value and the moments (3, k) of the weights added, where lines hold.

        Two points of equal mass stand for a cell's weights: same count, mean and second moment.
        gamma_j(c + t) = gamma_j exp(-x_j t - y_j t^2 / 2) / q(t), so that the moments need the sums
        of t^n / q(t) in each interval, in which the components do not appear.

        Returns:
            The value; count, first and second; and whether weights are missing. On the CPU.
        """
        self.unpack_()
        cells, found, mixture = self.cells.layout, self.cells.found, self.cells.mixture
        used = (self.count * self.cells.shut).nonzero()[:, 0]
        raw = self.count, self.first, self.second
        count, first, second = (each.index_select(0, used).cpu().double() for each in raw)
        used = used.cpu()
        first /= count
        spread = (second / count - (first - self.half) ** 2).clamp_min_(0.0).sqrt_()
        spread *= cells.ulp[used]
        s = cells.inner[used] + cells.ulp[used] * first
        s, mass, owner = (
            torch.cat([s - spread, s + spread]),
            (count / 2).repeat(2),
            cells.owner[used],
        )
        busy, owner = owner.unique_consecutive(return_inverse=True)
        owner, taylor = owner.repeat(2), found.taylor[:, busy]
        rise = torch.zeros_like(s)  # f(c + t) - f(c)
        for row in taylor[1:].flip(0):
            rise = (rise + row.index_select(0, owner)) * s
        value = (rise + taylor[0].index_select(0, owner)) @ mass
        term = (rise - (taylor[1][owner] + 0.5 * found.bend[busy][owner] * s) * s).exp_() * mass
        powers = taylor.new_zeros(ORDER + 3, len(busy))
        for row in powers:
            row.index_add_(0, owner, term)
            term = term * s
        moments = taylor.new_zeros(3, len(mixture.mean))
        for part, p in mixture.chunks(found.centre[busy]):
            r, gamma = found.radius[busy][part, None], p.log_gamma.exp()
            gone = gamma < 1e-100
            x, y = (each.masked_fill_(gone, 0.0) for each in (p.slope * r, p.bend * r * r))
            sums = [torch.zeros_like(x) for _ in range(3)]
            before, now = torch.zeros_like(x), torch.ones_like(x)
            for n in range(ORDER + 1):
                for m in range(3):
                    sums[m].addcmul_(now, powers[n + m, part, None], value=1 / math.factorial(n))
                before, now = now, -torch.addcmul(x * now, y, before, value=n)
            away = found.centre[busy][part, None] - mixture.mean
            zeroth, first, second = sums[0], sums[1] * r, sums[2] * r * r
            moments[0] += (gamma * zeroth).sum(0)
            moments[1] += (gamma * (away * zeroth + first)).sum(0)
            moments[2] += (gamma * (away * (away * zeroth + 2 * first) + second)).sum(0)
        missing = int(self.count.sum() - count.sum())
        return value, moments, bool(missing)
