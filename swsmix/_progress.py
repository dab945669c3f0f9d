"""The progress bar of the whole package: one line on standard error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def watched(
    items: Iterable[T],
    label: str = "",
    *,
    shown: bool,
    total: int | None = None,
    done: int = 0,
    note: Callable[[], str] | None = None,
    transient: bool = True,
) -> Iterator[T]:
    """The items, with a progress bar that advances as they are worked on.

    Args:
        items: what is worked on.
        label: the text before the bar.
        shown: whether there is a bar; without one, nothing is imported or printed.
        total: the number of items, those done before included; by default `len(items)`.
        done: how many of them were done before.
        note: gives the text behind the bar, asked before and after each item.
        transient: remove the bar at the end; otherwise it stays, as one line.

    Yields:
        The items in their order.

    Example:
        >>> list(watched([1, 2], "coding", shown=False))
        [1, 2]
    """
    if not shown:
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # In a notebook without ipywidgets rich would warn and show nothing: plain text there.
    widgets = importlib.util.find_spec("ipywidgets") is not None
    console = Console(stderr=True, force_jupyter=None if widgets else False)
    columns = (
        *([TextColumn("{task.description}", markup=False)] if label else []),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *([TextColumn("{task.fields[note]}", markup=False)] if note else []),
    )
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(*columns, console=console, transient=transient) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")
        for item in items:
            bar.update(task, note=note() if note else "")
            yield item
            bar.update(task, advance=1, note=note() if note else "")
