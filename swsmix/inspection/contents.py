"""Which of the tensors in a loaded checkpoint are the network, decided by structure.

A trainer's file also holds optimiser states, copies of the weights and scales. They have the
weights' shapes, so that they would pass for weights; they are recognised by what they look like,
and each group left out has a name and a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from swsmix.inspection.companions import (
    COPY,
    MOMENTS,
    MOMENTS_INSIDE,
    PREFIX,
    without_companions,
    words,
)  # fmt: skip

# Where trainers keep the network, the first choice first, if a file holds two copies of it.
NETWORK = (
    "state_dict", "model_state_dict", "model", "network", "net", "module", "params", "weights",
    "student", "online", "policy",
)  # fmt: skip
# Keys of one parameter's state that no layer has.
_SURE = MOMENTS | {"state1", "prev_flat_grad", "old_p", "e_w"}

Names = tuple[str, ...]


def find_network(loaded: Any, *, alone: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The network's tensors in what `torch.load` returned, and name -> why a group is left out.

    With `alone`, only the entry "state_dict", "model" or the like, without what is beside it.
    """
    left_out: dict[str, str] = {}
    if is_optimizer(loaded):
        return {}, {"the whole file": "an optimiser's state"}
    kept = _without_optimizers(loaded, (), left_out)
    for find in (_by_name_copies, _numbered_copies, _named_copies):
        for names, why in [*find(kept)]:
            kept = _without(kept, names)
            left_out[".".join(names)] = why
    if isinstance(kept, Mapping):
        for key in NETWORK:
            if isinstance(kept.get(key), Mapping) and dict(_tensors_in(kept[key])):
                rest = {k: dict(_tensors_in(v)) for k, v in kept.items() if k != key}
                beside = {k for k, ts in rest.items() if ts and (alone or _is_data(ts))}
                left_out |= {str(k): f"beside the network in {key!r}" for k in beside}
                kept = kept[key] if alone else {k: v for k, v in kept.items() if k not in beside}
                break
    tensors, flat = without_companions(_named(kept))
    return tensors, left_out | flat


def _named(loaded: Any) -> dict[str, Tensor]:
    """The tensors by their names, each of which must be there once."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors_in(loaded):
        if name in tensors:
            raise ValueError(f"two tensors have the name {name!r}: rename one of them")
        tensors[name] = tensor
    return tensors


def _is_data(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors beside a network have no names of weights, as those of a replay buffer."""
    weights = {"weight", "bias", "kernel", "embedding", "gamma", "beta"}
    return any(t.ndim > 1 for t in tensors.values()) and not any(
        words(name.rpartition(".")[2]) & weights for name in tensors
    )


def is_optimizer(value: Any) -> bool:
    """Whether this is an optimiser's state_dict, of any optimiser, by position or by name."""
    if not isinstance(value, Mapping):
        return False
    if _is_numbered_state(value, _SURE):
        return True
    if not isinstance(value.get("state"), Mapping | list):
        return False
    if isinstance(value.get("param_groups"), list | tuple | Mapping):
        return True
    state = value["state"]
    entries = list(state.values() if isinstance(state, Mapping) else state)
    if entries and all(_is_moments(entry) for entry in entries):
        return True
    return _is_numbered_state(state, _SURE | {"step"})


def _is_numbered_state(value: Any, keys: frozenset[str]) -> bool:
    """Whether every entry is by number and has one of these keys."""
    if not isinstance(value, Mapping) or not value or not all(str(k).isdigit() for k in value):
        return False
    return all(isinstance(v, Mapping) and keys & {str(k) for k in v} for v in value.values())


def _is_moments(value: Any) -> bool:
    """Whether this is one parameter's entry in an optimiser's state."""
    if not isinstance(value, Mapping):
        return False
    keys = {str(key) for key, v in value.items() if isinstance(v, Tensor)}
    return bool(keys & (MOMENTS_INSIDE - {"step"})) and keys <= MOMENTS_INSIDE


def _without_optimizers(value: Any, where: Names, left_out: dict[str, str]) -> Any:
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for key, v in value.items():
        names = (*where, str(key))
        if is_optimizer(v):
            left_out[".".join(names)] = "an optimiser's state"
        elif (str(key) in MOMENTS and dict(_tensors_in(v))) or _is_moments(v):
            left_out[".".join(names)] = "an optimiser's moments"
        else:
            before = len(left_out)
            kept[key] = _without_optimizers(v, names, left_out)
            if len(left_out) > before and _is_all_numbered(kept[key]):
                del kept[key]  # its own copies of the weights, by number, as ZeRO has them
                left_out[".".join(names)] = "an optimiser's state"
    return kept


def _is_all_numbered(value: Any) -> bool:
    """Whether there are tensors, each in a list or under a number."""
    found = False
    for _, mapping in _mappings(value):
        for key, v in mapping.items():
            if isinstance(v, Tensor) and v.ndim:
                if not str(key).isdigit():
                    return False
                found = True
    return found


def _mappings(value: Any, where: Names = ()) -> Iterator[tuple[Names, Mapping[Any, Any]]]:
    if isinstance(value, Mapping):
        yield where, value
        for key, v in value.items():
            yield from _mappings(v, (*where, str(key)))


def _state_dicts(value: Any) -> dict[Names, dict[str, Tensor]]:
    """The mappings that hold tensors by name, each by its place."""
    found = {}
    for where, mapping in _mappings(value):
        own = {str(k): v for k, v in mapping.items() if isinstance(v, Tensor)}
        if any(not name.isdigit() for name in own):
            found[where] = own
    return found


