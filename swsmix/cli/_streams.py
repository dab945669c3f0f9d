"""Output that never fails after the work is done: any encoding, a closed pipe, a full disk."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

_PLAIN = str.maketrans(
    {
        "→": "->", "←": "<-", "±": "+-", "−": "-", "–": "-", "—": "-", "×": "x", "·": ".",
        "≤": "<=", "≥": ">=", "≈": "~", "…": "~", "•": "*", "▲": "^",
        "“": '"', "”": '"', "‘": "'", "’": "'",
    }
)  # fmt: skip
_BLOCKS = " .:-=+*#@"


def _degraded(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, in ASCII: a likeness, or an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_in_ascii, text)), error.end


def _in_ascii(character: str) -> str:
    plain = character.translate(_PLAIN)
    if plain.isascii():
        return plain
    code = ord(character)
    if 0x2500 <= code < 0x2580:  # frames
        return "-" if character in "─━═╌┄" else "|" if character in "│┃║╎┆" else "+"
    if 0x2580 <= code < 0x25A0:  # blocks
        return _BLOCKS[min(code - 0x2580, 8)]
    return character.encode("unicode_escape").decode()


_state = {"failed": False, "saved": False}


def work_is_saved() -> None:
    """Say that the command has written its file: what it prints from now on may be lost."""
    _state["saved"] = True


def output_is_lost() -> bool:
    """Whether the command's output was to be printed, and could not be: a full disk.

    A reader that leaves (`| head`) is no failure.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return _state["failed"] and not _state["saved"]


class _Output(io.FileIO):
    """A stream that says once that it cannot be written, and swallows the rest."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lost = False  # what it is given can no longer be written

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._lost:
            return size
        try:
            return super().write(data)
        except OSError as error:
            self._lost = True
            if error.errno != errno.EPIPE and self.fileno() != 2:
                _say(f"swsmix: the rest is not printed: {error.strerror}")
                _state["failed"] = True
            return size


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def open_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams whose failure is no failure of a command."""
    codecs.register_error("swsmix", _degraded)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _opened(stream, descriptor))


def _opened(stream: io.TextIOWrapper, descriptor: int) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor)),
        encoding=stream.encoding,
        errors="swsmix",
        line_buffering=stream.line_buffering or descriptor == 2,
    )
