"""`swsmix reproduce`: a paper's experiments and figures, from a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from swsmix.cli.app import app


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="The paper; without it, the papers are listed.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few seeds and settings: does it run?")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Make only this table of the results.")
    ] = None,
    figure: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only draw this figure, from the results.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only measure the compressed files of the results.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds per method.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="For results and figures, instead of the checkout.")
    ] = None,
) -> None:
    """Run a paper's experiments again: every method, every seed, every figure.

    A run that was stopped goes on where it was. Needs a checkout of the project, where the papers
    are. A figure is drawn from the results in `--out`, or from the checkout's if it has none.

    **Examples**

    - `swsmix reproduce` : the papers, their figures, the time they take and what is there

    - `swsmix reproduce nowlan1992 --quick`

    - `swsmix reproduce nowlan1992 --figure sunspots-horizon --out runs/nowlan1992`

    - `swsmix reproduce ullrich2017 --verify` : decode each file and measure it, in seconds

    - `swsmix reproduce nowlan1992 --seeds 3 --jobs 1 --out runs/nowlan1992`
    """
    flags = {"quick": quick, "verify": verify}
    _reproduce(name, flags, only=only, figure=figure, seeds=seeds, jobs=jobs, out=out)


def _reproduce(name: str | None, flags: Mapping[str, bool], **options: Any) -> None:
    papers = _papers()
    known = {path.parent.name: path.parent for path in sorted(papers.glob("*/run.py"))}
    if name is None:
        width = shutil.get_terminal_size().columns
        typer.echo("\n\n".join(_about(folder, width) for folder in known.values()))
        return
    if name not in known:
        raise ValueError(f"the papers are {', '.join(known)}; got {name!r}")
    command = [sys.executable, str(known[name] / "run.py")]
    command += [f"--{flag}" for flag, given in flags.items() if given]
    for option, value in options.items():
        command += [] if value is None else [f"--{option}", str(value)]
    if code := _call(command):
        raise typer.Exit(code)


def _call(command: list[str]) -> int:
    """Run a program in the place of this one, so that a signal to this process reaches it.

    Where a process cannot be replaced, the program ends by itself after Ctrl-C, which reaches both.
    """
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _papers() -> Path:
    """The folder `papers` of the checkout that we are in, or that the package lies in."""
    import swsmix

    here = Path.cwd()
    beside = Path(swsmix.__file__).parents[1]
    for root in (here, *here.parents, beside):
        if list(root.glob("papers/*/paper.toml")) and (root / "swsmix").is_dir():
            return root / "papers"
    raise FileNotFoundError(
        "no papers here: `swsmix reproduce` needs a checkout of the project, since the papers' "
        f"scripts are not part of the installed package; neither {here} nor a folder above it is "
        "one: clone the repository and call it there"
    )


def _about(folder: Path, width: int) -> str:
    """A paper's entry in the list, in lines of at most `width` columns."""
    paper: dict[str, Any] = tomllib.loads((folder / "paper.toml").read_text(encoding="utf-8"))
    minutes = paper["minutes"]
    pictures = folder.parents[1] / "figures" / folder.name
    results = sorted(p.name for p in (folder / "results").glob("*") if p.is_file())
    if len(results) > 20:  # a file for each network, say
        results = [f"{len(results)} files in {folder.parent.name}/{folder.name}/results"]
    lines = [
        *_wrapped(f"{folder.name}: ", paper["title"], width),
        *_wrapped("  ", paper["citation"], width),
        *_wrapped(
            "  ",
            f"about {minutes['full']:g} minutes on two cores, {minutes['quick']:g} with --quick",
            width,
        ),
        *_wrapped("  results: ", ", ".join(results) if results else "none yet", width),
        *_wrapped("  figures (* is there): ", f"figures/{folder.name}", width),
    ]
    column = max((len(figure["name"]) for figure in paper["figures"]), default=0)
    for figure in paper["figures"]:
        files = [pictures / f"{figure['name']}.{suffix}" for suffix in ("png", "gif")]
        mark = "*" if any(file.is_file() for file in files) else " "
        text = figure["title"]
        if figure["counterpart"].startswith("None"):
            text += " (not in the paper)"
        lines += _wrapped(f"  {mark} {figure['name']:<{column}}  ", text, width)
    return "\n".join(lines)


def _wrapped(head: str, text: str, width: int) -> list[str]:
    """`head` and a text to the right of it, or indented below where there is little room."""
    if len(head) > width // 2:
        head = f"{head.rstrip()}  " if head.strip() else head
    indent = len(head) if len(head) <= width // 3 or len(head) <= width - 40 else 4
    return textwrap.wrap(head + text, width, subsequent_indent=" " * indent, break_on_hyphens=False)
