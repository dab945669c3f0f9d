"""The table that `MixturePrior.describe` prints."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import torch

from swsmix import _shards
from swsmix._labels import visible
from swsmix.diagnosis import findings
from swsmix.em import e_step

if TYPE_CHECKING:
    from swsmix.prior import MixturePrior

_NAMES = 4  # of tensors in a line


@torch.no_grad()
def description(prior: MixturePrior) -> str:
    """What the prior sees, and how its components share it."""
    lines = []
    for group in prior.selection.groups:
        mixture = prior.mixtures[group]
        local = {name: _shards.local(p) for name, p in prior.parameters_of(group).items()}
        total = sum(w.numel() for w in local.values())
        lines.append(
            f"mixture {group!r}: K = {mixture.num_components}, {len(local)} tensors, "
            f"{total:,} weights"
            + (f", tau multiplied by {prior.tau[group]:g}" if prior.tau[group] != 1.0 else "")
        )
        width = max(map(len, local)) + 2
        lines.append(f"  {'centre':<{width}}{'':>22}" + _row(mixture.mean.tolist(), ".3g"))
        for name, w in local.items():
            share = 100.0 * e_step(mixture, w).count / max(w.numel(), 1)
            shape = "x".join(map(str, w.shape))
            lines.append(
                f"  {name:<{width}}{shape:>12}{w.numel():>10,}"
                + _row(share.tolist(), ".1f")
                + "  %"
            )
        lines += [f"  this mixture {found.message}" for found in findings(prior, group)]
    for name, reason in prior.selection.left_out.items():
        lines.append(f"left out: {name} ({reason})")
    return "\n".join(lines)


def representation(prior: MixturePrior) -> str:
    """A line for each mixture, with the names of its tensors as `named_parameters` has them."""
    lines = [f"MixturePrior(mode={prior.mode!r})"]
    for group, mixture in prior.mixtures.items():
        names = [visible(name) for name in prior.selection.groups[group]]
        if len(names) > _NAMES:
            names = [*names[: _NAMES - 1], f"{len(names) - _NAMES + 1} more"]
        lines.append(f"  {visible(group)}: {mixture!r} on {', '.join(names)}")
    return "\n".join(lines)


@torch.no_grad()
def html_description(prior: MixturePrior) -> str:
    """The mixtures as an HTML table, for notebooks."""
    tables = []
    for group, mixture in prior.mixtures.items():
        names = ", ".join(prior.parameters_of(group))
        rows = "".join(
            f"<tr><th>{name}</th>"
            + "".join(f"<td>{v:.3g}</td>" for v in getattr(mixture, name).tolist())
            + "</tr>"
            for name in ("mixing", "mean", "std")
        )
        caption = f"mixture {group!r}: K = {mixture.num_components}, on {names}"
        tables.append(f"<table><caption>{html.escape(caption)}</caption>{rows}</table>")
    return "".join(tables)


def _row(values: list[float], form: str) -> str:
    return "".join(f"{format(v, form):>9}" for v in values)
