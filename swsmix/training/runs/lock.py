"""One process at a time writes to a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from swsmix.training.runs.folder import MARKER, is_run


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for writing; another process that asks for it gets an error.

    The lock ends with the process, however it ends. Where there is no `fcntl` (Windows), and for
    a folder that is not a run, nothing is locked. Reading needs no lock.

    Args:
        path: the run folder.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: if another process is writing to it.
    """
    if fcntl is None or not is_run(path):
        yield
        return
    handle = os.open(Path(path) / MARKER, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is writing to the run {path}: wait until it ends, or name "
                "another folder"
            ) from None
        yield
    finally:
        os.close(handle)
