"""The report page on a telephone, in the dark, and of several checkpoints."""

import io
import re

import numpy as np
import pytest
import torch
from browsing import column, find, text
from matplotlib.figure import Figure
from PIL import Image

from swsmix import plots
from swsmix.inspection import Picture, html_page
from swsmix.inspection.comparison import compare
from swsmix.inspection.inspect import inspect

pytestmark = pytest.mark.browser


@pytest.fixture
def window(driver):
    def resize(width, mode="light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": mode}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    yield resize
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture
def page(driver, tmp_path):
    def open_(shown, pictures=()):
        path = tmp_path / "report.html"
        path.write_text(html_page(shown, pictures), encoding="utf-8")
        driver.get(path.as_uri())
        return driver

    yield open_
    assert driver.get_log("browser") == []


def checkpoint(path, far=0.0, **others):
    w = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    w[0, 0] = far
    torch.save({"w": w} | others, path)
    return inspect(path)


def test_the_chart_is_drawn_for_a_narrow_window_and_not_shrunk(page, window, tmp_path):
    found = checkpoint(tmp_path / "a.pt")
    for width in (1280, 390):
        window(width)
        driver = page(found)
        assert (
            driver.execute_script(
                "const all = document.documentElement; return all.scrollWidth - all.clientWidth"
            )
            <= 0
        )
        for label in find(driver, "#chart text"):
            scale = driver.execute_script(
                "const m = arguments[0].getScreenCTM(); return Math.hypot(m.a, m.b)", label
            )
            assert scale == pytest.approx(1.0, abs=0.01)  # a letter is as large as everywhere
        assert len(find(driver, "#chart .bar")) > 50
        block = find(driver, "#layers tbody tr")[0].value_of_css_property("display")
        assert (block == "grid") == (width == 390)
    window(700)  # the same page, in a window that changes
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 100))")
    drawn, wide = driver.execute_script(
        "const chart = document.getElementById('chart');"
        "return [chart.viewBox.baseVal.width, chart.getBoundingClientRect().width]"
    )
    assert drawn == pytest.approx(wide, abs=1) and 600 < wide < 700


def luminance(color):
    red, green, blue = (int(v) for v in color[color.index("(") + 1 : -1].split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_is_readable_by_the_systems_setting(page, window, tmp_path, mode):
    window(1100, mode)
    driver = page(checkpoint(tmp_path / "a.pt"))
    (body,) = find(driver, "body")
    paper = luminance(body.value_of_css_property("background-color"))
    assert (paper < 0.2) == (mode == "dark")
    for css in ("h1", "#legend", "#layers td", "#layers td button", "#components td"):
        ink = luminance(find(driver, css)[0].value_of_css_property("color"))
        assert abs(ink - paper) > 0.45, css


def pixels_of(picture):
    """The colours of a picture as it is seen, (height, width, 3)."""
    png = Image.open(io.BytesIO(picture.screenshot_as_png)).convert("RGB")
    return np.asarray(png).astype(int)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_picture_lies_on_the_pages_ground_with_the_components_own_colours(
    page, window, tmp_path, mode
):
    window(1100, mode)
    bars = plots.hinton(torch.tensor([[-1.0, 1.0]]))
    found = checkpoint(tmp_path / "a.pt")
    driver = page(found, [Picture("a", "A.", bars)])
    (body,) = find(driver, "body")
    shown = body.value_of_css_property("background-color")
    ground = [int(v) for v in re.findall(r"\d+", shown)[:3]]
    pixels = pixels_of(find(driver, "#figures img")[0])
    assert np.abs(pixels[2, 2] - ground).max() <= 2
    for color in (plots.NEGATIVE, plots.POSITIVE):
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(-1) <= 4).sum() > 100, color
    greys = pixels[np.ptp(pixels, axis=-1) <= 4].mean(-1)
    ink = np.abs(greys - np.mean(ground)).max()
    assert ink > 180  # letters stand out
    assert mode == "light" or pixels.max(-1).min() > 15  # nothing is left black


