"""The command line: `swsmix train`, `swsmix inspect`, `swsmix reproduce`."""

# Each registers its command on `app`.
from swsmix.cli import inspect as _inspect  # noqa: F401
from swsmix.cli import reproduce as _reproduce  # noqa: F401
from swsmix.cli import train as _train  # noqa: F401
from swsmix.cli.app import app, main

__all__ = ["app", "main"]
