"""The compiled loops: which there are, and which of them are for given tensors."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from swsmix.tables.direct import Mixture

_COMPILED = contextvars.ContextVar("compiled", default=True)


@functools.cache
def numba_kernels() -> Any | None:
    """The loops compiled by numba, if it is installed."""
    try:
        from swsmix.tables import kernels
    except (ImportError, RuntimeError):  # numba raises the latter where it can keep no cache
        return None
    return kernels


@functools.cache
def triton_kernels(device: torch.device) -> Any | None:
    """The kernels of a GPU, if Triton is installed and works there: it wants a C compiler."""
    try:
        from swsmix.tables import fused
    except ImportError:
        return None
    try:
        one = torch.ones(1, device=device)
        fused.write_gradient_(Mixture(one, one, one), None, one.clone(), one, None)
    except Exception as error:
        warnings.warn(
            f"Triton does not work on {device} ({error}): the prior is slower there, by the "
            "operations of torch",
            stacklevel=2,
        )
        return None
    return fused


def _are(device: str, tensors: tuple[Tensor, ...]) -> bool:
    return all(each.device.type == device and each.dtype == torch.float32 for each in tensors)


def numba_for(*tensors: Tensor) -> Any | None:
    """Numba's loops, if these tensors are for them."""
    return numba_kernels() if _COMPILED.get() and _are("cpu", tensors) else None


def triton_for(*tensors: Tensor) -> Any | None:
    """Triton's kernels, if these tensors are for them."""
    return triton_kernels(tensors[0].device) if _COMPILED.get() and _are("cuda", tensors) else None


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Do without compiled loops: for a few passes they take longer to load than they save.

    Yields:
        Nothing; the results are the same.
    """
    token = _COMPILED.set(False)
    try:
        yield
    finally:
        _COMPILED.reset(token)
