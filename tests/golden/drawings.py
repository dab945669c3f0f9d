"""The numbers that are drawn in the papers' figures and in swsmix.plots."""

import numpy as np
import torch
from golden.run_folders import points
from golden.stored import rounded
from matplotlib.collections import PathCollection, QuadMesh

from papers.nowlan1992 import figures as nowlan1992
from papers.ullrich2017 import figures as ullrich2017
from swsmix import GaussianMixture, plots
from swsmix.training.history import History


def history():
    """Five records of weights on their way to -1, 0 and 1: a component dies and two merge."""
    found, ends = History(), torch.arange(120.0).mul(1.7).sin().mul(1.5)
    for t in range(5):
        weights = (1 - t / 4) * ends + t / 4 * ends.round()
        weights[:3] = 4.0 if t < 2 else 0.0
        mean = torch.tensor([-1.0, 0.0, 1.0, 4.0, 1.9 - 0.3 * min(t, 3)])
        count = torch.tensor([40.0, 50.0, 20.0, 3.0 if t < 2 else 0.2, 10.0])
        mixture = GaussianMixture(count / count.sum(), mean, torch.full((5,), 0.2 - 0.03 * t))
        scalars = {"epoch": 2 * t, "objective": 3 - t / 4, "data_loss": 2 - t / 4, "nll": -90 * t}
        found.record(scalars | {"hyper_prior": 40}, {"all": (weights, mixture, count)})
    return found


def figures():
    """Name -> figure: all of the papers, and those of swsmix.plots from fixed weights."""
    results = nowlan1992.HERE / "results"
    for name, (function, tables) in nowlan1992.DRAWINGS.items():
        yield name, function(*(nowlan1992.read(results, table) for table in tables))
    results = ullrich2017.Results(ullrich2017.HERE / "results")
    for name, function in ullrich2017.FIGURES.items():
        yield name, function(results)
    mixture = GaussianMixture([0.25, 0.5, 0.25], [-0.5, 0.0, 0.6], [0.05, 0.02, 0.04])
    weights = points(400, 1).float().pow(3).mul(0.7).view(20, 20)
    tensors, record = {"conv.weight": weights[:5], "fc.weight": weights}, history()
    yield "plots.clusters", plots.clusters(weights, mixture)
    yield "plots.responsibilities", plots.responsibilities(mixture, weights)
    yield "plots.before_after", plots.before_after(weights.flip(0), weights, mixture)
    yield "plots.hinton", plots.hinton(weights, mixture=mixture)
    yield "plots.layers", plots.layers(tensors, mixture)
    yield "plots.entropy", plots.entropy({"conv.weight": 0.4, "fc.weight": 2.25})
    yield "plots.trajectories", plots.trajectories(record)
    yield "plots.collapse", plots.collapse(record)
    yield "plots.loss_terms", plots.loss_terms(record)


def drawn(figure):
    """The numbers drawn in a figure, by axes and kind of artist, along x and along y."""
    axes = [a for top in figure.axes for a in (top, *top.child_axes)]
    for number, ax in enumerate(axes):
        pairs = {"line": [np.column_stack(a.get_data(orig=False)) for a in ax.lines]}
        pairs["patch"] = [
            a.get_patch_transform().transform(a.get_path().vertices) for a in ax.patches
        ]
        grids = [a.get_array() for a in ax.images]
        for a in ax.collections:
            if isinstance(a, QuadMesh):
                grids.append(a.get_array())
            else:
                dots = isinstance(a, PathCollection)
                paths = [a.get_offsets()] if dots else [p.vertices for p in a.get_paths()]
                pairs.setdefault("collection", []).extend(paths)
        for kind, parts in pairs.items():
            for side, values in zip(
                "xy", np.concatenate([np.zeros((0, 2)), *parts]).T, strict=True
            ):
                yield f"{number} {kind} {side}", values
        yield f"{number} grid", np.concatenate([np.zeros(0), *(np.ravel(g) for g in grids)])


def summary(values):
    """Many numbers as their number, how many are finite, mean, root mean square, and some of them.

    The mean is taken again with weights that rise, so that the order counts.
    """
    values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    finite = values[np.isfinite(values)]
    means = (
        finite.mean(),
        np.sqrt((finite**2).mean()),
        (finite * np.linspace(0, 1, len(finite))).mean(),
    )
    some = finite[np.linspace(0, len(finite) - 1, min(len(finite), 3)).round().astype(int)]
    return [len(values), len(finite), *rounded([*means, *some])]


def drawings():
    found = {}
    for name, figure in figures():
        for part, values in drawn(figure):
            if len(values) and np.isfinite(np.ma.filled(values, np.nan)).any():
                found[f"{name}: {part}"] = summary(values)
    return found
