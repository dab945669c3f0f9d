"""Files written whole or not at all: to a temporary file beside their place, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: the file.
        values: plain values.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
