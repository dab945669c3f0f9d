"""The command line: `swsmix train`, `inspect`, `compress`, `export`, `reproduce`, `guide` and more.

Nothing here imports torch before a command runs, so that `--help` and `guide` answer at once.
"""

from swsmix.cli import _interrupts

with _interrupts.quiet():
    # Registers the commands.
    from swsmix.cli import compress, decompress, export, guide, inspect, reproduce, train
    from swsmix.cli.app import app, main

__all__ = [
    "app",
    "compress",
    "decompress",
    "export",
    "guide",
    "inspect",
    "main",
    "reproduce",
    "train",
]
