"""The passes over the weights on a GPU, each as one Triton kernel (if Triton is installed).

The same look-ups as in `cells`, without scratch memory or waiting for the GPU: each weight is read
once and written once. Where no piece is certified, the kernel evaluates the mixture, in float64.
The histogram of the weights is made in the same pass.

The tests run all kernels in Triton's interpreter. Unmeasured on a GPU: how fast the histogram is.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from swsmix.tables.address import CELL_BITS
from swsmix.tables.cell_histogram import COUNT, PACKED, CellHistogram
from swsmix.tables.cells import PART, Cells
from swsmix.tables.exact import ExactMixture

_BLOCK = 1024
_COPIES = 16  # of a histogram, at most


def write_gradient_(
    mixture: ExactMixture,
    cells: Cells | None,
    target: Tensor,
    w: Tensor,
    scale: float | None,
    histogram: CellHistogram | None = None,
) -> None:
    """Write f'(w) into the target or, with a scale, add scale * f'(w); flat float32 tensors.

    Args:
        mixture: the mixture, on the GPU.
        cells: its cells; None evaluates the mixture for every weight.
        target: changed in place.
        w: the weights.
        scale: what to multiply f' by before it is added; None overwrites the target.
        histogram: over the cells; the weights are added to it in the same pass, or None.
    """
    if histogram is None:
        _launch(mixture, cells, target, w, scale, None)
        return
    for part, to in zip(w.split(PACKED), target.split(PACKED), strict=True):
        sums = _empty_sums(histogram, part)
        _launch(mixture, cells, to, part, scale, sums)
        _add_sums_(histogram, sums)


def count_(histogram: CellHistogram, w: Tensor) -> None:
    """Add weights (n,) to a histogram."""
    for part in w.split(PACKED):
        sums = _empty_sums(histogram, part)
        _launch(None, histogram.cells, None, part, None, sums)
        _add_sums_(histogram, sums)


def _empty_sums(histogram: CellHistogram, w: Tensor) -> Tensor:
    """Packed counts and squares, in some copies: blocks that add to one number wait in line."""
    cells = len(histogram.count)
    copies = max(1, min(_COPIES, (1 << 20) // cells, len(w) // _BLOCK))
    return torch.zeros(copies, 2, cells, dtype=torch.int64, device=w.device)


def _add_sums_(histogram: CellHistogram, sums: Tensor) -> None:
    packed, second = sums.sum(0)
    histogram.add_packed_(packed)
    histogram.second += second


def _launch(
    mixture: ExactMixture | None,
    cells: Cells | None,
    target: Tensor | None,
    w: Tensor,
    scale: float | None,
    sums: Tensor | None,
) -> None:
    add, scale = scale is not None, 1.0 if scale is None else scale
    packed, k = (None, 0) if mixture is None else (mixture.packed, len(mixture.mean))
    copies, stride = (1, 0) if sums is None else (len(sums), sums.shape[2])
    left = 0 if cells is None else PART + cells.fine
    with torch.cuda.device_of(w):
        _pass[_blocks(w)](
            target, w, len(w), packed, k, scale, sums, copies, stride, left, *_lookup(cells),
            write=target is not None, add=add, count=sums is not None, exact=cells is None,
            one=1 << COUNT, bits=PART, size=_BLOCK, cell_bits=CELL_BITS,
        )  # fmt: skip


def proximal_(
    mixture: ExactMixture,
    cells: Cells | None,
    w: Tensor,
    at: Tensor,
    second: Tensor | None,
    rate: float,
    eps: float,
) -> None:
    """Make the proximal step, t = rate / (sqrt(second) + eps) or the rate; flat float32 tensors.

    Args:
        mixture: the mixture, on the GPU.
        cells: its cells; None evaluates the mixture for every weight.
        w: the weights, changed in place.
        at: see `Tables.proximal_`.
        second: Adam's second moments, or None for one step size.
        rate: the step size times the prior's strength.
        eps: Adam's epsilon.
    """
    curvature = None if cells is None else cells.curvature_pieces
    with torch.cuda.device_of(w):
        _proximal[_blocks(w)](
            w, at, second, len(w), mixture.packed, len(mixture.mean), rate, eps, curvature,
            *_lookup(cells), adaptive=second is not None, exact=cells is None, size=_BLOCK,
            cell_bits=CELL_BITS,
        )  # fmt: skip


def _blocks(w: Tensor) -> tuple[int]:
    return (triton.cdiv(len(w), _BLOCK),)


def _lookup(cells: Cells | None) -> tuple[Any, ...]:
    return (
        (None, None, 0)
        if cells is None
        else (cells.pieces, cells.address.entries, cells.address.low)
    )


def compiled(function: Any, general: tuple[str, ...] = ()) -> Any:
    """A Triton kernel or a part of one, compiled once for all values of the integers in `general`.

    Of others there is a variant for 1 and one for multiples of 16.
    """
    # Unwrapped, since a type checker's import hook may have wrapped it.
    return triton.jit(inspect.unwrap(function), do_not_specialize=list(general))


def arithmetic(function: Any) -> Any:
    """A part of a kernel that calls nothing of Triton's; the interpreter takes it as it is."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return inspect.unwrap(function) if interpreted else compiled(function)


