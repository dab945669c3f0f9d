"""Inspect: a checkpoint's tensors, the mixture over them, and what each tensor makes of it.

Works on the tensors where they lie, part by part: weights mapped from a file are neither joined
nor copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swsmix._histogram import Array, bin_counts, bin_edges, chunks, count, parameters_of, span
from swsmix._labels import visible
from swsmix.compression.codebooks import cluster
from swsmix.inspection import checkpoints
from swsmix.mixture import GaussianMixture
from swsmix.tables.regions import decision_regions
from swsmix.training.history import History

_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Layer:
    """What one tensor makes of its group's mixture.

    Attributes:
        name: of the tensor.
        weights: the tensor itself, in its own type.
        claimed: the number of weights for which each component is the most responsible (k,).
        nonzero: the number of weights that are not exactly 0.
        counts: its histogram on the group's edges.
    """

    name: str
    weights: Tensor = field(repr=False)
    claimed: Array
    nonzero: int
    counts: Array = field(repr=False)

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.weights.numel()

    @property
    def num_clusters(self) -> int:
        """The number of components that claim at least one weight."""
        return int((self.claimed > 0).sum())

    @property
    def shares(self) -> Array:
        """The share of the weights that each component claims (k,), summing to 1."""
        shares: Array = self.claimed / self.size
        return shares

    @property
    def bits_per_weight(self) -> float:
        """The zero-order entropy of the clusters, -sum_j p_j log2 p_j, in bits a weight."""
        p = self.shares[self.shares > 0]
        return float(-(p * np.log2(p)).sum()) + 0.0


@dataclass(frozen=True)
class Group:
    """A mixture and the tensors it is over.

    Attributes:
        name: of the mixture.
        mixture: its components in the order of the means.
        origin: where the mixture is from, in words.
        fitted: whether it was fitted here.
        edges: of the histograms of its tensors (bins + 1,).
        layers: its tensors.
    """

    name: str
    mixture: GaussianMixture
    origin: str
    fitted: bool
    edges: Array = field(repr=False)
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def counts(self) -> Array:
        """The histogram of all its weights, on `edges`."""
        total: Array = np.sum([layer.counts for layer in self.layers], 0)
        return total

    @property
    def claimed(self) -> Array:
        """The number of weights that each component claims (k,)."""
        total: Array = np.sum([layer.claimed for layer in self.layers], 0)
        return total

    @property
    def weights(self) -> list[Tensor]:
        """The tensors, for the plots."""
        return [layer.weights for layer in self.layers]


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, ready for a table, figures and a report.

    Attributes:
        path: what was inspected.
        kind: what it is, in words.
        groups: the mixtures with their tensors.
        left_out: name -> why a tensor is under no mixture.
        history: of the run, if it is one and its mixtures are the groups'.
    """

    path: Path
    kind: str
    groups: tuple[Group, ...]
    left_out: dict[str, str]
    history: History | None

    @property
    def title(self) -> str:
        """The name of what was inspected, and what it is, printable."""
        name = self.path.name or self.path.resolve().name or str(self.path)
        return f"{visible(name)}: {visible(self.kind)}"

    @property
    def layers(self) -> list[tuple[Layer, Group]]:
        """All tensors, each with its group."""
        return [(layer, group) for group in self.groups for layer in group.layers]

    @property
    def size(self) -> int:
        """The number of weights under a mixture."""
        return sum(group.size for group in self.groups)


