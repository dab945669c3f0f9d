"""Imports matplotlib whatever `MPLBACKEND` says: the figures here use no backend of the user's.

matplotlib refuses to be imported with a backend that is not installed, and a notebook of another
environment leaves the name of one behind.
"""

from __future__ import annotations

import contextlib
import os
import sys


def import_matplotlib() -> None:
    """Import matplotlib, with the backend that `MPLBACKEND` names only if there is such a one."""
    if "matplotlib" in sys.modules:
        return
    name = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if name is not None:
            os.environ["MPLBACKEND"] = name
    if name:
        with contextlib.suppress(ValueError):  # else matplotlib chooses one, if ever it needs one
            matplotlib.rcParams["backend"] = name


import_matplotlib()
