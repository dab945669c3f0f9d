"""The command line: one module per command, all on one `app`."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

app = typer.Typer(
    help="Soft weight-sharing: train networks under a learned Gaussian-mixture prior.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(show: bool | None) -> None:
    if show:
        from swsmix import __version__

        typer.echo(f"swsmix {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    pass


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return f"swsmix: {message}\n"


def main() -> None:
    """The console script: errors and warnings are one clear line."""
    warnings.formatwarning = _one_line
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        from swsmix._labels import visible

        # Names from a foreign checkpoint may be in the message.
        typer.echo("\n".join(visible(line) for line in f"swsmix: {error}".split("\n")), err=True)
        sys.exit(1)
