"""The progress bar of the whole package: one line on standard error."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")
_BAR = 65  # columns of the bar, the count and the time
_SHORT = 32  # of a short bar


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
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    # In a notebook without ipywidgets rich would warn and show nothing: plain text there.
    widgets = importlib.util.find_spec("ipywidgets") is not None
    console = Console(stderr=True, force_jupyter=None if widgets else False)
    if weight is not None and total is None:
        total = sum(map(weight, items))
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

    if total is None and isinstance(items, Sized):
        total = len(items)
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
