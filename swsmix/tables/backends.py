"""The compiled loops: which are installed, and which fit given tensors."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from swsmix.tables.exact import ExactMixture

_COMPILED = contextvars.ContextVar("compiled", default=True)


@functools.cache
def numba_kernels() -> Any | None:
    """Numba's loops (`numba_loops`), or None if it is not installed."""
    try:
        from swsmix.tables import numba_loops
    except ImportError:
        return None
    return numba_loops


@functools.cache
def triton_kernels(device: torch.device) -> Any | None:
    """Triton's loops (`triton_loops`), or None if it does not work there: it needs a C compiler."""
    try:
        from swsmix.tables import triton_loops
    except ImportError:
        return None
    try:
        one = torch.ones(1, dtype=torch.float32, device=device)
        standard = ExactMixture(one, one, one)
        triton_loops.write_gradient_(standard, None, one.clone(), one, None)
    except Exception as error:
        warnings.warn(
            f"Triton does not work on {device} ({error}): the prior is slower there, with the "
            "operations of torch",
            stacklevel=2,
        )
        return None
    return triton_loops


def _all_float32_on(device: str, tensors: tuple[Tensor, ...]) -> bool:
    return all(each.device.type == device and each.dtype == torch.float32 for each in tensors)


def numba_for(*tensors: Tensor) -> Any | None:
    """Numba's loops, if they can handle these tensors."""
    usable = _COMPILED.get() and _all_float32_on("cpu", tensors)
    return numba_kernels() if usable else None


def numba_certify() -> Any | None:
    """Numba's certification (`numba_certify`), unless it is not installed or switched off."""
    return _module("numba_certify") if numba_for() else None


def numba_cut() -> Any | None:
    """Numba's loops over cells (`numba_cut`), unless numba is not installed or switched off."""
    return _module("numba_cut") if numba_for() else None


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"swsmix.tables.{name}")


def triton_for(*tensors: Tensor) -> Any | None:
    """Triton's loops, if they can handle these tensors."""
    usable = _COMPILED.get() and _all_float32_on("cuda", tensors)
    return triton_kernels(tensors[0].device) if usable else None


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Use no compiled loops: for a few passes they take longer to load than they save.

    The results agree within the certified bounds.
    """
    token = _COMPILED.set(False)
    try:
        yield
    finally:
        _COMPILED.reset(token)
