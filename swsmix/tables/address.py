"""The way from a float32 to its cell: its own bits are its address."""

from __future__ import annotations

import torch
from torch import Tensor

from swsmix.tables.scratch import Scratch

MOST = 20  # log2 of the floats in a block, at most


class Address:
    """A float32 is its own address: cells are log-spaced around zero, down to single floats.

    Its upper bits name its block: (bits >> low) + 2^(31 - low). A block has 2^(low - shift) cells,
    the first of them `first`. With rest = bits & (2^low - 1), the float is in cell
    first + (rest >> shift), and its number there is rest & (2^shift - 1).

    Args:
        block: first << 5 | shift for each of the 2^(32 - low) blocks.
        low: log2 of the floats in a block.
    """

    def __init__(self, block: Tensor, low: int) -> None:
        self.block, self.low = block, low

    def find(self, w: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """The cell of each weight, its number there and the cell's shift, in scratch memory."""
        number, cell, shift, part = (each[: len(w)] for each in scratch.ints)
        bits = w.view(torch.int32)
        torch.bitwise_right_shift(bits, self.low, out=part).add_(1 << (31 - self.low))
        torch.index_select(self.block, 0, part, out=cell)
        torch.bitwise_and(bits, (1 << self.low) - 1, out=number)
        torch.bitwise_and(cell, 31, out=shift)
        torch.bitwise_right_shift(number, shift, out=part)
        cell.bitwise_right_shift_(5).add_(part)
        number.sub_(part.bitwise_left_shift_(shift))
        return cell, number, shift
