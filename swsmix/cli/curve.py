"""`swsmix compress --curve`: file size against distortion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch import Tensor


def print_curve(
    state: Mapping[str, Tensor],
    picture: Path,
    *,
    zero: bool,
    exact: Collection[str],
    quiet: bool,
) -> None:
    """Print the sizes of the whole file at several distortions, and draw them.

    Raises:
        ValueError: if there is nothing to quantise.
    """
    from rich.console import Console
    from rich.table import Table

    from swsmix._progress import watched
    from swsmix.compression.rate import Network, rate_curve
    from swsmix.plots import save
    from swsmix.plots.rate import rate_distortion

    network = Network(state, zero=zero, exact=exact, progress=not quiet)
    points = list(watched(rate_curve(network), "files", shown=not quiet))
    save(rate_distortion({"": [(float(p.size), p.loss) for p in points]}), picture)
    if quiet:
        return
    whole = sum(t.nbytes for t in state.values())
    table = Table(title="size of the whole file against distortion", title_justify="left")
    for column in ("loss", "bits per weight", "bytes", "x smaller"):
        table.add_column(column, justify="right")
    for p in points:
        ratio = f"{whole / p.size:.1f}"
        table.add_row(f"{p.loss:.3g}", f"{p.bits:.2f}", f"{p.size:,}", ratio)
    Console(width=None).print(table)
    typer.echo(f"loss: squared change over the weights' variance; drawn in {picture}")
