"""The penalty R(w), differentiable in the weights and in the mixture, from the tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from swsmix.tables.batch import BatchTables
from swsmix.tables.exact import eager
from swsmix.tables.lookup import Tables, build


class _NegLogPrior(torch.autograd.Function):
    """R with its derivatives by formulas, so that the graph holds nothing of size N x K."""

    @staticmethod
    def forward(
        ctx: Any, tables: Tables | BatchTables, w: Tensor, mixing: Tensor, mean: Tensor, std: Tensor
    ) -> Tensor:
        slope = None
        if isinstance(tables, BatchTables):  # one pass gives all of them
            value, slope, moments = tables.full(w)
        else:
            value, moments = tables.value_and_moments(w)
        ctx.tables, ctx.slope = tables, slope
        ctx.save_for_backward(w, mixing, mean, std, *moments)
        return value.to(torch.promote_types(w.dtype, mean.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        w, mixing, mean, std, count, first, second = ctx.saved_tensors
        slope = None
        if isinstance(ctx.tables, BatchTables):
            upstream = upstream[:, None]
            if ctx.needs_input_grad[1]:
                slope = upstream.to(w) * ctx.slope
        elif ctx.needs_input_grad[1]:
            slope = torch.zeros_like(w)
            ctx.tables.add_gradient_(slope, w, float(upstream))
        parts = (
            -count / torch.where(mixing > 0, mixing, math.inf).double(),
            -first / std.double() ** 2,
            count / std.double() - second / std.double() ** 3,
        )
        return None, slope, *((upstream * part).to(mean.dtype) for part in parts)


@eager
def neg_log_prior(
    w: Tensor,
    mixing: Tensor,
    mean: Tensor,
    std: Tensor,
    tables: Tables | BatchTables | None = None,
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

    Returns:
        A scalar, in nats; (b,) for b mixtures, whose memory is N x K.

    Raises:
        ValueError: if weights are infinite or NaN.
    """
    if tables is None:
        tables = (BatchTables if mean.ndim > 1 else build)(mixing, mean, std)
    value: Tensor = _NegLogPrior.apply(tables, w, mixing, mean, std)
    return value
