"""The report page in a real browser, from a file:// address: it works, and fetches nothing."""

import re
import time

import pytest
import torch
from browsing import NAMES, column, find, focus, keys, readout, text

from swsmix.inspection import html_page
from swsmix.inspection.inspect import inspect
from swsmix.mixture import GaussianMixture

pytestmark = pytest.mark.browser


def test_the_summary_and_the_figures_are_there(browser, inspection):
    summary = text(browser, "#summary")
    for entry in ("net.pt", "PyTorch checkpoint", "816", "clusters in use"):
        assert entry in summary
    (image,) = find(browser, "#figures img")
    assert browser.execute_script("return arguments[0].naturalWidth", image) > 100
    assert find(browser, "#x") == []  # a tensor's name is no markup
    assert NAMES[3] in column(browser, 0)


def test_the_slider_walks_through_training(browser, inspection):
    assert text(browser, "#moment") == "epoch 10"
    bars = len(find(browser, "#chart .bar"))
    assert bars == 3  # collapsed onto three values
    focus(browser, "#slider")
    keys(browser, "HOME")
    assert text(browser, "#moment") == "epoch 0"
    assert len(find(browser, "#chart .bar")) > 50
    keys(browser, "ARROW_RIGHT", "ARROW_RIGHT")
    assert text(browser, "#moment") == "epoch 2"
    stds = [
        row.find_elements("css selector", "td")[3].text
        for row in find(browser, "#components tbody tr")
    ]
    assert stds == ["0.41", "0.246", "0.328"]


def test_play_goes_to_the_end_and_stops(browser):
    focus(browser, "#play")
    keys(browser, "SPACE")
    assert text(browser, "#play") == "stop"
    deadline = time.monotonic() + 20
    while text(browser, "#play") == "stop":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert text(browser, "#moment") == "epoch 10"


def test_keys_and_pointer_read_the_histogram(browser, inspection):
    from selenium.webdriver import ActionChains

    focus(browser, "#slider")
    keys(browser, "HOME")
    record = {n: v[0] for n, v in inspection.history.series["all"].items()}
    mixture = GaussianMixture(record["mixing"], record["mean"], record["std"])
    focus(browser, "#chart")
    keys(browser, "END", "HOME")
    seen = []
    for i in range(0, 256, 5):
        low, high, count, component, gamma = readout(browser)
        assert low == pytest.approx(record["bin_edges"][i].item(), rel=2e-3, abs=1e-4)
        assert high == pytest.approx(record["bin_edges"][i + 1].item(), rel=2e-3, abs=1e-4)
        assert count == record["bin_counts"][i]
        middle = (record["bin_edges"][i] + record["bin_edges"][i + 1]) / 2
        expected = mixture.responsibilities(middle)
        assert component - 1 == expected.argmax()
        assert gamma == pytest.approx(expected.max().item(), abs=1e-3)
        seen.append((component, count))
        keys(browser, *["ARROW_RIGHT"] * 5)
    assert {component for component, count in seen if count} == {1, 2, 3}
    # The pointer: the left half of the bars lies left of the middle of the axis.
    (chart,) = find(browser, "#chart")
    for offset in (-200, 150):
        ActionChains(browser).move_to_element_with_offset(chart, offset, 0).perform()
        low, high, *_ = readout(browser)
        assert (low < 0) == (offset < 0)
        assert len(find(browser, "#chart .cursor")) == 1


def test_the_scale_is_logarithmic_or_linear(browser, inspection):
    heights = []
    for _ in range(2):
        heights.append(
            sorted(float(b.get_attribute("height")) for b in find(browser, "#chart .bar"))
        )
        focus(browser, "#log")
        keys(browser, "SPACE")
    log, linear = heights
    counts = sorted(b for b in linear)
    assert linear[0] / linear[-1] < log[0] / log[-1] and len(counts) == 3


def test_millions_of_weights_have_labels_that_are_not_cut(driver, tmp_path):
    generator = torch.Generator().manual_seed(0)
    far = torch.tensor([1e6 - 2, 1e6, 1e6 + 2], dtype=torch.float64)
    w = far[torch.randint(3, (2000, 1000), generator=generator)]
    torch.save({"w": w}, tmp_path / "big.pt")
    (tmp_path / "report.html").write_text(html_page(inspect(tmp_path / "big.pt")), encoding="utf-8")
    driver.get((tmp_path / "report.html").as_uri())
    for _ in range(2):
        left = driver.execute_script(
            "return document.querySelector('#chart').getBoundingClientRect().left"
        )
        labels = find(driver, "#chart text")
        assert min(label.rect["x"] for label in labels) >= left
        shown = [label.text for label in labels]
        assert len(set(shown)) == len(shown) and any(re.fullmatch(r"\d+k", t) for t in shown)
        focus(driver, "#log")
        keys(driver, "SPACE")
    means = [
        row.find_elements("css selector", "td")[2].text
        for row in find(driver, "#components tbody tr")
    ]
    assert means == ["999998", "1000000", "1000002"]
    assert driver.get_log("browser") == []


def test_the_page_fits_its_window(browser, tmp_path):
    wide = "const all = document.documentElement; return all.scrollWidth - all.clientWidth"
    metrics = {"height": 1400, "deviceScaleFactor": 1, "mobile": False}
    for width in (1100, 500, 360):
        command = "Emulation.setDeviceMetricsOverride"
        browser.execute_cdp_cmd(command, metrics | {"width": width})
        assert browser.execute_script(wide) <= 0
        assert browser.save_screenshot(str(tmp_path / f"page-{width}.png"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_curve_runs_along_the_axis_where_there_is_nothing_to_see(browser):
    lines = find(browser, "#chart polyline")
    assert len(lines) == 4
    for line in lines:
        heights = [float(p.split(",")[1]) for p in line.get_attribute("points").split()]
        assert min(heights) < 300 < max(heights)  # the axis is at 300, and what is below is clipped
        assert all(abs(y - 300) > 1e-3 for y in heights)
    (sight,) = find(browser, "#chart svg")
    assert sight.get_attribute("height") == "300"
