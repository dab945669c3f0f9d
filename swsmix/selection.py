"""Which tensors of a network the prior sees, and in which group.

Names are looked up afresh each time, since wrappers such as `fully_shard` replace a network's
Parameter objects. Nothing here keeps or changes a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

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

    Returns:
        The selection.

    Raises:
        TypeError: if a parameter that was asked for is not floating-point.
        ValueError: if nothing is selected, a pattern matches nothing, a parameter that was asked
            for is frozen, or one belongs to two groups.

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
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"the model {type(model).__name__} has no parameters to put a prior on")
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
        KeyError: if the network no longer has a parameter of that name.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in names if name not in parameters]
    if missing:
        raise KeyError(
            f"the model no longer has the parameters {missing}; it has {list(parameters)}"
        )
    return {name: parameters[name] for name in names}


def _is_weight(p: nn.Parameter) -> bool:
    return p.is_floating_point() and p.requires_grad and p.ndim >= 2


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
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ValueError(
                f"the pattern {pattern!r} of {where} matches no parameter; there are "
                f"{list(parameters)}"
            )
    return [n for n in parameters if any(fnmatchcase(n, pattern) for pattern in patterns)]


def _check_chosen(
    parameters: Mapping[str, nn.Parameter], chosen: Mapping[str, Sequence[str]]
) -> None:
    owner: dict[str, str] = {}
    for group, names in chosen.items():
        if not names:
            raise ValueError(
                f"the prior would see no tensor in group {group!r}: it wants trainable "
                "floating-point parameters of at least two dimensions, or patterns in include=; "
                f"there are { {n: tuple(p.shape) for n, p in parameters.items()} }"
            )
        for name in names:
            p = parameters[name]
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