def _by_name_copies(loaded: Any) -> Iterator[tuple[Names, str]]:
    """Mappings by the names of a network's tensors, with several tensors of that shape for each."""
    networks = {
        where: {PREFIX.sub("", n): t.shape for n, t in own.items()}
        for where, own in _state_dicts(loaded).items()
    }
    for where, mapping in _mappings(loaded):
        entries = {PREFIX.sub("", str(key)): v for key, v in mapping.items()}
        if not where or not entries or not all(isinstance(v, Mapping) for v in entries.values()):
            continue
        for place, shapes in networks.items():
            if place[: len(where)] != where and all(
                name in shapes and v and all(
                    isinstance(t, Tensor) and t.shape in (shapes[name], ()) for t in v.values()
                )
                for name, v in entries.items()
            ):  # fmt: skip
                yield where, f"tensors by name, with the shapes of those in {_said(place)}"
                break


def _numbered_copies(loaded: Any) -> Iterator[tuple[Names, str]]:
    """Tensors by number whose shapes repeat those of a network elsewhere in the file."""
    networks = _state_dicts(loaded)
    done: list[Names] = []
    for where, mapping in _mappings(loaded):
        if not where or not mapping or any(where[: len(d)] == d for d in done):
            continue
        if not all(str(key).isdigit() for key in mapping):
            continue
        columns = list(_columns(mapping))
        for place, network in networks.items():
            if place[: len(where)] == where:  # its own contents
                continue
            shapes = Counter(t.shape for t in network.values())
            total = sum(t.numel() for t in network.values())
            if columns and all(
                column <= shapes or set(column) == {torch.Size([total])} for column in columns
            ):
                done.append(where)
                yield where, f"tensors by number, with the shapes of those in {_said(place)}"
                break


def _columns(mapping: Mapping[Any, Any]) -> Iterator[Counter[torch.Size]]:
    """The shapes of tensors by number: one count, or one for each name that the entries have."""
    entries = list(mapping.values())
    columns: dict[str, Counter[torch.Size]] = {}
    for entry in entries:
        inner = {"": entry} if isinstance(entry, Tensor) else entry
        if not isinstance(inner, Mapping) or {"weight", "bias"} & {str(k) for k in inner}:
            return
        if len({t.shape for t in inner.values() if isinstance(t, Tensor) and t.ndim}) > 1:
            return  # the moments of a weight all have its shape
        for key, t in inner.items():
            if isinstance(t, Tensor) and t.ndim:
                columns.setdefault(str(key), Counter())[t.shape] += 1
            elif isinstance(t, Mapping):
                return
    yield from columns.values()


def _named_copies(loaded: Any) -> Iterator[tuple[Names, str]]:
    """State_dicts with the names and shapes of a better one, such as an average of the weights."""
    networks = _state_dicts(loaded)
    shaped = {
        where: {PREFIX.sub("", n): t.shape for n, t in own.items() if t.ndim}
        for where, own in networks.items()
    }
    gone: set[Names] = set()
    for where, own in shaped.items():
        for place, other in shaped.items():
            if place == where or place in gone or not own or where[: len(place)] == place:
                continue
            copy, rank = _rank(where)
            if not ((copy, rank) > _rank(place) and (copy or _takes(place, where))):
                continue
            if own.items() <= other.items() and 2 * len(own) >= len(other):
                gone.add(where)
                why = f"a second set of the tensors in {_said(place)}, which are taken"
                yield where, why
                break


def _takes(place: Names, where: Names) -> bool:
    """Whether a network's place makes another of the same shapes its copy, whatever its name."""
    partners = {"value", "critic", "actor", "generator", "discriminator", "g", "d"}
    return _rank(place)[1] < len(NETWORK) and not any(words(key) & partners for key in where)


def _rank(where: Names) -> tuple[bool, int]:
    places = [NETWORK.index(key) for key in where if key in NETWORK]
    return any(words(key) & COPY for key in where), min(places, default=len(NETWORK))


def _said(where: Names) -> str:
    return repr(".".join(where)) if where else "the file itself"


def _without(value: Any, names: Names) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = dict(value)
    for key in value:
        if str(key) == names[0]:
            if len(names) == 1:
                del kept[key]
            else:
                kept[key] = _without(value[key], names[1:])
    return kept


def _tensors_in(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors: those of a state_dict, or of containers of some."""
    if isinstance(loaded, Tensor):
        yield "tensor", loaded.detach().resolve_neg()
    if isinstance(loaded, list | tuple):  # such as the networks of an ensemble
        loaded = dict(enumerate(loaded))
    if not isinstance(loaded, Mapping):
        return
    # Tensors beside a nested state_dict, such as the best accuracy, are included.
    own = {str(k) for k, v in loaded.items() if isinstance(v, Tensor)}
    for k, v in loaded.items():
        if isinstance(v, Tensor):
            yield str(k), v.detach().resolve_neg()
    inner = {str(k): dict(_tensors_in(v)) for k, v in loaded.items() if not isinstance(v, Tensor)}
    inner = {k: v for k, v in inner.items() if v}
    for key, tensors in inner.items():
        prefix = f"{key}." if len(inner) > 1 or tensors.keys() & own else ""
        yield from ((prefix + name, t) for name, t in tensors.items())
