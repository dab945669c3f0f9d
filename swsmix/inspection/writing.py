"""A compressed file back to a checkpoint, one tensor after another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from swsmix._files import replacing, writing_folder
from swsmix.codec import Reader
from swsmix.codec.decoder import Part
from swsmix.codec.header import to_patterns

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
Kinds = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def is_file(path: Path, reader: Reader) -> bool:
    """Whether a checkpoint is to be one file, rather than a folder of the shards that it had."""
    return not reader.notes.shards or path.suffix in (".safetensors", ".pt", ".pth")


def write_decoded(path: Path, reader: Reader, parts: Iterable[Part]) -> None:
    """Write what a reader decodes, whole or not at all.

    Args:
        path: a file, `.safetensors`, or `.pt` or `.pth`, which is made in memory; or a folder, if
            the file has shards.
        reader: of the compressed file.
        parts: from it.

    Raises:
        ValueError: for another suffix.
    """
    if not is_file(path, reader):
        with writing_folder(path) as folder:
            _write_shards(folder, reader, parts)
    elif path.suffix == ".safetensors":
        with replacing(path) as temporary:
            kinds = {entry.name: (entry.dtype, entry.shape) for entry in reader.entries}
            writer = SafetensorsWriter(temporary, kinds, reader.notes.metadata)
            for part in parts:
                writer.write(part.name, part.tensor)
                del part  # before the next one is made
    elif path.suffix in (".pt", ".pth"):
        with replacing(path) as temporary:
            state = {part.name: part.tensor for part in parts}
            names = list(state)
            for place, first in reader.notes.ties.items():
                state[names[place]] = state[names[first]]
            torch.save(state, temporary)
    else:
        raise ValueError(f"{path} must end in .safetensors, .pt or .pth")


def _write_shards(folder: Path, reader: Reader, parts: Iterable[Part]) -> None:
    notes = reader.notes
    shard_of = {e.name: notes.shards[p] for e, p in zip(reader.entries, notes.places, strict=True)}
    writers = {}
    for shard in notes.shards:
        kinds = {e.name: (e.dtype, e.shape) for e in reader.entries if shard_of[e.name] == shard}
        writers[shard] = SafetensorsWriter(folder / shard, kinds, notes.metadata)
    for part in parts:
        writers[shard_of[part.name]].write(part.name, part.tensor)
        del part
    if notes.index:
        size = sum(e.numel * e.dtype.itemsize for e in reader.entries)
        index = {"metadata": {"total_size": size}, "weight_map": shard_of}
        with replacing(folder / notes.index) as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class SafetensorsWriter:
    """Writes a safetensors file, whose header is known beforehand, in any order of its tensors.

    Args:
        path: an empty file.
        kinds: name -> dtype and shape.
        metadata: the texts of its header.
    """

    def __init__(self, path: Path, kinds: Kinds, metadata: Mapping[str, str]) -> None:
        self._path = path
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        self._begins = {}
        # The widest numbers first, so that each is at a multiple of its size.
        for name in sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name)):
            dtype, shape = kinds[name]
            begin, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
            self._begins[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(self._data + end)

    def write(self, name: str, t: Tensor) -> None:
        """Write a tensor."""
        with self._path.open("r+b") as file:
            file.seek(self._data + self._begins[name])
            file.write(to_patterns(t).data)
