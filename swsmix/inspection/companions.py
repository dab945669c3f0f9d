"""A flat state_dict without what only looks like weights: moments, averages, packed values.

A flat file has no entries "model" and "optimizer", only names; a companion of a weight has that
weight's name and shape, with something before or behind it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor

# fmt: off
# Words for copies of weights: averages, targets, moments.
COPY = frozenset(
    {
        "ema", "average", "averaged", "avg", "swa", "shadow", "polyak", "teacher", "target",
        "slow", "backup", "best", "initial", "m", "v", "mu", "nu", "moment", "moments",
        "momentum", "velocity", "grad", "grads",
    }
)
MOMENTS = frozenset(
    {
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col",
        "exp_avg_diff", "exp_avg_slow", "exp_inf", "momentum_buffer", "square_avg",
        "acc_delta", "grad_avg",
    }
)
MOMENTS_INSIDE = MOMENTS | frozenset(  # too short to be told from a network's names elsewhere
    {
        "step", "sum", "prev", "mu_product", "ax", "eta", "step_size", "m", "v", "mu", "nu",
        "state1", "state2", "momentum", "qmap1", "qmap2", "absmax1", "absmax2", "max1", "max2",
    }
)
# Behind a weight's name and "_": `weight_exp_avg`. The short ones only as a pair.
_BEHIND = MOMENTS | frozenset(
    {"momentum", "velocity", "grad", "mask", "hessian", "fisher", "first_moment", "second_moment"}
)
_AVERAGES = frozenset({"ema", "shadow", "averaged"})  # such words alone say that it is a copy
# These need the other network beside them: `q_net_target` and `q_net`, `teacher` and `student`.
_SECOND = frozenset({"average", "avg", "swa", "polyak", "teacher", "target", "slow", "momentum"})
_FIRST = frozenset({"student", "online", "main", "base", "model", "net", "network", "module"})
_PAIRS = (("m", "v"), ("mu", "nu"), ("exp_avg", "exp_avg_sq"), ("exp_avgs", "exp_avg_sqs"))
_SCALE_WORDS = frozenset(
    {"scale", "scales", "zeros", "qzeros", "zero", "scb", "absmax", "amax", "qmap"}
)
SCALES_OF = "the scales of "
_PACKED_WORDS = frozenset({"weight", "qweight", "packed", "blocks"})
# fmt: on
_PACKED = (torch.int8, torch.uint8, torch.int32)
_STATE = re.compile(r"((?:.*\.)?(?:state|optimizer|optim|opt))\.\d+\.([a-z_0-9]+)")
_NEED_SCALES = "{} weights, which need their scales; dequantise them first"
_MAX_EXPANDED = 1 << 24
PREFIX = re.compile(r"^((module|_orig_mod|_fsdp_wrapped_module|ema_model|online_model|model)\.)+")

Groups = Iterator[tuple[str, str, set[str]]]


def without_companions(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A flat state_dict without moments and averages of its tensors, and why they are left out."""
    reasons: dict[str, str] = {}
    for find in (_moments, _copies):
        for label, why, members in [*find(tensors)]:
            members = members & tensors.keys()
            if members and len(members) < len(tensors):
                tensors = {name: t for name, t in tensors.items() if name not in members}
                reasons[label] = f"{why} ({len(members)} tensors)"
    return tensors, reasons


def words(key: str) -> set[str]:
    """The words of a name in lower case; those that end in "ema" count as that too."""
    found = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())) - {""}
    return found | ({"ema"} if any(word.endswith("ema") for word in found) else set())


