"""Which tensors of a network the prior sees, and in which group.

Names are looked up afresh each time, since wrappers such as `fully_shard` replace a network's
Parameter objects. Nothing here keeps or changes a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

Patterns = str | Sequence[str]
Groups = Literal["global", "tensor"] | Mapping[str, Patterns]


@dataclass(frozen=True)
class Selection:
    """The names of the tensors under a prior, by group, and of those left out, with the reason.

    Attributes:
        groups: group -> names of parameters, in the network's order.
        left_out: name -> why the prior does not see it.
    """

    groups: dict[str, tuple[str, ...]]
    left_out: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the groups."""
        return tuple(name for names in self.groups.values() for name in names)


def select(
    model: nn.Module,
    *,
    include: Patterns | None = None,
    exclude: Patterns = (),
    groups: Groups = "global",
) -> Selection:
    """Choose the parameters of a network that a prior sees.

    Patterns are shell-style (`fc*.weight`) and match the names of `model.named_parameters()`.
    Tied parameters count once, under their first name.

    Args:
        model: the network.
        include: patterns of the parameters to take; the default takes every trainable
            floating-point parameter of at least two dimensions (so no biases, no norms).
        exclude: patterns of the parameters to leave out.
        groups: `"global"` (one mixture for all), `"tensor"` (one for each), or a mapping from a
            group's name to its patterns, which then stands for `include`.

    Raises:
        TypeError: if the model is no network, or a parameter that was asked for is not
            floating-point, or is of an 8-bit type.
        ValueError: if nothing is selected, a pattern matches nothing, a parameter that was asked
            for is frozen, one belongs to two groups, one has no values yet (lazy modules, the meta
            device), or the network computes its weight from the parameter (weight_norm, pruning).

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> select(net, groups="tensor").groups
        {'0.weight': ('0.weight',), '1.weight': ('1.weight',)}
    """
    if isinstance(groups, str) and groups not in ("global", "tensor"):
        raise ValueError(
            f"groups must be 'global', 'tensor' or a mapping from names to patterns; got {groups!r}"
        )
    if not isinstance(groups, str) and include is not None:
        raise ValueError("give the patterns either as include= or in groups=, not in both")
    if not isinstance(groups, str) and not groups:
        raise ValueError("groups is empty: name at least one group with its patterns")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model must be a network, an nn.Module, got {type(model).__name__}: load a "
            "state_dict into its network first"
        )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(
            f"the model must have parameters to put a prior on, got {type(model).__name__} without "
            "any: pass the network"
        )
    _check_shapes(parameters)
    excluded = set(_matching(parameters, exclude, "exclude"))

    if not isinstance(groups, str):
        asked = {
            g: _matching(parameters, patterns, f"group {g!r}") for g, patterns in groups.items()
        }
    elif include is not None:
        asked = {"all": _matching(parameters, include, "include")}
    else:
        asked = {"all": [n for n, p in parameters.items() if _is_weight(p)]}
    chosen = {g: [n for n in names if n not in excluded] for g, names in asked.items()}
    _check_chosen(parameters, chosen)
    if groups in ("global", "tensor") and include is None:
        _check_computed(model, chosen["all"])
    if groups == "tensor":
        chosen = {name: [name] for name in chosen["all"]}

    taken = {name for names in chosen.values() for name in names}
    left_out = {
        name: "excluded" if name in excluded else _why_left_out(p, asked_for=include or groups)
        for name, p in parameters.items()
        if name not in taken
    }
    return Selection({g: tuple(names) for g, names in chosen.items()}, left_out)


