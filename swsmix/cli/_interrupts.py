"""Ctrl-C while modules are imported: exit code 130, and no traceback.

Python's own answer is a KeyboardInterrupt inside the import: a traceback, or whatever an extension
module makes of it. A command that imports has nothing to clean up, so the process just ends. Once
the work begins, Ctrl-C is a KeyboardInterrupt as usual.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from swsmix._finalisers import interrupts_again

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
_HERE = str(Path(__file__).parent)
_LIBRARY = str(Path(__file__).parent.parent)
_PROGRAM = str(Path(_LIBRARY) / "__main__.py")


def install() -> None:
    """End the process quietly if Ctrl-C comes while a command imports what it needs."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
    except ValueError:  # not the main thread
        pass


@contextmanager
def quiet() -> Iterator[None]:
    """As `install`, for the duration of a block."""
    before = signal.getsignal(signal.SIGINT)
    install()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt and before is not _interrupt:
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        os._exit(INTERRUPTED)
    signal.default_int_handler(number, frame)


def _importing(frame: FrameType | None) -> bool:
    """Whether the outermost import is that of a command or of the program.

    An import that the library makes in the middle of its work does not count: there may be
    temporary files to remove.
    """
    importer = None
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib") and frame.f_back is not None:
            importer = frame.f_back.f_code.co_filename
        frame = frame.f_back
    if importer is None:
        return False
    return importer.startswith((_HERE, _PROGRAM)) or not importer.startswith(_LIBRARY)


class _Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as by a cluster's scheduler."""


@contextmanager
def as_exit_codes() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does; the exit code is 128 + the signal's number."""
    import typer  # not above: this module is there before anything heavy is imported

    def terminate(*_: object) -> None:
        raise _Terminated

    main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    old = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        with interrupts_again(_Terminated):
            yield
    except _Terminated:
        raise typer.Exit(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None
    except BaseException as error:
        # An extension module in Rust turns an interrupt inside it into a panic.
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        for kind, number in ((_Terminated, signal.SIGTERM), (KeyboardInterrupt, signal.SIGINT)):
            if kind.__name__ in str(error):
                raise typer.Exit(128 + number) from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, old)
