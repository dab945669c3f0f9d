"""Files written whole or not at all: to a temporary file beside their place, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

_WINDOWS = os.name == "nt"
TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.\w+)?")  # the names of temporary files


def check_writable(path: Path) -> None:
    """Check, before a long computation, that a file can be made there.

    Raises:
        FileNotFoundError: if its folder is not there.
        PermissionError: if its folder cannot be written.
        IsADirectoryError: if it is a folder itself.
        OSError: if it is a device or a pipe, or the system says no.
    """
    try:
        if not path.parent.is_dir():
            what = "is not a folder" if path.parent.exists() else "is not there"
            raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} {what}")
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        if path.exists() and not path.is_file():
            # A rename would replace the device itself.
            raise OSError(f"cannot write {path}: it is not a regular file, name another")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(
                f"cannot write {path}: the folder {path.parent} cannot be written, name another"
            )
    except OSError as error:
        if error.errno is None:
            raise
        refuse(path, error)


def refuse(path: Path, error: OSError, kept: str = "") -> NoReturn:
    """Raise the system's error as one sentence that names the path; its class and `errno` stay.

    Args:
        path: the file or folder that cannot be written.
        error: the system's error.
        kept: what is said of that which was there before.

    Raises:
        OSError: always.
    """
    kind = type(OSError(error.errno or 0, ""))
    sentence = kind(f"cannot write {path}: {error.strerror or error}{kept}")
    sentence.errno = error.errno
    raise sentence from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        OSError: if it cannot be made; it is named.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(path, error)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all; one that is replaced is kept until the new one is whole.

    A temporary file for the same place that a killed process has left is deleted.

    Args:
        path: the file to make or replace; of a link, the file that it points to.

    Yields:
        An empty temporary file beside it, with the same suffix, renamed to `path` at the end.

    Raises:
        OSError: if it cannot be written: a read-only folder, a full disk, as for `check_writable`.
    """
    path = Path(path)
    check_writable(path)
    place = Path(os.path.realpath(path))
    discard_left(place)
    start = _start_of_temporaries(place)
    temporary = place.with_name(f"{start}{uuid.uuid4().hex[:16]}{place.suffix}")
    kept = "; the file that was there is kept" if path.exists() else ""
    try:
        try:
            with _made(temporary) as mode:
                with _disk_errors(temporary):
                    yield temporary
                if stat.S_IMODE(temporary.stat().st_mode) != mode:
                    temporary.chmod(mode)  # some writers make private files
                sync(temporary)
                temporary.replace(place)
            sync(place.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        refuse(path, error, kept)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Write a new folder whole or not at all.

    Args:
        path: a folder that is not there, or empty.

    Yields:
        An empty temporary folder beside it, renamed to `path` at the end.

    Raises:
        FileExistsError: if it holds files.
        OSError: if it cannot be written.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise FileExistsError(f"cannot write {path}: it is there already; name another folder")
    check_writable(place.parent / "file")
    discard_left(place)
    temporary = place.with_name(f"{_start_of_temporaries(place)}{uuid.uuid4().hex[:16]}")
    try:
        temporary.mkdir()
        handle = os.open(temporary, os.O_RDONLY) if not _WINDOWS else None
        try:
            if handle is not None:
                with suppress(OSError):  # some network disks have no locks
                    lock(handle)
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            if _WINDOWS and place.exists():  # a folder replaces no other there, even an empty one
                place.rmdir()
            temporary.replace(place)
        finally:
            if handle is not None:
                os.close(handle)
        sync(place.parent)
    except OSError as error:
        refuse(path, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _disk_errors(temporary: Path) -> Iterator[None]:
    """Raise an OSError where a library hides one, as PyTorch and safetensors do on a full disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        with temporary.open("ab") as file:  # does it take more?
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        raise


@contextmanager
def _made(path: Path) -> Iterator[int]:
    """Make an empty file as `open` does, with the user's umask: its mode; locked until the end."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if not _WINDOWS:
            with suppress(OSError):  # some network disks have no locks
                lock(handle)
            yield mode
    finally:
        os.close(handle)
    if _WINDOWS:  # a file that is open cannot be renamed there
        yield mode


def discard_left(place: Path) -> None:
    """Delete the temporary files for a place that no process has locked: theirs was killed."""
    for left in place.parent.glob(f"{_start_of_temporaries(place)}*"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                lock(handle)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def _start_of_temporaries(place: Path) -> str:
    return f".{blake2b(os.fsencode(place.name), digest_size=8).hexdigest()}"


def lock(handle: int) -> None:
    """Lock an open file for this process, until it is unlocked or closed.

    Raises:
        BlockingIOError: if another process has locked it.
        OSError: if the system (Windows) or the disk (some network disks) has no locks.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, "this system has no flock") from None
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def unlock(handle: int) -> None:
    """Unlock an open file at once, in forked children that share it too."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk.

    Where the system cannot do that (folders on Windows, some network disks), it is left to it.

    Raises:
        OSError: if the disk fails.
    """
    folder = path.is_dir()
    if folder and not (os.name == "posix" and os.access(path, os.R_OK)):
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
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


def check_regular(path: Path) -> None:
    """Check that this is a file with an end: opening a pipe or a device could block for ever.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not a regular file.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {path.readlink()}, which is not there")
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    if not path.is_file():
        raise ValueError(
            f"{path} is not a regular file but a pipe, socket, device or folder: copy its "
            "contents to a file and pass that"
        )
