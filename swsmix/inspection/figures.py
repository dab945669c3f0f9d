"""The figures of an inspection, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swsmix._labels import number_of, visible
from swsmix.inspection.inspect import Inspection

COLORS = (
    "Colour is the sign and size of the mean of the component that claims a weight, which near "
    "zero may have the other sign than the weight."
)
MAX_GROUPS, MAX_PANELS, MAX_BARS, MAX_MATRICES, MAX_SIDE = 6, 12, 40, 4, 64


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure, its name (for a file) and its caption."""

    name: str
    caption: str
    figure: Any


def draw_figures(inspection: Inspection, *, width: float | None = None) -> Iterator[Picture]:
    """Draw every figure that an inspection has the data for, one at a time.

    If there are more, the largest are drawn, in the network's order: 6 mixtures, 12 tensors side
    by side, 40 bars, 4 Hinton diagrams of matrices up to 64 x 64. The captions say so.

    Args:
        inspection: the inspection.
        width: the largest width of a figure, in inches, by default `plots.FULL`; `plots.COLUMN`
            fits a telephone.

    Yields:
        The pictures, each with a name of its own; `_labels.file_name` makes it a file's name.
    """
    from swsmix import plots

    width = plots.FULL if width is None else width
    groups = sorted(inspection.groups, key=lambda group: -group.size)[:MAX_GROUPS]
    names = {group.name for group in groups}
    for group in inspection.groups:
        if group.name not in names:
            continue
        suffix = prefix = ""
        if len(inspection.groups) > 1:
            suffix, prefix = f"-{group.name}", f" {visible(group.name)}:"
        yield Picture(
            f"clusters{suffix}",
            f"Clusters.{prefix} Weights, mixture density and components; linear and log.",
            plots.clusters(group.weights, group.mixture, width=width),
        )
        yield Picture(
            f"responsibilities{suffix}",
            f"Responsibilities.{prefix} Which component claims a weight of a given value; below, "
            f"the weights. {COLORS}",
            plots.responsibilities(group.mixture, group.weights, width=width),
        )
        yield from _training_figures(inspection, group.name, suffix, prefix, width)
    yield from _tensor_figures(inspection, width)
    terms = {"objective", "data_loss", "nll", "hyper_prior"}
    history = inspection.history
    if history is not None and terms <= {n for n, v in history.scalars.items() if v}:
        caption = "Loss terms over training: the objective, the data's terms and the prior's."
        yield Picture("loss-terms", caption, plots.loss_terms(history, width=width))


def _training_figures(
    inspection: Inspection, group: str, suffix: str, prefix: str, width: float
) -> Iterator[Picture]:
    from swsmix import plots

    history = inspection.history
    if history is None or group not in history.groups:
        return
    yield Picture(
        f"collapse{suffix}",
        f"Collapse.{prefix} The weight histogram over training, with the centres.",
        plots.collapse(history, group, width=width),
    )
    yield Picture(
        f"trajectories{suffix}",
        f"Trajectories.{prefix} Mean, std, mixing and clusters over training.",
        plots.trajectories(history, group, width=width),
    )
    (own,) = (g for g in inspection.groups if g.name == group)
    initial = history.initial.get(group)
    if initial is not None and len(initial) == own.size:
        import torch

        final = torch.cat([w.reshape(-1) for w in own.weights])
        yield Picture(
            f"before-after{suffix}",
            f"Before and after.{prefix} Each weight at the start and at the end of training. "
            f"{COLORS}",
            plots.before_after(initial, final, own.mixture),
        )


def _tensor_figures(inspection: Inspection, width: float) -> Iterator[Picture]:
    from swsmix import plots

    every = inspection.layers
    by_size = sorted(range(len(every)), key=lambda i: (-every[i][0].size, i))
    panels = sorted(by_size[:MAX_PANELS])

    def selection(shown: list[int], of: list[int]) -> str:
        return "" if len(shown) == len(of) else f" The {len(shown)} largest of {len(of)}."

    yield Picture(
        "layers",
        f"Tensors side by side, weights and mixture (log).{selection(panels, by_size)}",
        plots.layers(
            {every[i][0].name: every[i][0].weights for i in panels},
            {every[i][0].name: every[i][1].mixture for i in panels},
            width=width,
        ),
    )
    clustered = [each for each in by_size if every[each][0].clustered]
    bars = sorted(clustered[:MAX_BARS])  # of the others the clusters, and their bits, say nothing
    if bars:
        others = len(every) - len(clustered)
        caution = f" The weights of {number_of(others, 'more tensor')} are not clustered."
        yield Picture(
            "entropy",
            f"Bits per weight: the entropy of the clusters.{selection(bars, clustered)}"
            + caution * (others > 0),
            plots.entropy({every[i][0].name: every[i][0].bits_per_weight for i in bars}),
        )
    small = [
        (tensor, group)
        for tensor, group in every
        if tensor.weights.ndim == 2 and max(tensor.weights.shape) <= MAX_SIDE
    ]
    for tensor, group in small[:MAX_MATRICES]:
        yield Picture(
            f"hinton-{tensor.name}",
            f"Hinton diagram of {visible(tensor.name)}: area is magnitude. {COLORS}",
            plots.hinton(tensor.weights.float(), mixture=group.mixture),
        )
