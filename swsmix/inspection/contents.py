"""Which of the tensors in a loaded checkpoint are the network, decided by structure.

A trainer's file also holds optimiser states, copies of the weights and scales. They have the
weights' shapes, so that they would pass for weights; they are recognised by what they look like,
and each group left out has a name and a reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Where trainers keep the network, the first choice first, if a file holds two copies of it.
NETWORK = (
    "state_dict", "model_state_dict", "model", "network", "net", "module", "params", "weights",
    "student", "online", "policy",
)  # fmt: skip
# Words for copies of weights: averages, targets, moments.
# fmt: off
_COPY = frozenset(
    {
        "ema", "average", "averaged", "avg", "swa", "shadow", "polyak", "teacher", "target",
        "slow", "backup", "best", "initial", "m", "v", "mu", "nu", "moment", "moments",
        "momentum", "velocity", "grad", "grads",
    }
)
_MOMENTS = frozenset(
    {
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col",
        "exp_avg_diff", "exp_avg_slow", "exp_inf", "momentum_buffer", "square_avg",
        "acc_delta", "grad_avg",
    }
)
_MOMENTS_INSIDE = _MOMENTS | frozenset(  # too short to be told from a network's names elsewhere
    {
        "step", "sum", "prev", "mu_product", "ax", "eta", "step_size", "m", "v", "mu", "nu",
        "state1", "state2", "momentum",
    }
)
# fmt: on
_SCALES = ("_scale_inv", "_scale")
_PREFIX = re.compile(r"^((module|_orig_mod|ema_model|online_model|model)\.)+")

Names = tuple[str, ...]


def find_network(loaded: Any, *, alone: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The network's tensors in what `torch.load` returned, and name -> why a group is left out.

    With `alone`, only the entry "state_dict", "model" or the like, without what is beside it.
    """
    left_out: dict[str, str] = {}
    if is_optimizer(loaded):
        return {}, {"the whole file": "an optimiser's state"}
    kept = _without_optimizers(loaded, (), left_out)
    for names, why in (*_numbered_copies(kept), *_named_copies(kept)):
        kept = _without(kept, names)
        left_out[".".join(names)] = why
    if alone and isinstance(kept, Mapping):
        for key in NETWORK:
            if isinstance(kept.get(key), Mapping) and dict(_tensors_in(kept[key])):
                rest = {str(k): dict(_tensors_in(v)) for k, v in kept.items() if k != key}
                left_out |= {k: f"beside the network in {key!r}" for k, ts in rest.items() if ts}
                kept = kept[key]
                break
    tensors, flat = without_companions(dict(_tensors_in(kept)))
    return tensors, left_out | flat


