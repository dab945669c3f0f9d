"""A run, read back; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import pickle
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from swsmix.mixture import GaussianMixture
from swsmix.training.history import History
from swsmix.training.runs import schema
from swsmix.training.runs.folder import FINAL, aside_of, checkpoints_of, holds_run, is_whole

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a run folder holds, read back.

    Attributes:
        path: the folder.
        epoch: the number of epochs or rounds done.
        config: how it was made; empty if there is no `config.toml`.
        folder: the checkpoint in it that was read.
        network: the network's state_dict.
        prior: the prior's state_dict.
        groups: group -> the names of the tensors under its mixture.
        history: the history.
        training: the rest of the training state.
    """

    path: Path
    epoch: int
    config: dict[str, Any]
    folder: Path
    network: dict[str, Tensor] = field(repr=False)
    prior: dict[str, Tensor] = field(repr=False)
    groups: dict[str, tuple[str, ...]]
    history: History
    training: dict[str, Any] = field(repr=False)

    @property
    def mixtures(self) -> dict[str, GaussianMixture]:
        """The mixtures by group (without their pins)."""
        return {
            group: GaussianMixture(
                *(self.history.stacked(group, name)[-1] for name in ("mixing", "mean", "std"))
            )
            for group in self.history.groups
        }


def load_run(path: str | os.PathLike[str], *, resumable: bool = False) -> Run:
    """Read a run folder: its outcome, or its newest checkpoint if it has not ended.

    Args:
        path: the run folder, or one of the checkpoints in it.
        resumable: read the newest checkpoint in any case.

    Returns:
        The run.

    Raises:
        FileNotFoundError: if there is no such folder, or no checkpoint in it.
        ValueError: if a file of the checkpoint is missing or damaged; it is named.
    """
    path = Path(path)
    if not holds_run(path) and holds_run(aside_of(path)):
        path = aside_of(path)  # a process was killed while it replaced this run
    checkpoints = [path] if (path / "network.safetensors").is_file() else checkpoints_of(path)
    final = path / FINAL
    # A half-removed outcome is out of date: the checkpoint beside it is whole.
    if not resumable and final.is_dir() and (is_whole(final) or not checkpoints):
        checkpoints = [final]
    if not checkpoints:
        what = "is not there" if not path.exists() else "has no checkpoint"
        raise FileNotFoundError(f"the run folder {path} {what}")
    folder = checkpoints[-1]
    training = _read(folder / "training.pt", _load_training)
    return Run(
        path=path,
        epoch=training["epoch"],
        config=load_config(path) if (path / "config.toml").is_file() else {},
        folder=folder,
        network=_read(folder / "network.safetensors", load_file),
        prior=_read(folder / "prior.safetensors", _load_prior),
        groups=_read(folder / "prior.safetensors", _load_groups),
        history=_read(folder / "history.safetensors", _load_history),
        training=training,
    )


def load_config(path: Path) -> dict[str, Any]:
    """Read `config.toml` of a run folder.

    Returns:
        The config.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    try:
        return tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} has no config.toml: it is not a run folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path / 'config.toml'} is damaged: {error}: correct it, or start the run again "
            "(`swsmix train --force`)"
        ) from error


def restore_(run: Run, network: nn.Module, prior: nn.Module | None) -> None:
    """Load a run's network and prior into new ones of the same architecture.

    Args:
        run: from `load_run`.
        network: changed in place.
        prior: changed in place, if any.

    Raises:
        ValueError: if they do not fit; the names or shapes that differ are in the message.
    """
    try:
        network.load_state_dict(run.network)
        if prior is not None:
            prior.load_state_dict(run.prior)
            getattr(prior, "hyper_priors", None)  # each is checked when it is made
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"the checkpoint {run.folder} does not fit: {why}") from error


def _load_training(file: Path) -> dict[str, Any]:
    return schema.check_training(torch.load(file, weights_only=True, map_location="cpu"))


def _load_prior(file: Path) -> dict[str, Tensor]:
    return dict(schema.check_prior(load_file(file)))


def _load_groups(file: Path) -> dict[str, tuple[str, ...]]:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    return schema.check_groups(json.loads(metadata.get("groups", "{}")))


def _load_history(file: Path) -> History:
    tensors = load_file(file)
    history = History.from_tensors(tensors)
    schema.check_history(tensors)
    return history


def _read(file: Path, reader: Callable[[Path], T]) -> T:
    """Read a file of a checkpoint; an error names it, and says what to do."""
    folder = file.parent
    mend = "copy it from a backup, or train again (`swsmix train --force`, or another folder)"
    if folder.name == FINAL and any(map(is_whole, checkpoints_of(folder.parent))):
        mend = f"delete {folder} to use the checkpoint beside it"
    if not file.is_file():
        raise ValueError(f"the checkpoint {folder} lacks {file.name}: {mend}")
    try:
        return reader(file)
    except Exception as error:
        # torch.load raises pickle.UnpicklingError, zip errors and more for damaged files.
        why = str(error) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in why:
            # PyTorch's own message says how to run the code in it.
            why = "it is no training state that swsmix has written, and nothing in it was run"
        raise ValueError(f"{file} is damaged, or another kind of file: {why}; {mend}") from (
            None if "nothing in it was run" in why else error
        )
