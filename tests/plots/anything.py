"""Every public figure, given everything that a user may have at hand.

Run as a program it prints JSON: figure -> what was given -> "drawn", or the error and its words.
It runs in a process of its own, because beartype, in the tests, would refuse what is no tensor
first, in words of its own.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from swsmix import GaussianMixture, MixturePrior, plots
from swsmix.plots.rate import rate_distortion
from swsmix.prior.learned import LearnedPrior
from swsmix.training.history import History

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
CONVOLUTIONS = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
DEEP = nn.Sequential(*(nn.Linear(4, 4) for _ in range(15)))
MIXTURE = GaussianMixture([0.5, 0.5], [-0.1, 0.1], [0.05, 0.05])
ONE = MixturePrior(NET, 3)
HISTORY, SEVERAL = History(), History()
for step in range(3):
    scalars = {"epoch": step, "objective": 1, "data_loss": 1, "nll": 1, "hyper_prior": 1}
    state = torch.randn(20), MIXTURE, torch.ones(2)
    HISTORY.record(scalars, {"all": state})
    SEVERAL.record(scalars, {"a": state, "b": state})

GIVEN = {
    "prior": ONE,
    "prior of two mixtures": MixturePrior(NET, 3, groups="tensor"),
    "prior of fifteen mixtures": MixturePrior(DEEP, 2, groups="tensor"),
    "network": NET,
    "network of convolutions": CONVOLUTIONS,
    "layer": nn.Linear(3, 2),
    "network without weights": nn.ReLU(),
    "mixture": MIXTURE,
    "mixture of one": GaussianMixture([1.0], [0.0], [1.0]),
    "learned prior": LearnedPrior.of(ONE),
    "history": HISTORY,
    "history of two groups": SEVERAL,
    "empty history": History(),
    "vector": torch.randn(50),
    "matrix": torch.randn(5, 6),
    "parameter": NET[0].weight,
    "array": np.random.default_rng(0).normal(size=(5, 6)),
    "array of integers": np.arange(30).reshape(5, 6),
    "strided array": np.random.default_rng(0).normal(size=(10, 6))[::2],
    "bfloat16": torch.randn(5, 6).bfloat16(),
    "booleans": torch.rand(5, 6) > 0.5,
    "sparse": torch.eye(5).to_sparse(),
    "complex": torch.randn(5, 6, dtype=torch.complex64),
    "meta": torch.zeros(5, 6, device="meta"),
    "nan": torch.full((3, 3), float("nan")),
    "empty tensor": torch.zeros(0),
    "one number": torch.tensor(3.0),
    "equal weights": torch.zeros(4, 4),
    "list of tensors": [torch.randn(3, 4), torch.randn(7)],
    "list of arrays": [np.ones((3, 4)), np.zeros(7)],
    "list of numbers": [0.1, 0.2, 0.3],
    "empty list": [],
    "list of str": ["a", "b"],
    "list of None": [None],
    "state dict": NET.state_dict(),
    "state dict of convolutions": CONVOLUTIONS.state_dict(),
    "dict of arrays": {"a": np.ones((3, 4)), "b": np.zeros((2, 2))},
    "dict of numbers": {"a": 0.5, "b": 1.5},
    "dict of str": {"a": "b"},
    "empty dict": {},
    "nested checkpoint": {"epoch": 3, "model": NET.state_dict()},
    "array of str": np.array(["a", "b"]),
    "array of objects": np.array([None, 1], dtype=object),
    "None": None,
    "str": "model.pt",
    "path": Path("model.pt"),
    "number": 3.0,
    "class": MixturePrior,
    "set": {1.0, 2.0},
    "generator": (each for each in ()),
    "optimizer": torch.optim.SGD(NET.parameters(), lr=0.1),
}

N, K = torch.linspace(0, 1, 9), torch.rand(20, 3).softmax(-1)
QUANTILES = {q: N + q for q in (0.05, 0.25, 0.75, 0.95)}
FOLDER = Path(tempfile.mkdtemp())
FIGURES = {
    "clusters": plots.clusters,
    "clusters, its mixture": lambda g: plots.clusters(torch.randn(40), g),
    "responsibilities": plots.responsibilities,
    "responsibilities, its weights": lambda g: plots.responsibilities(MIXTURE, g),
    "before_after": lambda g: plots.before_after(first(g), g),
    "before_after, its start": lambda g: plots.before_after(g, ONE),
    "before_after, its mixture": lambda g: plots.before_after(N, N, g),
    "hinton": plots.hinton,
    "hinton, its mixture": lambda g: plots.hinton(torch.randn(5, 6), mixture=g),
    "layers": plots.layers,
    "layers, its mixture": lambda g: plots.layers(NET, g),
    "entropy": plots.entropy,
    "trajectories": plots.trajectories,
    "collapse": plots.collapse,
    "loss_terms": plots.loss_terms,
    "animate_collapse": lambda g: plots.animate_collapse(g, FOLDER / "film.gif"),
    "animate_collapse, its path": lambda g: plots.animate_collapse(HISTORY, g),
    "predictive_band": lambda g: plots.predictive_band(g, QUANTILES),
    "predictive_band, its quantiles": lambda g: plots.predictive_band(N, g),
    "predictive_band, its targets": lambda g: plots.predictive_band(N, QUANTILES, target=g),
    "mixture_band": lambda g: plots.mixture_band(g, K, K, K),
    "mixture_band, its draws": lambda g: plots.mixture_band(torch.randn(99), g, g, g),
    "membership_band": lambda g: plots.membership_band(g, g, g, span=(-1.0, 1.0)),
    "membership_band, its span": lambda g: plots.membership_band(K, K, K, span=g),
    "calibration": plots.calibration,
    "calibration, a label's": lambda g: plots.calibration({"test": g}),
    "rate_distortion": rate_distortion,
    "rate_distortion, a curve": lambda g: rate_distortion({"ours": g}),
    "save": lambda g: plots.save(g, FOLDER / "picture.png"),
    "save, its path": lambda g: plots.save(plots.entropy({"a": 1.0}), g),
    "component_colors": plots.component_colors,
}


def first(given):
    """Weights before training, of the same number."""
    if isinstance(given, MixturePrior):
        return torch.cat([given.flat_weights(group) for group in given.mixtures])
    return given


def outcome(draw, given):
    """ "Whether it is drawn, or the error's type and words."""
    try:
        figure = draw(given)
        if isinstance(figure, Figure):
            figure.draw_without_rendering()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return "drawn"


if __name__ == "__main__":
    warnings.simplefilter("error")
    names = sys.argv[1:] or FIGURES
    found = {n: {kind: outcome(FIGURES[n], g) for kind, g in GIVEN.items()} for n in names}
    print(json.dumps(found))
