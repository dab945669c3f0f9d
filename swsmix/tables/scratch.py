"""Weights a chunk at a time: chunk sizes, scratch memory, and tensors as flat vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 17  # weights at a time on a CPU: their scratch memory stays in the cache


def chunk_on(device: torch.device) -> int:
    """How many weights to take at a time: more on a GPU, where each call costs some 10 us."""
    return CHUNK if device.type == "cpu" else 16 * CHUNK


class Scratch:
    """Scratch memory for a chunk of weights, reused so that it stays in the cache."""

    def __init__(self, n: int, device: torch.device, *, curvature: bool = False) -> None:
        n = min(n, chunk_on(device))
        with torch.inference_mode(False):  # it is written to outside of that mode too
            self.ints = torch.empty(4, n, dtype=torch.int32, device=device)
            self.floats = torch.empty(3, n, dtype=torch.float32, device=device)
            self.pieces = torch.empty(n, dtype=torch.complex128, device=device)
        self.curvature = curvature


@contextlib.contextmanager
def flattened(target: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Tensors of one shape as vectors, in the target's memory order; writes reach the target."""
    if all(each.is_contiguous() for each in (target, *others)):
        yield [each.detach().view(-1) for each in (target, *others)]
        return
    strides = target.stride()
    order = sorted(range(len(strides)), key=lambda d: -strides[d])
    views = [each.detach().permute(order) for each in (target, *others)]
    flat = [view.reshape(-1).contiguous() for view in views]  # every second one is a view, too
    yield flat
    if flat[0].data_ptr() != target.data_ptr():  # a copy, because its memory has gaps
        views[0].copy_(flat[0].view(views[0].shape))
