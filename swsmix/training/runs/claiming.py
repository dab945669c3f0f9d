"""A folder for a new run: made, taken when it is empty, or taken from an old run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from swsmix._files import sync
from swsmix.training.runs.folder import MARKER, aside_of, has_checkpoint, is_run, remove_run
from swsmix.training.runs.lock import locked
from swsmix.training.runs.recovery import recover


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
    if path.is_file() or (path.exists() and any(path.iterdir()) and not is_run(path)):
        raise FileExistsError(f"{path} exists and is not a run folder: name another")
    if has_checkpoint(path):
        raise FileExistsError(
            f"{path} already holds a run: continue it (--resume, resume=True), replace it "
            "(--force), or name another folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).touch()
    except OSError as error:
        raise OSError(f"cannot write the run folder {path}: {error.strerror}") from error
    return path


@contextmanager
def new_run(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A fresh run folder; an old run is deleted only once the new one has a checkpoint.

    Args:
        path: where.
        force: replace the run that is there.

    Yields:
        The folder.

    Raises:
        FileExistsError: as `claim`, unless it holds a run and `force` is set.
    """
    path = Path(path)
    held = is_run(path) or is_run(aside_of(path))
    with locked(aside_of(path)), locked(path):
        recover(path)
        aside = aside_of(path)
        if force and is_run(path):  # the lock stays on the old run
            path.rename(aside)
            sync(path.parent)
            held = False
        claim(path)
        with nullcontext() if held else locked(path):
            yield from _replace(path, aside)


def _replace(path: Path, aside: Path) -> Iterator[Path]:
    """Yield the new run; then delete the old one, or restore it if the new one is empty."""
    try:
        yield path
    finally:
        if not has_checkpoint(path):  # the new run wrote nothing
            remove_run(path)
            if aside.exists():
                aside.rename(path)
        elif aside.exists():
            remove_run(aside)
