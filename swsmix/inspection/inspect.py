"""Inspect a checkpoint: its tensors, the mixture over them, and the clusters of each tensor.

Tensors are read part by part where they are: weights mapped from a file are neither joined nor
copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from swsmix._histogram import Array, bin_counts, bin_edges, chunks, count, parameters_of, span
from swsmix._labels import visible
from swsmix.compression.codebooks import cluster
from swsmix.diagnosis import Finding
from swsmix.inspection import checkpoints
from swsmix.inspection.clustering import Clustering, clustering
from swsmix.inspection.measures import VALUES, Measures, measures
from swsmix.inspection.omitted import left_out
from swsmix.mixture import GaussianMixture
from swsmix.tables.regions import decision_regions
from swsmix.training.history import History

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
        measures: how heavy its tails are, and how nearly it is clustered.
        clustered: whether the group's weights are clustered; else clusters and bits say nothing.
    """

    name: str
    weights: Tensor = field(repr=False)
    claimed: Array
    nonzero: int
    counts: Array = field(repr=False)
    measures: Measures = field(repr=False)
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

    @property
    def num_clustered(self) -> int:
        """The number of weights that are clustered."""
        return sum(tensor.size for tensor, _ in self.layers if tensor.clustered)

    @property
    def num_clusters(self) -> int:
        """The number of components that claim weights, of the mixtures over clustered weights."""
        return sum(int((g.claimed > 0).sum()) for g in self.groups if g.clustering)

    @property
    def bits_per_weight(self) -> float:
        """The entropy of the clusters, in bits per weight that is clustered; nan if none is."""
        bits = sum(t.bits_per_weight * t.size for t, _ in self.layers if t.clustered)
        return bits / self.num_clustered if self.num_clustered else float("nan")

    @property
    def nonzero(self) -> float:
        """The share of the weights that are not exactly 0."""
        return sum(tensor.nonzero for tensor, _ in self.layers) / self.size


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
    omitted = left_out(read.tensors, include, exclude, under_prior)
    chosen = [name for name in read.tensors if name not in omitted]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(omitted.items())[:8])
        raise ValueError(
            f"{read.path} ({read.kind}) has no weights to inspect: needs finite floating-point "
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
        values = num_components or VALUES
        groups.append(_group(group, mixture, origin, fitted, tensors, verdict, found, values))
    return Inspection(read.path, read.kind, tuple(groups), omitted, history)


def _group(
    name: str,
    mixture: GaussianMixture,
    origin: str,
    fitted: bool,
    tensors: dict[str, Tensor],
    verdict: Clustering,
    found: tuple[Finding, ...],
    values: int,
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
            measures([w], values),
            bool(verdict),
        )
        for member, w in flat.items()
    )
    return Group(name, mixture, origin, fitted, edges, layers, verdict, found)
