"""A progress bar on standard error, gone when the work is done."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

T = TypeVar("T")


def watched(items: Collection[T], what: str, *, shown: bool) -> Iterable[T]:
    """The items, with a bar that moves as they are taken.

    Args:
        items: what is worked on.
        what: the bar's label.
        shown: whether there is a bar.

    Returns:
        The items in their order.

    Example:
        >>> list(watched([1, 2], "coding", shown=False))
        [1, 2]
    """
    if not shown:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, console=Console(stderr=True), transient=True)
