"""A run's config and checkpoints, each written whole or not at all."""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import nn

from swsmix._files import replacing, sync
from swsmix.training.history import History
from swsmix.training.runs.claiming import claim
from swsmix.training.runs.folder import FINAL, OLD, PREFIX, WRITING, checkpoints_of, discard, is_run


def save_config(path: Path, config: dict[str, Any]) -> None:
    """Write `config.toml` into a run folder; entries that are None are omitted.

    Args:
        path: the run folder.
        config: plain values.
    """
    import tomli_w

    with replacing(path / "config.toml") as temporary:
        text = tomli_w.dumps({k: v for k, v in config.items() if v is not None})
        temporary.write_text(text, encoding="utf-8")


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
    for stale in path.glob(f"{WRITING}*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = path / f"{WRITING}{uuid.uuid4().hex}"
    target = path / (FINAL if final else f"{PREFIX}{epoch:06d}")
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
        if not final and (path / FINAL).exists():
            discard(path / FINAL)  # before: an outcome is never older than the checkpoint beside it
        old_target = path / f"{OLD}{target.name}"
        if target.exists():
            target.rename(old_target)
        temporary.replace(target)
        sync(path)
        if old_target.exists():
            discard(old_target)
    except OSError as error:
        raise OSError(
            f"cannot write the checkpoint {target}: {error.strerror or error}; what was saved "
            "before is kept"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in () if final else checkpoints_of(path):  # they are out of date
        if old != target and old.exists():
            discard(old)
