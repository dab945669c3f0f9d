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
    from swsmix.tables.exact import ExactMixture

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


def is_compiled() -> bool:
    """Whether numba is installed, and not switched off."""
    return _COMPILED.get() and numba_kernels() is not None


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"swsmix.tables.{name}")


def _all_float32_on(device: str, tensors: tuple[Tensor, ...]) -> bool:
    return all(each.device.type == device and each.dtype == torch.float32 for each in tensors)


def numba_for(*tensors: Tensor) -> Any | None:
    """Numba's loops, if they can handle these tensors."""
    usable = _COMPILED.get() and _all_float32_on("cpu", tensors)
    return numba_kernels() if usable else None


def numba_exact_for(*tensors: Tensor) -> Any | None:
    """Numba's loops over few weights (`numba_exact`), if they can handle these tensors."""
    types = (torch.float32, torch.float64)
    fit = all(each.device.type == "cpu" and each.dtype in types for each in tensors)
    return _module("numba_exact") if fit and is_compiled() else None


def numba_together() -> Any | None:
    """Numba's loops over many small tensors (`numba_together`), if numba is installed."""
    return _module("numba_together") if is_compiled() else None


def is_compiled_for(*tensors: Tensor) -> bool:
    """Whether numba's loops handle these tensors: then a call costs little, even for few weights.

    Without them, small tensors are better joined and handled in one call.
    """
    return numba_exact_for(*tensors) is not None


def numba_sums() -> Any | None:
    """Numba's sums over a histogram (`numba_sums`), if numba is installed."""
    return _module("numba_sums") if is_compiled() else None


def numba_cells() -> Any | None:
    """Numba's places and cubics of cells (`numba_cells`), if numba is installed."""
    return _module("numba_cells") if is_compiled() else None


def numba_certify() -> Any | None:
    """Numba's certification (`numba_certify`), if numba is installed."""
    return _module("numba_certify") if is_compiled() else None


def numba_for_16(*tensors: Tensor) -> Any | None:
    """Numba's loops for 16 bits (`numba_loops_16`), if they can handle these tensors."""
    types = {torch.float16, torch.bfloat16, torch.float32}
    fit = all(each.device.type == "cpu" and each.dtype in types for each in tensors)
    return _module("numba_loops_16") if fit and is_compiled() else None


def triton_for(*tensors: Tensor) -> Any | None:
    """Triton's loops, if they can handle these tensors."""
    usable = _COMPILED.get() and _all_float32_on("cuda", tensors)
    return triton_kernels(tensors[0].device) if usable else None


def triton_cells(device: torch.device) -> Any | None:
    """Triton's cubics of cells (`triton_cells`), if the weights are on a GPU where it works."""
    usable = _COMPILED.get() and device.type == "cuda" and triton_kernels(device) is not None
    return _module("triton_cells") if usable else None


@functools.cache
def _cuts_on(device: torch.device) -> bool:
    """Whether Triton compiles what certifies and cuts there; if not, the processor does it."""
    from swsmix.tables.exact import ExactMixture

    try:
        one = torch.ones(1, dtype=torch.float64, device=device)
        cells = _module("triton_cutting").cut(ExactMixture(one, one, one), 1e-5, 0.5, 2.0)
        _module("triton_certify").curvature(cells.mixture, cells.intervals)
        none = torch.zeros(3, len(cells.certified) << cells.fine, dtype=torch.int64, device=device)
        _module("triton_sums").sums(cells, *none)
    except Exception as error:
        warnings.warn(
            f"Triton cuts no tables on {device} ({error}): they are made on the processor",
            stacklevel=2,
        )
        return False
    return True


def triton_cutting(device: torch.device) -> Any | None:
    """Triton's certification and cutting of cells (`triton_cutting`), if they work there."""
    if not _COMPILED.get() or device.type != "cuda" or triton_kernels(device) is None:
        return None
    return _module("triton_cutting") if _cuts_on(device) else None


def triton_sums(device: torch.device) -> Any | None:
    """Triton's sums over a histogram (`triton_sums`), if the cells were cut there."""
    return _module("triton_sums") if triton_cutting(device) else None


def triton_certify(device: torch.device) -> Any | None:
    """Triton's polynomials of the curvature (`triton_certify`), if they work there."""
    return _module("triton_certify") if triton_cutting(device) else None


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
