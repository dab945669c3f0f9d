"""Pictures of a mixture at work: tensors, a mixture or a history in, a matplotlib Figure out.

Every figure can be redrawn from stored data and touches no global state: no pyplot, no backend,
nothing to close; it shows itself in a notebook, and `save` writes it, byte for byte the same.
`width` is in inches (`COLUMN`, `FULL`); with `ax` the figure goes into axes of your own. Colours
mean the same everywhere (`component_colors`).

Empty or non-finite weights, an empty history, an unknown or ambiguous group, and the wrong number
of axes are a ValueError, in all functions.
"""

from swsmix.plots.files import animate_collapse, save
from swsmix.plots.posterior import (
    calibration,
    membership_band,
    mixture_band,
    predictive_band,
)
from swsmix.plots.style import COLUMN, FULL, NEGATIVE, NEUTRAL, POSITIVE, component_colors
from swsmix.plots.tensors import entropy, hinton, layers
from swsmix.plots.training import collapse, loss_terms, trajectories
from swsmix.plots.weights import before_after, clusters, responsibilities

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
