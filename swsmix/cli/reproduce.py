"""`swsmix reproduce`: a paper's experiments and figures, from a checkout."""

from __future__ import annotations

import subprocess
import sys
import tomllib
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
        bool, typer.Option("--quick", help="A few seeds only: does it run, and the right way?")
    ] = False,
    figure: Annotated[
        str | None, typer.Option(help="Only this figure, from the results that it needs.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results and figures go, instead of the checkout.")
    ] = None,
) -> None:
    """Run a paper again: every method, every seed, every figure.

    It resumes: what is in the results is not run again. Wants a checkout of the project, where
    the papers are.

    **Examples**

    - `swsmix reproduce` : the papers, their figures, the time they take and what is there

    - `swsmix reproduce nowlan1992 --quick`

    - `swsmix reproduce nowlan1992 --figure sunspots-horizon`

    - `swsmix reproduce nowlan1992 --seeds 3 --jobs 1 --out runs/nowlan1992`
    """
    _reproduce(name, quick=quick, figure=figure, seeds=seeds, jobs=jobs, out=out)


def _reproduce(name: str | None, *, quick: bool, **options: Any) -> None:
    papers = _papers()
    known = {path.parent.name: path.parent for path in sorted(papers.glob("*/run.py"))}
    if name is None:
        for folder in known.values():
            typer.echo(_about(folder))
        return
    if name not in known:
        raise ValueError(f"the papers are {list(known)}; got {name!r}")
    command = [sys.executable, str(known[name] / "run.py")]
    command += ["--quick"] if quick else []
    for option, value in options.items():
        command += [] if value is None else [f"--{option}", str(value)]
    try:
        code = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        code = 130
    if code:
        raise typer.Exit(code)


def _papers() -> Path:
    """The folder `papers` of the checkout that we are in, or that the package lies in."""
    import swsmix

    here = Path.cwd()
    beside = Path(swsmix.__file__).parents[1]
    for root in (here, *here.parents, beside):
        if list(root.glob("papers/*/paper.toml")) and (root / "swsmix").is_dir():
            return root / "papers"
    raise FileNotFoundError(
        "no papers here: `swsmix reproduce` wants a checkout of the project, since the papers' "
        f"scripts are not part of the installed package; {here} and its parents are none: clone "
        "the repository and call it there"
    )


def _about(folder: Path) -> str:
    """A paper's entry in the list."""
    paper: dict[str, Any] = tomllib.loads((folder / "paper.toml").read_text())
    minutes = paper["minutes"]
    pictures = folder.parents[1] / "figures" / folder.name
    results = sorted(p.name for p in (folder / "results").glob("*") if p.is_file())
    if len(results) > 20:  # one a network, say
        results = [f"{len(results)} files in {folder.parent.name}/{folder.name}/results"]
    lines = [
        f"{folder.name}: {paper['title']}",
        f"  {paper['citation']}",
        f"  about {minutes['full']:g} minutes on two cores, {minutes['quick']:g} with --quick",
        f"  results: {', '.join(results) if results else 'none yet'}",
    ]
    names = [figure["name"] for figure in paper["figures"]]
    width = max(map(len, names), default=0)
    for figure in paper["figures"]:
        files = [pictures / f"{figure['name']}.{suffix}" for suffix in ("png", "gif")]
        mark = "there" if any(file.is_file() for file in files) else "-"
        lines.append(f"  {figure['name']:<{width}}  {mark:<5}  {figure['counterpart']}")
    return "\n".join(lines)
