"""`python -m swsmix.cli`."""

from swsmix.cli import main

main()
