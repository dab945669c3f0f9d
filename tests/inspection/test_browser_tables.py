"""The tables of the report page in a real browser: they sort, filter and show a tensor alone."""

import pytest
import torch
from browsing import NAMES, column, find, focus, keys, readout, text

from swsmix.inspection import html_page
from swsmix.inspection.inspect import inspect

pytestmark = pytest.mark.browser


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


def test_one_weight_is_no_plural(driver, tmp_path):
    torch.save({"w": torch.ones(1, 1), "b": torch.ones(1)}, tmp_path / "one.pt")
    (tmp_path / "report.html").write_text(html_page(inspect(tmp_path / "one.pt")), encoding="utf-8")
    driver.get((tmp_path / "report.html").as_uri())
    assert text(driver, "#shown").startswith("1 weight;")
    assert text(driver, "#matching") == "1 of 1 tensor"
    points = find(driver, "#chart .total")[0].get_attribute("points").split()
    assert min(float(point.split(",")[1]) for point in points) < 250  # its curve is in sight
    assert text(driver, "#left-out summary") == "1 tensor left out"
