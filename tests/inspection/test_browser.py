"""The report page in a real browser, from a file:// address: it works, and fetches nothing."""

import dataclasses
import json
import re
import shutil
import time

import pytest
import torch

from swsmix import plots
from swsmix.inspection import Picture, html_page
from swsmix.inspection.inspect import inspect
from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

pytestmark = pytest.mark.browser
NAMES = ["conv.weight", "fc1.weight", "fc2.weight", "</script><b id=x>evil</b>"]


def collapsing(path):
    """A checkpoint of four tensors and a history in which its weights collapse onto -1, 0, 1."""
    torch.manual_seed(0)
    sizes = ((10, 10), (30, 20), (20, 5), (4, 4))
    start = {name: 0.8 * torch.randn(size) for name, size in zip(NAMES, sizes, strict=True)}
    end = {name: w.round().clamp(-1, 1) for name, w in start.items()}
    torch.save(end, path)
    before, after = (torch.cat([w.flatten() for w in t.values()]) for t in (start, end))
    history = History()
    for t in range(11):
        w = before + t / 10 * (after - before)
        mixture = GaussianMixture(
            [0.3, 0.4, 0.3], [-1.0, 0.0, 1.0], [c * (1 - 0.09 * t) for c in (0.5, 0.3, 0.4)]
        )
        history.record({"epoch": float(t)}, {"all": (w, mixture, torch.ones(3))})
    return history


@pytest.fixture(scope="module")
def inspection(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "net.pt"
    history = collapsing(path)
    return dataclasses.replace(inspect(path), history=history)


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1100,1400",
                     "--disable-dev-shm-usage", "--disable-background-networking"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, inspection, tmp_path):
    """The page, freshly opened; afterwards nothing was fetched and the console is empty."""
    pictures = [Picture("a", "A figure.", plots.entropy({"a": 1.0}))]
    (tmp_path / "report.html").write_text(html_page(inspection, pictures), encoding="utf-8")
    driver.get_log("performance")
    driver.get((tmp_path / "report.html").as_uri())
    yield driver
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked[0] == (tmp_path / "report.html").as_uri()
    assert all(url.startswith("data:image/svg+xml") for url in asked[1:]) and len(asked) > 1


def find(browser, css):
    return browser.find_elements("css selector", css)


def text(browser, css):
    (node,) = find(browser, css)
    return node.text


def keys(browser, *names):
    from selenium.webdriver import ActionChains, Keys

    for name in names:
        key = getattr(Keys, name, name)
        ActionChains(browser).send_keys(key).perform()


def focus(browser, css):
    browser.execute_script("document.querySelector(arguments[0]).focus()", css)


def column(browser, i):
    return [
        row.find_elements("css selector", "td")[i].text for row in find(browser, "#layers tbody tr")
    ]


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


def readout(browser):
    """(low, high, count, component, responsibility) of the line below the histogram."""
    line = text(browser, "#readout").replace("−", "-").replace(",", "")
    found = re.fullmatch(
        r"weights from (\S+) to (\S+): (\d+) \(.*\); component (\d+) of 3 \(mean .*\) with "
        r"responsibility (\S+)", line)  # fmt: skip
    assert found, line
    return [float(value) for value in found.groups()]


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


def test_the_table_sorts_both_ways(browser):
    original = column(browser, 0)
    assert original == NAMES
    heads = find(browser, "#layers th button")
    heads[2].click()
    sizes = [int(size) for size in column(browser, 2)]
    assert sizes == sorted(sizes, reverse=True)
    assert find(browser, '#layers th[aria-sort="descending"]')[0].text.startswith("weights")
    browser.execute_script("arguments[0].focus()", heads[2])
    keys(browser, "ENTER")
    assert [int(size) for size in column(browser, 2)] == sorted(sizes)
    heads[0].click()
    assert column(browser, 0) == [NAMES[3], *NAMES[:3]]
    assert len(find(browser, '#layers th:not([aria-sort="none"])[aria-sort]')) == 1
    heads[0].click()
    assert column(browser, 0) == [*reversed(NAMES[:3]), NAMES[3]]
    heads[0].click()  # the third click goes back to the order of the network
    assert column(browser, 0) == NAMES
    assert find(browser, '#layers th:not([aria-sort="none"])[aria-sort]') == []


