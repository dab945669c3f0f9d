"""What lies where in a run folder, and how a part of it is deleted."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

PREFIX = "checkpoint-"
FINAL = "final"
WRITING = ".writing-"  # a checkpoint that is being written, or deleted
OLD = ".old-"  # a checkpoint while a new one of its name takes its place
MARKER = ".swsmix-run"
FILES = ("network.safetensors", "prior.safetensors", "history.safetensors", "training.pt")


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder was made by `claim` or `save_checkpoint`.

    Returns:
        True if it holds their marker file.
    """
    return (Path(path) / MARKER).is_file()


def has_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a checkpoint to resume from.

    Returns:
        True if it does.
    """
    return bool(checkpoints_of(Path(path)))


def holds_run(path: Path) -> bool:
    """Whether a folder holds anything that `load_run` reads."""
    return (
        has_checkpoint(path) or (path / FINAL).is_dir() or (path / "network.safetensors").is_file()
    )


def is_whole(checkpoint: Path) -> bool:
    """Whether all four files of a checkpoint are there."""
    return all((checkpoint / name).is_file() for name in FILES)


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoints in a run folder, the newest last."""
    found = {}
    # An old one counts if a kill came before the new one of its epoch took its place.
    for prefix in (OLD + PREFIX, PREFIX):
        for checkpoint in path.glob(f"{prefix}*"):
            if re.fullmatch("[0-9]+", epoch := checkpoint.name.removeprefix(prefix)):
                found[int(epoch)] = checkpoint
    return [found[epoch] for epoch in sorted(found)]


def place_of(path: str | os.PathLike[str]) -> Path:
    """The folder itself, absolute; of a link, the folder that it points to."""
    return Path(os.path.realpath(path))


def aside_of(path: Path) -> Path:
    """Where a run waits while its replacement has no checkpoint yet."""
    place = place_of(path)
    return place.with_name(f".{place.name}.replaced")


def discard(folder: Path) -> None:
    """Delete a checkpoint: it is renamed first, so that no half of it is ever read."""
    stale = folder.with_name(f"{WRITING}{uuid.uuid4().hex}")
    folder.rename(stale)
    shutil.rmtree(stale)


def remove_run(path: Path) -> None:
    """Delete a run folder, its marker last: a kill leaves a folder that is known as ours."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            discard(entry)
        elif entry.name != MARKER:
            entry.unlink()
    (path / MARKER).unlink(missing_ok=True)
    path.rmdir()
