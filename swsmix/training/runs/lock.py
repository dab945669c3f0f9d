"""One process at a time writes to a run folder."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swsmix import _files
from swsmix._files import refuse
from swsmix.training.runs.folder import MARKER

_File = tuple[int, int]  # device and inode: a lock stays with a folder that is renamed
_held: dict[_File, tuple[int, int]] = {}  # marker -> its open handle, the thread that holds it


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for writing; another process that asks for it gets an error.

    The lock is on the marker file, stays with a folder that is renamed, and ends with the process,
    however it ends. The thread that holds it may ask again. A folder that is not a run is not
    locked. Reading needs no lock.

    Args:
        path: the run folder.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: if another process, or another thread, is writing to it.
        OSError: if it cannot be written.

    Warns:
        RuntimeWarning: once, where the system or the disk (some network disks) has no locks.
    """
    marker = Path(path) / MARKER
    key = _acquire(marker)
    try:
        yield
    finally:
        if key is not None:
            _release(key)


def holds(path: str | os.PathLike[str]) -> bool:
    """Whether this thread holds a run folder."""
    try:
        entry = _held.get(_file(os.stat(Path(path) / MARKER)))
    except OSError:
        return False
    return entry is not None and entry[1] == threading.get_ident()


def _acquire(marker: Path) -> _File | None:
    """Lock a marker file; None if there is nothing to release later."""
    while True:
        if holds(marker.parent):
            return None
        try:
            handle = os.open(marker, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            refuse(marker.parent, error)
        try:
            _flock(handle, marker)
            if _is_at(handle, marker):
                key = _file(os.fstat(handle))
                _held[key] = handle, threading.get_ident()
                _sign(handle, f"process {os.getpid()} on {socket.gethostname()}")
                handle = -1
                return key
        finally:  # it was renamed or deleted since it was opened: look again
            if handle >= 0:
                os.close(handle)


def _flock(handle: int, marker: Path) -> None:
    try:
        _files.lock(handle)
    except BlockingIOError:
        who = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        raise BlockingIOError(
            f"{who} is writing to the run {marker.parent}: wait until it ends, end it, or name "
            "another folder"
        ) from None
    except OSError as error:
        _warn(marker, error.strerror or str(error))


def _warn(marker: Path, why: str) -> None:
    warnings.warn(
        f"the run {marker.parent} cannot be locked ({why}): take care that no other process writes "
        "to it",
        RuntimeWarning,
        stacklevel=2,
    )


def _release(key: _File) -> None:
    entry = _held.pop(key, None)
    if entry is not None:  # else this is a forked child, which holds nothing
        _sign(entry[0], "")
        _files.unlock(entry[0])  # a child that is just being forked has the handle for a moment
        os.close(entry[0])


def _sign(handle: int, name: str) -> None:
    """Say in the marker file who holds it; on a full disk nobody is named."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, name.encode(), 0)


def _file(status: os.stat_result) -> _File:
    return status.st_dev, status.st_ino


def _is_at(handle: int, marker: Path) -> bool:
    try:
        return _file(os.stat(marker)) == _file(os.fstat(handle))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _forget() -> None:
    """In a forked child: it shares the lock, and would keep it when its parent has ended."""
    for handle, _ in _held.values():
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
