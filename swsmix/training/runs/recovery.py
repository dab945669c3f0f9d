"""What a killed process has begun in a run folder is finished or undone."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

from swsmix._files import sync
from swsmix.training.runs.folder import OLD, WRITING, aside_of, has_checkpoint, is_run, remove_run


def recover(path: str | os.PathLike[str]) -> None:
    """Finish what a killed `new_run(force=True)` has begun, before a run folder is written to.

    The run that was put aside comes back if the new one has no checkpoint, and is deleted
    otherwise.

    Args:
        path: the run folder.

    Raises:
        FileExistsError: if something that is not a run has taken its place.
    """
    path = Path(path)
    aside = aside_of(path)
    if is_run(path):
        for old in path.glob(f"{OLD}*"):
            target = path / old.name.removeprefix(OLD)
            old.rename(path / f"{WRITING}{uuid.uuid4().hex}" if target.exists() else target)
        for stale in path.glob(f"{WRITING}*"):
            shutil.rmtree(stale)
        for file in path.glob(".*"):
            if re.fullmatch(r"\.[0-9a-f]{32}(\.\w+)?", file.name):  # of `replacing`
                file.unlink()
    if not aside.exists() or (any(aside.iterdir()) and not is_run(aside)):
        return
    if has_checkpoint(path):
        remove_run(aside)
        return
    if path.exists():
        if any(path.iterdir()) and not is_run(path):
            raise FileExistsError(
                f"{path} is not a run folder, and {aside} holds the run that was there: move "
                "one of them"
            )
        remove_run(path)
    aside.rename(path)
    sync(path.parent)
