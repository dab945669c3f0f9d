"""The way from a float32 to its cell: its own bits are its address."""

from __future__ import annotations

import torch
from torch import Tensor

from swsmix.tables.scratch import Scratch

CELL_BITS = 27  # of a cell's number


class Address:
    """A float32 is its own address: cells are log-spaced around zero, down to single floats.

    Its upper bits name its block: (bits >> low) + 2^(31 - low). The block's entry holds the shift
    of its cells, which have 2^shift floats each, and where to count them from: the float is in cell
    base + (bits >> shift), modulo 2^CELL_BITS, and its number there is bits & (2^shift - 1). So a
    cell may be a part of a block, or reach over several.

    Args:
        entries: base << 5 | shift for each of the 2^(32 - low) blocks, in int32.
        low: log2 of the floats in a block.
    """

    def __init__(self, entries: Tensor, low: int) -> None:
        self.entries, self.low = entries, low

    def find(self, w: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """The cell of each weight, its number there and the cell's shift, in scratch memory."""
        number, cell, shift, part = (each[: len(w)] for each in scratch.ints)
        bits = w.view(torch.int32)
        torch.bitwise_right_shift(bits, self.low, out=part).add_(1 << (31 - self.low))
        torch.index_select(self.entries, 0, part, out=cell)
        torch.bitwise_and(cell, 31, out=shift)
        torch.bitwise_right_shift(bits, shift, out=part)
        cell.bitwise_right_shift_(5).add_(part).bitwise_and_((1 << CELL_BITS) - 1)
        torch.sub(bits, part.bitwise_left_shift_(shift), out=number)
        return cell, number, shift
