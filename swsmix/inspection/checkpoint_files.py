"""One file of tensors: its kind by its first bytes, read without running code that it may hold.

Files are mapped into memory where possible, so that only the tensors that are used are read.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from swsmix import codec
from swsmix._files import check_regular as check_regular

SAFETENSORS, TORCH, COMPRESSED = (
    "safetensors file",
    "PyTorch checkpoint",
    "compressed file of swsmix",
)
_MAX_HEADER = 1 << 30
_MAX_PICKLE = 1 << 26
_MAX_DEPTH = 50
# Names in a pickle that bring floating-point weights with them.
_FLOAT_STORAGES = ("FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage", "Untyped")
_SAVE = "torch.save(..., 'model.pt')"
_FOREIGN = {
    "GGUF": "a GGUF file, whose weights are quantised in blocks: use the checkpoint that it was "
    "made from, or dequantise it by the package gguf and write " + _SAVE,
    "HDF5": "an HDF5 file (Keras): load it in Keras, and write its weights as tensors, "
    "{v.path: torch.from_numpy(v.numpy()) for v in model.variables}, by " + _SAVE,
    "Keras": "a Keras archive: load it in Keras, and write its weights as tensors, "
    "{v.path: torch.from_numpy(v.numpy()) for v in model.variables}, by " + _SAVE,
    "TFLite": "a TensorFlow Lite program: use the network that it was made from",
    "ONNX": "an ONNX program: read its initializers by onnx.numpy_helper.to_array, and write them "
    "as tensors by " + _SAVE,
    "Flax": "a msgpack file of Flax: read it by flax.serialization.msgpack_restore, and write its "
    "arrays as tensors by " + _SAVE,
    "npz": "a NumPy archive: write {name: torch.from_numpy(a) for name, a in "
    "numpy.load(file).items()} by " + _SAVE,
    "npy": "a NumPy array: write torch.from_numpy(numpy.load(file)) by " + _SAVE,
    "pt2": "a program of torch.export (.pt2): write torch.export.load(file).state_dict by " + _SAVE,
    "TorchScript": "a TorchScript archive, which is a program: if you trust it, write "
    "torch.jit.load(file).state_dict() by " + _SAVE,
    "zip": "a zip archive, but not one of torch.save: unpack it, and pass a file in it",
    "pointer": "a Git LFS pointer, not the file itself: fetch it by git lfs pull",
    "distcp": "a part of a distributed checkpoint: convert its folder by python -m "
    "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
}


class _RefusedError(ValueError):
    """Contents that are refused, in a sentence."""


class UnreadableError(ValueError):
    """A file that cannot be read; whether it may hold weights decides if it can be omitted."""

    def __init__(self, message: str, *, may_hold_weights: bool) -> None:
        super().__init__(message)
        self.may_hold_weights = may_hold_weights


def load(path: Path) -> tuple[str, Any]:
    """The kind of a file and its contents; of a compressed file, no contents.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a regular file.
        UnreadableError: if it is no checkpoint, damaged, or holds pickled code.
    """
    check_regular(path)
    with path.open("rb") as file:
        magic = file.read(64)
    if magic[:4] == codec.MAGIC:
        return COMPRESSED, None
    header = int.from_bytes(magic[:8], "little")  # of safetensors: the length of its JSON
    if header < _MAX_HEADER and magic[8:9] == b"{":
        return SAFETENSORS, _load_safetensors(path)
    if foreign := _foreign(path, magic):
        raise UnreadableError(f"{path} is {_FOREIGN[foreign]}", may_hold_weights=True)
    if zipfile.is_zipfile(path) or magic[:1] == b"\x80":
        return TORCH, _load_torch(path)
    if magic[:4] == b"PK\x03\x04":
        raise UnreadableError(
            f"{path} is a zip archive, as PyTorch checkpoints are, without its end: fetch it again",
            may_hold_weights=True,
        )
    raise UnreadableError(
        f"{path} is no checkpoint that swsmix can read: needs a run folder, a PyTorch or "
        f"safetensors file or a file of `swsmix compress`, got one that begins with {magic[:16]!r}",
        may_hold_weights=True,
    )


def _foreign(path: Path, magic: bytes) -> str | None:
    """The key of another format's sentence."""
    starts = {
        b"GGUF": "GGUF",
        b"\x89HDF\r\n\x1a\n": "HDF5",
        b"\x93NUMPY": "npy",
        b"version https://git-lfs": "pointer",
    }
    for start, kind in starts.items():
        if magic.startswith(start):
            return kind
    if magic[4:8] == b"TFL3":
        return "TFLite"
    if zipfile.is_zipfile(path):
        return _foreign_zip(path)
    if path.suffix == ".distcp":
        return "distcp"
    # Protobuf and msgpack have no magic: ONNX begins with its version, and a producer or a graph.
    if magic[:1] == b"\x08" and (path.suffix == ".onnx" or magic[2:3] in (b"\x12", b"\x3a")):
        return "ONNX"
    if path.suffix == ".onnx":
        return "ONNX"
    return "Flax" if path.suffix == ".msgpack" else None


