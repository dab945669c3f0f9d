"""What a training step does to all tensors of all mixtures: those of few weights in one call.

Calls of compiled loops cost more than the loops over a few weights, whichever mixture they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swsmix._shards import SMALL, flat_like, write_flat_
from swsmix.tables import backends
from swsmix.tables.exact import run_isolated
from swsmix.tables.lookup import Adaptive, Tables

Step = float | Adaptive


@run_isolated
def add_gradient_each_(
    work: Sequence[tuple[Tables, Sequence[tuple[Tensor, Tensor]], float]],
) -> None:
    """`Tables.add_gradient_` of several tensors of several mixtures.

    Args:
        work: of each mixture its tables; the gradient to add to and the weights of each tensor;
            and the scale.

    Example:
        >>> from swsmix.tables import build
        >>> one = build(torch.ones(1), torch.zeros(1), torch.ones(1))
        >>> w, grad = torch.tensor([0.5, 2.0]), torch.zeros(2)
        >>> add_gradient_each_([(one, [(grad, w)], 10.0)])
        >>> grad
        tensor([ 5., 20.])
    """
    numba = backends.numba_together()
    few: list[tuple[Tables, tuple[Tensor, Tensor], float]] = []
    for tables, pairs, scale in work:
        small = []
        for grad, w in pairs:
            if numba and _are_few(tables, grad, w):
                few.append((tables, (grad, w), scale))
            elif w.numel() >= SMALL or backends.is_compiled_for(w, grad):
                tables.add_gradient_(grad, w, scale)
            else:
                small.append((grad, w))
        if small:  # one call: the fixed cost per call dominates
            flat = torch.cat([w.reshape(-1) for _, w in small])
            parts = tables.gradient(flat).split([w.numel() for _, w in small])
            for part, (grad, w) in zip(parts, small, strict=True):
                grad.add_(part.view_as(w), alpha=scale)
    if not few or numba is None:
        return
    mixtures = [tables.passes.mixture for tables, *_ in few]
    pairs, scales = [pair for _, pair, _ in few], [scale for *_, scale in few]
    left = numba.add_gradient_each_(mixtures, pairs, scales)
    for which, (tables, tensors, scale) in zip(left, few, strict=False):
        if len(which):
            grad, w = (each.detach().view(-1) for each in tensors)
            tables.passes.write_exactly_(which, grad, w, scale)


@run_isolated
def proximal_each_(
    work: Sequence[tuple[Tables, Sequence[tuple[Tensor, Tensor, Step]], float]],
) -> None:
    """`Tables.proximal_` of several tensors of several mixtures.

    Args:
        work: of each mixture its tables; w, at and step of each tensor; and the scale.
    """
    numba = backends.numba_together()
    few: list[tuple[Tables, tuple[Tensor, Tensor, Tensor | None], tuple[float, float]]] = []
    for tables, parts, scale in work:
        many = []
        for w, at, step in parts:
            second, rate, eps = step if isinstance(step, Adaptive) else (None, step, 0.0)
            if numba and _are_few(tables, w, at, w if second is None else second):
                few.append((tables, (w, at, second), (rate * scale, eps)))
            else:
                many.append((w, at, step))
        _step_of_many_(tables, many, scale)
    if not few or numba is None:
        return
    mixtures = [tables.passes.mixture for tables, *_ in few]
    tensors, rates = [each for _, each, _ in few], [rate for *_, rate in few]
    left = numba.proximal_each_(mixtures, tensors, rates)
    for which, (tables, moved, (rate, eps)) in zip(left, few, strict=False):
        if len(which):
            flat = [each.detach().view(-1) for each in moved if each is not None]
            tables.passes.proximal_exactly_(which, *flat, rate=rate, eps=eps)


def _are_few(tables: Tables, *tensors: Tensor) -> bool:
    """Whether numba's loops over few weights take these tensors by their addresses."""
    return tables.passes.is_small(tensors[0]) and all(
        each.dtype == torch.float32 and each.is_cpu and each.is_contiguous() for each in tensors
    )


def _step_of_many_(
    tables: Tables, parts: Sequence[tuple[Tensor, Tensor, Step]], scale: float
) -> None:
    """The proximal step of tensors of one mixture; small ones of one step size are put together."""
    together: dict[tuple[Any, ...], list[tuple[Tensor, list[Tensor]]]] = {}
    for w, at, step in parts:
        if w.numel() >= SMALL or backends.is_compiled_for(w, at):
            tables.proximal_(w, at, step, scale)
            continue
        second, *rates = step if isinstance(step, Adaptive) else (w, step)
        entry = w, flat_like(w, at, second)
        together.setdefault((w.dtype, *rates), []).append(entry)
    for (_, *rates), small in together.items():  # one call, whose fixed cost would dominate
        targets, where, seconds = zip(*(flat for _, flat in small), strict=True)
        moved = torch.cat(targets)
        step = Adaptive(torch.cat(seconds), *rates) if len(rates) > 1 else rates[0]
        tables.proximal_(moved, torch.cat(where), step, scale)
        parts_moved = moved.split([len(flat) for flat in targets])
        for (w, _), part in zip(small, parts_moved, strict=True):
            write_flat_(w, part)
