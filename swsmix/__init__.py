"""swsmix: soft weight-sharing for PyTorch.

A learned Gaussian-mixture prior on a network's weights, its EM interleaved with SGD
(Nowlan & Hinton 1992; Ullrich, Meeds & Welling 2017). Start with `MixturePrior` and `fit`.

The heart, a module each:

    mixture     p(w), responsibilities             schedule   tau, EM, annealing on one clock
    selection   which tensors the prior sees       noise      the likelihood of regression
    diagnosis   what goes wrong in training

The rooms:

    em           the E step, the M step, the hyper-prior
    start        where the components begin; split and merge
    prior        MixturePrior: mixtures bound to a network, the penalty; its plain form
    attach       the prior in anyone's training loop; the step that moves the weights
    tables       the prior's scalar functions in O(N), certified
    trainers     the prior as a callback of Lightning and of the Hugging Face Trainer
    training     fit, ensembles of small networks, run folders, history, loggers
    compression  compress_, snap_, quantize_state, save_compressed, export_onnx
    codec        the format of compressed files
    bayes        the posterior: NUTS, SVI, Laplace, evidence
    problems     data sets, networks, the jobs of `swsmix train` and `reproduce`
    inspection   what a checkpoint holds: tables, figures, the page
    plots        every figure
    cli          the command line
    guides       the guides: `swsmix guide`
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swsmix.compression.snap import snap_ as snap_
    from swsmix.em import HyperPrior as HyperPrior
    from swsmix.em import e_step as e_step
    from swsmix.em import m_step_ as m_step_
    from swsmix.mixture import GaussianMixture as GaussianMixture
    from swsmix.noise import GaussianNoise as GaussianNoise
    from swsmix.prior import MixturePrior as MixturePrior
    from swsmix.prior.sharing import sharing_penalty as sharing_penalty
    from swsmix.schedule import Schedule as Schedule
    from swsmix.training.fitting import fit as fit
    from swsmix.training.runs import load_run as load_run

# Imported at the first use, so that `swsmix --help` answers without torch.
_HOME = {
    "GaussianMixture": "mixture",
    "GaussianNoise": "noise",
    "HyperPrior": "em",
    "MixturePrior": "prior",
    "Schedule": "schedule",
    "e_step": "em",
    "fit": "training.fitting",
    "initial_mixture": "start",
    "load_run": "training.runs",
    "m_step_": "em",
    "sharing_penalty": "prior.sharing",
    "snap_": "compression.snap",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'swsmix' has no attribute {name!r}; it has {__all__}")
    value = getattr(importlib.import_module(f"swsmix.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
