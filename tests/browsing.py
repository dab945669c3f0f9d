"""A report page in a browser: a run that collapses, and what a reader finds and does."""

import re

import torch

from swsmix.mixture import GaussianMixture
from swsmix.training.history import History

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


def readout(browser):
    """(low, high, count, component, responsibility) of the line below the histogram."""
    line = text(browser, "#readout").replace("−", "-").replace(",", "")
    found = re.fullmatch(
        r"weights from (\S+) to (\S+): (\d+) \(.*\); component (\d+) of 3 \(mean .*\) with "
        r"responsibility (\S+)", line)  # fmt: skip
    assert found, line
    return [float(value) for value in found.groups()]