def _moments(tensors: dict[str, Tensor]) -> Groups:
    """Tensors with the name of a weight and more behind it, such as `optim.NAME.exp_avg`."""
    shapes = {_dotted(name): t.shape for name, t in tensors.items()}
    known = shapes | {PREFIX.sub("", name): shape for name, shape in shapes.items()}
    groups: dict[str, set[str]] = {}
    prefixes: set[str] = set()
    for name, tensor in tensors.items():
        base, _, tail = _dotted(name).rpartition(".")
        own = base in known and (
            tail in MOMENTS or (tensor.ndim > 0 and known[base] == tensor.shape)
        )
        if numbered := _STATE.fullmatch(_dotted(name)):
            own = own or numbered[2] in MOMENTS_INSIDE
        before = _before(base, known, tensor) if tensor.ndim else ""
        if (
            own
            or before
            or (base and tail in MOMENTS and (
                base.startswith(("state.", "optimizer.", "optim."))
                or any(f"{base}.{other}" in shapes for other in MOMENTS_INSIDE - {tail})
            ))
        ):  # fmt: skip
            groups.setdefault(f"*.{tail}", set()).add(name)
            prefixes |= {before} if before else set()
    for name in tensors:  # such as the step counts beside the moments
        if any(_dotted(name).startswith(f"{prefix}.") for prefix in prefixes):
            groups.setdefault(f"*.{_dotted(name).rpartition('.')[2]}", set()).add(name)
    for label, members in groups.items():
        yield label, "an optimiser's moments", members
    for tail, members in _behind(tensors).items():
        yield f"*_{tail}", "moments, masks or the like, not weights", members


def _behind(tensors: dict[str, Tensor]) -> dict[str, set[str]]:
    """Tensors with the name and shape of a weight and a word for a companion behind it."""
    groups: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        pairs = {(f"{name}_{one}", f"{name}_{other}"): (one, other) for one, other in _PAIRS}
        tails = {tail: f"{name}_{tail}" for tail in _BEHIND}
        for both, words_ in pairs.items():
            if all(other in tensors for other in both):
                tails |= dict(zip(words_, both, strict=True))
        for tail, other in tails.items():
            if tensor.ndim > 0 and other in tensors and tensors[other].shape == tensor.shape:
                groups.setdefault(tail, set()).add(other)
    return groups


def _before(base: str, known: dict[str, torch.Size], tensor: Tensor) -> str:
    """What stands before a weight's name in the name of a companion of its shape."""
    parts = base.split(".")
    for cut in range(1, len(parts)):
        if known.get(".".join(parts[cut:])) == tensor.shape:
            return ".".join(parts[:cut])
    return ""


def _copies(tensors: dict[str, Tensor]) -> Groups:
    """Tensors under one prefix that repeat those under another, if the prefix says so."""
    under: dict[str, dict[str, torch.Size]] = {}  # prefix -> rest of the name -> shape
    for name, t in tensors.items():
        parts = _dotted(name).split(".")
        for cut in range(len(parts)):
            rest = PREFIX.sub("", ".".join(parts[cut:]))
            under.setdefault(".".join(parts[:cut]), {})[rest] = t.shape
    for prefix, own in under.items():
        shaped = {rest: shape for rest, shape in own.items() if shape}
        if not prefix or not shaped:
            continue
        parent, _, last = prefix.rpartition(".")
        if words(last) & _AVERAGES:
            if _squeezed(shaped).items() <= _squeezed_others(prefix, parent, tensors).items():
                why = "an average (EMA) of the network's weights"
                yield f"{prefix}.*", why, _members(prefix, tensors)
        elif any(_is_pair(last, *pair, parent, under) for pair in _PAIRS) and any(
            place != prefix
            and place in ("", *(p for p in under if "." not in p))
            and not _is_moment_head(place)
            and shaped.items() <= rests.items()
            for place, rests in under.items()
        ):
            yield f"{prefix}.*", "an optimiser's moments", _members(prefix, tensors)
        elif len(shaped) >= (4 if parent else 2) and _may_be_second(last) and any(
            place.rpartition(".")[0] == parent
            and _is_second(last, place.rpartition(".")[2])
            and shaped.items() <= rests.items()
            for place, rests in under.items()
            if place and place != prefix
        ):  # fmt: skip
            yield f"{prefix}.*", "a second set of tensors beside it", _members(prefix, tensors)
    yield from _undotted_copies(tensors)


def _undotted_copies(tensors: dict[str, Tensor]) -> Groups:
    """Averages as buffers of the network, such as `ema_0_weight` beside `0.weight`."""
    dotted = {name: t.shape for name, t in tensors.items() if "." in name}
    squeezed = {_squeeze(n): shape for n, shape in dotted.items()}
    squeezed |= {_squeeze(PREFIX.sub("", n)): shape for n, shape in dotted.items()}
    names = {n for n in tensors if "." not in n and n.startswith(("ema_", "shadow_"))}
    rests = {n: _squeeze(n.partition("_")[2]) for n in names}
    if names and all(squeezed.get(rest) == tensors[n].shape for n, rest in rests.items()):
        yield "ema_*", "an average (EMA) of the network's weights", names


