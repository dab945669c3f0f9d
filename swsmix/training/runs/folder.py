"""What lies where in a run folder, and how a part of it is deleted."""

from __future__ import annotations

import os
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


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoints in a run folder, the newest last."""
    found = sorted(p for p in path.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit())
    # Killed between the two renames of a checkpoint that replaces one of its own epoch.
    return found or sorted(path.glob(f"{OLD}{PREFIX}*"))


def aside_of(path: Path) -> Path:
    """Where a run waits while its replacement has no checkpoint yet."""
    path = Path(os.path.abspath(path))  # `.` has no name
    return path.with_name(f".{path.name}.replaced")


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
