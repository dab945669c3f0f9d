"""Which tensors of a network the prior sees, and in which group.

Names are looked up afresh each time, since wrappers such as `fully_shard` replace a network's
Parameter objects. Nothing here keeps or changes a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

Patterns = str | Sequence[str]
Groups = Literal["global", "tensor"] | Mapping[str, Patterns]
# Tensors smaller than this are moved together: the fixed cost of each would be what counts.
SMALL = 1 << 17


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


def local(p: Tensor) -> Tensor:
    """The part of a tensor that lies on this process: the shard of a DTensor, else all of it.

    Returns:
        A tensor that shares the storage.
    """
    shard: Tensor = p.to_local() if hasattr(p, "to_local") else p
    return shard


def flat_view(t: Tensor) -> Tensor:
    """A dense tensor as a vector that shares its storage, in memory order.

    Tensors of the same shape and strides (a weight, its copy, its optimiser state) come out in
    the same order, channels-last ones too.

    Returns:
        A view (n,).
    """
    strides = t.stride()
    order = sorted(range(t.ndim), key=lambda axis: (-strides[axis], axis))
    return t.permute(order).view(-1)


def whole(p: Tensor) -> Tensor:
    """A tensor with all its shards, gathered from the other processes if need be.

    Returns:
        A plain tensor.
    """
    full: Tensor = p.full_tensor() if hasattr(p, "full_tensor") else p
    return full


def shard_groups(p: Tensor) -> tuple[Any, ...]:
    """The process groups over which the elements of a DTensor are divided; replicas do not count.

    Returns:
        Groups for `torch.distributed.all_reduce`; none for a plain tensor.
    """
    if not hasattr(p, "placements") or not hasattr(p, "device_mesh"):
        return ()
    mesh: Any = p.device_mesh
    # Not `is_shard()`: it denies the strided shards of FSDP2 over tensor parallelism.
    return tuple(
        mesh.get_group(i) for i, where in enumerate(p.placements) if not where.is_replicate()
    )


def sum_over_(value: Tensor, groups: Iterable[Any]) -> Tensor:
    """Add up a value over process groups, in place.

    Returns:
        The value.
    """
    for group in groups:
        torch.distributed.all_reduce(value, group=group)
    return value


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, groups: tuple[Any, ...]) -> Tensor:
        ctx.groups = groups
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        return sum_over_(above.clone(), ctx.groups), None


def sum_gradient_over(value: Tensor, groups: tuple[Any, ...]) -> Tensor:
    """A tensor as it is, whose gradient is added up over process groups.

    Returns:
        The same values; the tensor itself if there are no groups.
    """
    if not groups:
        return value
    shared: Tensor = _SumGradient.apply(value, groups)  # type: ignore[no-untyped-call]
    return shared


def pieces(tensors: Iterable[Tensor], small: int) -> Iterator[Tensor]:
    """Tensors as flat vectors: those below `small` elements in one, large ones each in place.

    A fixed cost for each tensor is what small networks would otherwise pay; copying large tensors
    is what large networks would.

    Yields:
        Vectors that hold each element once.
    """
    flat = [t.reshape(-1) for t in tensors]
    together = [t for t in flat if t.numel() < small]
    if together:
        yield torch.cat(together) if len(together) > 1 else together[0]
    yield from (t for t in flat if t.numel() >= small)
