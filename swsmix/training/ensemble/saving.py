"""Checkpoints of an ensemble: one file, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swsmix._files import make_folder, replacing

if TYPE_CHECKING:
    from swsmix.training.ensemble.recording import Records
    from swsmix.training.ensemble.trainers import Ensembled

NAME = "ensemble.pt"


def begin_(folder: Path, trainer: Ensembled, records: Records, *, resume: bool) -> int:
    """Continue from the checkpoint in a folder, or claim it: the number of epochs done.

    Raises:
        FileExistsError: if it holds an ensemble and `resume` is not set.
        ValueError: if the file is damaged, or of another ensemble.
    """
    file = folder / NAME
    make_folder(folder)
    if not file.is_file():
        return 0
    if not resume:
        raise FileExistsError(
            f"{file} is there already: continue it with resume=True, or choose another folder"
        )
    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} is damaged, or another kind of file: {error}; delete it and train again"
        ) from error
    try:
        _check_like(state["trainer"], trainer.state_dict(), "")
        trainer.load_state_dict(state["trainer"])
        records.load_state_dict(state["records"])
        return int(state["epoch"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{file} is of another ensemble, or damaged: {why}; continue with the same networks, "
            "priors and optimiser, or train in another folder"
        ) from error


def save(folder: Path, epoch: int, trainer: Ensembled, records: Records) -> None:
    """Write the checkpoint after an epoch, in the old one's place."""
    state = {
        "epoch": epoch, "trainer": trainer.state_dict(), "records": records.state_dict()
    }  # fmt: skip
    with replacing(folder / NAME) as temporary:
        torch.save(state, temporary)


def _check_like(value: Any, like: Any, field: str) -> None:
    """Check names, shapes, and that numbers are finite; of the optimiser's state nothing."""
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"`{field or 'trainer'}` has other parts")
        for name, part in like.items():
            if name != "optimizer":
                _check_like(value[name], part, f"{field}.{name}".removeprefix("."))
    elif isinstance(like, Tensor):
        if not isinstance(value, Tensor) or value.shape != like.shape:
            raise ValueError(f"`{field}` needs the shape {tuple(like.shape)}")
        if not field.startswith("mixtures.running") and not value.isfinite().all():
            raise ValueError(f"`{field}` needs finite numbers")
    elif type(value) is not type(like):
        raise ValueError(f"`{field}` needs a {type(like).__name__}")
