"""The inputs of a convolution as rows: what its weights multiply at each position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def thinned(x: Float[Tensor, "r n"], stride: int) -> Float[Tensor, "s n"]:
    """Every `stride`-th row."""
    return x if stride == 1 else x[::stride]


def convolution_rows(
    x: Float[Tensor, "b c *size"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, Callable[[int], Tensor]]:
    """The rows that a convolution of any number of dimensions multiplies.

    Args:
        x: its inputs.
        kernel: the size of its kernel.
        stride: its steps.
        padding: zeros at each end.
        dilation: the distances of the kernel's weights.
        groups: its groups of channels.

    Returns:
        How many positions there are, and what gives every so manieth of them as (groups, rows,
        channels of a group times kernel), in the order of the weights.

    Example:
        >>> count, rows = convolution_rows(torch.ones(2, 4, 5), [3], [1], [0], [1], 2)
        >>> count, rows(1).shape
        (6, torch.Size([2, 6, 6]))
    """
    d = len(kernel)

    def of(numbers: Sequence[int]) -> list[int]:
        return list(numbers) * d if len(numbers) == 1 else list(numbers)

    stride, padding, dilation = of(stride), of(padding), of(dilation)
    out = [
        (size + 2 * p - q * (k - 1) - 1) // s + 1
        for size, k, s, p, q in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    count = len(x) * torch.Size(out).numel()

    def rows(step: int) -> Tensor:
        windows = pad(x, [p for p in reversed(padding) for _ in range(2)])
        for axis in range(d):
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            windows = windows.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
        # (b, c, *out, *kernel) to (b, *out, c, *kernel)
        windows = windows.movedim(1, 1 + d)
        if step == 1:
            found = windows.reshape(count, groups, -1)
        else:
            kept = torch.arange(0, count, step, dtype=torch.int64, device=x.device)
            found = windows[torch.unravel_index(kept, [len(x), *out])].flatten(1)
            found = found.reshape(len(kept), groups, -1)
        return found.movedim(1, 0)

    return count, rows
