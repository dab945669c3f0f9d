"""The command line: `swsmix train`, `swsmix reproduce`."""

from swsmix.cli import reproduce as _reproduce  # noqa: F401 -- registers its command on `app`
from swsmix.cli import train as _train  # noqa: F401 -- registers its command on `app`
from swsmix.cli.app import app, main

__all__ = ["app", "main"]
