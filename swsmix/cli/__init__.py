"""The command line: `swsmix train`, `inspect`, `compress`, `decompress`, `reproduce`."""

from swsmix.cli import compress, inspect, reproduce, train  # each registers its commands on `app`
from swsmix.cli.app import app, main

__all__ = ["app", "compress", "inspect", "main", "reproduce", "train"]
