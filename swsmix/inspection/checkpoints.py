"""Any checkpoint read as named tensors, without running code that it may hold; tensors written.

A checkpoint is a run folder of swsmix, one of its checkpoints, a compressed file, a PyTorch or
safetensors file, or a folder of such files, by its index if there is one. A file's first bytes tell
its kind, not its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from swsmix import codec
from swsmix._files import replacing
from swsmix.compression.codebooks import mixture_of_values
from swsmix.inspection import checkpoint_files as files
from swsmix.inspection import checkpoint_folders as folders
from swsmix.inspection.companions import SCALES_OF, split_unreadable
from swsmix.inspection.contents import find_network
from swsmix.inspection.on_disk import OnDisk
from swsmix.mixture import GaussianMixture
from swsmix.training import runs
from swsmix.training.history import History

_SHOWN = 5  # tensors that are named in a sentence
_MAX_VALUES = 256  # of a codebook that is shown as a mixture
_OWN = ("training.pt", "history.safetensors", "prior.safetensors")  # beside our network.safetensors

_OTHER_FOLDER = "a folder with files of its own: pass it to read those"


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
        left_out: tensor, group of tensors or file -> why it is not among the tensors.
        exact: tensors that no rounding leaves usable: floats of 8 bits, and their scales.
        places: name -> file, of safetensors files.
        index: the name of the index by which they were found, if any.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mixtures: dict[str, GaussianMixture] = field(default_factory=dict)
    history: History | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    places: Mapping[str, Path] = field(default_factory=dict)
    index: str = ""


def read(path: Path, *, max_weights: int | None = None) -> Checkpoint:
    """Read a checkpoint of any kind.

    Optimiser states, copies of the weights such as averages, and files without weights are left
    out, each named in `left_out`; so are tensors whose values are not the weights (float8 with
    its scales, tensors on the meta device).

    Args:
        path: a run folder, a checkpoint in it, a PyTorch or safetensors file, a compressed file,
            a folder of those (the shards of one network), or its index (`*.index.json`).
        max_weights: the most numbers of a compressed file, see `codec.load_compressed`.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it is no checkpoint, damaged, incomplete, or holds pickled code beside
            weights.

    Example:
        >>> read(Path("runs/sunspots")).kind  # doctest: +SKIP
        'run folder, epoch 60'
    """
    return _read(path, whole=False, max_weights=max_weights)


def read_network(path: Path) -> Checkpoint:
    """As `read`, but the network alone and whole.

    Of a trainer's file that is the entry "state_dict", "model" or the like, without such things as
    the best accuracy beside it. The tensors of safetensors files are read as they are asked for,
    and not kept; floats of 8 bits are among them, with their scales.

    Args:
        path: as for `read`.

    Returns:
        The checkpoint, with the network's own names of its tensors.

    Raises:
        FileNotFoundError: as for `read`.
        ValueError: as for `read`, and if a tensor of the network cannot be used.
    """
    return _read(path, whole=True)


def _read(path: Path, *, whole: bool, max_weights: int | None = None) -> Checkpoint:
    if path.is_dir():
        found = _read_run(path) or _read_folder(path, whole=whole, max_weights=max_weights)
    elif path.suffix.lower() == ".json":
        part = folders.read_indexed(path, path.parent)
        found = _of_folder(path, part, part.left_out, index=path.name)
    else:
        kind, loaded = files.load(path)
        if kind == files.COMPRESSED:
            return _read_compressed(path, max_weights)
        tensors, left_out = find_network(loaded, alone=whole)
        places = dict.fromkeys(tensors, path) if kind == files.SAFETENSORS else {}
        found = Checkpoint(path, kind, tensors, left_out=left_out, places=places)
    if found.groups:
        return found
    tensors, unreadable, scales = split_unreadable(found.tensors)
    exact = _of_8_bits(found.tensors, unreadable, scales) if whole else frozenset[str]()
    if exact:
        tensors = {n: t for n, t in found.tensors.items() if n in tensors or n in exact}
        unreadable, scales = (
            {n: why for n, why in some.items() if n not in exact} for some in (unreadable, scales)
        )
    if whole and unreadable:
        listed = "; ".join(f"{name}: {why}" for name, why in list(unreadable.items())[:_SHOWN])
        raise ValueError(
            f"{path} cannot be used without {len(unreadable)} tensors of its network, such as "
            f"{listed}"
        )
    if found.tensors and not any(t.numel() for t in found.tensors.values()):
        raise ValueError(
            f"{path}: all {len(found.tensors)} tensors are empty, as in a file of ZeRO stage 3: "
            "join its parts (zero_to_fp32.py of DeepSpeed), and pass the result"
        )
    left_out = found.left_out | unreadable | scales
    if left_out and not tensors:
        listed = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:_SHOWN])
        raise ValueError(f"{path} ({found.kind}) holds no weights of a network: {listed}")
    used = {name: file for name, file in found.places.items() if name in tensors}
    lazily = OnDisk({name: used[name] for name in tensors}) if whole and used else None
    return replace(found, tensors=lazily or tensors, left_out=left_out, exact=exact, places=used)


def _of_8_bits(
    tensors: Mapping[str, Tensor], unreadable: Mapping[str, str], scales: Mapping[str, str]
) -> frozenset[str]:
    """The floats of 8 bits, which are not the weights' own values, and their scales."""
    eight = {
        name
        for name in unreadable
        if tensors[name].is_floating_point()
        and tensors[name].dtype.itemsize == 1
        and not tensors[name].is_meta
    }
    of = {name: why.removeprefix(SCALES_OF) for name, why in scales.items()}
    return frozenset(eight | {name for name, base in of.items() if base in eight})


