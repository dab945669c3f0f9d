"""`python -m swsmix`."""

from swsmix.cli import main

main()
