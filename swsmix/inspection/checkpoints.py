"""Any checkpoint read as named tensors, without running code that it may hold; tensors written.

A checkpoint is a run folder of swsmix, one of its checkpoints, a compressed file, a PyTorch or
safetensors file, or a folder of such files. A file's first bytes tell its kind, not its name. Files
are mapped into memory where possible, so that only the tensors that are used are read.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from swsmix import codec
from swsmix._files import replacing
from swsmix.compression.codebooks import mixture_of_values
from swsmix.mixture import GaussianMixture
from swsmix.training import runs
from swsmix.training.history import History

# Where trainers keep the network's state_dict in their checkpoints.
_NETWORK = ("state_dict", "model_state_dict", "model", "network", "net", "module")
_MAX_HEADER = 1 << 30
_MAX_VALUES = 256  # of a codebook that is shown as a mixture
_SHARDS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.sws")
_OWN = ("training.pt", "history.safetensors", "prior.safetensors")  # beside our network.safetensors


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        path: the file or folder.
        kind: its kind, in words.
        tensors: name -> tensor, on the CPU.
        groups: group -> the names of the tensors under its mixture or in its codebook; empty if
            the checkpoint has neither.
        mixtures: group -> mixture.
        history: the history of its run, if any.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor] = field(repr=False)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mixtures: dict[str, GaussianMixture] = field(default_factory=dict)
    history: History | None = None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of any kind.

    Args:
        path: a run folder, a checkpoint in it, a PyTorch or safetensors file, a compressed file,
            or a folder of those (the shards of one network).

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it is no checkpoint, damaged, or holds pickled code.

    Example:
        >>> read(Path("runs/sunspots")).kind  # doctest: +SKIP
        'run folder, epoch 60'
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    if not path.is_dir():
        return _read_file(path)
    if runs.has_checkpoint(path) or any((path / name).is_file() for name in _OWN):
        run = runs.load_run(path)
        what = "checkpoint" if run.folder == path else "run folder"
        kind = f"{what} of swsmix, epoch {run.epoch}"
        mixtures = {group: run.mixtures[group] for group in run.groups if group in run.mixtures}
        return Checkpoint(path, kind, run.network, run.groups, mixtures, run.history)
    for pattern in _SHARDS:
        if files := sorted(path.glob(pattern)):
            parts = [_read_file(file) for file in files]
            if len(parts) == 1:
                return replace(parts[0], path=path, kind=f"{parts[0].kind} {files[0].name}")
            tensors = {name: t for part in parts for name, t in part.tensors.items()}
            if len(tensors) < sum(len(part.tensors) for part in parts):
                raise ValueError(
                    f"{path} holds {len(files)} files with tensors of the same names, not the "
                    "parts of one network: pass one of the files"
                )
            return Checkpoint(path, f"folder of {len(files)} x {parts[0].kind}", tensors)
    raise ValueError(
        f"{path} holds neither a run of swsmix nor files of PyTorch or safetensors, nor a "
        f"compressed file ({', '.join(_SHARDS)}): pass the file itself"
    )


def read_network(path: Path) -> Checkpoint:
    """As `read`, but only the network's state_dict if a trainer's file holds more.

    That is the entry "state_dict", "model" or the like, without such things as an average of the
    weights or the best accuracy beside it.

    Args:
        path: as for `read`.

    Returns:
        The checkpoint, with the network's own names of its tensors.
    """
    checkpoint = read(path)
    if checkpoint.kind == "PyTorch checkpoint":
        loaded = _read_torch(path)
        for key in _NETWORK:
            if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
                return replace(checkpoint, tensors=dict(_tensors_in(loaded[key])))
    return checkpoint


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, whole or not at all: as safetensors, or by `torch.save` for `.pt`.

    Args:
        path: the file, `.safetensors`, `.pt` or `.pth`.
        tensors: name -> tensor.

    Raises:
        ValueError: for another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{path} must end in .safetensors, .pt or .pth")
    with replacing(path) as temporary:
        if suffix == ".safetensors":
            save_file({n: t.contiguous() for n, t in tensors.items()}, temporary)
        else:
            torch.save(dict(tensors), temporary)


def _read_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(16)
    if magic[:4] == codec.MAGIC:
        return _read_compressed(path)
    header = int.from_bytes(magic[:8], "little")  # of safetensors: the length of its JSON
    if header < _MAX_HEADER and magic[8:9] == b"{":
        return Checkpoint(path, "safetensors file", _read_safetensors(path))
    if zipfile.is_zipfile(path) or magic[:1] == b"\x80":
        return Checkpoint(path, "PyTorch checkpoint", dict(_tensors_in(_read_torch(path))))
    raise ValueError(
        f"{path} is no checkpoint that swsmix can read: wanted a run folder, a PyTorch or "
        f"safetensors file or a file of `swsmix compress`, got one that begins with {magic!r}"
    )


def _read_compressed(path: Path) -> Checkpoint:
    """A compressed file, with each codebook as a mixture of narrow components at its values."""
    tensors, books = codec.load_books(path)
    groups: dict[str, tuple[str, ...]] = {}
    mixtures: dict[str, GaussianMixture] = {}
    weights = {n for n, t in tensors.items() if t.is_floating_point() and t.ndim >= 2}
    for number, book in enumerate(books):
        names = tuple(name for name in book.names if name in weights)
        values = book.values.double().unique()  # 0 and -0 are two entries
        if not names or len(values) > _MAX_VALUES or not values.isfinite().all():
            continue
        group = names[0] if len(names) == 1 else f"codebook {number + 1}"
        groups[group] = names
        mixtures[group] = mixture_of_values([tensors[n] for n in names], values)
    rest = tuple(n for n in tensors if n in weights - {n for own in groups.values() for n in own})
    if groups and rest:
        groups["stored value by value"] = rest
    return Checkpoint(path, "compressed file of swsmix", tensors, groups, mixtures)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own error class
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old protocols and TorchScript
            return torch.load(
                path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and more
        # Not torch's own message: it advises to allow pickled code.
        code = re.search(r"GLOBAL (\S+)|class (\S+)", str(error).replace("`", ""))
        if "TorchScript" in str(error):
            why = "it is a TorchScript archive, which is a program"
        elif code:
            name = code[1] or code[2]
            why = f"it holds pickled code ({name}), which could do anything: refused"
        else:
            why = "it is damaged, or not a file of torch.save"
        raise ValueError(
            f"{path}: {why}. Wanted tensors alone; if you trust the file, load it yourself and "
            "write torch.save(model.state_dict(), ...)"
        ) from error


def _tensors_in(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors in what torch.load returned: a state_dict, or containers of some."""
    if isinstance(loaded, Tensor):
        yield "tensor", loaded.detach()
    if isinstance(loaded, list | tuple):  # such as the networks of an ensemble
        loaded = dict(enumerate(loaded))
    if not isinstance(loaded, Mapping):
        return
    # Tensors beside a nested state_dict, such as the best accuracy, are included.
    yield from ((str(k), v.detach()) for k, v in loaded.items() if isinstance(v, Tensor))
    loaded = {k: v for k, v in loaded.items() if not isinstance(v, Tensor)}
    inner = {
        str(k): dict(_tensors_in(v)) for k, v in loaded.items() if "optim" not in str(k).lower()
    }
    inner = {k: v for k, v in inner.items() if v}
    for key, tensors in inner.items():
        prefix = f"{key}." if len(inner) > 1 else ""
        yield from ((prefix + name, t) for name, t in tensors.items())
