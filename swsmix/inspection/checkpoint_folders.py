"""A folder of files that together hold one network: by its index, or by the files' names.

An index (`*.index.json`) is obeyed to the letter. Without one, a numbered set of shards must be
complete, and a file that may hold weights is never omitted because it cannot be read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from swsmix.inspection import checkpoint_files as files
from swsmix.inspection.companions import PREFIX, without_companions
from swsmix.inspection.contents import find_network

PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.sws")
INDEXES = ("*.index.json", "*.index.*.json")  # the second for variants, such as fp16
_SHARD = re.compile(r"(.*?)[-_.]?(\d+)[-_]of[-_](\d+)(.*)", re.IGNORECASE)
_MAX_INDEX = 1 << 26
_SHOWN = 5


@dataclass(frozen=True)
class Folder:
    """The files of a network, their tensors, and what was left out."""

    files: tuple[Path, ...]
    kind: str
    tensors: dict[str, Tensor]
    left_out: dict[str, str]
    kinds: tuple[str, ...] = ()
    places: Mapping[str, Path] = field(default_factory=dict)  # tensor -> file


def read_indexed(index: Path, folder: Path) -> Folder:
    """The tensors that an index names, from the shards that it names.

    Raises:
        ValueError: if the index is damaged, points outside the folder, or is not kept.
    """
    promised = _read_index(index)
    names = sorted({*promised.values()})
    missing = [name for name in names if not (folder / name).exists()]
    if len(missing) == len(names):
        raise ValueError(
            f"{index} is stale: of the {len(names)} files that it names ({_some(names)}) none is "
            "there. Delete the index, or pass the file that holds the network"
        )
    if missing:
        raise ValueError(
            f"{folder} lacks {_some(missing)}, {len(missing)} of the {len(names)} files that "
            f"{index.name} names: fetch the missing, or pass one file to look at it alone"
        )
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    kinds = []
    for name in names:
        kind, loaded = files.load(folder / name)
        kinds.append(kind)
        if not isinstance(loaded, Mapping):
            raise ValueError(f"{folder / name} holds no named tensors, though {index.name} says so")
        wanted = [tensor for tensor, place in promised.items() if place == name]
        absent = [n for n in wanted if not isinstance(loaded.get(n), Tensor)]
        if absent:
            raise ValueError(
                f"{folder / name} lacks {_some(absent)}, which {index.name} says are in it: one of "
                "the two is damaged or of another version"
            )
        tensors |= {n: loaded[n].detach() for n in wanted}
        for n in loaded.keys() - {*wanted}:
            left_out[f"{name}: {n}"] = f"not in {index.name}"
    ordered = {name: tensors[name] for name in promised}
    return Folder(
        tuple(folder / name for name in names),
        f"folder of {len(names)} x {kind}, by {index.name}",
        ordered,
        left_out,
        tuple(kinds),
        {tensor: folder / name for tensor, name in promised.items()},
    )


def find_index(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The index of a folder, and other indexes, left out.

    Raises:
        ValueError: if there are several, and none is plainly the first choice.
    """
    found = [path for path in matching(folder, *INDEXES) if path.is_file()]
    if len(found) < 2:
        return (found[0] if found else None), {}
    stale: dict[Path, str] = {}
    for path in found:
        if not any((folder / name).exists() for name in _read_index(path).values()):
            stale[path] = "stale: none of the files that it names is there"
    live = [path for path in found if path not in stale]
    if not live:
        return found[0], {}
    for pattern in ("model.safetensors.index.json", "*.safetensors.index.json", "*"):
        if len(chosen := [path for path in live if _matches(path, pattern)]) == 1:
            others = {p.name: stale.get(p, f"{chosen[0].name} is obeyed") for p in found}
            del others[chosen[0].name]
            return chosen[0], others
    raise ValueError(
        f"{folder} holds {len(live)} indexes, {_some([p.name for p in live])}, of different files: "
        "pass one of them"
    )


