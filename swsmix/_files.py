"""Files written whole or not at all: to a temporary file beside their place, then renamed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_writable(path: Path) -> None:
    """Check, before a long computation, that a file can be made there.

    Raises:
        FileNotFoundError: if its folder is not there.
        IsADirectoryError: if it is a folder itself.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} is not there")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    Args:
        path: the file to make or replace.

    Yields:
        A temporary path beside it, with the same suffix, renamed to `path` at the end.

    Raises:
        OSError: if its folder is not there, or it is a folder itself.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # some writers make private files
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: the file.
        values: plain values.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
