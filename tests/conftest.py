"""Shapes are checked in tests; tests that cannot run here are deselected, with the reason."""

import importlib.util
import os
import shutil
import signal
from pathlib import Path

import checked
import hypothesis
import pytest
import torch

# They hold no examples to run, and when several are collected as modules their names clash.
collect_ignore_glob = ["*conftest.py"]

checked.install()  # before anything imports swsmix

# A property is tried on the same cases in every run, so that a failure is about the change at
# hand. `--hypothesis-profile hunt --hypothesis-seed 7` searches elsewhere, and longer. There is no
# deadline: the first case may compile.
hypothesis.settings.register_profile("alike", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.register_profile("hunt", deadline=None, max_examples=400)
hypothesis.settings.load_profile("hunt" if os.environ.get("SWSMIX_HUNT") == "full" else "alike")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell: the commands that tests interrupt would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _has_mnist() -> bool:
    folder = os.environ.get("SWSMIX_DATA")
    return folder is not None and Path(folder).is_dir()


def pytest_collection_modifyitems(config, items):
    missing = {}
    if not _has_mnist():
        missing["mnist"] = "SWSMIX_DATA names no folder with the MNIST files"
    if not torch.cuda.is_available():
        missing["gpu"] = "torch finds no CUDA device"
    absent = [name for name in _FRAMEWORKS if importlib.util.find_spec(name) is None]
    if absent:
        missing["frameworks"] = f"not installed: {', '.join(absent)}"
    tools = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    tools += ["selenium"] if importlib.util.find_spec("selenium") is None else []
    if tools:
        missing["browser"] = f"not installed: {', '.join(tools)}"
    config.stash[_REASONS] = []
    for marker, reason in missing.items():
        gone = [item for item in items if item.get_closest_marker(marker)]
        if gone:
            items[:] = [item for item in items if item not in gone]
            config.hook.pytest_deselected(items=gone)
            config.stash[_REASONS].append(f"{len(gone)} tests marked {marker!r} not run: {reason}")


@pytest.fixture(autouse=True)
def _drawn_alike(request):
    """Each test draws the same, whichever tests ran before it in its process."""
    if not request.node.get_closest_marker("hunt"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run of three epochs; its prior sees one of the network's two weight matrices."""
    import cases

    from swsmix import MixturePrior, fit

    folder = tmp_path_factory.mktemp("run") / "run"
    net, x = cases.network(), torch.randn(40, 6)
    prior = MixturePrior(net, 4, exclude="0.weight")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    y = (x[:, 0] > 0).long()
    loss = torch.nn.CrossEntropyLoss()
    fit(net, loss, (x, y), optimizer=optimizer, epochs=3, prior=prior, run=folder, progress=False)
    return folder


def pytest_terminal_summary(terminalreporter, config):
    for reason in config.stash.get(_REASONS, []):
        terminalreporter.write_line(reason, yellow=True)


_FRAMEWORKS = ("lightning", "transformers", "accelerate")
_REASONS = pytest.StashKey[list]()
