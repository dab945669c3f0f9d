"""The run folder: config, checkpoints, history, results, each written whole or not at all.

    RUN/config.toml              how the run was made
    RUN/checkpoint-000012/       the newest checkpoint, after epoch or round 12
        network.safetensors      the network's state
        prior.safetensors        the mixtures, hyper-priors and running moments; the names of the
                                 tensors under each mixture
        history.safetensors      the history up to here
        training.pt              optimiser, generators, clock (torch.load, weights_only=True)
    RUN/final/                   the same four, as `fit` returned them, once it has ended
    RUN/*.json, *.png            results and pictures

Files and checkpoints are written beside their place and then renamed, so that an interruption
leaves the old ones. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from swsmix._files import replacing as replacing
from swsmix._files import save_json as save_json
from swsmix._files import sync
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

T = TypeVar("T")
_PREFIX = "checkpoint-"
_FINAL = "final"
_WRITING = ".writing-"
_OLD = ".old-"
_MARKER = ".swsmix-run"
_FILES = ("network.safetensors", "prior.safetensors", "history.safetensors", "training.pt")


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
    held = is_run(path) or is_run(_aside(path))
    with locked(_aside(path)), locked(path):
        recover(path)
        aside = _aside(path)
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
            _remove_run(path)
            if aside.exists():
                aside.rename(path)
        elif aside.exists():
            _remove_run(aside)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for writing; another process that asks for it gets an error.

    The lock ends with the process, however it ends. Where there is no `fcntl` (Windows), and for
    a folder that is not a run, nothing is locked. Reading needs no lock.

    Args:
        path: the run folder.

    Yields:
        Nothing.

    Raises:
        BlockingIOError: if another process is writing to it.
    """
    if fcntl is None or not is_run(path):
        yield
        return
    handle = os.open(Path(path) / _MARKER, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is writing to the run {path}: wait until it ends, or name "
                "another folder"
            ) from None
        yield
    finally:
        os.close(handle)


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
    aside = _aside(path)
    if is_run(path):
        for old in path.glob(f"{_OLD}*"):
            target = path / old.name.removeprefix(_OLD)
            old.rename(path / f"{_WRITING}{uuid.uuid4().hex}" if target.exists() else target)
        for stale in path.glob(f"{_WRITING}*"):
            shutil.rmtree(stale)
        for file in path.glob(".*"):
            if re.fullmatch(r"\.[0-9a-f]{32}(\.\w+)?", file.name):  # of `replacing`
                file.unlink()
    if not aside.exists() or (any(aside.iterdir()) and not is_run(aside)):
        return
    if has_checkpoint(path):
        _remove_run(aside)
        return
    if path.exists():
        if any(path.iterdir()) and not is_run(path):
            raise FileExistsError(
                f"{path} is not a run folder, and {aside} holds the run that was there: move "
                "one of them"
            )
        _remove_run(path)
    aside.rename(path)
    sync(path.parent)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder was made by `claim` or `save_checkpoint`.

    Returns:
        True if it holds their marker file.
    """
    return (Path(path) / _MARKER).is_file()


def save_config(path: Path, config: dict[str, Any]) -> None:
    """Write `config.toml` into a run folder; entries that are None are omitted.

    Args:
        path: the run folder.
        config: plain values.
    """
    import tomli_w

    with replacing(path / "config.toml") as temporary:
        given = {k: v for k, v in config.items() if v is not None}
        temporary.write_text(tomli_w.dumps(given), encoding="utf-8")


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

    Raises:
        OSError: if it cannot be written, as on a full disk; the older ones are kept.
    """
    if not is_run(path):
        claim(path)
    for stale in path.glob(f"{_WRITING}*"):  # of a process that was killed
        shutil.rmtree(stale)
    temporary = path / f"{_WRITING}{uuid.uuid4().hex}"
    target = path / (_FINAL if final else f"{_PREFIX}{epoch:06d}")
    try:
        temporary.mkdir()
        # Whole, each name with a tensor of its own: a tied network loads strictly too.
        state = {
            n: t.detach().clone(memory_format=torch.contiguous_format)
            for n, t in network.state_dict().items()
        }
        selection = getattr(prior, "selection", None)
        groups = json.dumps({} if selection is None else selection.groups)
        mixtures = {} if prior is None else prior.state_dict()
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, **training}, buffer)
        contents = {
            "network.safetensors": to_bytes(state),
            "prior.safetensors": to_bytes(mixtures, {"groups": groups}),
            "history.safetensors": to_bytes(history.to_tensors()),
            "training.pt": buffer.getvalue(),
        }
        for name, content in contents.items():  # by one way of writing: one mode, plain OSErrors
            (temporary / name).write_bytes(content)
            sync(temporary / name)
        sync(temporary)
        old_target = path / f"{_OLD}{target.name}"
        if target.exists():
            target.rename(old_target)
        temporary.replace(target)
        sync(path)
        if old_target.exists():
            _discard(old_target)
    except OSError as error:
        raise OSError(
            f"cannot write the checkpoint {target}: {error.strerror}; what was saved before is kept"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # Older checkpoints, and an outcome written before this one, are out of date.
    for old in () if final else (*_checkpoints(path), path / _FINAL):
        if old != target and old.exists():
            _discard(old)


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
    if not _holds_run(path) and _holds_run(_aside(path)):
        path = _aside(path)  # a process was killed while it replaced this run
    checkpoints = [path] if (path / "network.safetensors").is_file() else _checkpoints(path)
    final = path / _FINAL
    whole = all((final / name).is_file() for name in _FILES)
    # A half-removed outcome is out of date: the checkpoint beside it is whole.
    if not resumable and final.is_dir() and (whole or not checkpoints):
        checkpoints = [final]
    if not checkpoints:
        what = "is not there" if not path.exists() else "has no checkpoint"
        raise FileNotFoundError(f"the run folder {path} {what}")
    folder = checkpoints[-1]
    training = _read(folder / "training.pt", _load_training)
    return Run(
        path=path,
        epoch=training["epoch"],
        config=load_config(path) if (path / "config.toml").exists() else {},
        folder=folder,
        network=_read(folder / "network.safetensors", load_file),
        prior=_read(folder / "prior.safetensors", load_file),
        groups=_read(folder / "prior.safetensors", _load_groups),
        history=_read(folder / "history.safetensors", _load_history),
        training=training,
    )


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
    except RuntimeError as error:
        raise ValueError(f"the checkpoint {run.folder} does not fit: {error}") from error


def has_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a checkpoint to resume from.

    Returns:
        True if it does.
    """
    return bool(_checkpoints(Path(path)))


def _aside(path: Path) -> Path:
    """Where a run waits while its replacement has no checkpoint yet."""
    path = Path(os.path.abspath(path))  # `.` has no name
    return path.with_name(f".{path.name}.replaced")


def _holds_run(path: Path) -> bool:
    return (
        has_checkpoint(path) or (path / _FINAL).is_dir() or (path / "network.safetensors").is_file()
    )


def _discard(folder: Path) -> None:
    """Delete a checkpoint: it is renamed first, so that no half of it is ever read."""
    stale = folder.with_name(f"{_WRITING}{uuid.uuid4().hex}")
    folder.rename(stale)
    shutil.rmtree(stale)


def _remove_run(path: Path) -> None:
    """Delete a run folder, its marker last: a kill leaves a folder that is known as ours."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _discard(entry)
        elif entry.name != _MARKER:
            entry.unlink()
    (path / _MARKER).unlink(missing_ok=True)
    path.rmdir()


def _checkpoints(path: Path) -> list[Path]:
    found = sorted(p for p in path.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit())
    # Killed between the two renames of a checkpoint that replaces one of its own epoch.
    return found or sorted(path.glob(f"{_OLD}{_PREFIX}*"))


def _load_training(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    epoch = state.get("epoch") if isinstance(state, dict) else None
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise ValueError("wanted a dictionary with `epoch`, a number of epochs or rounds")
    return state


def _load_groups(file: Path) -> dict[str, tuple[str, ...]]:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    return {g: tuple(names) for g, names in json.loads(metadata.get("groups", "{}")).items()}


def _load_history(file: Path) -> History:
    return History.from_tensors(load_file(file))


def _read(file: Path, reader: Callable[[Path], T]) -> T:
    if not file.exists():
        raise ValueError(f"the checkpoint {file.parent} lacks {file.name}: it is not complete")
    try:
        return reader(file)
    except pickle.UnpicklingError:  # torch's own message advises weights_only=False
        raise ValueError(
            f"{file} is damaged, or another kind of file: it is not a training state that swsmix "
            "has written, and nothing in it was run"
        ) from None
    except Exception as error:
        # torch.load raises pickle.UnpicklingError, zip errors and more for damaged files.
        raise ValueError(f"{file} is damaged, or another kind of file: {error}") from error
