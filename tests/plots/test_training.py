"""Pictures and films of a history: what they draw is what happened."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys

import cases
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pictures import HISTORY, WEIGHTS, bars, curve, training, weights_at
from PIL import Image

from swsmix import plots
from swsmix.compression.snap import assign
from swsmix.mixture import GaussianMixture
from swsmix.plots import files
from swsmix.plots.training import common_histograms
from swsmix.training.history import History

COLUMNS = ("mixing", "mean", "std")

# --- histories ---


def test_trajectories_are_the_histories_series():
    panels = plots.trajectories(HISTORY).axes
    for ax, name in zip(panels, ("mean", "std", "mixing"), strict=False):
        assert name in ax.get_ylabel()
        for j in range(5):
            x, y = curve(ax, f"_component {j}")
            end = 5 if j == 3 else 9
            np.testing.assert_allclose(x, 2.0 * np.arange(end))
            np.testing.assert_allclose(y, HISTORY.stacked("all", name)[:end, j])
    np.testing.assert_array_equal(curve(panels[3], "_clusters")[1], [5] * 4 + [4] * 2 + [3] * 3)
    assert [ax.get_yscale() for ax in panels] == ["linear", "log", "log", "linear"]


def test_trajectories_mark_deaths_and_mergers_where_they_happen():
    ax = plots.trajectories(HISTORY).axes[0]
    marks = {
        a.get_label(): a.get_xydata().tolist() for a in ax.lines if "component" not in a.get_label()
    }
    assert marks == {"_died 3": [[8.0, 4.0]], "_merged 4": [[12.0, 1.0]]}
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["died", "merged", "no weight at the end"]
    for panel in plots.trajectories(HISTORY).axes[:3]:
        dashed = {j for j in range(5) if curve_line(panel, j).is_dashed()}
        assert dashed == {3, 4}


def curve_line(ax, j):
    (line,) = [a for a in ax.lines if a.get_label() == f"_component {j}"]
    return line


def test_clusters_over_training_are_those_that_a_report_would_count():
    duplicates = History()
    w = cases.weights(200)
    for name, mixture in cases.mixtures().items():
        duplicates.record({}, {"all": (w, mixture, torch.ones(mixture.num_components))})
        claimed = duplicates.series["all"]["claimed"][-1]
        found = assign(mixture, w).bincount(minlength=mixture.num_components)
        assert claimed.tolist() == found.tolist(), name
    assert duplicates.series["all"]["claimed"][4].count_nonzero() < 4  # of "coinciding"
    for t in range(9):
        mixture = GaussianMixture(*(HISTORY.stacked("all", n)[t] for n in COLUMNS))
        assert HISTORY.num_clusters("all")[t] == len(assign(mixture, weights_at(t)).unique())


def test_every_cluster_that_is_gone_has_one_mark():
    for records in (1, 5, 7, 9):
        history = training(records=records)
        ax = plots.trajectories(history).axes[0]
        marks = [a for a in ax.lines if "component" not in a.get_label()]
        held = int((history.claimed("all") >= 1).any(0).sum())
        assert len(marks) == held - history.num_clusters("all")[-1]


def test_a_history_without_claims_goes_by_the_expected_numbers():
    old = History.from_tensors(
        {n: t for n, t in HISTORY.to_tensors().items() if not n.startswith("claimed")}
    )
    assert old.num_clusters("all").tolist() == [5.0] * 4 + [4.0] * 5
    plots.trajectories(old)
    mixture = GaussianMixture([1.0], [0.0], [0.1])
    old.record(dict.fromkeys(old.scalars, 0.0), {"all": (WEIGHTS, mixture, torch.ones(1))})
    assert len(old) == 10  # it can be resumed


def test_trajectories_mark_nothing_where_nothing_happens():
    ax = plots.trajectories(training(records=3)).axes[0]
    assert len(ax.lines) == 5
    assert ax.get_legend() is None


def test_collapse_keeps_the_mass_and_the_place_of_every_record():
    ax = plots.collapse(HISTORY).axes[0]
    (mesh,) = [c for c in ax.collections if hasattr(c, "get_coordinates")]
    density = mesh.get_array().filled(0)  # (bins, records)
    corners = np.asarray(mesh.get_coordinates())
    sides, edges = corners[0, :, 0], corners[:, 0, 1]
    np.testing.assert_allclose(sides, 2.0 * np.arange(10) - 1)
    np.testing.assert_allclose(np.diff(edges) @ density, 1)
    middles = (edges[1:] + edges[:-1]) / 2
    second = np.diff(edges) * middles**2 @ density
    for t in range(9):
        expected = weights_at(t).square().mean().item()
        assert second[t] == pytest.approx(expected, abs=0.03)
    assert mesh.get_rasterized()


def test_collapse_centres_follow_the_means_until_death():
    ax = plots.collapse(HISTORY).axes[0]
    mean = HISTORY.stacked("all", "mean").numpy().copy()
    mean[4:, 3] = mean[6:, 4] = np.nan
    for j in range(5):
        np.testing.assert_allclose(curve(ax, f"_component {j}")[1], mean[:, j])


def test_loss_terms_split_the_objective_into_data_and_prior():
    each, nats = plots.loss_terms(HISTORY).axes
    objective, data, prior = (curve(each, n)[1] for n in ("objective", "data", "prior"))
    np.testing.assert_allclose(objective, HISTORY.scalars["objective"])
    np.testing.assert_allclose(data + prior, objective)
    np.testing.assert_allclose(curve(nats, "R(w)")[1], HISTORY.scalars["nll"])
    np.testing.assert_allclose(curve(nats, "hyper-prior")[1], HISTORY.scalars["hyper_prior"])
    assert (each.get_ylabel(), nats.get_ylabel()) == ("nats per case", "nats")


def test_group_picks_one_of_several_mixtures():
    history = training(groups=("conv", "fc"))
    history.series["fc"]["std"] = [2 * s for s in history.series["fc"]["std"]]
    y = curve(plots.trajectories(history, "fc").axes[1], "_component 0")[1]
    np.testing.assert_allclose(y, history.stacked("fc", "std")[:, 0])


def test_the_film_has_a_frame_for_each_record_and_stays_small(tmp_path):
    path = plots.animate_collapse(HISTORY, tmp_path / "x.gif", seconds=0.9)
    assert path.stat().st_size < 300_000
    with Image.open(path) as gif:
        assert gif.n_frames == len(HISTORY)
        frames, times = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            times.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB"), dtype=float))
        assert gif.info["loop"] == 0
    assert times == [100] * 8 + [2000]
    assert all(np.abs(a - b).mean() > 0.05 for a, b in itertools.pairwise(frames))
    assert list(tmp_path.iterdir()) == [path]


def wandering(size: int, records: int = 12) -> History:
    """Few weights that move by fractions of a bin, one component so wide that its curve is low."""
    history = History()
    start = torch.randn(size, generator=torch.Generator().manual_seed(2))
    for t in range(records):
        weights = (1 - 0.03 * t) * start
        weights[-1] = 6.0 + 0.01 * t
        mixture = GaussianMixture([0.98, 0.02], [0.0, 1.0], [1 - 0.05 * t, 4.0])
        count = torch.tensor([0.98, 0.02]) * size
        history.record({"epoch": float(t)}, {"all": (weights, mixture, count)})
    return history


@pytest.mark.parametrize("size", [104, 30_000])
def test_every_frame_shows_all_weights_and_all_components_that_hold_one(
    tmp_path, monkeypatch, size
):
    frames, history = [], wandering(size)

    class Watched(FigureCanvasAgg):
        def draw(self):
            (ax,) = self.figure.axes
            tops = [curve(ax, f"_component {j}")[1].max() for j in range(2)]
            frames.append((*bars(ax), ax.get_ylim(), tops))
            super().draw()

    monkeypatch.setattr(files, "FigureCanvasAgg", Watched)
    plots.animate_collapse(history, tmp_path / "x.gif")
    assert len(frames) == len(history)
    assert (history.stacked("all", "count") >= 1).all()
    for values, edges, (low, high), tops in frames:
        shown = values[values > 1.5 * low] * (edges[1] - edges[0]) * size
        assert shown.sum() == pytest.approx(size)  # those in sight are all of them
        assert min(tops) > 1.5 * low and max(values.max(), *tops) < high
        assert len(values) > 100  # as fine as the records, so that bars stand under their peaks


def test_a_lone_weight_has_one_bin_at_every_record():
    edges, counts = common_histograms(wandering(30_000), "all")
    alone = counts[:, edges[1:] > 5.5]
    assert ((alone > 0).sum(1) == 1).all() and (alone.sum(1) == 1).all()
    own = wandering(30_000).stacked("all", "bin_edges").diff()
    assert edges[1] - edges[0] >= own.max() * (1 - 1e-6)


@pytest.mark.parametrize("mixing", [[0.7, 0.05, 0.25], [0.05, 0.7, 0.25], [0.4, 0.4, 0.2]])
def test_of_duplicates_the_one_that_claims_the_weights_lies_on_top(tmp_path, monkeypatch, mixing):
    mixture, history = GaussianMixture(mixing, [0.001, 0.0, 2.0], [0.1, 0.1, 0.1]), History()
    if mixing[0] == mixing[1]:
        mixture = GaussianMixture(mixing, [0.0, 0.0, 2.0], [0.1, 0.1, 0.1])
    w = mixture.sample(300, generator=torch.Generator().manual_seed(0))
    for t in range(2):
        history.record({"epoch": float(t)}, {"all": (w, mixture, 300 * mixture.mixing)})
    owner = int(history.claimed("all")[-1, :2].argmax())
    films, mean = [], mixture.mean.tolist()

    class Watched(FigureCanvasAgg):
        def draw(self):
            marks = [a.get_xdata()[0] for a in self.figure.axes[0].lines if a.get_marker() == "v"]
            films.append((top(self.figure.axes[0]), marks))
            super().draw()

    def top(ax):
        return [
            a.get_label() for a in ax.lines if a.get_label() in {"_component 0", "_component 1"}
        ][-1]

    monkeypatch.setattr(files, "FigureCanvasAgg", Watched)
    plots.animate_collapse(history, tmp_path / "x.gif")
    axes = plots.trajectories(history).axes[:3] + plots.clusters(w, mixture).axes
    assert {top(ax) for ax in axes} == {f"_component {owner}"}
    holding = [mean[j] for j in history.claimed("all")[-1].nonzero().flatten().tolist()]
    for curve_on_top, marks in films:
        assert curve_on_top == f"_component {owner}"
        assert sorted(marks) == pytest.approx(sorted(holding))  # the idle have no triangle


def test_an_idle_component_is_never_drawn_over_its_owner(tmp_path, monkeypatch):
    """Nor where its mixing is the larger one: the narrow component claims the weights at 0."""
    mixture, history = (
        GaussianMixture([0.2, 0.6, 0.2], [0.0, 0.0, 2.0], [1e-3, 0.9, 0.1]),
        History(),
    )
    w = torch.cat([torch.zeros(60), torch.full((20,), 2.0)])
    for t in range(2):
        history.record({"epoch": float(t)}, {"all": (w, mixture, 80 * mixture.mixing)})
    assert history.claimed("all")[-1].tolist() == [60, 0, 20]
    axes = []

    class Watched(FigureCanvasAgg):
        def draw(self):
            axes.append([curve_line(self.figure.axes[0], j) for j in range(3)])
            axes[-1] = (axes[-1], list(self.figure.axes[0].lines))
            super().draw()

    monkeypatch.setattr(files, "FigureCanvasAgg", Watched)
    plots.animate_collapse(history, tmp_path / "x.gif")
    panels = plots.trajectories(history).axes[:3] + plots.clusters(w, mixture).axes
    panels += plots.layers({"a": w}, mixture).axes
    axes += [([curve_line(ax, j) for j in range(3)], list(ax.lines)) for ax in panels]
    assert len(axes) == 8
    for (first, idle, last), lines in axes:
        assert lines.index(idle) < min(lines.index(first), lines.index(last))
        assert idle.is_dashed() and not first.is_dashed()


@pytest.mark.parametrize("records", [5, 60])
def test_the_first_loss_does_not_flatten_the_rest_and_is_named(records):
    history = training(records)
    assert not [t for ax in plots.loss_terms(history).axes for t in ax.texts]
    for name, values in history.scalars.items():
        if name in {"objective", "data_loss"}:
            values[0] = 70.0
    each = plots.loss_terms(history).axes[0]
    assert each.get_ylim()[1] < 10.0
    assert [t.get_text() for t in each.texts] == ["cut: objective from 70,\ndata from 70"]


def test_the_film_is_the_same_byte_for_byte_and_at_most_max_frames_long(tmp_path):
    digests = {
        hashlib.sha256(
            plots.animate_collapse(HISTORY, tmp_path / f"{i}.gif", max_frames=3).read_bytes()
        ).hexdigest()
        for i in range(2)
    }
    assert len(digests) == 1
    with Image.open(tmp_path / "0.gif") as gif:
        assert gif.n_frames == 3


def test_a_frame_of_seventeen_components_is_a_hundredth_of_three_megabytes(tmp_path):
    history = History()
    start = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    mean = torch.linspace(-2, 2, 17)
    for t in range(10):
        weights = start + (t / 9) * ((4 * start).round().clamp(-8, 8) / 4 - start)
        mixture = GaussianMixture([1 / 17] * 17, mean.tolist(), [0.3 - 0.03 * t] * 17)
        history.record({"epoch": float(t)}, {"all": (weights, mixture, torch.full((17,), 294.0))})
    path = plots.animate_collapse(history, tmp_path / "x.gif")
    assert path.stat().st_size < 10 * 30_000


def test_mp4_goes_through_ffmpeg_frame_by_frame(tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "data = sys.stdin.buffer.read()\n"
        "print(len(data), *sys.argv[1:], file=open(sys.argv[-1], 'w'))\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    path = plots.animate_collapse(HISTORY, tmp_path / "x.mp4", seconds=0.9)
    size, *arguments = path.read_text().split()
    width, height = map(int, arguments[arguments.index("-s") + 1].split("x"))
    assert width % 2 == height % 2 == 0
    assert int(size) == 3 * width * height * (9 + 20)  # the last frame stays two seconds
    assert float(arguments[arguments.index("-r") + 1]) == pytest.approx(10)

    fake.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdin.buffer.read()\nsys.exit('no x264')\n"
    )
    with pytest.raises(ValueError, match=r"no x264.*\.gif"):
        plots.animate_collapse(HISTORY, tmp_path / "y.mp4", max_frames=1)
    assert not (tmp_path / "y.mp4").exists()


def test_mp4_without_ffmpeg_is_an_error_that_names_gif(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs ffmpeg.*\.gif"):
        plots.animate_collapse(HISTORY, tmp_path / "x.mp4")
