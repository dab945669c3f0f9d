"""Inspections that several tests look at, and a browser."""

import dataclasses
import json
import shutil

import cases
import pytest
import torch
from browsing import collapsing

from swsmix import plots
from swsmix.inspection import Picture, html_page
from swsmix.inspection.inspect import inspect


@pytest.fixture(scope="package")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pt"
    torch.save(cases.resnet50(), path)
    return inspect(path)


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
