"""The progress bar of the whole package: one line on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")
_BAR = 65  # columns of the bar, the count and the time
_SHORT = 32  # of a short bar
_PAUSE = 0.5  # seconds between two lines in a notebook


def watched(
    items: Iterable[T],
    label: str = "",
    *,
    shown: bool,
    total: int | None = None,
    done: int = 0,
    weight: Callable[[T], int] | None = None,
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
        weight: how much an item is worth, such as its numbers: the bar advances by these. Without
            a total, the items are walked through twice.
        note: gives the text behind the bar, asked before and after each item; below the bar where
            the terminal is too narrow for both, since a number that is cut would be a wrong one.
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
    if total is None and weight is not None:
        total = sum(map(weight, items))
    elif total is None and isinstance(items, Sized):
        total = len(items)
    if _in_notebook():
        yield from _plain(items, label, total, done, weight, note, transient)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    console = Console(stderr=True)
    short = BarColumn(), TextColumn("{task.fields[count]}") if weight else MofNCompleteColumn()
    before = TextColumn("{task.description}", markup=False)
    behind = TextColumn("{task.fields[note]}", markup=False)

    class Bar(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            text = str(self.tasks[0].fields["note"]) if self.tasks else ""
            tight = len(label) + _SHORT > console.width
            fits = len(label) + len(text) + _BAR <= console.width
            columns = (*short, *(() if tight else (TimeRemainingColumn(),)))
            self.columns = (
                *((before,) if label and not tight else ()), *columns,
                *((behind,) if text and fits else ()),
            )  # fmt: skip
            if label and tight:
                yield Text(label)
            yield self.make_tasks_table(self.tasks)
            if text and not fits:
                yield Text(text)

    with Bar(console=console, transient=transient) as bar:
        task = bar.add_task(label, total=total, completed=done, note="", count="")
        for item in items:
            bar.update(task, note=note() if note else "", count=_counted(done, total))
            step = weight(item) if weight else 1
            yield item
            del item  # it may be large, and the next one is made now
            done += step
            bar.update(task, advance=step, note=note() if note else "", count=_counted(done, total))


def _counted(done: int, total: int | None) -> str:
    """Such as "12.3/100.0 million"."""
    if total is None or total < 10**7:
        return f"{done:,}" + ("" if total is None else f"/{total:,}")
    return f"{done / 1e6:,.0f}/{total / 1e6:,.0f} million"


def _in_notebook() -> bool:
    """Whether the output goes to the page of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _plain(
    items: Iterable[T],
    label: str,
    total: int | None,
    done: int,
    weight: Callable[[T], int] | None,
    note: Callable[[], str] | None,
    transient: bool,
) -> Iterator[T]:
    """One line that is written again: a page knows no other way back, and widgets may lack."""
    width, last = 0, -float("inf")
    for item in items:
        if time.monotonic() - last > _PAUSE:
            width = _rewrite(label, total, done, note, width)
            last = time.monotonic()
        step = weight(item) if weight else 1
        yield item
        del item  # it may be large, and the next one is made now
        done += step
    if transient:
        print("\r" + " " * width, end="\r", file=sys.stderr, flush=True)
    else:
        _rewrite(label, total, done, note, width)
        print(file=sys.stderr)


def _rewrite(
    label: str, total: int | None, done: int, note: Callable[[], str] | None, width: int
) -> int:
    """Write the line over the one of this width; its own width."""
    line = "  ".join(
        part for part in (label, _counted(done, total), note() if note else "") if part
    )
    print(f"\r{line:<{width}}", end="", file=sys.stderr, flush=True)
    return len(line)
