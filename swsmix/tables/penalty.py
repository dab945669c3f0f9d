"""The penalty R(w), differentiable in the weights and in the mixture, from the tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from swsmix.tables.batch import BatchTables
from swsmix.tables.exact import eager
from swsmix.tables.lookup import Full, Sums, Tables, build


class _NegLogPrior(torch.autograd.Function):
    """R with its derivatives by formulas, so that the graph holds nothing of size N x K."""

    @staticmethod
    def forward(
        ctx: Any,
        tables: Tables | BatchTables,
        known: Full | Sums,
        w: Tensor,
        mixing: Tensor,
        mean: Tensor,
        std: Tensor,
    ) -> Tensor:
        ctx.tables, ctx.slope = tables, getattr(known, "gradient", None)
        ctx.save_for_backward(w, mixing, mean, std, *known.moments)
        # A copy: what is returned becomes a part of the graph.
        return known.value.to(torch.promote_types(w.dtype, mean.dtype), copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        w, mixing, mean, std, count, first, second = ctx.saved_tensors
        if isinstance(ctx.tables, BatchTables):
            upstream = upstream[:, None]
        slope = None
        if ctx.needs_input_grad[2]:
            slope, ctx.slope = ctx.slope, None  # used up: it is scaled where it lies
            if w.dtype.itemsize == 2 and isinstance(ctx.tables, Tables):
                slope = torch.zeros_like(w)
                ctx.tables.add_gradient_(slope, w, float(upstream))
            else:  # made again, it is the same to the last bit
                slope = ctx.tables.gradient(w) if slope is None else slope
                slope.mul_(upstream.to(slope))
        parts = (
            -count / torch.where(mixing > 0, mixing, math.inf).double(),
            -first / std.double() ** 2,
            count / std.double() - second / std.double() ** 3,
        )
        return None, None, slope, *((upstream * part).to(mean.dtype) for part in parts)


def one_pass(tables: Tables | BatchTables, w: Tensor) -> Full | Sums:
    """What `neg_log_prior` and its backward pass need of weights, from one pass over them.

    Weights in 16 bits get their gradient in the backward pass, where it is scaled before it is
    rounded.
    """
    if torch.is_grad_enabled() and w.requires_grad and w.dtype.itemsize > 2:
        return tables.full(w.detach())
    return tables.value_and_moments(w)


@eager
def neg_log_prior(
    w: Tensor,
    mixing: Tensor,
    mean: Tensor,
    std: Tensor,
    tables: Tables | BatchTables | None = None,
    known: Full | Sums | None = None,
) -> Tensor:
    """R(w) = -sum_i log p(w_i), differentiable (once) in all four, without N x K memory.

        dR/dw_i = f'(w_i),  dR/dpi_j = -count_j / pi_j (0 where pi_j = 0),
        dR/dmu_j = -first_j / sigma_j^2,  dR/dsigma_j = count_j / sigma_j - second_j / sigma_j^3

    Args:
        w: the weights, any shape; (b, n) for b mixtures.
        mixing: pi (k,), or (b, k).
        mean: mu, of the same shape.
        std: sigma, of the same shape.
        tables: the mixture's tables, if you have them.
        known: what they gave for these weights, if it is at hand.

    Returns:
        A scalar, in nats; (b,) for b mixtures, whose memory is N x K.

    Raises:
        ValueError: if weights are infinite or NaN.
    """
    if tables is None:
        tables = (BatchTables if mean.ndim > 1 else build)(mixing, mean, std)
    if known is None:
        known = one_pass(tables, w)
    value: Tensor = _NegLogPrior.apply(tables, known, w, mixing, mean, std)
    return value
