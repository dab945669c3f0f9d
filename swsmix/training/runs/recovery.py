"""What a killed process has begun in a run folder is finished or undone."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from swsmix._files import TEMPORARY, sync
from swsmix.training.runs.folder import (
    MARKER,
    OLD,
    WRITING,
    aside_of,
    checkpoints_of,
    discard,
    holds_run,
    is_run,
    is_whole,
    place_of,
    remove_run,
)


def recover(path: str | os.PathLike[str]) -> None:
    """Finish what a killed process has begun, before a run folder is written to.

    Temporary files go. The run that a killed `new_run(force=True)` has put aside comes back if the
    new one has saved nothing, and is deleted otherwise. A run that was copied without its marker
    file gets one.

    Args:
        path: the run folder.

    Raises:
        FileExistsError: if something that is not a run has taken its place.
    """
    place, aside = place_of(path), aside_of(Path(path))
    clear(place)
    clear(aside)
    if not is_run(aside):
        if aside.is_dir() and not any(aside.iterdir()):  # killed before the last step
            aside.rmdir()
    elif holds_run(place) or not holds_run(aside):
        remove_run(aside)
    else:
        if place.exists():
            if not place.is_dir() or (any(place.iterdir()) and not is_run(place)):
                raise FileExistsError(
                    f"{path} is not a run folder, and {aside} holds the run that was there: move "
                    "one of them"
                )
            remove_run(place)
        aside.rename(place)
        sync(place.parent)
    if not is_run(place) and any(is_whole(checkpoint) for checkpoint in checkpoints_of(place)):
        (place / MARKER).touch()


def clear(place: Path) -> None:
    """Remove what a killed or interrupted process left half written or removed in a run folder."""
    if not is_run(place):
        return
    for old in place.glob(f"{OLD}*"):
        target = place / old.name.removeprefix(OLD)
        old.rename(place / f"{WRITING}{uuid.uuid4().hex}" if target.exists() else target)
    for stale in place.glob(f"{WRITING}*"):
        shutil.rmtree(stale)
    *older, newest = checkpoints_of(place) or [place]
    if is_whole(newest):  # killed between a checkpoint's rename and the end of the older ones
        for checkpoint in older:
            discard(checkpoint)
    for file in place.glob(".*"):
        if TEMPORARY.fullmatch(file.name):
            file.unlink()
