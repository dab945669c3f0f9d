"""Checkpoints of an ensemble: a run folder of its middle member, with the state of all beside it.

`load_run`, `swsmix inspect` and the rest read it as any run. `training.pt` holds what the next
epoch of the whole ensemble depends on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from swsmix.training import runs

if TYPE_CHECKING:
    from swsmix.training.ensemble.recording import Records
    from swsmix.training.ensemble.trainers import Ensembled


def begin_(folder: Path, trainer: Ensembled, records: Records, *, resume: bool) -> int:
    """Continue from the newest checkpoint, or claim the folder: the epochs done, or -1.

    Raises:
        FileExistsError: if it holds a run and `resume` is not set.
        ValueError: if a file is damaged, or the run is not of this ensemble.
    """
    if not (resume and runs.has_checkpoint(folder)):
        runs.claim(folder)
        return -1
    saved = runs.load_run(folder, resumable=True)
    file = saved.folder / "training.pt"
    state = saved.training.get("ensemble")
    if state is None:
        raise ValueError(f"{file} is of one network, not of an ensemble: continue it with `fit`")
    try:
        _check_like(state["trainer"], trainer.state_dict(), "")
        _check_mixtures(state["trainer"])
        _check_like(state["records"]["objective"], records.objective, "objective")
        _check_like(state["records"]["last"], records.last, "last")
        trainer.load_state_dict(state["trainer"])
        records.load_state_dict(state["records"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{file} is of another ensemble, or damaged: {why}; continue with the same networks, "
            "priors and optimiser, or train in another folder"
        ) from error
    return saved.epoch


def save(
    folder: Path, epoch: int, trainer: Ensembled, records: Records, *, final: bool = False
) -> None:
    """Write a checkpoint after an epoch, or the outcome; the modules are set to it."""
    trainer.write_()
    middle = records.middle()
    runs.save_checkpoint(
        folder,
        epoch,
        network=trainer.stack.models[middle],
        prior=None if trainer.mixtures is None else trainer.mixtures.priors[middle],
        history=records.histories[middle],
        training={
            "ensemble": {
                "trainer": trainer.state_dict(), "records": records.state_dict(), "middle": middle
            }
        },
        final=final,
    )  # fmt: skip


def _check_like(value: Any, like: Any, field: str) -> None:
    """Check names, shapes, and that numbers are finite."""
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"`{field or 'trainer'}` has other parts")
        for name, part in like.items():
            if name not in ("optimizer", "entries"):  # these check themselves
                _check_like(value[name], part, f"{field}.{name}".removeprefix("."))
    elif isinstance(like, Tensor):
        if not isinstance(value, Tensor) or (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"`{field}` needs the shape {tuple(like.shape)} in {like.dtype}")
        if not field.startswith("mixtures.running") and not value.isfinite().all():
            raise ValueError(f"`{field}` needs finite numbers")
    elif type(value) is not type(like) or (isinstance(like, int) and value < 0):
        raise ValueError(f"`{field}` needs a {type(like).__name__} from 0 on")


def _check_mixtures(state: dict[str, Any]) -> None:
    """Check that the mixtures are mixtures, and their running moments counts."""
    parts = state.get("mixtures", {"mixtures": {}, "running": {}})
    for group, values in parts["mixtures"].items():
        total = values["mixing"].double().sum(-1)
        if not bool((values["std"] > 0).all()):
            raise ValueError(f"the stds of {group!r} must be positive")
        if not bool((values["mixing"] >= 0).all()) or not bool(((total - 1).abs() < 1e-3).all()):
            raise ValueError(f"the proportions of {group!r} must add up to 1")
    for group, moments in parts["running"].items():
        if bool((moments["count"] < 0).any()):
            raise ValueError(f"the running counts of {group!r} must be at least 0")