def test_names_break_after_their_dots_and_sort_by_their_numbers(driver, tmp_path):
    names = ["layers.10.weight", "layers.9.weight", "layers.2.weight"]
    torch.save({name: torch.randn(20, 20) for name in names}, tmp_path / "a.pt")
    (tmp_path / "report.html").write_text(html_page(inspect(tmp_path / "a.pt")), encoding="utf-8")
    driver.get((tmp_path / "report.html").as_uri())
    assert len(find(driver, "#layers tbody tr:first-child wbr")) == 2
    find(driver, "#layers th button")[0].click()
    assert column(driver, 0) == names[::-1]


def test_the_components_have_numbers_weights_and_shares(browser, inspection):
    def rows():
        return [[c.text for c in r.find_elements("css selector", "td")]
                for r in find(browser, "#components tbody tr")]  # fmt: skip

    def expected(claimed, size):
        return [
            (str(j + 1), f"{int(n):,}", f"{100 * int(n) / size:.1f} %")
            for j, n in enumerate(claimed)
        ]

    def shown():
        return [(row[1], row[5], row[6]) for row in rows()]

    claimed = inspection.history.claimed("all")
    assert shown() == expected(claimed[-1], 816)
    focus(browser, "#slider")
    keys(browser, "HOME")
    assert shown() == expected(claimed[0], 816)
    focus(browser, "#layers tbody tr:nth-child(2) button")
    keys(browser, "ENTER")
    assert shown() == expected(inspection.layers[1][0].claimed, 600)
    assert "centres" in text(browser, "#legend")


def test_the_filter_keeps_the_tensors_that_match(browser):
    (field,) = find(browser, "#filter")
    field.send_keys("FC")
    assert column(browser, 0) == ["fc1.weight", "fc2.weight"]
    assert text(browser, "#matching") == "2 of 4 tensors"
    field.send_keys("nothing")
    assert column(browser, 0) == [] and text(browser, "#matching") == "0 of 4 tensors"
    field.clear()
    field.send_keys(" ")
    assert len(column(browser, 0)) == 4


def test_a_row_shows_its_tensor_alone_and_back(browser, inspection):
    focus(browser, "#layers tbody tr:nth-child(2) button")
    keys(browser, "ENTER")
    assert text(browser, "#shown") == "fc1.weight alone"
    assert not find(browser, "#time")[0].is_displayed()
    focus(browser, "#chart")
    keys(browser, "HOME")
    total = 0
    for _ in range(len(inspection.groups[0].counts)):
        total += readout(browser)[2]
        keys(browser, "ARROW_RIGHT")
    assert total == 600
    find(browser, "#whole")[0].click()
    assert text(browser, "#shown").startswith("816 weights")
    assert find(browser, "#time")[0].is_displayed()


@pytest.mark.parametrize("how", ["click", "key"])
def test_a_chosen_tensor_brings_its_histogram_into_view(browser, how):
    browser.set_window_size(1100, 700)
    try:
        browser.execute_script("scrollTo(0, document.body.scrollHeight)")
        button = find(browser, "#layers tbody tr button")[2]
        places = """const sides = (id) => document.getElementById(id).getBoundingClientRect();
            const [chart, shown] = [sides("chart"), sides("shown")];
            return [shown.top, chart.bottom, innerHeight]"""
        assert browser.execute_script(places)[0] < 0
        if how == "click":
            browser.execute_script("arguments[0].click()", button)
        else:
            browser.execute_script("arguments[0].focus({ preventScroll: true })", button)
            keys(browser, "ENTER")
        top, bottom, height = browser.execute_script(places)
        assert 0 <= top < bottom <= height
        assert text(browser, "#shown") == "fc2.weight alone"
        assert find(browser, "#shown")[0].get_attribute("aria-live") == "polite"
    finally:
        browser.set_window_size(1100, 1400)


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


def test_one_weight_is_no_plural(driver, tmp_path):
    torch.save({"w": torch.ones(1, 1), "b": torch.ones(1)}, tmp_path / "one.pt")
    (tmp_path / "report.html").write_text(html_page(inspect(tmp_path / "one.pt")), encoding="utf-8")
    driver.get((tmp_path / "report.html").as_uri())
    assert text(driver, "#shown").startswith("1 weight;")
    assert text(driver, "#matching") == "1 of 1 tensor"
    points = find(driver, "#chart .total")[0].get_attribute("points").split()
    assert min(float(point.split(",")[1]) for point in points) < 250  # its curve is in sight
    assert text(driver, "#left-out summary") == "1 tensor left out"
