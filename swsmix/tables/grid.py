"""Cells of one width, for soft mixtures: the address is a multiplication."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swsmix.tables.cells import Cells, Layout, Room, needs
from swsmix.tables.direct import Mixture
from swsmix.tables.taylor import ORDER, split

_UNITS, _FEW = 16, 15  # log2 of the most cells, and of the fewest numbers in a cell


class Grid:
    """Cells of width h = 2^bits / scale around zero, the first and the last for what is beyond.

    A weight's number in its cell is exact to one of 2^bits, however close to zero the weight.

    Args:
        cells: log2 of the number of cells.
        scale: numbers in a unit of w, a power of two.
        whole: whether coordinates count from zero instead of from the cell's own start.
    """

    def __init__(self, cells: int, scale: float, whole: bool) -> None:
        self.bits, self.scale, self.whole = _bits(cells), scale, whole
        self.half = 1 << (cells - 1)

    def find(self, w: Tensor, room: Room) -> tuple[Tensor, Tensor, Tensor]:
        """See `cells.Address`.

        Returns:
            cell, number, coordinate, in scratch memory.
        """
        number, cell = (each[: len(w)] for each in room.ints[:2])
        coordinate = torch.mul(w, self.scale, out=room.floats[0, : len(w)])
        # What does not fit, NaN too, becomes the largest or the smallest integer.
        number.copy_(coordinate).clamp_(-self.half << self.bits, (self.half << self.bits) - 1)
        torch.bitwise_right_shift(number, self.bits, out=cell).add_(self.half)
        number.bitwise_and_((1 << self.bits) - 1)
        return cell, number, coordinate if self.whole else coordinate.copy_(number)


def _bits(cells: int) -> int:
    return min(16, _UNITS + _FEW - cells)


def grid_cells(mixture: Mixture, tolerance: float, device: torch.device) -> Cells | None:
    """The cells of a soft mixture, out to 16 of its widest stds beyond its means.

    Args:
        mixture: the mixture, on the CPU.
        tolerance: what the certified bounds must meet.
        device: where the weights are.

    Returns:
        The cells, or None if 65,536 of them are too few.
    """
    alive = mixture.mixing > 0
    std, far = mixture.std[alive].min().item(), mixture.mean[alive].abs().max().item()
    half = 2.0 ** math.frexp(far + 16 * mixture.std[alive].max().item())[1]
    if not 0 < half / std < 2**9 or not 1e-30 < half < 1e30:
        return None  # a straight piece takes about 0.01 std
    unit = half * 2.0 ** (1 - _UNITS)

    def ends(start: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        inner = (start.double() - 1) * unit - half
        return inner, inner + width * unit

    first = min(max(math.frexp(2 * half / std)[1] + 2, 4), 10)  # of intervals about one std wide
    width = torch.full((1 << first,), 1 << (_UNITS - first), device="cpu")
    start = torch.arange(1 << first, device="cpu") * width + 1  # 0 would never be split
    found = split(mixture, tolerance, start, width, torch.ones_like(start), ends=ends, smallest=1)
    if found is None or bool(found.rest.isinf().any()):
        return None
    third, line, rounding, parts = needs(found, tolerance)
    # The numbers' own errors, of one part: in f, and in f' if they count from the cell's start.
    swing = (found.taylor[1].abs() + found.second) / found.size
    pull = found.second / (found.radius * found.floor)
    fine = (torch.maximum(swing, pull) * 2.0 ** (2 - _FEW) / tolerance).clamp_min(1.0)
    parts = torch.maximum(parts, fine.log2().ceil())
    level = int((found.width.double().log2() - parts).min())
    if level < 0:
        return None
    cells = _UNITS - level
    address_bits = _bits(cells)
    part = 2.0**level / found.width
    trunc = part * 2.0 ** (1 - address_bits)  # a number's error in s
    miss = rounding * part + trunc * pull
    coarse = rounding * half / found.radius / 2
    whole = bool(coarse.max() <= tolerance / 8)
    rest = found.rest / math.factorial(ORDER + 1)
    miss = line * part**2 + (coarse.max() if whole else miss)
    miss = miss + rest * (ORDER + 1) / found.floor / found.radius
    value = (third * part**3 + rest) / found.size + trunc * swing

    left = torch.arange(1 << cells, dtype=torch.float64, device="cpu") * (unit * 2**level) - half
    owner = torch.zeros(1 << cells, dtype=torch.int64, device="cpu")
    owner[(found.start - 1) >> level] = 1
    owner = owner.cumsum(0) - 1
    radius, centre = (each.index_select(0, owner) for each in (found.radius, found.centre))
    inner, width_s = (left - centre) / radius, unit * 2**level / radius
    shut = torch.ones_like(owner, dtype=torch.bool)
    shut[0] = shut[-1] = False
    return Cells(
        mixture,
        found,
        Grid(cells, 2.0**address_bits / (unit * 2**level), whole),
        Layout(
            owner=owner,
            inner=inner,
            ulp=width_s * 2.0**-address_bits,
            middle=inner + width_s / 2,
            origin=-centre / radius if whole else inner,
            shut=shut,
        ),
        line=miss,
        value=value,
        part=part,
        device=device,
    )