def _is_pair(last: str, first: str, second: str, parent: str, under: Container[str]) -> bool:
    for one, other in ((first, second), (second, first)):
        if last == one or last.endswith(f"_{one}"):
            twin = last.removesuffix(one) + other
            return (f"{parent}.{twin}" if parent else twin) in under
    return False


def _is_moment_head(place: str) -> bool:
    return any(place == n or place.endswith(f"_{n}") for pair in _PAIRS for n in pair)


def _may_be_second(last: str) -> bool:
    return bool(words(last) & _SECOND) or last.endswith(("_k", "_m"))


def _is_second(last: str, other: str) -> bool:
    """Whether two names differ only in that the first says that it is a copy."""
    mine, its = words(last), words(other)
    key_encoder = (mine - its, its - mine) in (({"k"}, {"q"}), ({"m"}, set()))  # MoCo, ALBEF
    if "encoder" in mine & its and key_encoder:
        return True
    rest = mine - _SECOND - _FIRST
    return bool(mine & _SECOND) and not its & _SECOND and rest == its - _FIRST


def _members(prefix: str, tensors: dict[str, Tensor]) -> set[str]:
    return {name for name in tensors if _dotted(name).startswith(f"{prefix}.")}


def _squeezed_others(prefix: str, parent: str, tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    """The tensors beside a prefix, by their names without dots, with and without the first."""
    others: dict[str, torch.Size] = {}
    start = f"{parent}." if parent else ""
    for name, t in tensors.items():
        dotted = _dotted(name)
        if dotted.startswith(start) and not dotted.startswith(f"{prefix}."):
            rest = dotted[len(start) :]
            others[rest.replace(".", "")] = t.shape
            others[rest.partition(".")[2].replace(".", "")] = t.shape
    return others


def _squeezed(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    return {name.replace(".", ""): shape for name, shape in shapes.items()}


def _squeeze(name: str) -> str:
    return name.replace(".", "").replace("_", "")


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def split_unreadable(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The tensors whose values are the weights' own, and name -> why of others and of scales."""
    unreadable = {name: why for name, t in tensors.items() if (why := _why_unreadable(t))}
    packed = {
        name
        for name, t in tensors.items()
        if t.dtype in _PACKED and t.ndim > 1 and words(name.rpartition(".")[2]) & _PACKED_WORDS
    }
    scales: dict[str, str] = {}
    for name, t in tensors.items():
        module, _, last = name.rpartition(".")
        if name in unreadable or not words(last) & _SCALE_WORDS:
            continue
        for base in (*unreadable, *packed):
            if module in (base, base.rpartition(".")[0]):
                scales[name] = f"{SCALES_OF}{base}"
                if base in packed and t.is_floating_point():
                    dtype = tensors[base].dtype
                    unreadable[base] = (
                        f"{dtype} weights, which need their scales; dequantise them first"
                    )
    scales = {n: why for n, why in scales.items() if why.removeprefix(SCALES_OF) in unreadable}
    gone = unreadable.keys() | scales.keys()
    return {n: t for n, t in tensors.items() if n not in gone}, unreadable, scales


def _why_unreadable(t: Tensor) -> str:
    """Why the values of a tensor are not those of the weights; empty if they are."""
    if t.is_meta:
        return "on the meta device, so without values"
    if t.is_quantized:
        return f"quantised by torch ({t.dtype}); dequantize() it first"
    if t.is_floating_point() and t.dtype.itemsize < 2:
        return _NEED_SCALES.format(t.dtype)
    if t.layout == torch.strided and t.numel() > _MAX_EXPANDED:
        stored = t.untyped_storage().nbytes() // t.dtype.itemsize
        if t.numel() > 2 * stored:
            return f"{t.numel():,} numbers expanded from {stored:,}; clone() the original alone"
    return ""