def _of_folder(
    path: Path, part: folders.Folder, left_out: dict[str, str], index: str = ""
) -> Checkpoint:
    places = part.places if {*part.kinds} == {files.SAFETENSORS} else {}
    return Checkpoint(path, part.kind, part.tensors, left_out=left_out, places=places, index=index)


def _read_run(path: Path) -> Checkpoint | None:
    ours = any((path / name).is_file() for name in _OWN)
    if not ours and not (runs.has_checkpoint(path) and not _is_of_another_trainer(path)):
        return None
    run = runs.load_run(path)
    what = "checkpoint" if run.folder == path else "run folder"
    kind = f"{what} of swsmix, epoch {run.epoch}"
    mixtures = {group: run.mixtures[group] for group in run.groups if group in run.mixtures}
    return Checkpoint(path, kind, run.network, run.groups, mixtures, run.history)


def _is_of_another_trainer(path: Path) -> bool:
    """Whether the folders `checkpoint-N`, which others write too, hold others' files and no own."""
    inside = [folder for folder in path.glob("checkpoint-*") if folder.is_dir()]
    names = {file.name for folder in inside for file in folders.matching(folder, *folders.PATTERNS)}
    return bool(names) and not names & {*_OWN, "network.safetensors"}


def _read_folder(path: Path, *, whole: bool, max_weights: int | None) -> Checkpoint:
    index, others = folders.find_index(path)
    if index is not None:
        part = folders.read_indexed(index, path)
        used = {file.resolve() for file in part.files}
        for file in folders.matching(path, *folders.PATTERNS):
            if file.resolve() not in used and not file.is_dir():
                others[file.name] = f"not named in {index.name}"
        for name in folders.folders_with_files(path):
            if not any(path / name in file.parents for file in part.files):
                others[f"{name}/"] = _OTHER_FOLDER
        return _of_folder(path, part, part.left_out | others, index=index.name)
    loose = folders.read_loose(path, alone=whole)
    inside = folders.folders_with_files(path)
    if loose is None:
        raise ValueError(
            f"{path} holds neither a run of swsmix nor files of PyTorch or safetensors, nor a "
            f"compressed file ({', '.join(folders.PATTERNS)}): pass "
            + (f"one of its folders {', '.join(inside[:9])}" if inside else "the file itself")
        )
    if any(name == files.COMPRESSED for name in loose.kinds):
        if len(loose.files) > 1:
            raise ValueError(f"{path} holds {len(loose.files)} compressed files: pass one of them")
        found = _read_compressed(loose.files[0], max_weights)
        return replace(found, path=path, kind=loose.kind, left_out=loose.left_out)
    left_out = loose.left_out | {f"{name}/": _OTHER_FOLDER for name in inside}
    return _of_folder(path, loose, left_out)


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


def _read_compressed(path: Path, max_weights: int | None) -> Checkpoint:
    """A compressed file, with each codebook as a mixture of narrow components at its values."""
    tensors, books = codec.load_books(path, max_weights=max_weights)
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
