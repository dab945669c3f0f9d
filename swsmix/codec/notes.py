"""Where the tensors of a compressed file came from, so that a checkpoint comes back as it was.

They are JSON, compressed by zlib, at the end of a file of version 3; most files have none.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_MOST = 1 << 26  # bytes of the JSON
# A plain name, on any system: no folders, no drives, no hidden files.
_NAME = re.compile(r"[\w][\w.+@ -]*", re.ASCII)


@dataclass(frozen=True)
class Notes:
    """How tensors lay in a checkpoint; tensors are told by their place in the file.

    Attributes:
        shards: the names of its files, if there were several.
        places: of which of them each tensor is; none if there are no shards.
        index: the name of the index of the shards; empty if there was none.
        metadata: the texts in the header of a safetensors file, such as its format.
        ties: a tensor's place -> that of an earlier tensor in the same memory.
    """

    shards: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    index: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    ties: Mapping[int, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The notes as they are stored; nothing if there are none."""
        held = {name: value for name, value in asdict(self).items() if value}
        if not held:
            return b""
        return zlib.compress(json.dumps(held, separators=(",", ":")).encode(), 9)

    @classmethod
    def from_bytes(cls, data: bytes, tensors: int) -> Notes:
        """Read them; nothing in them is trusted.

        Args:
            data: from `to_bytes`.
            tensors: how many the file has.

        Raises:
            ValueError: if they are damaged, or name files outside a folder.
        """
        try:
            reader = zlib.decompressobj()
            text = reader.decompress(data, _MOST)
            held = json.loads(text)
        except (zlib.error, ValueError, RecursionError) as error:
            raise ValueError(f"it is damaged: its notes cannot be read: {error}") from None
        if not reader.eof or reader.unused_data or not _is_right(held, tensors):
            raise ValueError("it is damaged: its notes do not fit its tensors")
        return cls(
            tuple(held.get("shards", ())),
            tuple(held.get("places", ())),
            held.get("index", ""),
            held.get("metadata", {}),
            {int(place): first for place, first in held.get("ties", {}).items()},
        )


def _is_right(held: Any, tensors: int) -> bool:
    if not isinstance(held, dict) or not held.keys() <= Notes.__dataclass_fields__.keys():
        return False
    shards, places = held.get("shards", []), held.get("places", [])
    index, metadata, ties = held.get("index", ""), held.get("metadata", {}), held.get("ties", {})
    if not (isinstance(shards, list) and isinstance(places, list) and isinstance(index, str)):
        return False
    if not (isinstance(metadata, dict) and isinstance(ties, dict)):
        return False
    names = [*shards, *([index] if index else [])]
    return (
        all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
        and len({name.lower() for name in names}) == len(names)
        and all(type(place) is int and 0 <= place < len(shards) for place in places)
        and len(places) == (tensors if shards else 0)
        and all(isinstance(value, str) for value in metadata.values())
        and all(
            place.isdecimal() and type(first) is int and 0 <= first < int(place) < tensors
            for place, first in ties.items()
        )
    )