def without_companions(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A flat state_dict without moments and averages of its tensors, and why they are left out."""
    groups: dict[str, tuple[str, set[str]]] = {}
    for name in tensors:
        base, _, tail = name.rpartition(".")
        if base and tail in _MOMENTS and (
            base in tensors
            or base.startswith(("state.", "optimizer.", "optim."))
            or any(f"{base}.{other}" in tensors for other in _MOMENTS_INSIDE - {tail})
        ):  # fmt: skip
            groups.setdefault(f"*.{tail}", ("an optimiser's moments", set()))[1].add(name)
    moments = {name for _, members in groups.values() for name in members}
    heads: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, dot, tail = name.partition(".")
        if dot and name not in moments:
            heads.setdefault(head, {})[tail] = tensor
    for head, tails in heads.items():
        if not _words(head) & {"ema", "shadow", "averaged"}:
            continue
        others: dict[str, torch.Size] = {}
        for name, tensor in tensors.items():
            if not name.startswith(f"{head}."):
                plain = name.replace(".", "")  # some averages have names without dots
                others[plain] = others[name.partition(".")[2].replace(".", "")] = tensor.shape
        shaped = {tail.replace(".", ""): t.shape for tail, t in tails.items() if t.ndim}
        if shaped and shaped.items() <= others.items():
            names = {f"{head}.{tail}" for tail in tails}
            groups[f"{head}.*"] = ("an average (EMA) of the network's weights", names)
    gone = {name for _, members in groups.values() for name in members}
    reasons = {group: f"{why} ({len(members)} tensors)" for group, (why, members) in groups.items()}
    return {n: t for n, t in tensors.items() if n not in gone}, reasons


def split_unreadable(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The tensors whose values are the weights' own, and name -> why of others and of scales."""
    unreadable: dict[str, str] = {}
    for name, t in tensors.items():
        if t.is_meta:
            unreadable[name] = "on the meta device, so without values"
        elif t.is_quantized:
            unreadable[name] = f"quantised by torch ({t.dtype}); dequantize() it first"
        elif t.is_floating_point() and t.dtype.itemsize < 2:
            unreadable[name] = f"{t.dtype} weights, which need their scales; dequantise them first"
    scales: dict[str, str] = {}
    for name in tensors:
        for suffix in _SCALES:
            base = name.removesuffix(suffix)
            if base != name and base in unreadable:
                scales[name] = f"the scales of {base}"
    gone = unreadable.keys() | scales.keys()
    return {n: t for n, t in tensors.items() if n not in gone}, unreadable, scales


def is_optimizer(value: Any) -> bool:
    """Whether this is an optimiser's state_dict, of any optimiser, by position or by name."""
    if not isinstance(value, Mapping) or not isinstance(value.get("state"), Mapping | list):
        return False
    if isinstance(value.get("param_groups"), list | tuple | Mapping):
        return True
    state = value["state"]
    entries = list(state.values() if isinstance(state, Mapping) else state)
    return bool(entries) and all(_is_moments(entry) for entry in entries)


def _is_moments(value: Any) -> bool:
    """Whether this is one parameter's entry in an optimiser's state."""
    if not isinstance(value, Mapping):
        return False
    keys = {str(key) for key, v in value.items() if isinstance(v, Tensor)}
    return bool(keys & (_MOMENTS_INSIDE - {"step"})) and keys <= _MOMENTS_INSIDE


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
        elif (str(key) in _MOMENTS and dict(_tensors_in(v))) or _is_moments(v):
            left_out[".".join(names)] = "an optimiser's moments"
        else:
            kept[key] = _without_optimizers(v, names, left_out)
    return kept


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
        where: {_PREFIX.sub("", n): t.shape for n, t in own.items() if t.ndim}
        for where, own in networks.items()
    }
    gone: set[Names] = set()
    for where, own in shaped.items():
        for place, other in shaped.items():
            if place == where or place in gone or not own or where[: len(place)] == place:
                continue
            copy, rank = _rank(where)
            if not ((copy, rank) > _rank(place) and (copy or _rank(place)[1] < len(NETWORK))):
                continue
            if own.items() <= other.items() and 2 * len(own) >= len(other):
                gone.add(where)
                why = f"a second set of the tensors in {_said(place)}, which are taken"
                yield where, why
                break


def _rank(where: Names) -> tuple[bool, int]:
    places = [NETWORK.index(key) for key in where if key in NETWORK]
    return any(_words(key) & _COPY for key in where), min(places, default=len(NETWORK))


def _words(key: str) -> set[str]:
    words = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))
    return words | ({"ema"} if any(word.endswith("ema") for word in words) else set())


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
        yield "tensor", loaded.detach()
    if isinstance(loaded, list | tuple):  # such as the networks of an ensemble
        loaded = dict(enumerate(loaded))
    if not isinstance(loaded, Mapping):
        return
    # Tensors beside a nested state_dict, such as the best accuracy, are included.
    own = {str(k): v.detach() for k, v in loaded.items() if isinstance(v, Tensor)}
    yield from own.items()
    inner = {str(k): dict(_tensors_in(v)) for k, v in loaded.items() if not isinstance(v, Tensor)}
    inner = {k: v for k, v in inner.items() if v}
    for key, tensors in inner.items():
        prefix = f"{key}." if len(inner) > 1 or tensors.keys() & own.keys() else ""
        yield from ((prefix + name, t) for name, t in tensors.items())
