"""The command line: one module per command, all on one `app`."""

from __future__ import annotations

import dis
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


# What bad input raises, in us and in the libraries that read it.
_CLEAR = (ValueError, OSError, MemoryError, RecursionError, EOFError)
# Our own sentences come in these too; a fault of the program gets its traceback.
_IF_RAISED_BY_US = (TypeError, RuntimeError, FloatingPointError, ImportError)
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
    except SystemExit as end:
        if not end.code and _streams.output_is_lost():
            sys.exit(1)
        raise
    except Exception as error:
        if not _is_clear(error):
            raise
        from swsmix._labels import visible

        # Names from a foreign checkpoint may be in the message.
        lines = f"swsmix: {_sentence(error)}".split("\n")
        typer.echo("\n".join(visible(line) for line in lines), err=True)
        sys.exit(1)


def _is_clear(error: Exception) -> bool:
    """Whether the message of an error is for the user, not a fault of this program."""
    module, name = type(error).__module__, type(error).__name__
    if isinstance(error, _CLEAR) or name in _OF_FILES or module == "struct":
        return True
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return not error.name.startswith("swsmix")
    if _is_of_memory(error):
        return True
    return isinstance(error, _IF_RAISED_BY_US) and _is_raised_by_us(error)


def _is_of_memory(error: Exception) -> bool:
    """Whether there was too little memory, which torch says by a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "allocate memory" in said or "out of memory" in said.lower()
    )


def _is_raised_by_us(error: Exception) -> bool:
    """Whether the innermost frame is ours, and at a raise: no operation failed there."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code, at = trace.tb_frame.f_code, trace.tb_lasti
    here = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    return here in ("swsmix", "papers") and dis.opname[code.co_code[at]] == "RAISE_VARARGS"


def _sentence(error: Exception) -> str:
    if _is_of_memory(error):
        return f"there is not enough memory{f': {error}' if str(error) else ''}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        return f"it needs the package {package}, which is not installed: pip install {package}"
    if isinstance(error, RecursionError):
        return f"the input is nested too deeply: {error}"
    return str(error) or f"it failed with {type(error).__name__}"
