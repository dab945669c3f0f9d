"""`swsmix guide`: the guides, in the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from swsmix.cli.app import app

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, MarkdownElement

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

    from swsmix import guides

    if name is None:
        width = max(map(len, guides.names()))
        for each in guides.names():
            typer.echo(f"{each:<{width}}  {guides.summary(each)}")
        return
    text = guides.text(name)
    console = Console()
    if console.is_terminal and not console.options.ascii_only:
        shown = _markdown(_without_files(text))
        console.print(shown, width=min(console.width, _WIDTH), crop=False)
    else:
        typer.echo(text, nl=False)


def _markdown(text: str) -> Markdown:
    """Markdown whose code keeps its lines, however narrow the terminal: it can be copied."""
    from rich.markdown import CodeBlock, Markdown
    from rich.syntax import Syntax

    class Code(CodeBlock):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            code = str(self.text).rstrip()
            lines = Syntax(code, self.lexer_name, theme="ansi_dark").highlight(code)
            lines.rstrip()
            lines.no_wrap, lines.overflow = True, "ignore"
            yield lines

    class Guide(Markdown):
        elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {
            "fence": Code, "code_block": Code,
        }  # fmt: skip

    return Guide(text)


def _without_files(text: str) -> str:
    """The text without pictures and links to files, which a terminal cannot open."""
    text = re.sub(r"^!\[.*?\]\(.*?\)\n\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
