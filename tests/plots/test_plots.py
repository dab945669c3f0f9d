"""What all pictures have in common: they fit, they are the same each time, they leave no trace."""

from __future__ import annotations

import errno
import itertools
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures import (
    FIGURES,
    HISTORY,
    MIXTURE,
    WEIGHTS,
    assert_nothing_is_cut_off,
    bars,
    every_figure,
    labelled,
    training,
)

from swsmix import plots
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History


@every_figure
@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_nothing_is_cut_off_covered_or_crowded(make, width):
    figure = make(width=width)
    assert figure.get_figwidth() == width
    assert_nothing_is_cut_off(figure)


@pytest.mark.parametrize("scale", [1e-2, 1e4])
@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_numbers_along_an_axis_of_weights_keep_a_digit_apart(scale, width):
    w = scale * WEIGHTS[:2000]
    mixture = GaussianMixture(MIXTURE.mixing, scale * MIXTURE.mean, scale * MIXTURE.std)
    for figure in (
        plots.clusters(w, mixture, width=width),
        plots.responsibilities(mixture, w, width=width),
        plots.before_after(w.roll(1), w, mixture, width=width),
        plots.layers({"a": w}, mixture, width=width),
        plots.layers(dict.fromkeys("abcde", w), mixture, width=width),
    ):
        FigureCanvasAgg(figure).draw()
        for ax in figure.axes:
            low, high = ax.get_xlim()
            ticks = [t for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
            boxes = [t.label1.get_window_extent() for t in ticks if t.label1.get_visible()]
            gaps = [b.x0 - a.x1 for a, b in itertools.pairwise(boxes)]
            assert len(ticks) >= 2
            assert min(gaps, default=9) > 3 / 72 * figure.dpi


def test_a_single_weight_is_counted_in_whole_decades():
    ax = plots.responsibilities(MIXTURE, torch.tensor([0.1]), width=plots.COLUMN).axes[1]
    FigureCanvasAgg(ax.figure).draw()
    assert [t for t in ax.yaxis.get_minorticklabels() if t.get_text()] == []


@every_figure
def test_every_panel_of_the_users_says_what_is_along_it(make):
    count = len(make().axes) - (make is FIGURES["collapse"])
    axes = np.ravel(Figure(figsize=(4 * count, 3)).subplots(1, count))
    make(ax=axes)
    assert all(ax.get_xlabel() for ax in axes)


def test_panels_that_share_an_axis_say_it_once():
    for given in (None, Figure().subplots(2, 2, sharex=True)):
        axes = plots.trajectories(HISTORY, ax=given).axes
        assert [bool(ax.get_xlabel()) for ax in axes] == [False, False, True, True]
    given = Figure().subplots(2, 1, sharex=True)
    for axes in (given, None):
        axes = plots.responsibilities(MIXTURE, WEIGHTS, ax=axes).axes
        assert [bool(ax.get_xlabel()) for ax in axes] == [False, True]


@every_figure
def test_ax_draws_into_the_axes_given(make):
    count = len(make().axes) - (make is FIGURES["collapse"])  # which has a colour bar
    figure = Figure()
    axes = figure.subplots(1, count)
    assert make(ax=axes) is figure
    assert all(ax.has_data() for ax in np.ravel(axes))
    with pytest.raises(ValueError, match=rf"needs {count} Axes, got {count + 1}"):
        make(ax=Figure().subplots(1, count + 1))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_written_the_same_byte_for_byte(name, tmp_path):
    one, other = (FIGURES[name](width=plots.COLUMN) for _ in range(2))
    for kind in ("png", "svg", "pdf")[: 3 if name in {"clusters", "before_after"} else 2]:
        figures = (one, other, one)[: 3 if kind == "svg" else 2]
        first, *more = (
            plots.save(figure, tmp_path / f"{i}.{kind}", dpi=60.0).read_bytes()
            for i, figure in enumerate(figures)
        )
        assert all(again == first for again in more)
        assert not any(word in first for word in (b"CreationDate", b"<dc:date>", b"Software"))


SCRIPT = """
import sys
from swsmix import plots
for kind in ("svg", "pdf"):
    plots.save(plots.entropy({"a": 1.0, "b": 2.0}), f"{sys.argv[1]}/other.{kind}")
print("matplotlib.pyplot" in sys.modules)
"""


def test_another_process_writes_the_same_bytes_and_needs_no_pyplot(tmp_path):
    environment = os.environ | {"PYTHONHASHSEED": "1", "MPLBACKEND": "svg"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    root = Path(plots.__file__).parents[2]
    printed = subprocess.check_output(command, env=environment, cwd=root, text=True)
    assert printed == "False\n"
    for kind in ("svg", "pdf"):
        here = plots.save(plots.entropy({"a": 1.0, "b": 2.0}), tmp_path / f"here.{kind}")
        assert here.read_bytes() == here.with_stem("other").read_bytes()


@every_figure
def test_no_global_state_is_left_behind(make):
    torch_state = torch.get_rng_state()
    with matplotlib.rc_context({"font.size": 13, "legend.frameon": True}):
        before = dict(matplotlib.rcParams)
        make()
        assert dict(matplotlib.rcParams) == before
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_saving_leaves_one_file_and_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save(plots.entropy({"a": 1.0}), tmp_path / "x.svg")
    assert dict(matplotlib.rcParams) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.svg"]


def test_a_figure_shows_itself_in_a_notebook_and_can_be_pickled():
    figure = plots.entropy({"a": 1.0})
    picture = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == picture


def test_mixtures_in_training_and_half_precision_weights_are_drawn():
    mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
    for name in ("mixing", "mean", "std"):
        buffer = mixture._buffers.pop(name)
        mixture.register_parameter(name, torch.nn.Parameter(buffer))
    w = torch.nn.Parameter(torch.randn(4, 5, dtype=torch.bfloat16))
    assert len(labelled(plots.clusters(w, mixture).axes[0], "component")) == 2
    plots.responsibilities(mixture, w)
    plots.before_after(w, w, mixture)
    plots.hinton(w, mixture=mixture)


HARD_WEIGHTS = {
    "one weight": torch.tensor([0.3]),
    "all equal": torch.full((50,), 0.25),
    "all zero": torch.zeros(50),
    "two far apart": torch.tensor([-1e4, 1e4]),
}
HARD_MIXTURES = {
    "one component": GaussianMixture([1.0], [0.1], [0.2]),
    "mixing exactly 0": GaussianMixture([1.0, 0.0], [0.0, 9.0], [0.1, 0.1]),
    "std 1e-5": GaussianMixture([0.6, 0.4], [0.0, 0.25], [1e-5, 1e-5]),
    "equal components": GaussianMixture([0.5, 0.5], [0.0, 0.0], [0.1, 0.1]),
    "20 components": GaussianMixture([0.05] * 20, torch.linspace(-1, 1, 20).tolist(), [0.02] * 20),
}


@pytest.mark.parametrize(
    ("weights", "mixture"),
    [(name, "std 1e-5") for name in HARD_WEIGHTS]
    + [("one weight", name) for name in HARD_MIXTURES],
)
def test_hard_cases_have_a_picture_with_all_of_the_data(weights, mixture):
    w, mixture = HARD_WEIGHTS[weights], HARD_MIXTURES[mixture]
    live = int((mixture.mixing > 0).sum())
    figure = plots.clusters(w, mixture)
    values, edges = bars(figure.axes[0])
    assert values @ np.diff(edges) == pytest.approx(1)
    assert edges[0] <= w.min() <= w.max() <= edges[-1]
    assert len(labelled(figure.axes[0], "component")) == live
    assert len(labelled(plots.responsibilities(mixture, w).axes[0], "component")) == live
    main = plots.before_after(w, w, mixture).axes[0]
    assert main.get_xlim()[0] < w.min() <= w.max() < main.get_xlim()[1]
    FigureCanvasAgg(figure).draw()


def test_a_history_of_one_record_has_a_picture():
    history = training(records=1)
    for figure in (
        plots.trajectories(history),
        plots.collapse(history),
        plots.loss_terms(history),
    ):
        FigureCanvasAgg(figure).draw()
        assert figure.axes[0].lines[0].get_marker() == "."


@pytest.mark.parametrize("scale", [0.5, 0.9])
def test_the_bar_of_the_densities_of_equal_weights_has_numbers(scale):
    mixture = GaussianMixture(MIXTURE.mixing, scale * MIXTURE.mean, MIXTURE.std)
    history = History()
    for t in range(3):
        weights = scale * torch.full((50,), 0.3)
        history.record({"epoch": t}, {"all": (weights, mixture, torch.ones(4))})
    figure = plots.collapse(history)
    FigureCanvasAgg(figure).draw()
    bar = figure.axes[1]
    low, high = bar.get_ylim()
    inside = [t for t in bar.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert inside and all(t.label1.get_text() or t.label2.get_text() for t in inside)


# --- errors ---

NAN = torch.tensor([0.0, math.nan, math.inf])
EMPTY = torch.zeros(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.clusters(EMPTY, MIXTURE), r"needs at least one weight, got shape \(0,\)"),
        (lambda: plots.clusters(NAN, MIXTURE), "2 nan or inf among 3.*isfinite"),
        (lambda: plots.responsibilities(MIXTURE, NAN), "2 nan or inf among 3"),
        (lambda: plots.before_after(WEIGHTS, EMPTY, MIXTURE), "final: needs at least one"),
        (lambda: plots.before_after(WEIGHTS, WEIGHTS[1:], MIXTURE), "got 20000 and 19999"),
        (lambda: plots.hinton(WEIGHTS), r"needs a matrix .* got shape \(20000,\).*flatten"),
        (lambda: plots.hinton(torch.zeros(257, 256)), r"at most 65,536 .*\(257, 256\)"),
        (lambda: plots.hinton(torch.zeros(0, 3)), "at least one weight"),
        (lambda: plots.hinton(torch.eye(2), scale=0.0), "positive magnitude, got 0.0"),
        (lambda: plots.layers({}, MIXTURE), "got none"),
        (lambda: plots.layers({"a": NAN}, MIXTURE), "a: needs finite"),
        (lambda: plots.layers({"a": WEIGHTS}, {"b": MIXTURE}), r"one for \['a'\].*\['b'\]"),
        (lambda: plots.entropy({}), "got {}"),
        (lambda: plots.entropy({"a": -1.0}), "at least 0; got {'a': -1.0}"),
        (lambda: plots.entropy({"a": math.nan}), "finite bits"),
        (lambda: plots.trajectories(History()), "trajectories: .*got an empty one"),
        (lambda: plots.collapse(History()), "collapse: .*got an empty one"),
        (lambda: plots.animate_collapse(History(), "x.gif"), "got an empty one"),
        (lambda: plots.loss_terms(History()), "got 0 record.* without .*'objective'"),
        (lambda: plots.collapse(training(groups=("a", "b"))), r"\['a', 'b'\], got no group"),
        (lambda: plots.trajectories(HISTORY, "fc"), r"\['all'\], got group 'fc': pass"),
        (
            lambda: plots.save(Figure(), "picture.jpg"),
            "needs .png, .pdf or .svg, got 'picture.jpg'",
        ),
        (lambda: plots.animate_collapse(HISTORY, "film.avi"), "needs .gif or .mp4, got 'film.avi'"),
    ],
)
def test_errors_say_what_was_wanted_and_got(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_that_diverged_leave_no_part_of_a_record():
    history = training(records=2)
    with pytest.raises(FloatingPointError, match="2 of the 3 weights of 'all' are nan or inf"):
        history.record({"epoch": 9.0}, {"all": (NAN, MIXTURE, torch.ones(4))})
    assert len(history) == 2
    plots.trajectories(history)


# --- files ---


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = plots.save(Figure(), tmp_path / "x.svg")
    old = path.read_bytes()

    def fail(self, content):
        with self.open("wb") as file:
            file.write(content[:9])
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"x\.svg.*disk full"):
        plots.save(Figure(), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
