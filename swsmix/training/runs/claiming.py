"""A run folder to write to: a new one, or an old one to continue; both are held meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from swsmix._files import sync
from swsmix.training.runs.folder import (
    MARKER,
    aside_of,
    has_checkpoint,
    holds_run,
    is_run,
    place_of,
    remove_run,
)
from swsmix.training.runs.lock import holds, locked
from swsmix.training.runs.recovery import clear, recover


def claim(path: str | os.PathLike[str]) -> Path:
    """Make a run folder, or take an empty one; nothing that is in it is ever overwritten.

    Args:
        path: where.

    Returns:
        The folder.

    Raises:
        FileExistsError: if it holds a run already, or something that is not a run.
        OSError: if the folder cannot be written.
    """
    path = Path(path)
    _mark(path)
    if has_checkpoint(path):
        raise FileExistsError(
            f"{path} already holds a run: continue it (--resume, resume=True), replace it "
            "(--force; in Python, delete the folder first), or name another folder"
        )
    if holds_run(path):
        raise FileExistsError(
            f"{path} holds the outcome of a run, and no checkpoint to continue from: replace it "
            "(--force), or name another folder"
        )
    return path


def _mark(path: Path) -> bool:
    """Make a run folder, or mark an empty one as ours; whether it was made."""
    place = place_of(path)
    try:
        if place.exists() and not is_run(place) and (place.is_file() or any(place.iterdir())):
            raise FileExistsError(f"{path} exists and is not a run folder: name another")
        made = not place.exists()
        place.mkdir(parents=True, exist_ok=True)
        (place / MARKER).touch()
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"cannot write the run folder {path}: {error.strerror}") from error
    return made


@contextmanager
def new_run(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A fresh run folder; an old run is deleted only once the new one has a checkpoint.

    Args:
        path: where.
        force: replace the run that is there.

    Yields:
        The folder, held for this thread.

    Raises:
        FileExistsError: as `claim`, unless it holds a run and `force` is set.
        BlockingIOError: if another process is writing to it.
    """
    path = Path(path)
    with ExitStack() as locks:
        made = False
        while not holds(path):  # another process may remove it before it is locked
            made = _mark(path)
            locks.enter_context(locked(path))
        try:
            locks.enter_context(locked(aside_of(path)))
            recover(path)
            if force and any(entry.name != MARKER for entry in path.iterdir()):
                yield from _replaced(path)
            else:
                yield claim(path)
        finally:
            if not holds_run(path) and holds(path):  # it came to nothing
                _unmark(path, made=made)
            _tidy(path)


def _tidy(path: Path) -> None:
    """Leave no temporary files, whatever has ended the work."""
    if holds(path):
        with contextlib.suppress(OSError):
            clear(place_of(path))


def _unmark(path: Path, *, made: bool) -> None:
    place = place_of(path)
    if made:
        remove_run(place)
    elif [entry.name for entry in place.iterdir()] == [MARKER]:
        (place / MARKER).unlink()


def _replaced(path: Path) -> Iterator[Path]:
    """Yield the new run; then delete the old one, or restore it if the new one is empty.

    The lock on the old run goes with it.

    Raises:
        OSError: if the old run cannot be moved; it stays.
    """
    place, aside = place_of(path), aside_of(path)
    try:
        place.rename(aside)
        sync(place.parent)
    except OSError as error:
        raise OSError(
            f"cannot move the run {path} to {aside.name}: {error.strerror}; name another folder"
        ) from error
    try:
        claim(place)
        with locked(place):
            try:
                yield path
            finally:
                if has_checkpoint(place):
                    remove_run(aside)
                else:
                    remove_run(place)
    finally:
        if aside.exists() and not place.exists():
            # Where another process is just asking for the folder, its recovery does this.
            with contextlib.suppress(OSError):
                aside.rename(place)


@contextmanager
def old_run(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A run folder to continue, recovered from what a killed process has left.

    Args:
        path: where.

    Yields:
        The folder, held for this thread.

    Raises:
        BlockingIOError: if another process is writing to it.
    """
    path = Path(path)
    with locked(path), locked(aside_of(path)):
        recover(path)
        try:
            yield path
        finally:
            _tidy(path)


@contextmanager
def held_run(path: str | os.PathLike[str], *, resume: bool) -> Iterator[Path]:
    """A run folder for one training: new, or with `resume` an old one, if there is one.

    Args:
        path: where; the caller may hold it already.
        resume: continue the run that is there.

    Yields:
        The folder, held for this thread.

    Raises:
        FileExistsError: as `claim`, unless `resume` is set.
        BlockingIOError: if another process is writing to it.
    """
    path = Path(path)
    if holds(path):
        yield path
    elif resume and (has_checkpoint(path) or holds_run(aside_of(path))):
        with old_run(path):
            yield path
    else:
        with new_run(path):
            yield path
