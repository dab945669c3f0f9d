"""The memory of tensors as numpy arrays, for the compiled loops."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TYPES = {
    torch.float32: "<f4", torch.float64: "<f8", torch.bool: "|b1",
    torch.int16: "<i2", torch.int32: "<i4", torch.int64: "<i8",
}  # fmt: skip


_KEPT = threading.local()
_LARGE = 1 << 23  # bytes: at least four large pages


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


def indices(size: int) -> NDArray[np.int64]:
    """Memory for so many indices: the thread's own, kept, and written over by its next call.

    A training step's loops leave hardly any weights out, and memory for all of them is slow to get.
    """
    kept: NDArray[np.int64] | None = getattr(_KEPT, "indices", None)
    if kept is None or len(kept) < size:
        kept = _KEPT.indices = np.empty(size, np.int64)
    return kept[:size]


@contextlib.contextmanager
def zeros(size: int) -> Iterator[NDArray[np.int64]]:
    """Two rows of so many zeros, which must be zeros again at the end: the thread's own, kept.

    Memory that the system gives anew takes longer to get than to count a small network's weights.
    """
    kept: NDArray[np.int64] | None = vars(_KEPT).pop("zeros", None)  # until all went well
    if kept is None or kept.shape[1] < size:
        kept = np.zeros((2, size), np.int64)
    yield kept[:, :size]
    if kept.nbytes < _LARGE:
        _KEPT.zeros = kept


@functools.cache
def _advise() -> Callable[..., int] | None:
    """The system's `madvise`, where it knows of large pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise: Callable[..., int] = ctypes.CDLL(None).madvise
    except (AttributeError, OSError):
        return None
    return advise


def empty_like(w: Tensor) -> Tensor:
    """A new tensor of the shape and type of `w`, without gradient; a large one in large pages.

    Of 25 million weights, to be given the memory in pages of 4 kB takes as long as to copy it five
    times.
    """
    made = torch.empty_like(w, requires_grad=False)
    size = made.numel() * made.itemsize
    if size >= _LARGE and made.device.type == "cpu" and (advise := _advise()):
        start = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = made.data_ptr() + size - start
        advise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return made
