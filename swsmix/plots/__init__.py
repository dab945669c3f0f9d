"""Figures of weights, mixtures, histories and posteriors: data in, a matplotlib Figure out.

Every figure can be redrawn from stored data. No global state changes: no pyplot, no backend,
nothing to close. A figure shows itself in a notebook, and `save` writes the same bytes each time.
`width` is in inches (`COLUMN`, `FULL`); `ax` draws into your own axes. A component has the same
colour in all figures of a run (`component_colors`).

All functions raise a ValueError for empty or non-finite weights, an empty history, an unknown or
ambiguous group, and the wrong number of axes.

    weights    clusters, responsibilities
    change     before_after
    matrices   hinton
    tensors    layers, entropy
    training   trajectories, collapse, loss_terms
    posterior  predictive_band, mixture_band, membership_band, calibration
    rate       rate_distortion: the size of files against what they lose
    files      save, animate_collapse
    density    densities as curves, and the panel that shows them with a histogram
    given      what a figure takes: a prior, a network, a tensor or an array
    multiples  a panel for each of a prior's mixtures
    style      sizes, colours, panels, legends
"""

from swsmix.plots import _backend  # noqa: F401  # imported first, for what it does
from swsmix.plots.change import before_after
from swsmix.plots.files import animate_collapse, save
from swsmix.plots.matrices import hinton
from swsmix.plots.posterior import (
    calibration,
    membership_band,
    mixture_band,
    predictive_band,
)
from swsmix.plots.style import COLUMN, FULL, NEGATIVE, NEUTRAL, POSITIVE, component_colors
from swsmix.plots.tensors import entropy, layers
from swsmix.plots.training import collapse, loss_terms, trajectories
from swsmix.plots.weights import clusters, responsibilities

__all__ = [
    "COLUMN",
    "FULL",
    "NEGATIVE",
    "NEUTRAL",
    "POSITIVE",
    "animate_collapse",
    "before_after",
    "calibration",
    "clusters",
    "collapse",
    "component_colors",
    "entropy",
    "hinton",
    "layers",
    "loss_terms",
    "membership_band",
    "mixture_band",
    "predictive_band",
    "responsibilities",
    "save",
    "trajectories",
]
