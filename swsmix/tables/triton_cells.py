"""The cells' cubics made on a GPU by one Triton kernel (if Triton is installed).

The same polynomials as in `cells._pieces`, a cell to a lane. What the processor sends is where the
cells lie and the Taylor polynomials of their intervals, of which there are few.

The tests run the kernel in Triton's interpreter. Unmeasured on a GPU: how fast it is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from swsmix.tables.triton_loops import compiled

_BLOCK = 128


def pieces(taylor: Tensor, *at: Tensor) -> Tensor:
    """See `cells._pieces`: the cubics (cells, 4) of the intervals' polynomials, in float32.

    Args:
        taylor: the polynomials (6 or 7, t), lowest coefficients first, on the GPU.
        at: owner, inner, ulp, width and certified of each cell, on the GPU.
    """
    cells = len(at[0])
    out = torch.empty(cells, 4, dtype=torch.float32, device=taylor.device)
    with torch.cuda.device_of(out):
        _pieces[(triton.cdiv(cells, _BLOCK),)](
            taylor.contiguous(), taylor.shape[1], *at, out, cells,
            sixth=len(taylor) > 6, size=_BLOCK,
        )  # fmt: skip
    return out


@compiled
def _pieces(
    taylor, intervals, owner, inner, ulp, width, certified, out, cells,
    sixth: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * size + tl.arange(0, size)
    here = i < cells
    row = taylor + tl.load(owner + i, mask=here, other=0)
    r0 = tl.load(row)
    r1 = tl.load(row + intervals)
    r2 = tl.load(row + 2 * intervals)
    r3 = tl.load(row + 3 * intervals)
    r4 = tl.load(row + 4 * intervals)
    r5 = tl.load(row + 5 * intervals)
    r6 = tl.zeros_like(r0)
    if sixth:
        r6 = tl.load(row + 6 * intervals)
    unit = tl.load(ulp + i, mask=here, other=0.0)
    half = 0.5 * unit * (tl.load(width + i, mask=here, other=1) - 1).to(tl.float64)
    by = tl.load(inner + i, mask=here, other=0.0) + half
    # About the middle of the cell: Taylor's formula for each coefficient.
    r0 += by * (r1 + by * (r2 + by * (r3 + by * (r4 + by * (r5 + by * r6)))))
    r1 += by * (2 * r2 + by * (3 * r3 + by * (4 * r4 + by * (5 * r5 + by * (6 * r6)))))
    r2 += by * (3 * r3 + by * (6 * r4 + by * (10 * r5 + by * (15 * r6))))
    r3 += by * (4 * r4 + by * (10 * r5 + by * (20 * r6)))
    r4 += by * (5 * r5 + by * (15 * r6))
    r5 += by * (6 * r6)
    # Economised, see `cells._economised`: T_6 / 32, T_5 / 16 and T_4 / 8.
    h = half * half
    r4 += 1.5 * h * r6
    r2 -= 0.5625 * h * h * r6
    r0 += 0.03125 * h * h * h * r6
    r3 += 1.25 * h * r5
    r1 -= 0.3125 * h * h * r5
    r2 += h * r4
    r0 -= 0.125 * h * h * r4
    # From the cell's first float, in numbers of floats.
    r0 -= half * (r1 - half * (r2 - half * r3))
    r1 -= half * (2 * r2 - half * (3 * r3))
    r2 -= half * (3 * r3)
    known = tl.load(certified + i, mask=here, other=0) != 0
    r0 = tl.where(known, r0, float("nan"))
    to = out + 4 * i
    tl.store(to, r0.to(tl.float32), mask=here)
    tl.store(to + 1, (r1 * unit).to(tl.float32), mask=here)
    tl.store(to + 2, (r2 * unit * unit).to(tl.float32), mask=here)
    tl.store(to + 3, (r3 * unit * unit * unit).to(tl.float32), mask=here)
