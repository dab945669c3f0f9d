"""`swsmix inspect`: look into any checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from swsmix._files import make_folder, replacing
from swsmix.cli import posterior as posteriors
from swsmix.cli.app import app
from swsmix.cli.inspect_files import Format, compare, save_figures, say_written


class Measure(StrEnum):
    """What tensors are sorted by; see `swsmix.inspection.measures`."""

    kurtosis = "kurtosis"
    gg_shape = "gg-shape"
    left = "left"
    bits = "bits"
    nonzero = "non-zero"
    outliers = "outliers"
    clusters = "clusters"
    weights = "weights"


@app.command()
def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A run folder, a checkpoint in it, a compressed file (.sws), a PyTorch or "
            "safetensors file, a folder of those, or its index (.index.json). Several are compared "
            "(epochs, or models side by side).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for figures and page; by default PATH's name + -inspect, of several "
            "compared-inspect."
        ),
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also write report.html, one self-contained page.")
    ] = False,
    figures: Annotated[bool, typer.Option(help="Write the figures.")] = True,
    form: Annotated[Format, typer.Option("--format", help="The figures' format.")] = Format.png,
    animate: Annotated[
        bool, typer.Option("--animate", help="Also write a run's collapse as a GIF.")
    ] = False,
    components: Annotated[
        int | None, typer.Option(min=1, help="K of a fitted mixture; 7 by default.")
    ] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="Fit one mixture per tensor, not one for all.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Inspect these tensors only (shell-style pattern; repeatable)."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Omit these tensors (repeatable).")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit a mixture even if PATH has its own.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the sample that a mixture is fitted to; 0 by default."),
    ] = None,
    max_weights: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most numbers of a compressed file; by default what its size makes plausible.",
        ),
    ] = None,
    sort: Annotated[
        Measure | None,
        typer.Option(
            help="Sort the tensors by this, the largest first; of several files, by its change."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No table, no progress.")] = False,
    bytes_: Annotated[
        bool,
        typer.Option("--bytes", help="Only print where the bytes of a compressed file are."),
    ] = False,
) -> None:
    """Show the clusters in the weights of any checkpoint, or compare several.

    Prints a table and writes figures; with --html also a page that needs no network. A run has the
    mixtures that it learned, a compressed file its codebooks. To any other checkpoint, and to a
    choice of tensors, a mixture is fitted by EM. Pickled code in a checkpoint is never run.

    **Examples**

    - `swsmix inspect runs/sunspots --html`

    - `swsmix inspect model.pt --components 16 --exclude "embed*" --format pdf`

    - `swsmix inspect model.safetensors --per-tensor --no-figures`

    - `swsmix inspect epoch-1.pt epoch-2.pt epoch-3.pt --html` : side by side

    - `swsmix inspect model.pt --sort kurtosis` : the heaviest tails first

    - `swsmix inspect model.sws --html` : a file of `swsmix compress`, codebook by codebook

    - `swsmix inspect model.sws --bytes` : where its bytes are, tensor by tensor
    """
    if bytes_:
        others = {
            "--out": out is not None, "--html": html, "--no-figures": not figures,
            "--animate": animate, "--components": components is not None,
            "--per-tensor": per_tensor, "--include": bool(include), "--exclude": bool(exclude),
            "--refit": refit, "--seed": seed is not None, "--sort": sort is not None,
            "--quiet": quiet,
        }  # fmt: skip
        _print_bytes(paths, [name for name, given in others.items() if given], max_weights)
        return
    import torch
    from rich.console import Console

    from swsmix._labels import file_name
    from swsmix.inspection import checkpoints, draw_figures, html_page, terminal
    from swsmix.inspection.inspect import inspect as inspect_checkpoint

    writes = figures or html or animate
    out = _folder(paths, out)
    torch.set_num_threads(1)  # sums, and so results, depend on the number of threads
    console = Console()
    options: dict[str, Any] = {
        "num_components": components,
        "per_tensor": per_tensor,
        "include": include or (),
        "exclude": exclude or (),
        "refit": refit,
        "seed": seed,
    }
    by = None if sort is None else sort.value
    if len(paths) > 1:
        _check_one(paths, "--animate shows the history of one run", given=animate)
        inspections = [
            inspect_checkpoint(each, max_weights=max_weights, **options) for each in paths
        ]
        compare(inspections, out, form if figures else None, by, html=html, quiet=quiet)
        return
    (path,) = paths
    checkpoint = checkpoints.read(path, max_weights=max_weights)
    if animate:
        _check_history(checkpoint, chosen=bool(include or exclude or per_tensor or refit))
    inspection = inspect_checkpoint(checkpoint, **options)
    ascii_only = console.options.ascii_only
    if not quiet:
        shown = terminal(inspection, width=console.width, ascii_only=ascii_only, sort=by)
        console.print(shown)
        for line in left_out_lines(checkpoint):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    posterior = posteriors.load_from(path)
    if posterior is not None and quiet:
        posterior.verdict.warn()
    elif posterior is not None:
        console.print("\nposterior.safetensors", markup=False, highlight=False)
        for name, value in posteriors.summarised(posterior).items():
            console.print(f"  {name}: {value:.4g}", markup=False, highlight=False)
        console.print(f"  {posterior.verdict}", markup=False, highlight=False, soft_wrap=True)
    if not writes:
        return
    from swsmix import plots

    make_folder(out)
    written: list[str] = []
    drawn = draw_figures(inspection)
    pictures = save_figures(drawn, out, form if figures else None, written, quiet=quiet)
    if html:
        page = html_page(inspection, pictures)
        with replacing(out / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")
        written.append("report.html")
    for _ in pictures:  # without a page they are drawn and saved here
        pass
    if figures and posterior is not None:
        for name, figure in posteriors.draw_figures(posterior).items():
            written.append(f"{file_name(name)}.{form.value}")
            plots.save(figure, out / written[-1])
    if animate:
        written += _save_films(inspection, out)
    if not quiet:
        say_written(out, written)


def left_out_lines(checkpoint: Any) -> list[str]:
    """What the checkpoint holds beside its network, one line for each reason."""
    from swsmix._labels import visible

    reasons: dict[str, list[str]] = {}
    for name, why in checkpoint.left_out.items():
        reasons.setdefault(why, []).append(visible(name, ascii_only=True))
    return [
        f"left out: {', '.join(names[:6])}"
        + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        + f": {visible(why, ascii_only=True)}"
        for why, names in reasons.items()
    ]


def _print_bytes(paths: list[Path], others: list[str], max_weights: int | None) -> None:
    """The tables of `--bytes`; `others` are the options given beside it."""
    from rich.console import Console

    from swsmix import codec
    from swsmix.inspection.checkpoint_files import check_regular
    from swsmix.inspection.storage import byte_tables

    if others:
        raise ValueError(
            f"--bytes prints two tables of the whole file and writes nothing: omit "
            f"{', '.join(others)}"
        )
    _check_one(paths, "--bytes prints the tables of one file", given=True)
    (path,) = paths
    if path.is_dir():
        raise ValueError(
            f"--bytes needs a compressed file (.sws), and {path} is a folder: name a file in it, "
            "or make one with `swsmix compress`"
        )
    check_regular(path)
    data = path.read_bytes()
    if not data.startswith(codec.MAGIC):
        raise ValueError(
            f"--bytes needs a compressed file (.sws); {path} is not one: make one with "
            "`swsmix compress`"
        )
    try:
        sizes = codec.sizes(data, max_weights=max_weights)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    console = Console()
    ascii_only = console.options.ascii_only
    console.print(byte_tables(sizes, len(data), width=console.width, ascii_only=ascii_only))


def _folder(paths: list[Path], out: Path | None) -> Path:
    """The folder to write to, which may not exist yet."""
    of = "compared" if len(paths) > 1 else (paths[0].name or paths[0].resolve().name)[-100:]
    out = out or Path(f"{of}-inspect")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out needs a folder; {out} is a file: pass another")
    return out


def _check_one(paths: list[Path], need: str, *, given: bool) -> None:
    if given and len(paths) > 1:
        raise ValueError(f"{need}; got {len(paths)} paths: pass one of them")


def _check_history(checkpoint: Any, *, chosen: bool) -> None:
    if checkpoint.history is None or not checkpoint.history.groups:
        raise ValueError(
            f"--animate needs the history of a run; {checkpoint.path} is a {checkpoint.kind}"
        )
    if chosen:
        raise ValueError(
            "--animate shows the mixtures that the run learned, over all its tensors: omit "
            "--include, --exclude, --per-tensor and --refit"
        )


def _save_films(inspection: Any, out: Path) -> list[str]:
    from swsmix import plots
    from swsmix._labels import file_name

    history = inspection.history
    names = []
    for group in history.groups:
        suffix = "" if len(history.groups) == 1 else f"-{group}"
        names.append(f"{file_name(f'collapse{suffix}')}.gif")
        plots.animate_collapse(history, out / names[-1], group)
    return names
