"""The command line: `swsmix train`, `inspect`, `compress`, `decompress`, `reproduce`, `guide`.

Nothing here imports torch before a command runs, so that `--help` and `guide` answer at once.
"""

from swsmix.cli import _interrupts

with _interrupts.quiet():
    from swsmix.cli import (
        compress,
        decompress,
        guide,
        inspect,
        reproduce,
        train,
    )  # registers the commands
    from swsmix.cli.app import app, main

__all__ = ["app", "compress", "decompress", "guide", "inspect", "main", "reproduce", "train"]