@compiled
def _find(w, entries, low, cell_bits: tl.constexpr):
    """The cell of a float, its number there and the cell's shift; see `Address`."""
    raw = w.to(tl.int32, bitcast=True)
    entry = tl.load(entries + ((raw >> low) + (1 << (31 - low))))
    shift = entry & 31
    part = raw >> shift
    return ((entry >> 5) + part) & ((1 << cell_bits) - 1), raw - (part << shift), shift


@compiled
def _cubic(pieces, cell, x):
    row = pieces + 4 * cell
    value = tl.load(row + 2) + x * tl.load(row + 3)
    return tl.load(row) + x * (tl.load(row + 1) + x * value)


@compiled
def _exact(w, mixture, k):
    """The gradient f' and the curvature a from the mixture itself; see `_log_odds.log_odds`."""
    w = w.to(tl.float64)
    best, z_r = tl.zeros_like(w) - 1e300, tl.zeros_like(w)
    level_r, mean_r, std_r = tl.zeros_like(w), tl.zeros_like(w), tl.zeros_like(w) + 1.0
    for j in range(k):  # the most responsible component, as a reference
        row = mixture + 3 * j
        level, mean, std = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        z = (w - mean) / std
        joint = level - 0.5 * z * z
        better = joint > best
        best, z_r = tl.where(better, joint, best), tl.where(better, z, z_r)
        level_r, mean_r = tl.where(better, level, level_r), tl.where(better, mean, mean_r)
        std_r = tl.where(better, std, std_r)
    offset = w - mean_r
    top = tl.zeros_like(w) - 1e300
    total, pull, a = tl.zeros_like(w), tl.zeros_like(w), tl.zeros_like(w)
    for j in range(k):
        row = mixture + 3 * j
        level, mean, std = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        z = (w - mean) / std
        one, other = offset * ((std_r - std) / std_r) / std, (mean_r - mean) / std
        gap = tl.where(tl.abs(one) + tl.abs(other) < tl.abs(z) + tl.abs(z_r), one + other, z - z_r)
        log_gamma = level - level_r - 0.5 * gap * (z + z_r)
        higher = tl.maximum(top, log_gamma)
        old, gamma = tl.exp(top - higher), tl.exp(log_gamma - higher)
        total = total * old + gamma
        pull = pull * old + gamma * z / std
        a = a * old + gamma / std / std
        top = higher
    nothing = w - w  # NaN for what is not finite
    return (pull / total + nothing).to(tl.float32), (a / total + nothing).to(tl.float32)


@compiled
def _pass(
    target, w, n, mixture, k, scale, sums, copies, stride, left, pieces, entries, low,
    write: tl.constexpr, add: tl.constexpr, count: tl.constexpr, exact: tl.constexpr,
    one: tl.constexpr, bits: tl.constexpr, size: tl.constexpr,
    cell_bits: tl.constexpr,
):  # fmt: skip
    """Write or add f', and count the weights in one of the copies of the sums, or either alone."""
    i = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    here = i < n
    x = tl.load(w + i, mask=here, other=0.0)
    if exact:
        slope, _ = _exact(x, mixture, k)
    else:
        cell, number, shift = _find(x, entries, low, cell_bits)
        if count:  # part of the cell and number there are two parts of one integer
            place = (cell.to(tl.int64) << left) + (number.to(tl.int64) << (left - shift))
            row = sums + (tl.program_id(0) % copies).to(tl.int64) * 2 * stride + (place >> bits)
            rest = place & ((1 << bits) - 1)
            away = rest - (1 << (bits - 1))
            tl.atomic_add(row, rest + one, mask=here, sem="relaxed")
            tl.atomic_add(row + stride, away * away, mask=here, sem="relaxed")
        if write:
            slope = _cubic(pieces, cell, number.to(tl.float32))
            gap = slope != slope
            if tl.max(gap.to(tl.int32), 0) > 0:
                right, _ = _exact(x, mixture, k)
                slope = tl.where(gap, right, slope)
    if write:
        if add:
            slope = tl.load(target + i, mask=here) + scale * slope
        tl.store(target + i, slope, mask=here)


@compiled
def _proximal(
    w, at, second, n, mixture, k, rate, eps, curvature, pieces, entries, low,
    adaptive: tl.constexpr, exact: tl.constexpr, size: tl.constexpr,
    cell_bits: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    here = i < n
    x = tl.load(at + i, mask=here, other=0.0)
    if exact:
        slope, a = _exact(x, mixture, k)
    else:
        cell, number, _ = _find(x, entries, low, cell_bits)
        place = number.to(tl.float32)
        slope, a = _cubic(pieces, cell, place), _cubic(curvature, cell, place)
        gap = slope != slope
        if tl.max(gap.to(tl.int32), 0) > 0:
            right, right_a = _exact(x, mixture, k)
            slope, a = tl.where(gap, right, slope), tl.where(gap, right_a, a)
    inverse = 1.0
    if adaptive:
        inverse = tl.sqrt(tl.load(second + i, mask=here, other=0.0)) + eps
    before = tl.load(w + i, mask=here)
    tl.store(w + i, before + rate * (a * (x - before) - slope) / (inverse + rate * a), mask=here)
