"""Pictures of tensors: what they draw is the tensors, under names that can be read."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pictures import MIXTURE, WEIGHTS, bars, labelled, overlaps

from swsmix import plots
from swsmix.mixture import GaussianMixture
from swsmix.prior import MixturePrior

# --- Hinton diagrams ---


def squares(figure: Figure):
    (collection,) = labelled(figure.axes[0], "squares")
    paths = [p.vertices[:4] for p in collection.get_paths()]
    areas = np.array([np.ptp(v[:, 0]) * np.ptp(v[:, 1]) for v in paths])
    centres = np.array([v.mean(0) for v in paths])
    return areas, centres, [to_hex(c) for c in collection.get_facecolors()]


def test_hinton_areas_are_proportional_to_magnitudes_and_colours_are_signs():
    matrix = torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.5, -3.0]])
    areas, centres, colors = squares(plots.hinton(matrix))
    values = matrix[matrix != 0].numpy()
    np.testing.assert_allclose(areas / areas.max(), np.abs(values) / 4)
    np.testing.assert_allclose(centres, [[0, 0], [1, 0], [0, 1], [1, 1], [2, 1]], atol=1e-12)
    assert colors == [plots.NEGATIVE if v < 0 else plots.POSITIVE for v in values]
    assert areas.max() <= 1


def test_hinton_draws_the_first_row_at_the_top():
    low, high = plots.hinton(torch.eye(3)).axes[0].get_ylim()
    assert low > high


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (10, 64), (64, 64), (256, 200)])
def test_hinton_ticks_are_few_and_even(shape):
    (ax,) = plots.hinton(torch.ones(shape)).axes
    for ticks, cells in ((ax.get_yticks(), shape[0]), (ax.get_xticks(), shape[1])):
        assert ticks[0] == 0 and ticks[-1] < cells and len(ticks) <= 5
        assert len(set(np.diff(ticks))) <= 1


def test_hinton_scale_fills_a_cell_and_larger_weights_do_not_leave_it():
    one = squares(plots.hinton(torch.tensor([[0.5, 1.0]]), scale=2.0))[0]
    two = squares(plots.hinton(torch.tensor([[0.5, 8.0]]), scale=2.0))[0]
    np.testing.assert_allclose(one / two[1], [0.25, 0.5])


def test_hinton_with_a_mixture_has_the_colours_of_the_components_and_names_their_means():
    figure = plots.hinton(torch.tensor([[0.61, 0.01], [-0.49, 0.6]]), mixture=MIXTURE)
    colors = plots.component_colors(MIXTURE.mean)
    assert squares(figure)[2] == [colors[j] for j in (3, 1, 0, 3)]
    legend = figure.axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["−0.5", "0", "0.6"]


def test_hinton_says_which_matrix_it_is_and_its_legend_ascends_line_by_line():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    assert plots.hinton(layer).axes[0].get_xlabel() == "0.weight: column (input)"
    figure = plots.hinton(torch.eye(2), name="fc.weight")
    assert figure.axes[0].get_xlabel() == "fc.weight: column (input)"
    mean = torch.tensor([-1.0, -0.3, -0.05, 0.0, 0.05, 0.3, 1.0])
    seven = GaussianMixture([1 / 7] * 7, mean.tolist(), [0.01] * 7)
    ax = plots.hinton(mean[None], mixture=seven, width=plots.COLUMN).axes[0]
    FigureCanvasAgg(ax.figure).draw()
    boxes = {t.get_text(): t.get_window_extent() for t in ax.get_legend().get_texts()}
    read = sorted(boxes, key=lambda name: (-round(boxes[name].y0), boxes[name].x0))
    assert len({round(box.y0) for box in boxes.values()}) == 2  # lines
    assert [float(name.replace("−", "-")) for name in read] == pytest.approx(mean.tolist())


def test_means_that_differ_have_labels_that_differ():
    mean = [1e6 - 2, 1e6, 1e6 + 2]
    near = GaussianMixture([0.3, 0.4, 0.3], mean, [0.1] * 3)
    w = torch.tensor([mean], dtype=torch.float64)
    legend = plots.hinton(w, mixture=near).axes[0].get_legend()
    expected = ["999.998k", "1M", "1.000002M"]
    assert [t.get_text() for t in legend.get_texts()] == ["999.998k to 1.000002M"]  # of one colour
    top = plots.responsibilities(near, w).axes[0]
    assert [t.get_text() for t in top.texts if hasattr(t, "xy")] == expected


# --- tensors side by side ---


def test_layers_gives_each_tensor_its_own_histogram_and_mixture():
    other = GaussianMixture([1.0], [2.0], [0.1])
    weights = {"a": WEIGHTS, "b": torch.full((3, 4), 2.0)}
    figure = plots.layers(weights, {"a": MIXTURE, "b": other})
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["a\n20k weights", "b\n12 weights"]
    assert [len(labelled(ax, "component")) for ax in figure.axes] == [3, 1]
    for ax, w in zip(figure.axes, weights.values(), strict=True):
        values, edges = bars(ax)
        values = np.where(values > 1.01 * ax.get_ylim()[0], values, 0)
        middles = (edges[1:] + edges[:-1]) / 2
        assert values @ (middles * np.diff(edges)) == pytest.approx(w.mean().item(), abs=5e-3)


LONG = {
    **{name: t for name, t in cases.resnet50().items() if t.ndim > 1},
    "W" * 300: torch.ones(3, 3),
    "model.decoder.layers.11.encoder_attn.q_proj.weight": torch.ones(3, 3),
    "model.decoder.layers.10.encoder_attn.q_proj.weight": torch.ones(1, 1),
    "\x1b[2J": torch.ones(3, 3),
    "a\u202eb$\\frac$": torch.ones(3, 3),
}


@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL, 9.0])
def test_titles_of_long_names_stay_inside_their_panels_and_tell_them_apart(width):
    names = sorted(LONG, key=lambda name: (-len(name), name))
    names = names[:7] + names[-1:]
    figure = plots.layers({name: LONG[name] for name in names}, MIXTURE, width=width)
    FigureCanvasAgg(figure).draw()
    titles = [ax._left_title for ax in figure.axes]
    boxes = [title.get_window_extent() for title in titles]
    whole = [ax.get_tightbbox() for ax in figure.axes]
    for i, (ax, box) in enumerate(zip(figure.axes, boxes, strict=True)):
        panel = ax.get_window_extent()
        assert panel.x0 - 1 <= box.x0 and box.x1 <= panel.x1 + 1
        assert box.y0 >= panel.y1
        assert not any(overlaps(box, other) for other in whole[:i] + whole[i + 1 :])
    shown = [title.get_text().split("\n")[0] for title in titles]
    assert len(set(shown)) == len(shown) and all(name.isprintable() for name in shown)
    sizes = [title.get_text().split("\n")[1] for title in titles]
    assert sizes[names.index("W" * 300)] == "9 weights" and "1 weight" in sizes


@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_names_beside_entropy_bars_leave_half_of_the_width_to_them(width):
    ax = plots.entropy(dict.fromkeys(LONG, 1.0), width=width).axes[0]
    FigureCanvasAgg(ax.figure).draw()
    assert ax.get_window_extent().width > 0.45 * ax.figure.bbox.width
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(shown)) == len(shown)
    assert min(label.get_window_extent().x0 for label in ax.get_yticklabels()) >= 0


def test_a_hinton_diagram_of_huge_weights_is_that_of_their_ratios():
    matrix = torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.5, -3.0]])
    huge = GaussianMixture([0.5, 0.5], [-2e30, 3e30], [1e30, 1e30])
    for scale in (1e30, 1e-30):
        areas = squares(plots.hinton(scale * matrix))[0]
        np.testing.assert_allclose(areas, squares(plots.hinton(matrix))[0], rtol=1e-5)
    figure = plots.hinton(1e30 * matrix, mixture=huge)
    legend = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert legend == ["−2e+30", "3e+30"]


def test_entropy_bars_are_the_bits_in_the_order_given():
    ax = plots.entropy({"b": 2.0, "a": 0.25}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [2.0, 0.25]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first is at the top
    assert "bits" in ax.get_xlabel()


def test_entropy_bars_of_weights_are_those_of_the_most_responsible_components():
    mixture = GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    weights = {"even": torch.tensor([-1.0, 1.0, 0.9, -1.1]), "one": torch.ones(3)}
    named = plots.entropy(weights, mixture).axes[0]
    assert [bar.get_width() for bar in named.patches] == [1.0, 0.0]
    quarter = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    (bar,) = plots.entropy(quarter.numpy(), mixture).axes[0].patches
    assert bar.get_width() == pytest.approx(2 - 0.75 * np.log2(3))
    net = torch.nn.Linear(4, 3)
    prior = MixturePrior(net, 2)
    with torch.no_grad():
        net.weight.copy_(prior.mixtures["all"].mean[torch.arange(12).reshape(3, 4) % 2])
    (bar,) = plots.entropy(prior).axes[0].patches
    assert bar.get_width() == pytest.approx(1.0)