@pytest.mark.parametrize(("mode", "white"), [("light", 255), ("dark", 22)])
def test_white_in_an_image_of_greys_is_the_ground_too(page, window, tmp_path, mode, white):
    window(1100, mode)
    figure = Figure(figsize=(2, 2))
    figure.add_axes((0, 0, 1, 1)).imshow([[1.0, 0.4]], cmap="gray", vmin=0.0, aspect="auto")
    driver = page(checkpoint(tmp_path / "a.pt"), [Picture("a", "A.", figure)])
    pixels = pixels_of(find(driver, "#figures img")[0])
    height, width, _ = pixels.shape
    assert np.abs(pixels[height // 2, width // 4] - white).max() <= 2


def test_only_components_that_own_weights_have_a_colour(page, window, tmp_path):
    window(1100, "light")
    found = checkpoint(tmp_path / "a.pt")
    assert (found.groups[0].claimed > 0).all()
    colors = plots.component_colors(found.groups[0].mixture.mean)
    alone = next(j for j, color in enumerate(colors) if colors.count(color) == 1)
    found.groups[0].layers[0].claimed[alone] = 0  # as of one that another covers everywhere
    driver = page(found)
    swatches = find(driver, "#components .swatch")
    idle = ["idle" in s.get_attribute("class") for s in swatches]
    assert idle == [j == alone for j in range(len(idle))]
    painted = {
        node.get_attribute(name)
        for css, name in ((".bar", "fill"), (".component", "stroke"), (".centre", "fill"))
        for node in find(driver, f"#chart {css}")
    }
    assert colors[alone] not in painted
    assert len(find(driver, "#chart .centre")) == len(idle) - 1


def test_a_centre_just_beyond_its_weights_is_marked(page, window, tmp_path):
    window(1100, "light")
    found = checkpoint(tmp_path / "a.pt")
    group = found.groups[0]
    (low, high), mean = (float(group.edges[i]) for i in (0, -1)), group.mixture.mean
    mean[0], mean[-1] = low - 0.05 * (high - low), high + 0.05 * (high - low)
    driver = page(found)
    assert len(find(driver, "#chart .centre")) == len(mean)
    (chart,) = find(driver, "#chart")
    for mark in find(driver, "#chart .centre"):
        assert chart.rect["x"] <= mark.rect["x"]
        assert mark.rect["x"] + mark.rect["width"] <= chart.rect["x"] + chart.rect["width"]


def test_the_legend_names_the_means_of_each_colour(page, window, tmp_path):
    window(1100, "light")
    found = checkpoint(tmp_path / "a.pt")
    mixture = found.groups[0].mixture
    driver = page(found)
    colors = plots.component_colors(mixture.mean)
    shared = {c: [j for j, each in enumerate(colors) if each == c] for c in colors}
    assert max(map(len, shared.values())) > 1
    entries = find(driver, "#colors > span")
    assert len(entries) == len(shared)
    for entry, own in zip(entries, shared.values(), strict=True):
        numbers = [float(t) for t in re.findall(r"-?\d+\.\d+", entry.text.replace("−", "-"))]
        means = mixture.mean[own].tolist()
        assert numbers == pytest.approx([*dict.fromkeys([means[0], means[-1]])], rel=1e-2)
        assert (f"({len(own)} components)" in entry.text) == (len(own) > 1)


def test_a_single_outlier_is_ringed_and_a_page_without_has_no_ring(page, window, tmp_path):
    window(1100, "light")
    driver = page(checkpoint(tmp_path / "a.pt", far=30.0))
    (ring,) = find(driver, "#chart .outlier")
    bars = find(driver, "#chart .bar")
    assert float(ring.get_attribute("cx")) >= max(float(bar.get_attribute("x")) for bar in bars)
    assert find(driver, "#rings")[0].is_displayed()
    assert min(float(bar.get_attribute("height")) for bar in bars) > 5
    driver = page(checkpoint(tmp_path / "b.pt"))
    assert find(driver, "#chart .outlier") == [] and not find(driver, "#rings")[0].is_displayed()


def test_checkpoints_are_side_by_side_and_each_is_shown(page, tmp_path):
    files = [tmp_path / name for name in ("a.pt", "b.pt")]
    own = {"v": torch.rand(20, 20)}
    compared = compare([checkpoint(files[0]), checkpoint(files[1], far=30.0, **own)])
    driver = page(compared)
    names = [n.text for n in find(driver, "#compared-chart .name")]
    assert names == ["a.pt", "b.pt"] and len(find(driver, "#compared-chart .outlier")) == 1
    rows = [[c.text.replace("−", "-") for c in row.find_elements("css selector", "td")]
            for row in find(driver, "#compared tbody tr")]  # fmt: skip
    for cells, row in zip(rows, compared.rows, strict=True):
        shown = [f"{v['kurtosis']:.2f}" if v else "not there" for v in row.values]
        change = row.difference(1, "kurtosis")
        expected = f"{change:+.2f}" if row.reference("kurtosis") == 0 else "–"
        assert cells == [row.name, *shown, expected]
    assert column(driver, 0) == ["w"]
    find(driver, "#checkpoint option")[1].click()
    assert column(driver, 0) == ["w", "v"] and "b.pt" in text(driver, "#summary")
    find(driver, "#row option")[2].click()
    assert "has no such tensor" in text(driver, "#compared-chart")
