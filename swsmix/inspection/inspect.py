"""Inspect a checkpoint: its tensors, the mixture over them, and the clusters of each tensor.

Tensors are read part by part where they are: weights mapped from a file are neither joined nor
copied.
"""

from __future__ import annotations

from bisect import bisect_right, insort
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
from swsmix.diagnosis import Finding
from swsmix.inspection import checkpoints
from swsmix.inspection.clustering import Clustering, clustering
from swsmix.mixture import GaussianMixture
from swsmix.tables.regions import decision_regions
from swsmix.training.history import History

_MAX = torch.finfo(torch.float32).max
_UNCLUSTERED = 7  # K where the weights are not clustered


@dataclass(frozen=True)
class InspectedTensor:
    """A tensor, and how its weights divide among the components of its group's mixture.

    Attributes:
        name: the tensor's name.
        weights: the tensor itself, in its own dtype.
        claimed: the number of weights for which each component is the most responsible (k,).
        nonzero: the number of weights that are not exactly 0.
        counts: its histogram on the group's edges.
        clustered: whether the group's weights are clustered; else clusters and bits say nothing.
    """

    name: str
    weights: Tensor = field(repr=False)
    claimed: Array
    nonzero: int
    counts: Array = field(repr=False)
    clustered: bool = True

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
        """The zero-order entropy of the clusters, -sum_j p_j log2 p_j, in bits per weight."""
        p = self.shares[self.shares > 0]
        return float(-(p * np.log2(p)).sum()) + 0.0


