"""The command line: `swsmix train`, `compress`, `decompress`."""

from swsmix.cli import compress as _compress  # noqa: F401
from swsmix.cli import train as _train  # noqa: F401 -- registers its command on `app`
from swsmix.cli.app import app, main

__all__ = ["app", "main"]