def _foreign_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return None  # PyTorch's reader refuses it in its turn
    if any(n.endswith(("archive_format", "serialized_exported_program.json")) for n in names):
        return "pt2"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if "model.weights.h5" in names:
        return "Keras"
    if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
        return "TorchScript"
    return None if any(name.endswith("data.pkl") for name in names) else "zip"


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own error class
        raise UnreadableError(
            f"{path} is damaged or not a safetensors file: {error}", may_hold_weights=True
        ) from error


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old protocols
            loaded = torch.load(
                path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
            )
        _check(loaded)
        _check_records(path, loaded)
        return loaded
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and more
        # Not torch's own message: it advises to allow pickled code.
        code = re.search(r"GLOBAL (\S+)|class (\S+)", str(error).replace("`", ""))
        if code:
            name = code[1] or code[2]
            why = f"it holds pickled code ({name}), which could do anything: refused"
        elif isinstance(error, _RefusedError):
            why = str(error)
        else:
            why = "it is damaged, or not a file of torch.save"
        raise UnreadableError(
            f"{path}: {why}. Needs tensors alone; if you trust the file, load it yourself and "
            "write torch.save(model.state_dict(), ...)",
            may_hold_weights=not code or _may_hold_weights(path),
        ) from error


def _check(loaded: Any, depth: int = 0) -> None:
    """A list within itself, or very deep ones, have no end; a ragged tensor has no shape."""
    if isinstance(loaded, Tensor) and loaded.is_nested:
        raise _RefusedError("it holds a nested tensor")
    if depth > _MAX_DEPTH:
        raise _RefusedError(f"it holds containers nested more than {_MAX_DEPTH} deep")
    if isinstance(loaded, Mapping):
        loaded = list(loaded.values())
    if isinstance(loaded, list | tuple):
        for value in loaded:
            _check(value, depth + 1)


def _check_records(path: Path, loaded: Any) -> None:
    """Check that a tensor has the memory that it needs, in a record of its own.

    Mapped into memory, one that is larger than its record would read on in others.

    Raises:
        _RefusedError: if one has not.
    """
    storages: dict[int, int] = {}
    for t in _tensors(loaded):
        if t._backward_hooks:
            raise _RefusedError("it is damaged: it holds a tensor with hooks")
        storage = t.untyped_storage()
        if storage.nbytes():
            storages[storage.data_ptr()] = storage.nbytes()
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    names = Counter(record.filename for record in records)
    if twice := [name for name, count in names.items() if count > 1]:
        raise _RefusedError(f"it is damaged: its archive holds {twice[0]!r} twice")
    sizes = Counter(record.file_size for record in records if "/data/" in record.filename)
    if not Counter(storages.values()) <= sizes:
        raise _RefusedError("it is damaged: a tensor has not the size of its record")


def _tensors(loaded: Any) -> Iterator[Tensor]:
    """The tensors with memory of their own."""
    if isinstance(loaded, Tensor):
        if loaded.layout == torch.strided and not loaded.is_meta:
            yield loaded
    elif isinstance(loaded, Mapping):
        for value in loaded.values():
            yield from _tensors(value)
    elif isinstance(loaded, list | tuple):
        for value in loaded:
            yield from _tensors(value)


def _may_hold_weights(path: Path) -> bool:
    """Whether a pickle names floating-point storages; True if that cannot be known. Runs nothing.

    So that a trainer's arguments or the states of random generators can be omitted.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                if archive.getinfo(name).file_size > _MAX_PICKLE:
                    return True
                return _names_storages(io.BytesIO(archive.read(name)))
        if path.stat().st_size > _MAX_PICKLE:
            return True
        with path.open("rb") as file:
            return _names_storages(file)
    except Exception:  # damaged in any way
        return True


def _names_storages(file: io.BytesIO | io.BufferedReader) -> bool:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    while file.tell() < size:  # an old file of torch.save is several pickles
        for _, value, _ in pickletools.genops(file):
            # A byte string may hold an array of NumPy; a short one, a random generator's state.
            if isinstance(value, bytes) and len(value) > 1 << 14:
                return True
            if isinstance(value, str) and (
                any(storage in value for storage in _FLOAT_STORAGES) or len(value) > 1 << 15
            ):
                return True
    return False