def matching(folder: Path, *patterns: str) -> list[Path]:
    """The entries of a folder that a pattern matches, in any case; hidden ones are no weights."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and any(_matches(path, pattern) for pattern in patterns)
    )


def _matches(path: Path, pattern: str) -> bool:
    return fnmatchcase(path.name.lower(), pattern)


def folders_with_files(folder: Path) -> list[str]:
    """The folders in a folder that hold files of weights themselves."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir()
        and os.access(path, os.R_OK | os.X_OK)
        and any(file.is_file() for file in matching(path, *PATTERNS))
    )


def read_loose(folder: Path, *, alone: bool) -> Folder | None:
    """The tensors of a folder without an index; None if no file holds a network."""
    left_out: dict[str, str] = {}
    for path in matching(folder, *PATTERNS):
        if not path.is_file() and not path.is_dir():
            left_out[path.name] = "not a regular file"
    for pattern in PATTERNS:
        for path in matching(folder, pattern):
            if path.is_symlink() and not path.exists():
                raise ValueError(
                    f"{path} is a link to {path.readlink()}, which is not there. It may be of the "
                    "network, so it is not omitted: fetch the file, or delete the link"
                )
        found = [path for path in matching(folder, pattern) if path.is_file()]
        shards, extra = _numbered(found, folder)
        left_out |= extra
        parts: dict[Path, tuple[str, dict[str, Tensor]]] = {}
        for path in shards:
            try:
                kind, loaded = files.load(path)
            except files.UnreadableError as error:
                if error.may_hold_weights or _SHARD.fullmatch(path.stem):
                    raise ValueError(
                        f"{error}. The file may hold weights of the network in {folder}, so it is "
                        "not omitted: pass the network's own file, or move this one away"
                    ) from error
                left_out[path.name] = f"not readable, and without weights: {_reason(error)}"
                continue
            if kind == files.COMPRESSED:
                parts[path] = kind, {}
                continue
            tensors, inside = find_network(loaded, alone=alone)
            left_out |= {f"{path.name}: {name}": why for name, why in inside.items()}
            if tensors:
                parts[path] = kind, tensors
            elif not inside:
                left_out[path.name] = "it holds no tensors"
        parts = _without_consolidated(parts, left_out)
        if parts:
            read = {path.name for path in parts} | {name.partition(": ")[0] for name in left_out}
            for path in matching(folder, *PATTERNS):
                if path.is_file() and path.name not in read:
                    left_out[path.name] = f"not read: the network is in {_some([*parts], 2)}"
            return _joined(folder, parts, left_out)
    if left_out:
        listed = "; ".join(f"{name}: {why}" for name, why in [*left_out.items()][:_SHOWN])
        raise ValueError(f"{folder} holds no network: {listed}")
    return None


def _joined(
    folder: Path, parts: dict[Path, tuple[str, dict[str, Tensor]]], left_out: dict[str, str]
) -> Folder:
    tensors: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for path, (_, own) in parts.items():
        for name in own:
            if name in places:
                raise ValueError(
                    f"{folder} holds {len(parts)} files with tensors of the same names, not the "
                    f"parts of one network ({name} is in {places[name].name} and in {path.name}): "
                    "pass one of the files"
                )
            places[name] = path
        tensors |= own
    if len(parts) > 1:
        _check_prefixes(folder, parts)
        tensors, companions = without_companions(tensors)
        left_out = left_out | companions
    first = next(iter(parts))
    kinds = tuple(kind for kind, _ in parts.values())
    kind = kinds[0] if len({*kinds}) == 1 else "file"
    kind = f"{kind} {first.name}" if len(parts) == 1 else f"folder of {len(parts)} x {kind}"
    return Folder(tuple(parts), kind, tensors, left_out, kinds, places)


