"""The tensors of a checkpoint that are not inspected, and why."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from swsmix._histogram import chunks

_MAX = torch.finfo(torch.float32).max


def left_out(
    tensors: Mapping[str, Tensor],
    include: Sequence[str],
    exclude: Sequence[str],
    under_prior: set[str] | None,
) -> dict[str, str]:
    """Name -> why a tensor is not inspected."""
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise ValueError(
                f"the pattern {pattern!r} matches no tensor; there are {', '.join(tensors)}"
            )
    reasons: dict[str, str] = {}
    seen = _Memory()
    order = {name: number for number, name in enumerate(tensors)}
    # The largest first: a view of a part is found when the whole is known.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].numel()):
        if not tensor.is_floating_point():
            reasons[name] = f"not floating-point ({tensor.dtype})"
        elif tensor.layout != torch.strided or not tensor.numel():
            reasons[name] = "empty" if not tensor.numel() else f"of layout {tensor.layout}"
        elif tensor.is_meta:
            reasons[name] = "on the meta device, so without values"
        elif any(fnmatchcase(name, pattern) for pattern in exclude):
            reasons[name] = "excluded"
        elif include and not any(fnmatchcase(name, pattern) for pattern in include):
            reasons[name] = "matched by no pattern"
        elif under_prior is not None and name not in under_prior:
            reasons[name] = "not under the prior"
        elif under_prior is None and not include and tensor.ndim < 2:
            reasons[name] = f"{tensor.ndim} dimension{'s' * (tensor.ndim != 1)}, fewer than 2"
        elif whole := seen.whole_of(tensor):
            same = tensor.numel() == tensors[whole].numel()
            reasons[name] = f"the same tensor as {whole}" if same else f"a part of {whole}"
        elif name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in tensors:
            reasons[name] = "the mask of a pruned tensor"
        elif bad := sum(int((~part.isfinite()).sum()) for part in chunks([tensor.reshape(-1)])):
            reasons[name] = f"{bad:,} of its {tensor.numel():,} weights are nan or inf"
        elif (largest := _largest(tensor)) > _MAX:
            reasons[name] = f"its weights reach {largest:.3g}, beyond float32"
        else:
            seen.add(name, tensor)
    return dict(sorted(reasons.items(), key=lambda item: order[item[0]]))


class _Memory:
    """Where the tensors seen so far lie, the largest first, to find those that share memory."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int, str]] = []  # first byte, byte after the last, name

    def add(self, name: str, tensor: Tensor) -> None:
        start, end = self._span(tensor)
        if end - start == tensor.nbytes:  # no gaps, in which other tensors could lie
            insort(self._places, (start, end, name))

    def whole_of(self, tensor: Tensor) -> str | None:
        """The tensor that holds this one, as tied ones and views of a part have."""
        start, end = self._span(tensor)
        place = bisect_right(self._places, start, key=lambda p: p[0]) - 1
        return self._places[place][2] if place >= 0 and end <= self._places[place][1] else None

    @staticmethod
    def _span(tensor: Tensor) -> tuple[int, int]:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; 0 for dtypes that do not exceed float32."""
    if tensor.dtype != torch.float64:
        return 0.0
    return max(part.abs().max().item() for part in chunks([tensor.reshape(-1)]))