def resolve(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The network's current Parameter objects of these names.

    Returns:
        name -> parameter.

    Raises:
        ValueError: if the network no longer has a parameter of that name, or two of them have
            become one.
    """
    names = list(names)
    found = {name: p for name in names if (p := _parameter(model, name)) is not None}
    if len(found) < len(names):  # FSDP's wrappers have names of their own for their parts
        there = dict(model.named_parameters(remove_duplicate=False))
        found = {name: there[name] for name in names if name in there}
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"the model no longer has the parameters {missing}; it has {list(there)}. Undo "
            "what replaced them (a parametrization, weight_norm, pruning), or make the prior again"
        )
    if len(set(map(id, found.values()))) < len(found):
        first = {id(p): name for name, p in reversed(found.items())}
        tied = {name: first[id(p)] for name, p in found.items() if first[id(p)] != name}
        raise ValueError(
            f"parameters were tied after the prior was made and would count twice: {tied}. Make "
            "the prior again"
        )
    return found


def _parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    """One of `named_parameters`: every step looks them up, and a network may have hundreds."""
    *path, last = name.split(".")
    module: nn.Module | None = model
    for each in path:
        module = None if module is None else module._modules.get(each)
    return None if module is None else module._parameters.get(last)


def _is_weight(p: nn.Parameter) -> bool:
    return p.is_floating_point() and p.requires_grad and p.ndim >= 2


def _check_shapes(parameters: Mapping[str, nn.Parameter]) -> None:
    lazy = [n for n, p in parameters.items() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{lazy} of a lazy module have no shape yet: call the model once on a batch, then make "
            "the prior"
        )


def _check_computed(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse parameters from which the network computes the weight that it uses."""
    computed = {name: how for name in names if (how := _computed_by(model, name))}
    if computed:
        raise ValueError(
            "the network does not use these parameters as they are, it computes its weights from "
            f"them: {computed}. A prior on them would not shape the weights that it uses. Remove "
            "the parametrization (torch.nn.utils.parametrize.remove_parametrizations, "
            "remove_weight_norm, remove_spectral_norm, or prune.remove), or leave them out with "
            "exclude=, or name them in include= to put the prior on the parameters themselves"
        )


def _computed_by(model: nn.Module, name: str) -> str | None:
    """What computes a weight from this parameter; None if the network uses it as it is."""
    *path, leaf = name.split(".")
    if "parametrizations" in path[:-1]:  # the original, or the parametrization's own (LoRA)
        at = path.index("parametrizations")
        steps = model.get_submodule(".".join(path[: at + 2]))
        kinds = "+".join(type(step).__name__.lstrip("_") for step in steps.children())
        return f"{kinds} of {'.'.join([*path[:at], path[at + 1]])}"
    module = model.get_submodule(".".join(path))
    # The older ones: torch.nn.utils.weight_norm, spectral_norm and prune keep `weight_v`,
    # `weight_orig` and compute a plain attribute `weight` before each forward pass.
    for suffix, how in (("_v", "weight_norm"), ("_g", "weight_norm"), ("_orig", "spectral_norm")):
        base = leaf.removesuffix(suffix)
        if base != leaf and base in vars(module) and isinstance(vars(module)[base], Tensor):
            return f"{'prune' if f'{base}_mask' in module._buffers else how} of {base}"
    return None


def _why_left_out(p: nn.Parameter, *, asked_for: object) -> str:
    if not p.is_floating_point():
        return f"not floating-point ({p.dtype})"
    if not p.requires_grad:
        return "frozen"
    if asked_for == "global" or asked_for == "tensor":
        return f"{p.ndim} dimension{'s' * (p.ndim != 1)}, fewer than 2"
    return "matched by no pattern"


def _matching(parameters: Mapping[str, nn.Parameter], patterns: Patterns, where: str) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in parameters):
            raise ValueError(
                f"the pattern {pattern!r} of {where} matches no parameter; there are "
                f"{list(parameters)}"
            )
    return [n for n in parameters if any(_matches(n, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name may hold brackets


def _check_chosen(
    parameters: Mapping[str, nn.Parameter], chosen: Mapping[str, Sequence[str]]
) -> None:
    owner: dict[str, str] = {}
    for group, names in chosen.items():
        if not names:
            raise ValueError(
                f"the prior would see no tensor in group {group!r}: it needs trainable "
                "floating-point parameters of at least two dimensions, or patterns in include=; "
                f"there are { {n: tuple(p.shape) for n, p in parameters.items()} }"
            )
        for name in names:
            p = parameters[name]
            if p.is_meta:
                raise ValueError(
                    f"{name} is on the meta device, without values: load the weights "
                    "(model.to_empty(device=...), then load_state_dict), then make the prior"
                )
            if p.is_floating_point() and p.element_size() < 2:
                raise TypeError(
                    f"{name} is {p.dtype}, a storage type without arithmetic: convert it first "
                    "(model.to(torch.bfloat16)), or leave it out with exclude="
                )
            if not p.is_floating_point():
                raise TypeError(
                    f"the prior is over real numbers; {name} is {p.dtype}: leave it out "
                    "with exclude="
                )
            if not p.requires_grad:
                raise ValueError(
                    f"{name} was asked for but is frozen (requires_grad=False): unfreeze it, or "
                    "leave it out with exclude="
                )
            if name in owner:
                raise ValueError(f"{name} belongs to two groups, {owner[name]!r} and {group!r}")
            owner[name] = group
