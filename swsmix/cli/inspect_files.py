"""What `swsmix inspect` writes, and its comparison of several checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from swsmix._files import make_folder, replacing


class Format(StrEnum):
    """Kinds of figures."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


def compare(
    inspections: list[Any],
    out: Path,
    form: Format | None,
    sort: str | None,
    *,
    html: bool,
    quiet: bool,
) -> None:
    """Print, draw and write the comparison of several checkpoints."""
    from rich.console import Console

    from swsmix.inspection import comparison, html_page

    compared = comparison.compare(inspections)
    if not quiet:
        console = Console()
        ascii_only = console.options.ascii_only
        console.print(
            comparison.table(compared, width=console.width, ascii_only=ascii_only, sort=sort)
        )
    if form is None and not html:
        return
    make_folder(out)
    written: list[str] = []
    drawn = comparison.draw_compared(compared)
    pictures = save_figures(drawn, out, form, written, quiet=quiet)
    if html:
        page = html_page(compared, pictures)
        with replacing(out / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
        written.append("report.html")
    for _ in pictures:
        pass
    if not quiet:
        say_written(out, written)


def say_written(out: Path, written: list[str]) -> None:
    """Print the names of the files that were written."""
    from rich.console import Console

    from swsmix._labels import visible

    line = f"\nwritten to {visible(str(out))}/: {', '.join(written)}"
    Console().print(line, highlight=False, soft_wrap=True, markup=False)


def save_figures(
    drawn: Iterator[Any], out: Path, form: Format | None, written: list[str], *, quiet: bool
) -> Iterator[Any]:
    """Draw the figures and yield them, each saved before, with a progress line for a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from swsmix import plots
    from swsmix._labels import file_name, visible

    columns = (SpinnerColumn(), TextColumn("drawing {task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("")
        gc.freeze()  # what was there before is no figure, and looking through it takes long
        try:
            for picture in drawn:
                bar.update(task, description=visible(picture.name))
                if form is not None:
                    name = f"{file_name(picture.name)}.{form.value}"
                    plots.save(picture.figure, out / name)
                    written.append(name)
                yield picture
                del picture
                gc.collect()  # a figure has reference cycles, and would stay in memory
        finally:
            gc.unfreeze()