@dataclass(frozen=True)
class Group:
    """A mixture and its tensors.

    Attributes:
        name: the group's name.
        mixture: the mixture, its components sorted by their means.
        origin: where the mixture is from, in words.
        fitted: whether it was fitted by `inspect`.
        edges: the bin edges of the tensors' histograms (bins + 1,).
        layers: the tensors.
        clustering: whether its weights are clustered, with or without this mixture.
        findings: what went wrong in its run, as of the last record.
    """

    name: str
    mixture: GaussianMixture
    origin: str
    fitted: bool
    edges: Array = field(repr=False)
    layers: tuple[InspectedTensor, ...]
    clustering: Clustering
    findings: tuple[Finding, ...] = ()

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
    """The contents of a checkpoint, for text, figures and the page.

    Attributes:
        path: the file or folder that was inspected.
        kind: its kind, in words.
        groups: the mixtures with their tensors.
        left_out: name -> why a tensor is under no mixture.
        history: the run's history, if the checkpoint is a run and the groups' mixtures are its own.
    """

    path: Path
    kind: str
    groups: tuple[Group, ...]
    left_out: dict[str, str]
    history: History | None

    @property
    def title(self) -> str:
        """The name and the kind of what was inspected, printable."""
        name = self.path.name or self.path.resolve().name or str(self.path)
        return f"{visible(name)}: {visible(self.kind)}"

    @property
    def layers(self) -> list[tuple[InspectedTensor, Group]]:
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
    max_weights: int | None = None,
) -> Inspection:
    """Inspect any checkpoint; fit a mixture to its weights if it has none.

    A run has the mixtures that it learned. A compressed file has a component at each value of its
    codebooks.

    Args:
        source: a run folder, a checkpoint in it, a compressed file, a PyTorch or safetensors file,
            a folder of those; or the result of `checkpoints.read`.
        num_components: K of a fitted mixture; by default the number of clusters, or 7 where
            the weights are not clustered (`swsmix.inspection.clustering`). Weights with few
            distinct values (quantised ones) get one component per value instead.
        per_tensor: fit one mixture per tensor instead of one for all.
        include: patterns of the tensors to inspect (shell-style, `"fc*.weight"`); by default all
            floating-point tensors of at least two dimensions.
        exclude: patterns of tensors to omit.
        refit: fit a mixture even if the checkpoint has its own. `per_tensor`, `include` and
            `exclude` imply it.
        seed: seed of the sample that a mixture of very many weights is fitted to; 0 by default.
        max_weights: the most numbers to read of a compressed file; by default what its size makes
            plausible, see `codec.load_compressed`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it cannot be read, a pattern matches no tensor, K < 1, K or the seed is given
            but no mixture is fitted, or there are no finite weights.

    Example:
        >>> inspect("runs/sunspots").groups[0].claimed  # doctest: +SKIP
        array([ 5,  0, 40,  0,  0, 54,  0,  5])
        >>> inspect("model.sws").layers[0][0].num_clusters  # doctest: +SKIP
        16
    """
    if num_components is not None and num_components < 1:
        raise ValueError(f"num_components must be at least 1; got {num_components}")
    read = source
    if not isinstance(read, checkpoints.Checkpoint):
        read = checkpoints.read(Path(read), max_weights=max_weights)
    in_groups = {name for group in read.groups.values() for name in group}
    own = bool(in_groups) and not (include or exclude or refit or per_tensor)
    given = [n for n, v in (("num_components", num_components), ("seed", seed)) if v is not None]
    if own and given and read.groups.keys() <= read.mixtures.keys():
        raise ValueError(
            f"{' and '.join(given)}: only for mixtures that are fitted, but {read.path} "
            f"({read.kind}) has its own: omit it, or fit others by refit=True (--refit)"
        )
    under_prior = in_groups if own and read.history is not None else None
    left_out = _left_out(read.tensors, include, exclude, under_prior)
    chosen = [name for name in read.tensors if name not in left_out]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:8])
        raise ValueError(
            f"{read.path} ({read.kind}) has no weights to inspect: wanted finite floating-point "
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
    history = read.history
    if history is not None and history.groups and not own:
        history = None  # it is about other mixtures, over other tensors
    groups = []
    for group, members in names.items():
        if not members:
            continue
        flat = [read.tensors[name].reshape(-1) for name in members]
        mixture = read.mixtures.get(group) if own else None
        known = num_components if mixture is None else mixture.num_components
        verdict = clustering(flat, known or _UNCLUSTERED)
        origin = "learned in the run" if read.history is not None else "the file's codebook"
        if fitted := mixture is None:
            mixture, origin = cluster(flat, num_components or verdict.asked, seed=seed or 0)
        tensors = {name: read.tensors[name] for name in members}
        found = () if fitted or history is None else tuple(history.findings(group))
        groups.append(_group(group, mixture, origin, fitted, tensors, verdict, found))
    return Inspection(read.path, read.kind, tuple(groups), left_out, history)


def _group(
    name: str,
    mixture: GaussianMixture,
    origin: str,
    fitted: bool,
    tensors: dict[str, Tensor],
    verdict: Clustering,
    found: tuple[Finding, ...],
) -> Group:
    order = mixture.mean.argsort(stable=True)
    mixture = GaussianMixture(*(t[order] for t in (mixture.mixing, mixture.mean, mixture.std)))
    flat = {member: tensor.reshape(-1) for member, tensor in tensors.items()}
    edges = bin_edges(count([*flat.values()]), *span(parameters_of(mixture), [*flat.values()]))
    regions = decision_regions(mixture)
    layers = tuple(
        InspectedTensor(
            member,
            tensors[member],
            regions.count(w).numpy(),
            sum(int(part.count_nonzero()) for part in chunks([w])),
            bin_counts([w], edges),
            bool(verdict),
        )
        for member, w in flat.items()
    )
    return Group(name, mixture, origin, fitted, edges, layers, verdict, found)


def _left_out(
    tensors: dict[str, Tensor],
    include: Sequence[str],
    exclude: Sequence[str],
    under_prior: set[str] | None,
) -> dict[str, str]:
    """Name -> why a tensor is not inspected."""
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in tensors):
            raise ValueError(
                f"the pattern {pattern!r} matches no tensor; there are {', '.join(tensors)}"
            )
    reasons: dict[str, str] = {}
    seen = _Memory()
    order = {name: number for number, name in enumerate(tensors)}
    # The largest first: a view of a part is found when the whole is known.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].numel()):
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
        elif under_prior is not None and name not in under_prior:
            reasons[name] = "not under the prior"
        elif under_prior is None and not include and tensor.ndim < 2:
            reasons[name] = f"{tensor.ndim} dimension{'s' * (tensor.ndim != 1)}, fewer than 2"
        elif whole := seen.whole_of(tensor):
            same = tensor.numel() == tensors[whole].numel()
            reasons[name] = f"the same tensor as {whole}" if same else f"a part of {whole}"
        elif name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in tensors:
            reasons[name] = "the mask of a pruned tensor"
        elif bad := sum(int((~part.isfinite()).sum()) for part in chunks([tensor.reshape(-1)])):
            reasons[name] = f"{bad:,} of its {tensor.numel():,} weights are nan or inf"
        elif (largest := _largest(tensor)) > _MAX:
            reasons[name] = f"its weights reach {largest:.3g}, beyond float32"
        else:
            seen.add(name, tensor)
    return dict(sorted(reasons.items(), key=lambda item: order[item[0]]))


class _Memory:
    """Where the tensors seen so far lie, the largest first, to find those that share memory."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int, str]] = []  # first byte, byte after the last, name

    def add(self, name: str, tensor: Tensor) -> None:
        start, end = self._span(tensor)
        if end - start == tensor.nbytes:  # no gaps, in which other tensors could lie
            insort(self._places, (start, end, name))

    def whole_of(self, tensor: Tensor) -> str | None:
        """The tensor that holds this one, as tied ones and views of a part have."""
        start, end = self._span(tensor)
        place = bisect_right(self._places, start, key=lambda p: p[0]) - 1
        return self._places[place][2] if place >= 0 and end <= self._places[place][1] else None

    @staticmethod
    def _span(tensor: Tensor) -> tuple[int, int]:
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; 0 for dtypes that do not exceed float32."""
    if tensor.dtype != torch.float64:
        return 0.0
    return max(part.abs().max().item() for part in chunks([tensor.reshape(-1)]))
