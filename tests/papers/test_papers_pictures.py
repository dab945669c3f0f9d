"""The papers' pictures can be told apart: few colours in a panel, log axes, ranges, named cuts."""

from __future__ import annotations

import re
import tomllib

import numpy as np
import pytest
from matplotlib.colors import to_hex

from papers.nowlan1992 import drawings_sunspots
from papers.nowlan1992 import figures as nowlan1992
from papers.ullrich2017 import figures as ullrich2017
from swsmix import plots

PAPER = tomllib.loads((nowlan1992.HERE / "paper.toml").read_text())


def drawn(name):
    function, tables = nowlan1992.DRAWINGS[name]
    return function(*(nowlan1992.read(nowlan1992.HERE / "results", table) for table in tables))


def colors(ax):
    """The hues of lines and of marks: without white, black and greys."""
    found = set()
    for line in ax.lines:
        mark = line.get_linestyle() == "None"
        edge = line.get_markeredgewidth() > 0
        shown = line.get_markeredgecolor() if edge else line.get_markerfacecolor()
        found.add(to_hex(shown if mark else line.get_color()))
    return {c for c in found if len({c[1:3], c[3:5], c[5:7]}) > 1}


@pytest.mark.parametrize(
    "name", ["sunspots-arv", "sunspots-horizon", "sunspots-validation", "shift-cases", "modes"]
)
def test_a_panel_has_at_most_seven_colours(name):
    figure = drawn(name)
    assert all(len(colors(ax)) <= 7 for ax in figure.axes), name
    assert any(colors(ax) for ax in figure.axes)


def test_every_method_has_one_kind_and_a_kind_one_colour():
    methods = [name for _, names in drawings_sunspots.KINDS.values() for name in names]
    assert len(methods) == len(set(methods)) == len(drawings_sunspots.COLORS)
    assert len(set(drawings_sunspots.COLORS.values())) == len(drawings_sunspots.KINDS) <= 7
    assert set(drawings_sunspots.selection.METHODS) <= set(methods)


def test_what_lies_beyond_the_panels_of_arv_is_said_where_it_does():
    final = nowlan1992.read(nowlan1992.HERE / "results", "sunspots-final")
    values = final["back-propagation, by single"]["arv"]["test"]
    (_, edge) = (figure := drawn("sunspots-arv")).axes[0].get_xlim()
    beyond = sum(value > edge for value in values)
    assert beyond > 0
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts == [f"{beyond} nets →"]


@pytest.mark.parametrize(
    ("name", "table", "field"),
    [("sunspots-horizon", "sunspots-horizons", "horizons"), ("modes", "modes", "objectives")],
)
def test_a_band_holds_the_middle_half_of_the_nets_and_the_caption_says_of_how_many(
    name, table, field
):
    lines = nowlan1992.read(nowlan1992.HERE / "results", table).values()
    values = [np.array(line[field]) for line in lines]
    shown = 0
    for ax in drawn(name).axes:
        bands = {a.get_label().removeprefix("_band "): a for a in ax.collections}
        curves = {a.get_label(): a.get_ydata() for a in ax.lines if a.get_label() in bands}
        assert bands and bands.keys() == curves.keys()
        for label, band in bands.items():
            (nets,) = [v for v in values if np.array_equal(np.median(v, 1), curves[label])]
            (path,) = band.get_paths()
            for at, each in enumerate(nets):
                x = path.vertices[:, 0]
                here = path.vertices[x == np.unique(x)[at], 1]
                low, high = np.sort(each)[[0, -1]]
                assert low <= here.min() <= np.median(each) <= here.max() <= high
                inside = (each >= here.min()) & (each <= here.max())
                assert 0.4 <= inside.mean() <= 0.7 or np.ptp(here) < 1e-9
            shown += 1
    assert shown == 8
    numbers = {v.shape[1] for v in values}
    (caption,) = [each["shows"] for each in PAPER["figures"] if each["name"] == name]
    assert numbers == {int(n) for n in re.findall(r"over (\d+) (?:single )?nets", caption)}
    assert "the bands hold the middle half of the nets" in caption


def test_small_errors_are_told_apart_on_a_logarithmic_axis():
    for ax in drawn("shift-cases").axes:
        assert ax.get_yscale() == "symlog"


def test_every_panel_of_the_evidence_has_a_range():
    axes = drawn("bayes-evidence").axes
    assert len(axes) == 4  # the two spans of years each have a scale of their own
    for ax in axes[2:]:
        ranges = [line for line in ax.lines if len(line.get_xdata()) == 2]
        assert len(ranges) == 5
        assert all(line.get_xdata()[0] < line.get_xdata()[1] for line in ranges)


def test_the_two_signs_of_a_shift_net_have_the_colours_of_the_signs():
    legend = drawn("shift-nets").axes[2].get_legend()
    shown = [
        (float(text.get_text().replace("−", "-")), to_hex(patch.get_facecolor()))
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    ]
    assert [mean > 0 for mean, _ in shown] == [False, True]
    assert [color for _, color in shown] == [plots.NEGATIVE, plots.POSITIVE]


def test_the_published_points_have_letters_upright_and_not_small():
    figure = ullrich2017.pareto(ullrich2017.Results(ullrich2017.HERE / "results"))
    for ax in figure.axes:
        assert ax.texts and all(t.get_rotation() == 0 and t.get_fontsize() >= 7 for t in ax.texts)
        assert [line for line in ax.lines if line.get_label() == "_seeds"]
