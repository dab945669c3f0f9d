"""Tensors as they lie in memory: shards of a DTensor, flat views, small ones joined.

With DDP each process holds the whole tensor, with FSDP a part of it: sums over the weights then
need the other processes' parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

# Tensors smaller than this are moved together: the fixed cost per tensor would dominate.
SMALL = 1 << 17


def local(p: Tensor) -> Tensor:
    """The part of a tensor that lies on this process: the shard of a DTensor, else all of it.

    Returns:
        A tensor that shares the storage.
    """
    shard: Tensor = p.to_local() if hasattr(p, "to_local") else p
    return shard


def flat_like(w: Tensor, *others: Tensor) -> list[Tensor]:
    """Tensors of one shape as vectors in one order: the memory order of `w`, channels-last too.

    Views where the memory allows it; copies of tensors with gaps (a slice of a larger one) or of
    another memory order.
    """
    order = _memory_order(w)
    return [t.permute(order).reshape(-1) for t in (w, *others)]


def write_flat_(w: Tensor, flat: Tensor) -> None:
    """Copy a vector in the order of `flat_like` back into its tensor."""
    target = w.permute(_memory_order(w))
    target.copy_(flat.view(target.shape))


def _memory_order(t: Tensor) -> list[int]:
    strides = t.stride()
    return sorted(range(t.ndim), key=lambda axis: (-strides[axis], axis))


def whole(p: Tensor) -> Tensor:
    """A tensor with all its shards, gathered from the other processes if need be.

    Returns:
        A plain tensor.
    """
    full: Tensor = p.full_tensor() if hasattr(p, "full_tensor") else p
    return full


def shard_groups(p: Tensor) -> tuple[Any, ...]:
    """The process groups over which the elements of a DTensor are divided; replicas do not count.

    Returns:
        Groups for `torch.distributed.all_reduce`; none for a plain tensor.
    """
    if not hasattr(p, "placements") or not hasattr(p, "device_mesh"):
        return ()
    mesh: Any = p.device_mesh
    # Not `is_shard()`: it denies the strided shards of FSDP2 over tensor parallelism.
    return tuple(
        mesh.get_group(i) for i, where in enumerate(p.placements) if not where.is_replicate()
    )


def sum_over_(value: Tensor, groups: Iterable[Any]) -> Tensor:
    """Add up a value over process groups, in place."""
    for group in groups:
        torch.distributed.all_reduce(value, group=group)
    return value


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, groups: tuple[Any, ...]) -> Tensor:
        ctx.groups = groups
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        return sum_over_(above.clone(), ctx.groups), None


def sum_gradient_over(value: Tensor, groups: tuple[Any, ...]) -> Tensor:
    """A tensor as it is, whose gradient is added up over process groups.

    Returns:
        The same values; the tensor itself if there are no groups.
    """
    if not groups:
        return value
    shared: Tensor = _SumGradient.apply(value, groups)
    return shared


def pieces(tensors: Iterable[Tensor], small: int) -> Iterator[Tensor]:
    """Tensors as flat vectors: those below `small` elements in one, large ones each in place.

    A fixed cost for each tensor is what small networks would otherwise pay; copying large tensors
    is what large networks would.

    Yields:
        Vectors that hold each element once.
    """
    flat = [t.reshape(-1) for t in tensors]
    together = [t for t in flat if t.numel() < small]
    if together:
        yield torch.cat(together) if len(together) > 1 else together[0]
    yield from (t for t in flat if t.numel() >= small)


def memory_of(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype, t.device
