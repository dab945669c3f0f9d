"""Pictures on a dark page: greys change places, the colours of components do not."""

import base64
import io
import re
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from swsmix import GaussianMixture, plots
from swsmix.inspection.dark import PAPER, for_both, opposite

MIXTURE = GaussianMixture([0.3, 0.4, 0.3], [-0.5, 0.0, 0.5], [0.05, 0.02, 0.05])
COLORS = r"(?:fill|stroke): (#[0-9a-f]{6})"


@pytest.fixture
def svg(tmp_path):
    def of(figure):
        return plots.save(figure, tmp_path / "x.svg").read_text(encoding="utf-8")

    return of


def is_grey(color):
    return color[1:3] == color[3:5] == color[5:7]


def test_every_grey_follows_the_setting_and_no_colour_does(svg):
    weights = MIXTURE.sample(300, generator=torch.Generator().manual_seed(0))
    before = svg(plots.clusters(weights, MIXTURE))
    after = for_both(before)
    colored, plain = (re.findall(COLORS, text) for text in (before, after))
    assert plain == [color for color in colored if not is_grey(color)]
    greys = [color for color in colored if is_grey(color)]
    used = re.findall(r"(?:fill|stroke): var\((--g[0-9a-f]{2})\)", after.split("</style>", 1)[1])
    assert used == [f"--g{color[1:3]}" for color in greys] and len(set(used)) >= 4
    light, dark = after.split("@media (prefers-color-scheme: dark)")[0], after.split("@media")[1]
    for name in set(used):
        assert f"{name}: #{3 * name[3:]}" in light
        assert f"{name}: #{3 * format(opposite(int(name[3:], 16)), '02x')}" in dark


def test_opposites_are_in_the_reverse_order_and_white_is_the_pages_ground():
    values = [opposite(grey) for grey in range(256)]
    assert values == sorted(values, reverse=True)
    css = (files("swsmix.inspection") / "page.css").read_text(encoding="utf-8")
    dark = css.split("prefers-color-scheme: dark")[1]
    assert opposite(255) == PAPER and f"--paper: #{3 * format(PAPER, '02x')}" in dark
    assert opposite(0) > 220


@pytest.mark.parametrize(("rgb", "kind"), [((90, 90, 90), "grey"), ((0, 114, 178), "colour")])
def test_an_embedded_image_of_greys_alone_is_inverted(rgb, kind):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), rgb, dtype=np.uint8)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    text = for_both(f'<svg><image x="1" xlink:href="data:image/png;base64,\n{data}"/></svg>')
    assert f'<image class="{kind}" x="1"' in text
