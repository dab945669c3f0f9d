"""The run folder: config, checkpoints, history, results; whole or not at all.

    RUN/config.toml              how the run was made
    RUN/checkpoint-000012/       the newest checkpoint, after epoch or round 12
        network.safetensors      the network's state
        prior.safetensors        the mixtures, hyper-priors and running moments; which tensors
                                 each mixture is of
        history.safetensors      the history up to here
        training.pt              optimiser, generators, clock (torch.load, weights_only=True)
    RUN/final/                   the same four, as `fit` returned them, once it has ended
    RUN/*.json, *.png            results and pictures

Files and checkpoints are written beside their place and then renamed: an interruption leaves the
old ones. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swsmix._files import replacing as replacing
from swsmix._files import save_json as save_json
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

_PREFIX = "checkpoint-"
_FINAL = "final"
_WRITING = ".writing-"
_MARKER = ".swsmix-run"


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


def claim(path: str | os.PathLike[str]) -> Path:
    """Make a run folder, or take an empty one; what others left there is never touched.

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
        (path / _MARKER).touch()
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
    aside = path.with_name(f".{path.name}.replaced")
    if force and is_run(path):
        path.rename(aside)
    claim(path)
    try:
        yield path
    finally:
        if not has_checkpoint(path):  # it came to nothing
            shutil.rmtree(path)
            if aside.exists():
                aside.rename(path)
        elif aside.exists():
            shutil.rmtree(aside)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder was made by `claim` or `save_checkpoint`.

    Returns:
        True if it carries their mark.
    """
    return (Path(path) / _MARKER).is_file()


def save_config(path: Path, config: dict[str, Any]) -> None:
    """Write `config.toml` into a run folder; entries that are None are left out.

    Args:
        path: the run folder.
        config: plain values.
    """
    import tomli_w

    with replacing(path / "config.toml") as temporary:
        plain = {key: value for key, value in config.items() if value is not None}
        temporary.write_text(tomli_w.dumps(plain))


def load_config(path: Path) -> dict[str, Any]:
    """Read `config.toml` of a run folder.

    Returns:
        The config.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    try:
        return tomllib.loads((path / "config.toml").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} has no config.toml: it is not a run folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / 'config.toml'} is damaged: {error}") from error


def save_checkpoint(
    path: Path,
    epoch: int,
    *,
    network: nn.Module,
    prior: nn.Module | None,
    history: History,
    training: Mapping[str, Any],
    final: bool = False,
) -> None:
    """Write a checkpoint into a run folder; it replaces the older ones.

    Args:
        path: the run folder, made if it does not exist.
        epoch: the number of epochs or rounds done.
        network: the network.
        prior: the prior, if any.
        history: the history so far.
        training: tensors, numbers and containers of them, for `torch.save`.
        final: write the run's outcome, `final/`, instead of a checkpoint to resume from.
    """
    if not is_run(path):
        claim(path)
    for stale in path.glob(f"{_WRITING}*"):  # of a process that was killed
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(dir=path, prefix=_WRITING))
    target = path / (_FINAL if final else f"{_PREFIX}{epoch:06d}")
    try:
        temporary.chmod(0o755)
        # Whole, each name with a tensor of its own: a tied network loads strictly too.
        state = {
            n: t.detach().clone(memory_format=torch.contiguous_format)
            for n, t in network.state_dict().items()
        }
        save_file(state, temporary / "network.safetensors")
        selection = getattr(prior, "selection", None)
        groups = json.dumps({} if selection is None else selection.groups)
        mixtures = {} if prior is None else prior.state_dict()
        save_file(mixtures, temporary / "prior.safetensors", {"groups": groups})
        save_file(history.to_tensors(), temporary / "history.safetensors")
        torch.save({"epoch": epoch, **training}, temporary / "training.pt")
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not final:
        # What is older than the newest checkpoint, an outcome too, no longer holds.
        for old in (*_checkpoints(path), path / _FINAL):
            if old != target and old.exists():
                shutil.rmtree(old)


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
    found = [path] if (path / "network.safetensors").is_file() else _checkpoints(path)
    if not resumable and (path / _FINAL).is_dir():
        found = [path / _FINAL]
    if not found:
        what = "is not there" if not path.exists() else "has no checkpoint"
        raise FileNotFoundError(f"the run folder {path} {what}")
    folder = found[-1]
    training = _read(folder / "training.pt", _load_training)
    return Run(
        path=path,
        epoch=training["epoch"],
        config=load_config(path) if (path / "config.toml").exists() else {},
        folder=folder,
        network=_read(folder / "network.safetensors", load_file),
        prior=_read(folder / "prior.safetensors", load_file),
        groups=_read(folder / "prior.safetensors", _load_groups),
        history=History.from_tensors(_read(folder / "history.safetensors", load_file)),
        training=training,
    )


def restore_(run: Run, network: nn.Module, prior: nn.Module | None) -> None:
    """Load a run's network and prior into fresh ones of the same make.

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
    except RuntimeError as error:
        raise ValueError(f"the checkpoint {run.folder} does not fit: {error}") from error


def has_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a checkpoint to resume from.

    Returns:
        True if it does.
    """
    return bool(_checkpoints(Path(path)))


def _checkpoints(path: Path) -> list[Path]:
    return sorted(p for p in path.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit())


def _load_training(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    return state


def _load_groups(file: Path) -> dict[str, tuple[str, ...]]:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    return {g: tuple(names) for g, names in json.loads(metadata.get("groups", "{}")).items()}


def _read(file: Path, reader: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    if not file.exists():
        raise ValueError(f"the checkpoint {file.parent} lacks {file.name}: it is not complete")
    try:
        return reader(file)
    except Exception as error:
        # torch.load raises pickle.UnpicklingError, zip errors and more for damaged files.
        raise ValueError(f"{file} is damaged or not of its kind: {error}") from error
