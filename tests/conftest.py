"""Shapes are checked in tests; tests without their data or tools are deselected, and it is said."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

hook = install_import_hook("swsmix", "beartype.beartype")  # before anything imports swsmix


def _has_mnist() -> bool:
    folder = os.environ.get("SWSMIX_DATA")
    return folder is not None and Path(folder).is_dir()


def pytest_collection_modifyitems(config, items):
    missing = {}
    if not _has_mnist():
        missing["mnist"] = "SWSMIX_DATA names no folder with the MNIST files"
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


def pytest_terminal_summary(terminalreporter, config):
    for reason in config.stash.get(_REASONS, []):
        terminalreporter.write_line(reason, yellow=True)


_FRAMEWORKS = ("lightning", "transformers", "accelerate")
_REASONS = pytest.StashKey[list]()