def inspect(
    source: str | Path | checkpoints.Checkpoint,
    *,
    num_components: int | None = None,
    per_tensor: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    refit: bool = False,
    seed: int | None = None,
) -> Inspection:
    """Look into any checkpoint; where it has no mixture, fit one to its weights.

    A run has the mixtures that it learned, and a compressed file a component at each value of its
    codebooks.

    Args:
        source: a run folder, a checkpoint of ours, a compressed file, a PyTorch or safetensors
            file, a folder of those; or what `checkpoints.read` gave.
        num_components: K of a mixture that is fitted here, 7 by default. Weights that have few
            different values (quantised ones) get a component for each value instead.
        per_tensor: fit one mixture for each tensor instead of one for all.
        include: patterns of the tensors to take (shell-style, `"fc*.weight"`); by default all
            floating-point tensors of at least two dimensions.
        exclude: patterns of tensors to leave out.
        refit: fit mixtures even if the checkpoint has its own, as any choice of tensors does.
        seed: for the sample that a mixture of very many weights is fitted to; 0 by default.

    Returns:
        The inspection.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it cannot be read, a pattern matches no tensor, K < 1, K or the seed is given
            and nothing is fitted, or there are no finite weights to look at.

    Example:
        >>> inspect("runs/sunspots").groups[0].claimed  # doctest: +SKIP
        array([ 5,  0, 40,  0,  0, 54,  0,  5])
        >>> inspect("model.sws").layers[0][0].num_clusters  # doctest: +SKIP
        16
    """
    if num_components is not None and num_components < 1:
        raise ValueError(f"num_components must be at least 1; got {num_components}")
    read = source if isinstance(source, checkpoints.Checkpoint) else checkpoints.read(Path(source))
    asked = {name for group in read.groups.values() for name in group}
    own = bool(asked) and not (include or exclude or refit or per_tensor)
    given = [n for n, v in (("num_components", num_components), ("seed", seed)) if v is not None]
    if own and given and read.groups.keys() <= read.mixtures.keys():
        raise ValueError(
            f"{' and '.join(given)}: for mixtures that are fitted here, but {read.path} "
            f"({read.kind}) has its own: leave it away, or fit others by refit=True (--refit)"
        )
    under_prior = asked if own and read.history is not None else None
    left_out = _left_out(read.tensors, include, exclude, under_prior)
    chosen = [name for name in read.tensors if name not in left_out]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:8])
        raise ValueError(
            f"{read.path} ({read.kind}) has no weights to look at: wanted finite floating-point "
            "tensors of at least two dimensions, or patterns in include; got "
            f"{reasons or 'no tensors'}"
        )
    names: dict[str, tuple[str, ...]] = {"all": tuple(chosen)}
    if own:
        names = {
            group: tuple(n for n in read.groups[group] if n in chosen) for group in read.groups
        }
    elif per_tensor:
        names = {name: (name,) for name in chosen}
    groups = []
    for group, members in names.items():
        if not members:
            continue
        flat = [read.tensors[name].reshape(-1) for name in members]
        mixture = read.mixtures.get(group) if own else None
        origin = "learned in the run" if read.history is not None else "the file's codebook"
        if fitted := mixture is None:
            mixture, origin = cluster(flat, num_components or 7, seed=seed or 0)
        tensors = {name: read.tensors[name] for name in members}
        groups.append(_group(group, mixture, origin, fitted, tensors))
    history = read.history
    if history is not None and history.groups and not own:
        history = None  # it is of other mixtures than those fitted here, over other tensors
    return Inspection(read.path, read.kind, tuple(groups), left_out, history)


def _group(
    name: str, mixture: GaussianMixture, origin: str, fitted: bool, tensors: dict[str, Tensor]
) -> Group:
    order = mixture.mean.argsort(stable=True)
    mixture = GaussianMixture(*(t[order] for t in (mixture.mixing, mixture.mean, mixture.std)))
    flat = {member: tensor.reshape(-1) for member, tensor in tensors.items()}
    edges = bin_edges(count([*flat.values()]), *span(parameters_of(mixture), [*flat.values()]))
    regions = decision_regions(mixture)
    layers = tuple(
        Layer(
            member,
            tensors[member],
            regions.count(w).numpy(),
            sum(int(part.count_nonzero()) for part in chunks([w])),
            bin_counts([w], edges),
        )
        for member, w in flat.items()
    )
    return Group(name, mixture, origin, fitted, edges, layers)


def _left_out(
    tensors: dict[str, Tensor],
    include: Sequence[str],
    exclude: Sequence[str],
    asked: set[str] | None,
) -> dict[str, str]:
    """Name -> why a tensor is not looked at."""
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise ValueError(
                f"the pattern {pattern!r} matches no tensor; there are {', '.join(tensors)}"
            )
    reasons: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape) if tensor.layout == torch.strided else (name,)
        if not tensor.is_floating_point():
            reasons[name] = f"not floating-point ({tensor.dtype})"
        elif tensor.layout != torch.strided or not tensor.numel():
            reasons[name] = "empty" if not tensor.numel() else f"of layout {tensor.layout}"
        elif tensor.is_meta:
            reasons[name] = "on the meta device, so without values"
        elif any(fnmatchcase(name, pattern) for pattern in exclude):
            reasons[name] = "excluded"
        elif include and not any(fnmatchcase(name, pattern) for pattern in include):
            reasons[name] = "matched by no pattern"
        elif asked is not None and name not in asked:
            reasons[name] = "not under the prior"
        elif asked is None and not include and tensor.ndim < 2:
            reasons[name] = f"{tensor.ndim} dimension{'s' * (tensor.ndim != 1)}, fewer than 2"
        elif place in seen:
            reasons[name] = f"the same tensor as {seen[place]}"
        elif bad := sum(int((~part.isfinite()).sum()) for part in chunks([tensor.reshape(-1)])):
            reasons[name] = f"{bad:,} of its {tensor.numel():,} weights are nan or inf"
        elif (most := _largest(tensor)) > _MAX:
            reasons[name] = f"its weights reach {most:.3g}, beyond float32"
        else:
            seen[place] = name
    return reasons


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; 0 where the type has none beyond float32."""
    if tensor.dtype != torch.float64:
        return 0.0
    return max(part.abs().max().item() for part in chunks([tensor.reshape(-1)]))
