"""swsmix: soft weight-sharing for PyTorch.

A learned Gaussian-mixture prior on a network's weights, its EM interleaved with SGD
(Nowlan & Hinton 1992; Ullrich, Meeds & Welling 2017). Start with `MixturePrior` and `fit`;
`em.py` holds the EM step. `swsmix.plots`, `swsmix.data`, `swsmix.mnist` and `swsmix.nets` are
imported by name.
"""

from swsmix.em import HyperPrior, e_step, m_step_
from swsmix.mixture import GaussianMixture
from swsmix.noise import GaussianNoise
from swsmix.prior import MixturePrior
from swsmix.quantize import snap_
from swsmix.runs import load_run
from swsmix.schedule import Schedule
from swsmix.sharing import sharing_penalty
from swsmix.train import fit

__all__ = [
    "GaussianMixture",
    "GaussianNoise",
    "HyperPrior",
    "MixturePrior",
    "Schedule",
    "e_step",
    "fit",
    "load_run",
    "m_step_",
    "sharing_penalty",
    "snap_",
]
__version__ = "0.1.0"
