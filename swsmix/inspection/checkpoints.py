"""Anyone's checkpoint, read as named tensors, without running a line of code that it may hold.

A run folder of ours, one of its checkpoints, a compressed file, a file of PyTorch or safetensors,
or a folder of such files. What kind a file is, its first bytes say, not its name. Files are
mapped into memory where that is possible: what is not looked at is not read. And tensors, written
as such a file.
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
from swsmix.compression.codebooks import mixture_of_values
from swsmix.mixture import GaussianMixture
from swsmix.training import runs
from swsmix.training.history import History

# Where trainers keep the network's state_dict in their checkpoints.
_NETWORK = ("state_dict", "model_state_dict", "model", "network", "net", "module")
_MAX_HEADER = 1 << 30
_MAX_VALUES = 256  # of a codebook that says more than a histogram does
_SHARDS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.sws")
_OWN = ("training.pt", "history.safetensors", "prior.safetensors")  # beside our network.safetensors


@dataclass(frozen=True)
class Checkpoint:
    """What was read.

    Attributes:
        path: the file or folder.
        kind: what it is, in words.
        tensors: name -> tensor, on the CPU.
        groups: group -> the names of the tensors under its mixture or in its codebook; empty if
            there are none.
        mixtures: group -> mixture.
        history: of the run it belongs to, if any.
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

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it is of another kind, damaged, or holds pickled code.

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
                    "parts of one network: name one of the files"
                )
            return Checkpoint(path, f"folder of {len(files)} x {parts[0].kind}", tensors)
    raise ValueError(
        f"{path} holds neither a run of swsmix nor files of PyTorch or safetensors, nor a "
        f"compressed file ({', '.join(_SHARDS)}): name the file itself"
    )


def read_network(path: Path) -> Checkpoint:
    """As `read`, but the network's state_dict alone, where a trainer has kept more in one file.

    That is what is under "state_dict", "model" or the like, without an average of the weights or
    the best accuracy beside it.

    Args:
        path: as for `read`.

    Returns:
        The checkpoint, its tensors named as the network names them.
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
        f"safetensors file or one of `swsmix compress`, got one that begins with {magic!r}"
    )


def _read_compressed(path: Path) -> Checkpoint:
    """Each codebook is a mixture of narrow components at its values."""
    tensors, books = codec.load_books(path)
    groups: dict[str, tuple[str, ...]] = {}
    mixtures: dict[str, GaussianMixture] = {}
    weights = {n for n, t in tensors.items() if t.is_floating_point() and t.ndim >= 2}
    for number, book in enumerate(books):
        names = tuple(name for name in book.names if name in weights)
        values = book.values.double().unique()  # 0 and -0 are two entries of the file
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
    except Exception as error:  # safetensors has one error class of its own for all damages
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols and TorchScript, which is refused
            return torch.load(
                path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and more
        # torch's message advises to switch the safety off: it is not repeated.
        code = re.search(r"GLOBAL (\S+)|class (\S+)", str(error).replace("`", ""))
        if "TorchScript" in str(error):
            why = "it is a TorchScript archive, which is a program"
        elif code:
            name = code[1] or code[2]
            why = f"it wants to run pickled code ({name}), which could do anything: refused"
        else:
            why = "it is damaged, or not a file of torch.save"
        raise ValueError(
            f"{path}: {why}. Wanted plain tensors; where you trust it, load it and write "
            "torch.save(model.state_dict(), ...)"
        ) from error


def _tensors_in(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors in what torch.load gave: a state_dict, or what holds some."""
    if isinstance(loaded, Tensor):
        yield "tensor", loaded.detach()
    if isinstance(loaded, list | tuple):  # of networks, such as an ensemble
        loaded = dict(enumerate(loaded))
    if not isinstance(loaded, Mapping):
        return
    # Those beside a nested state_dict, such as the best accuracy, are shown too.
    yield from ((str(k), v.detach()) for k, v in loaded.items() if isinstance(v, Tensor))
    loaded = {k: v for k, v in loaded.items() if not isinstance(v, Tensor)}
    inner = {
        str(k): dict(_tensors_in(v)) for k, v in loaded.items() if "optim" not in str(k).lower()
    }
    inner = {k: v for k, v in inner.items() if v}
    for key, tensors in inner.items():
        prefix = f"{key}." if len(inner) > 1 else ""
        yield from ((prefix + name, t) for name, t in tensors.items())
