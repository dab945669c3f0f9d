"""Hinton diagrams of matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from torch import Tensor, nn

from swsmix._histogram import Array, flat_weights, parameters_of
from swsmix._labels import distinct
from swsmix.mixture import GaussianMixture
from swsmix.plots.density import most_responsible
from swsmix.plots.given import (
    Mixture,
    mixture_of,
    mixtures_by_name,
    named_weights,
    refusal,
    weights_of,
)
from swsmix.plots.multiples import draw_each
from swsmix.plots.style import (
    COLUMN,
    NEGATIVE,
    POSITIVE,
    Panels,
    add_legend,
    component_colors,
    make_panels,
    shortened_to_width,
    styled,
    text_width,
)
from swsmix.prior import MixturePrior

_MAX_SQUARES = 65_536
Matrices = torch.Tensor | np.ndarray | nn.Module | Mapping[str, torch.Tensor | np.ndarray]


@styled
def hinton(
    weight_matrix: Matrices,
    *,
    mixture: Mixture | None = None,
    scale: float | None = None,
    name: str | None = None,
    ax: Panels = None,
    width: float = COLUMN,
) -> Figure:
    """A Hinton diagram: each weight is a square, its area the magnitude, its colour the sign.

    A network, a prior or a state dict with several matrices has a panel for each, the 12 largest
    of at most 65,536 weights; tensors of more dimensions are flattened to an output a row, and
    vectors are left out. There, what a full cell stands for is written above each.

    Args:
        weight_matrix: a matrix (rows, columns), tensor or array, a row holding the weights of one
            output, as in torch; or a network, a prior or name -> tensor.
        mixture: colours the squares by their most responsible component instead of the sign, in
            the colour of its mean, which near zero may have the other sign. The legend names the
            means, or the smallest and the largest that share a colour. A prior with several
            mixtures colours each of its tensors by its own, without a legend.
        scale: the magnitude that fills a cell; by default the largest one of the matrix.
        name: the matrix's name, written below it; by default that in the layer or prior, if any.
        ax: one Axes, for each matrix.
        width: width of the figure, in inches.

    Raises:
        TypeError: if weight_matrix is or holds no tensor.
        ValueError: if it is or holds no matrix of at most 65,536 weights, or `scale` is not
            positive.

    Example:
        >>> figure = hinton(torch.tensor([[0.5, -1.0], [0.0, 2.0]]))
        >>> figure = hinton(nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2)))
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: needs a positive magnitude, got {scale}: omit it")
    matrices, others = _matrices(weight_matrix)
    own = _mixtures(mixture, matrices)
    if len(matrices) > 1:
        return _of_each(matrices, others, own, scale, ax, width)
    ((found, matrix),) = matrices.items()
    cells = _cells(matrix, scale)
    handles, per_line = _handles(cells, own.get(found), width)
    rows, columns = matrix.shape
    height = 0.88 * width * min(max(rows / columns, 0.1), 2)
    height += 0.5 + 0.15 * -(-len(handles) // per_line)
    figure, (panel,) = make_panels(ax, 1, width=width, row=height)
    _draw(panel, cells, own.get(found))
    name = found if name is None else name
    if name:
        panel.set_xlabel(f"{shortened_to_width(name, 36 * width, 7.5)}: column (input)")
    add_legend(panel, handles, per_line)
    return figure


def _of_each(
    matrices: Mapping[str, Tensor],
    others: int,
    own: Mapping[str, GaussianMixture],
    scale: float | None,
    ax: Panels,
    width: float,
) -> Figure:
    """A panel for each matrix; `others` have none."""
    cells = {name: _cells(matrix, scale) for name, matrix in matrices.items()}
    ratio = max(rows / columns for rows, columns in (m.shape for m in matrices.values()))
    sizes = {name: matrix.numel() for name, matrix in matrices.items()}
    handles = _handles(next(iter(cells.values())), None, width)[0][:2]
    return draw_each(
        sizes,
        lambda panel, name: _draw(panel, cells[name], own.get(name)),
        ax=ax,
        width=width,
        height=lambda w: w * min(max(ratio, 0.15), 1.3),
        kind="matrices",
        narrowest=1.6,
        subtitle=lambda name: f"full cell: {cells[name].full:.3g}",
        keys=[] if own else handles,
        others=others,
    )


def _matrices(given: object) -> tuple[dict[str, Tensor], int]:
    """The matrices by name, and how many tensors are none, or are too large."""
    if isinstance(given, GaussianMixture) or not isinstance(
        given, Tensor | np.ndarray | nn.Module | Mapping
    ):
        raise TypeError(refusal("weight_matrix", "a tensor, an array, a network or a prior", given))
    if isinstance(given, Tensor | np.ndarray):
        matrix = weights_of(given, None, "weight_matrix")
        _check_matrix(matrix)
        return {"": matrix.detach()}, 0
    named = dict(given) if isinstance(given, Mapping) else named_weights(given)
    tensors = {str(n): weights_of(w, None, str(n)).detach() for n, w in named.items()}
    found = {
        name: w if w.ndim == 2 else w.flatten(1)
        for name, w in tensors.items()
        if w.ndim >= 2 and 0 < w.numel() <= _MAX_SQUARES
    }
    if not found:
        raise ValueError(
            f"weight_matrix: needs a matrix of at most {_MAX_SQUARES:,} weights, got "
            f"{ {n: tuple(w.shape) for n, w in tensors.items()} }: pass w[None] of a vector, or a "
            "block of a matrix such as w[:64, :64]"
        )
    return found, len(tensors) - len(found)


def _mixtures(mixture: object, matrices: Mapping[str, Tensor]) -> dict[str, GaussianMixture]:
    """The mixture of each matrix; none without one."""
    if mixture is None:
        return {}
    if isinstance(mixture, MixturePrior) and len(mixture.mixtures) > 1:
        known = mixtures_by_name(mixture)
        if missing := [name for name in matrices if name not in known]:
            raise ValueError(
                f"mixture: needs one for {missing}, got a prior on {list(known)}: pass one of "
                "its mixtures"
            )
        return {name: known[name] for name in matrices}
    return dict.fromkeys(matrices, mixture_of(mixture, None))


@dataclass(frozen=True)
class _Cells:
    """The squares of a matrix: values (n,), shape, and the magnitude that fills a cell."""

    flat: list[Tensor]
    value: Array
    shape: tuple[int, int]
    full: float


def _cells(matrix: Tensor, scale: float | None) -> _Cells:
    flat = flat_weights(matrix, "weight_matrix")
    value = flat[0].double().cpu().numpy()
    full = scale or float(np.abs(value).max()) or 1.0
    rows, columns = matrix.shape
    return _Cells(flat, value, (rows, columns), full)


def _draw(panel: Axes, cells: _Cells, mixture: GaussianMixture | None) -> None:
    """The squares of one matrix."""
    value, (rows, columns) = cells.value, cells.shape
    half = 0.48 * np.sqrt(np.minimum(np.abs(value) / cells.full, 1))
    y, x = np.divmod(np.arange(len(value)), columns)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    squares = np.stack([x, y], -1)[:, None] + half[:, None, None] * corners
    colors = np.where(value < 0, NEGATIVE, POSITIVE)
    if mixture is not None:
        palette = component_colors(mixture.mean)
        colors = np.array(palette)[most_responsible(cells.flat, mixture)]
    nonzero = half > 0
    panel.add_collection(
        PolyCollection(
            list(squares[nonzero]),
            facecolors=list(colors[nonzero]),
            lw=0,
            rasterized=len(value) > 5000,
            label="_squares",
        )
    )
    panel.set(
        xlim=(-0.6, columns - 0.4),
        ylim=(rows - 0.4, -0.6),
        aspect="equal",
        anchor="W",
        xlabel="column (input)",
        ylabel="row (output)",
        facecolor="0.95",
    )
    for axis, number in ((panel.xaxis, columns), (panel.yaxis, rows)):
        most = max(1, round(5 * number / max(rows, columns)))
        steps = (m * 10**power for power in range(6) for m in (1, 2, 5))
        axis.set_ticks(range(0, number, next(step for step in steps if step * most >= number)))
    panel.spines[:].set_visible(False)


def _handles(
    cells: _Cells, mixture: GaussianMixture | None, width: float
) -> tuple[list[Patch], int]:
    """The legend, and how many of its entries fit a line."""
    if mixture is None:
        handles = [
            Patch(color=NEGATIVE, label="negative"),
            Patch(color=POSITIVE, label="positive"),
            Patch(color="none", label=f"full cell: {cells.full:.3g}"),
        ]
        return handles, max(3, int(width / 0.8))
    palette, component = component_colors(mixture.mean), most_responsible(cells.flat, mixture)
    mean = parameters_of(mixture)[1]
    used = sorted(set(component.tolist()), key=lambda j: mean[j])
    means = dict(zip(used, distinct(mean[used].tolist()), strict=True))
    named: dict[str, list[str]] = {}
    for j, text in means.items():
        named.setdefault(palette[j], []).append(text)
    handles = [
        Patch(color=color, label=" to ".join(dict.fromkeys([texts[0], texts[-1]])))
        for color, texts in named.items()
    ]
    font = FontProperties(size=7)
    widest = max(text_width(str(handle.get_label()), font) for handle in handles)
    return handles, max(1, int(72 * width / (widest + 24)))  # points, with the patch


def _check_matrix(weights: Tensor) -> None:
    if weights.ndim != 2 or weights.numel() > _MAX_SQUARES:
        raise ValueError(
            f"weight_matrix: needs a matrix of at most {_MAX_SQUARES:,} weights, got shape "
            f"{tuple(weights.shape)}: pass w.flatten(1), w[None] of a vector, or a block such as "
            "w[:64, :64]"
        )
