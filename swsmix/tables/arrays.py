"""The memory of tensors as numpy arrays, for the compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TYPES = {
    torch.float32: "<f4", torch.float64: "<f8", torch.bool: "|b1",
    torch.int16: "<i2", torch.int32: "<i4", torch.int64: "<i8",
}  # fmt: skip


class _Memory:
    def __init__(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self.tensor = tensor  # the array keeps this object, and so the memory
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False), "shape": shape,
            "typestr": _TYPES[tensor.dtype], "version": 3,
        }  # fmt: skip


def array(tensor: Tensor, *, flat: bool = False) -> NDArray[Any]:
    """A contiguous tensor of the CPU as an array of the same memory, or as a flat one.

    Not `Tensor.numpy`, after which torch never gives the memory back: FSDP, which does that with
    gathered weights, would fail.

    Raises:
        ValueError: if the tensor has gaps.

    Example:
        >>> w = torch.zeros(2)
        >>> array(w)[:] = 1.0
        >>> w
        tensor([1., 1.])
    """
    if not tensor.is_contiguous():
        raise ValueError("the array of a tensor with gaps would be a copy")
    shape = (tensor.numel(),) if flat else tuple(tensor.shape)
    if not tensor.numel():  # which has no address
        return np.empty(shape, dtype=_TYPES[tensor.dtype])
    return np.asarray(_Memory(tensor, shape))
