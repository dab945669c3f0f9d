"""Weights, a mixture, a history and every figure of them, and how to read a figure back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swsmix import plots
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

MIXTURE = GaussianMixture([0.2, 0.5, 0.0, 0.3], [-0.5, 0.0, 0.2, 0.6], [0.05, 0.02, 0.1, 0.04])
LIVE = [0, 1, 3]


def draw(mixture: GaussianMixture, num: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    component = rng.choice(len(mixture.mean), num, p=mixture.mixing.numpy())
    noise = mixture.std.numpy()[component] * rng.standard_normal(num)
    return torch.from_numpy(mixture.mean.numpy()[component] + noise).float()


WEIGHTS = draw(MIXTURE, 20_000)


def training(records: int = 9, groups: tuple[str, ...] = ("all",)) -> History:
    """Weights that collapse onto -1, 0, 1; component 3 dies at record 4, 4 joins 2 at record 6."""
    history = History()
    for t in range(records):
        s, fourth = t / max(records - 1, 1), 1.0 + max(0.0, (6 - t) * 0.3)
        mean = torch.tensor([-1.0, 0.0, 1.0, 4.0, fourth])
        std = torch.full((5,), 0.2 - 0.1 * s)
        count = torch.tensor([200.0, 250.0, 100.0, 5.0 if t < 4 else 0.2, 50.0])
        mixture = GaussianMixture(count / count.sum(), mean, std)
        scalars = {"epoch": 2.0 * t, "objective": 3.0 - s, "data_loss": 2.0 - s, "nll": -900 * s}
        weights = weights_at(t, records)
        history.record(
            scalars | {"hyper_prior": 40.0},
            {group: (weights, mixture, count) for group in groups},
        )
    return history


def weights_at(t: int, records: int = 9) -> torch.Tensor:
    """The weights of `training`: a few of components 3 and 4, the others on their way."""
    s, start = t / max(records - 1, 1), torch.linspace(-1.5, 1.5, 600)
    weights = (1 - s) * start + s * start.round().clamp(-1, 1)
    weights[:5], weights[5:25] = 4.0 if t < 4 else 0.0, 1.0 + max(0.0, (6 - t) * 0.3)
    return weights


HISTORY = training()
FIGURES = {
    "clusters": lambda **kw: plots.clusters(WEIGHTS, MIXTURE, **kw),
    "responsibilities": lambda **kw: plots.responsibilities(MIXTURE, WEIGHTS, **kw),
    "before_after": lambda **kw: plots.before_after(WEIGHTS.roll(1), WEIGHTS, MIXTURE, **kw),
    "hinton": lambda **kw: plots.hinton(WEIGHTS[:120].reshape(8, 15), **kw),
    "hinton_clusters": lambda **kw: plots.hinton(
        WEIGHTS[:120].reshape(8, 15), mixture=MIXTURE, **kw
    ),
    "layers": lambda **kw: plots.layers(
        {"conv.weight": WEIGHTS, "a.very.long.name.of.a.layer.weight": WEIGHTS[:50]}, MIXTURE, **kw
    ),
    "entropy": lambda **kw: plots.entropy({"conv.weight": 0.4, "fc": 2.25}, **kw),
    "trajectories": lambda **kw: plots.trajectories(HISTORY, **kw),
    "collapse": lambda **kw: plots.collapse(HISTORY, **kw),
    "loss_terms": lambda **kw: plots.loss_terms(HISTORY, **kw),
}
every_figure = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)


def labelled(ax: Axes, label: str) -> list:
    artists = [*ax.lines, *ax.patches, *ax.collections, *ax.texts]
    return [a for a in artists if str(a.get_label()).strip("_").startswith(label)]


def number(artist) -> int:
    return int(artist.get_label().split()[-1])


def curve(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [a for a in ax.lines if a.get_label() == label]
    return line.get_xdata(), line.get_ydata()


def bars(ax: Axes) -> tuple[np.ndarray, np.ndarray]:
    (stairs,) = labelled(ax, "weights")
    return stairs.get_data().values, stairs.get_data().edges


def overlaps(one, two) -> bool:
    slack = 0.5
    return (
        one.x0 < two.x1 - slack
        and two.x0 < one.x1 - slack
        and one.y0 < two.y1 - slack
        and two.y0 < one.y1 - slack
    )


def assert_nothing_is_cut_off(figure: Figure) -> None:
    """Legends and texts lie on the page, and ticks and legends cover nothing."""
    FigureCanvasAgg(figure).draw()
    page = figure.bbox
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is not None:
            box = legend.get_window_extent()
            assert not any(overlaps(box, other.get_window_extent()) for other in figure.axes)
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1 + 1
        labels = [ax.xaxis.label, ax.yaxis.label, ax._left_title, *ax.texts]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            ticks = [t for t in ticks if t.get_visible() and t.get_text()]
            boxes = [t.get_window_extent() for t in ticks]
            assert not any(overlaps(a, b) for a, b in itertools.combinations(boxes, 2))
            labels += ticks
        boxes = [t.get_window_extent() for t in labels if t.get_visible() and t.get_text()]
        for box in boxes:
            assert page.x0 - 1 <= box.x0
            assert box.x1 <= page.x1 + 1
            assert page.y0 - 1 <= box.y0
            assert box.y1 <= page.y1 + 1
        assert all(t.get_fontsize() >= 6 for t in labels)
