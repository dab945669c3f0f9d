"""Searches for faults: a sample by default, all of them with `SWSMIX_HUNT=full`."""

import os

import pytest


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the whole search was asked for; what it found is written in tests/hunt.md."""
    return os.environ.get("SWSMIX_HUNT") == "full"
