"""The command line: `swsmix train`, `inspect`, `compress`, `decompress`, `reproduce`."""

# Each registers its commands on `app`.
from swsmix.cli import compress as _compress  # noqa: F401
from swsmix.cli import inspect as _inspect  # noqa: F401
from swsmix.cli import reproduce as _reproduce  # noqa: F401
from swsmix.cli import train as _train  # noqa: F401
from swsmix.cli.app import app, main

__all__ = ["app", "main"]
