"""How numba compiles the loops, and with which freedoms of rounding."""

from __future__ import annotations

import inspect
from typing import Any

import numba


def compiled(function: Any, fast: bool | set[str] = False) -> Any:
    """The function, compiled and kept on disk."""
    # Unwrapped, since a type checker's import hook may have wrapped it.
    function = inspect.unwrap(function)
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fast)(function)
    except RuntimeError:  # no folder that can be written keeps what is compiled
        return numba.njit(nogil=True, error_model="numpy", fastmath=fast)(function)


def fused(function: Any) -> Any:
    """The function, compiled; x * y + z is one operation in it, which rounds once.

    Without it two cubics of one weight take three times as long: the compiler works on their halves
    side by side, and shuffles.
    """
    return compiled(function, fast={"contract"})


def summed(function: Any) -> Any:
    """The function, compiled; its sums are in any order. NaN stays NaN."""
    return compiled(function, fast={"contract", "reassoc", "nsz"})


def part(function: Any) -> Any:
    """The function, compiled as a part of each loop that calls it, as `fused`."""
    function, free = inspect.unwrap(function), {"contract"}
    return numba.njit(forceinline=True, error_model="numpy", fastmath=free)(function)


def inlined(function: Any) -> Any:
    """The function, compiled into those that call it."""
    return numba.njit(inline="always", error_model="numpy")(inspect.unwrap(function))
