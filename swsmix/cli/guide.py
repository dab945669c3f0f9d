"""`swsmix guide`: the guides, in the terminal."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from swsmix.cli.app import app

_WIDTH = 100  # of a line of text; wider ones are hard to read


@app.command()
def guide(
    name: Annotated[
        str | None, typer.Argument(help="The guide; without it, the guides are listed.")
    ] = None,
) -> None:
    """Read a guide: how to train, compress, inspect and more, with code that runs.

    Formatted in a terminal; plain Markdown in a file or a pipe.

    **Examples**

    - `swsmix guide` : the guides, one line each

    - `swsmix guide training`

    - `swsmix guide compression > compression.md`
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from swsmix import guides

    if name is None:
        width = max(map(len, guides.names()))
        for each in guides.names():
            typer.echo(f"{each:<{width}}  {guides.summary(each)}")
        return
    text = guides.text(name)
    console = Console()
    if console.is_terminal and not console.options.ascii_only:
        console.print(Markdown(_without_files(text)), width=min(console.width, _WIDTH))
    else:
        typer.echo(text, nl=False)


def _without_files(text: str) -> str:
    """The text without pictures and links to files, which a terminal cannot open."""
    text = re.sub(r"^!\[.*?\]\(.*?\)\n\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