def _check_prefixes(folder: Path, parts: dict[Path, tuple[str, dict[str, Tensor]]]) -> None:
    """Check that no file repeats another's tensors under names with a prefix, as wrappers give."""
    seen: dict[str, tuple[Path, Any]] = {}
    for path, (_, own) in parts.items():
        for name, t in own.items():
            bare = PREFIX.sub("", name.removeprefix("base_model."))
            other, shape = seen.setdefault(bare, (path, t.shape))
            if other != path and shape == t.shape:
                raise ValueError(
                    f"{folder} holds {len(parts)} files with the same tensors, not the parts of "
                    f"one network ({bare} is in {other.name} and, as {name}, in {path.name}): "
                    "pass one of the files"
                )


def _numbered(found: list[Path], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of the one numbered set of shards, if there is one, which must be complete."""
    sets: dict[tuple[str, int, str], dict[int, Path]] = {}
    for path in found:
        if match := _SHARD.fullmatch(path.name):
            head, number, total, tail = match.groups()
            sets.setdefault((head, int(total), tail), {})[int(number)] = path
    if not sets:
        return found, {}
    if len(sets) > 1:
        firsts = [next(iter(members.values())).name for members in sets.values()]
        raise ValueError(
            f"{folder} holds {len(sets)} sets of shards, which begin with {_some(firsts)}: move "
            "all but one away, or pass an index (*.index.json)"
        )
    (_, total, _), members = next(iter(sets.items()))
    start = 0 if 0 in members else 1
    if lacking := [i for i in range(start, start + min(total, 10**6)) if i not in members]:
        example = next(iter(members.values())).name
        match = _SHARD.fullmatch(example)
        assert match is not None  # the members were found by it
        begin, end = match.span(2)
        numbers = [f"{i:0{end - begin}}" for i in lacking[:_SHOWN]]
        names = [example[:begin] + number + example[end:] for number in numbers]
        raise ValueError(
            f"{folder} lacks {_some(names)}, {len(lacking)} of {total} shards by their names: "
            "fetch the missing, or pass one file to look at it alone"
        )
    chosen = [members[number] for number in sorted(members)]
    why = f"beside the {len(chosen)} numbered shards"
    return chosen, {path.name: why for path in found if path not in chosen}


def _without_consolidated(
    parts: dict[Path, tuple[str, dict[str, Tensor]]], left_out: dict[str, str]
) -> dict[Path, tuple[str, dict[str, Tensor]]]:
    """Without a `consolidated` file that holds the others' tensors again, under other names."""
    single = [path for path in parts if path.name.startswith("consolidated")]
    others = {path: part for path, part in parts.items() if path not in single}
    if not single or not others:
        return parts

    def shapes(paths: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(t.shape) for path in paths for t in parts[path][1].values())

    if shapes(single) != shapes(others):
        return parts
    left_out |= {path.name: f"the same network as {_some([*others], 2)}" for path in single}
    return others


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> the shard that holds it."""
    files.check_regular(path)
    wanted = f'{path}: needs an index, {{"weight_map": {{tensor: file}}}}'
    if path.stat().st_size > _MAX_INDEX:
        raise ValueError(f"{wanted}, got {path.stat().st_size:,} bytes, too many for one")
    try:
        index = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted}, but it is damaged ({error}): fetch it again") from error
    mapping = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"{wanted}, got JSON without tensors in a weight_map")
    for tensor, name in mapping.items():
        if not isinstance(name, str) or not name.strip(". ") or "\0" in name:
            raise ValueError(f"{wanted}, got {name!r} as the file of {tensor!r}")
        windows = PureWindowsPath(name)
        if windows.drive or windows.root or PurePosixPath(name).root or ".." in windows.parts:
            raise ValueError(
                f"{path} points outside its folder: {tensor!r} is in {name!r}; refused"
            )
    return mapping


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len({*keys}) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return dict(pairs)


def _reason(error: Exception) -> str:
    code = re.search(r"pickled code \(\S+\)", str(error))
    return code[0] if code else str(error)


def _some(names: list[Any], most: int = _SHOWN) -> str:
    shown = [n.name if isinstance(n, Path) else str(n) for n in names]
    return ", ".join(shown[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
