"""Second-order compensation: weights still to come make good the errors of those quantised.

The output error of a layer is tr((W - V) H (W - V)^T), H = E[x x^T] over its inputs. Columns are
quantised one after the other, and after each the columns that follow move to the minimum given
those that are fixed: the optimal brain surgeon (Hassibi & Stork 1993), with the Cholesky factor of
the inverse as in GPTQ (Frantar et al. 2022). With H^-1 = U^T U, U upper triangular, an error e of
column q costs e^2 / U_qq^2 after that, so that the value chosen is, as in CERWU (2025),

    argmin_j (w - c_j)^2 / U_qq^2 + lambda b_j.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from swsmix.compression.entropy_constrained import Codebook, step_of

_BLOCK = 128  # columns whose errors reach the later ones in one product
_DEAD = 1e-6  # of the layer's mean diagonal: the least that a block of it is damped by


class Factor(NamedTuple):
    """The inverse of a damped H, H^-1 = U^T U, with its columns in the order of quantisation.

    Attributes:
        order: the columns, those of the largest H_qq first (n,).
        upper: U, upper triangular, rows and columns in that order (n, n).
    """

    order: Int[Tensor, " n"]
    upper: Float[Tensor, "n n"]

    def error(self, change: Float[Tensor, "m n"]) -> float:
        """tr(D H D^T) = |D U^-1|^2 with the damped H, for a change D of the weights."""
        d = change[:, self.order.to(change.device)].to(self.upper)
        solved = torch.linalg.solve_triangular(self.upper, d, upper=True, left=False)
        return float(solved.square().sum())


def factor(hessian: Float[Tensor, "n n"], damping: float, unit: float | None = None) -> Factor:
    """U of the damped H in units of its mean diagonal, so that lambda is in units of weights^2.

    Damping is (H + d m I) / (1 + d) with the mean m of the diagonal: the identity stays one.

    Args:
        hessian: H, symmetric and positive semi-definite.
        damping: d, the fraction of the mean diagonal that is added to it; above 0.
        unit: what counts as 1; the mean of H's diagonal by default. Blocks of one layer share it.

    Returns:
        The factor, in float64.

    Example:
        >>> factor(3.0 * torch.eye(2), 0.1).upper.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    h = hessian.double()
    diagonal = h.diagonal()
    mean = diagonal.mean().item()
    unit = mean if unit is None else unit
    if not unit > 0.0:  # inputs that are always 0: every direction is worth as little
        h, diagonal, mean, unit = (
            torch.diag(torch.ones_like(diagonal)),
            torch.ones_like(diagonal),
            1.0,
            1.0,
        )
    order = diagonal.argsort(descending=True, stable=True)
    h = h[order][:, order] / (unit * (1.0 + damping))
    h.diagonal().add_(damping / (1.0 + damping) * max(mean / unit, _DEAD))
    # With L L^T = H read from its last row and column, U is the inverse of L, read so as well.
    lower = torch.linalg.cholesky(h.flip(0, 1))
    inverse = torch.linalg.solve_triangular(
        lower, torch.diag(torch.ones_like(diagonal)), upper=False
    )
    return Factor(order, inverse.flip(0, 1))


class Compensated(NamedTuple):
    """Quantised rows.

    Attributes:
        which: the value of each weight (m, n).
        moved: the weights as they were when their values were chosen (m, n).
    """

    which: Int[Tensor, "m n"]
    moved: Float[Tensor, "m n"]


def compensate(
    weight: Float[Tensor, "m n"], by: Factor, book: Codebook, *, clipped: bool = True
) -> Compensated:
    """Quantise rows column by column, each error made good by the columns after it.

    Weights that the values do not reach (more than a step beyond the last one) are clipped, and
    their errors stay theirs: spread over the row, the error of one giant would wreck it.

    Args:
        weight: W, one output per row.
        by: the factor of the inputs' H.
        book: the values and their bits; its lambda is the squared error of a weight of unit H_qq
            that a bit is worth.
        clipped: False spreads the errors of clipped weights too, as GPTQ does.

    Returns:
        The values chosen.

    Reference:
        Frantar et al. 2022 (GPTQ); CERWU 2025.
    """
    work = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # Columns become rows, which lie together in memory.
    order = by.order.to(weight.device)
    moved = weight.to(work)[:, order].T.contiguous()
    upper, values = by.upper.to(moved), book.values.to(moved)
    diagonal: list[float] = by.upper.diagonal().tolist()
    reach = step_of(book.lam)
    low, high = values[0] - reach, values[-1] + reach
    index = torch.empty_like(moved, dtype=torch.int64)
    n = len(moved)
    rate = book.lam * book.bits.to(moved)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        error = torch.zeros_like(moved[start:stop])
        for q in range(start, stop):
            w, u = moved[q], diagonal[q]
            cost = (w[:, None] - values).square_().add_(rate, alpha=u * u)
            index[q] = cost.argmin(1)
            e = (w - values[index[q]]) / u
            if clipped:
                e.masked_fill_((w < low) | (w > high), 0.0)
            error[q - start] = e
            if q + 1 < stop:
                moved[q + 1 : stop].addr_(upper[q, q + 1 : stop], e, alpha=-1.0)
        if stop < n:
            moved[stop:].addmm_(upper[start:stop, stop:].T, error, alpha=-1.0)
    back = order.argsort()
    return Compensated(index[back].T.contiguous(), moved[back].T.contiguous())


def refitted(book: Codebook, index: Int[Tensor, "*n"], moved: Float[Tensor, "*n"]) -> Codebook:
    """The values at the means of the weights that chose them, with their new bits.

    The first and the last value stay even without weights, so that the values span the tensor.
    """
    k = len(book.values)
    size, total = torch.zeros(2, k, dtype=torch.float64, device="cpu")
    flat = index.reshape(-1).cpu()
    size += torch.bincount(flat, minlength=k)
    total += torch.bincount(flat, moved.reshape(-1).double().cpu(), minlength=k)
    moves = (size > 0) & (book.values != 0.0)
    values = torch.where(moves, total / size.clamp_min(1.0), book.values)
    kept = size > 0
    kept[0] = kept[-1] = True
    bits = -torch.log2(size.clamp_min(0.5) / size.sum())
    values, order = values[kept].sort()
    return Codebook(values, bits[kept][order].clamp_min(0.0), book.lam)


def entropy(index: Int[Tensor, "*n"]) -> float:
    """Bits per weight under the order-0 entropy."""
    share = torch.bincount(index.reshape(-1)).double() / index.numel()
    return float(torch.special.entr(share).sum()) / math.log(2.0)
