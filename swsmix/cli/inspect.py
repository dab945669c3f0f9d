"""`swsmix inspect`: look into any checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from swsmix.cli import posterior as posteriors
from swsmix.cli.app import app


class Format(StrEnum):
    """Kinds of figures."""

    png = "png"
    pdf = "pdf"
    svg = "svg"


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a checkpoint in it, a PyTorch or safetensors file, or a folder of "
            "those.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for figures and page; PATH's name + -inspect by default."),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write report.html too, one self-contained page.")
    ] = False,
    figures: Annotated[bool, typer.Option(help="Write the figures.")] = True,
    form: Annotated[Format, typer.Option("--format", help="Of the figures.")] = Format.png,
    animate: Annotated[
        bool, typer.Option("--animate", help="Write the collapse of a run as a GIF too.")
    ] = False,
    components: Annotated[int, typer.Option(min=1, help="K of a mixture that is fitted here.")] = 7,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="Fit one mixture for each tensor, not one for all.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Take these tensors only (shell-style pattern; repeatable)."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave these tensors out (repeatable).")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit a mixture even where the run has its own.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the sample that a mixture is fitted to.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table, no progress.")] = False,
) -> None:
    """Show the clusters in the weights of any checkpoint.

    Prints a table, and writes figures and, with --html, a page that needs no network. A checkpoint
    without a mixture gets one fitted to it on the spot, by EM; so does a choice of tensors.
    Pickled code in a checkpoint is refused, never run.

    **Examples**

    - `swsmix inspect runs/sunspots --html`

    - `swsmix inspect model.pt --components 16 --exclude "embed*" --format pdf`

    - `swsmix inspect model.safetensors --per-tensor --no-figures`
    """
    import torch
    from rich.console import Console

    from swsmix import report
    from swsmix.inspect import inspect as look

    torch.set_num_threads(1)  # most of it is not torch's; and sums depend on how they are split
    console = Console()
    inspection = look(
        path,
        num_components=components,
        per_tensor=per_tensor,
        include=include or (),
        exclude=exclude or (),
        refit=refit,
        seed=seed,
    )
    ascii_only = console.options.ascii_only
    if not quiet:
        console.print(report.terminal(inspection, width=console.width, ascii_only=ascii_only))
    posterior = posteriors.shown(path)
    if posterior is not None and not quiet:
        console.print("\nposterior.safetensors", markup=False, highlight=False)
        for name, value in posteriors.described(posterior).items():
            console.print(f"  {name}: {value:.4g}", markup=False, highlight=False)
    if animate:
        _check_history(inspection)
    if not (figures or html or animate):
        return
    out = out or Path(f"{path.resolve().name}-inspect")
    out.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    pictures = _saved(inspection, out, form if figures else None, written, quiet=quiet)
    if html:
        from swsmix import runs

        with runs.replacing(out / "report.html") as temporary:
            temporary.write_text(report.page(inspection, pictures), encoding="utf-8")
        written.append("report.html")
    for _ in pictures:  # those that no page has asked for
        pass
    if figures and posterior is not None:
        from swsmix import plots

        for name, figure in posteriors.drawn(posterior).items():
            written.append(f"{report.file_name(name)}.{form.value}")
            plots.save(figure, out / written[-1])
    if animate:
        written += _films(inspection, out)
    if not quiet:
        line = f"\nwritten to {out}/: {', '.join(written)}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _saved(
    inspection: Any, out: Path, form: Format | None, written: list[str], *, quiet: bool
) -> Iterator[Any]:
    """The pictures, each written to a file on its way, with a progress line for a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from swsmix import plots, report

    columns = (SpinnerColumn(), TextColumn("drawing {task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("")
        for picture in report.figures(inspection):
            bar.update(task, description=picture.name)
            if form is not None:
                name = f"{report.file_name(picture.name)}.{form.value}"
                plots.save(picture.figure, out / name)
                written.append(name)
            yield picture


def _check_history(inspection: Any) -> None:
    if inspection.history is None or not inspection.history.groups:
        raise ValueError(
            f"--animate wants the history of a run; {inspection.path} is a {inspection.kind}"
        )


def _films(inspection: Any, out: Path) -> list[str]:
    from swsmix import plots, report

    history = inspection.history
    names = []
    for group in history.groups:
        suffix = "" if len(history.groups) == 1 else report.file_name(f"-{group}")
        names.append(f"collapse{suffix}.gif")
        plots.animate_collapse(history, out / names[-1], group)
    return names
