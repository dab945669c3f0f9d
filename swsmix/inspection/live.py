"""Training in the terminal: the text histogram and the mixture, after every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from swsmix.inspection.text import histogram_text, mixture_table
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_INTERVAL = 0.1  # seconds between two views


def view(
    history: History, *, ascii_only: bool = False, rows: int = 5, width: int = 72
) -> RenderableType:
    """The last record of a history: its scalars, and each mixture under its weights' histogram.

    The table's "weights" are the expected numbers N_j.

    Args:
        history: a history with at least one record.
        ascii_only: for terminals without Unicode.
        rows: height of the histograms, in lines.
        width: width of the histograms, in columns; at most 72 are used.

    Returns:
        A renderable for rich's `print`.
    """
    from rich.console import Group as Stack
    from rich.text import Text

    last = {name: values[-1] for name, values in history.scalars.items() if values}
    names = ("epoch", "tau", "objective", "data_loss", "train_measure", "validation_measure")
    shown = [f"{n.replace('_', ' ')} {last[n]:.4g}" for n in names if last.get(n) == last.get(n, 0)]
    parts: list[RenderableType] = [Text("  ".join(shown), "bold")]
    for group in history.groups:
        newest = {name: records[-1] for name, records in history.series[group].items()}
        mixture = GaussianMixture(newest["mixing"], newest["mean"], newest["std"])
        counts, edges = newest["bin_counts"].numpy(), newest["bin_edges"].numpy()
        if len(history.groups) > 1:
            parts.append(Text(f"\nmixture {group!r}"))
        text = histogram_text(
            counts, edges, mixture, rows=rows, width=min(width, 72), ascii_only=ascii_only
        )
        table = mixture_table(mixture, newest["count"].numpy(), int(counts.sum()))
        parts += [text, Text(""), table]
    return Stack(*parts)


@contextmanager
def watch(console: Console | None = None) -> Iterator[Callable[[int, History], None]]:
    """A callback for `fit` that keeps the current `view` on the screen.

    Args:
        console: a console of rich; by default standard output. If it is not a terminal, only the
            last view is printed.

    Yields:
        The callback, callback(epoch, history).

    Example:
        >>> with watch() as callback:  # doctest: +SKIP
        ...     fit(model, loss, data, optimizer=adam, epochs=9, prior=prior, callback=callback,
        ...         progress=False)
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    newest: History | None = None
    shown = 0.0
    live = Live(console=console, auto_refresh=False)

    def picture(history: History) -> RenderableType:
        return view(history, ascii_only=console.options.ascii_only, width=console.width)

    def callback(epoch: int, history: History) -> None:
        nonlocal newest, shown
        newest = history
        if time.monotonic() - shown >= _INTERVAL and console.is_terminal:
            live.update(picture(history), refresh=True)
            shown = time.monotonic()

    with live if console.is_terminal else nullcontext():
        try:
            yield callback
        finally:
            if newest is not None and len(newest):
                last = picture(newest)
                if console.is_terminal:
                    live.update(last, refresh=True)
                else:
                    console.print(last)
