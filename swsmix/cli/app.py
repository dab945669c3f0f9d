"""The command line: one module per command, all on one `app`."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from swsmix.cli import _interrupts, _streams

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


_CLEAR = (
    ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError, EOFError,
    ImportError,
)  # fmt: skip
# Errors of libraries that derive from none of these; named, so as not to import the libraries.
_OF_FILES = ("SafetensorError", "BadZipFile", "LargeZipFile", "UnpicklingError")


def main() -> None:
    """The console script: errors and warnings are one clear line."""
    _interrupts.install()
    _streams.open_streams()
    warnings.formatwarning = _one_line
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(_interrupts.INTERRUPTED)
    except Exception as error:
        module, name = type(error).__module__, type(error).__name__
        if not isinstance(error, _CLEAR) and name not in _OF_FILES and module != "struct":
            raise
        from swsmix._labels import visible

        # Names from a foreign checkpoint may be in the message.
        lines = f"swsmix: {_sentence(error)}".split("\n")
        typer.echo("\n".join(visible(line) for line in lines), err=True)
        sys.exit(1)


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f': {error}' if str(error) else ''}"
    if isinstance(error, RecursionError):
        return f"the input is nested too deeply: {error}"
    return str(error) or f"it failed with {type(error).__name__}"
