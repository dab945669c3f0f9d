"""One runner for every paper: units of work become results, and results become figures.

A unit whose result is there is not run again, so a run that was stopped goes on where it was; the
numbers do not depend on `--jobs`. A paper's `run.py` lists its units and names its figures; units
and their results are in `units`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

import swsmix
from swsmix.problems.reproduction import signals
from swsmix.problems.reproduction.units import (
    DamagedResultError,
    Unit,
    discard_checkpoints,
    keep,
    machine,
    total_seconds,
    unfinished,
)
from swsmix.training.runs import discard_left, save_json


@dataclass(frozen=True)
class Places:
    """The folders of one run.

    Attributes:
        results: what the units found, as data.
        pictures: the figures.
        scratch: what is large and can be made again: networks, checkpoints.
    """

    results: Path
    pictures: Path
    scratch: Path


@dataclass(frozen=True)
class Paper:
    """What the runner needs to know about a paper.

    Attributes:
        folder: the paper's, `papers/NAME` in the checkout.
        description: the help text of `run.py`.
        stages: `stages(places, seeds, quick=...)` yields lists of units that do not depend on each
            other; a stage may read what the stages before it have written.
        figures: the figures' names.
        draw: `draw(results, pictures, only=...)` draws them and returns the files.
        seeds: seeds per method in the full run.
        quick_seeds: the same with `--quick`.
        fixed_seeds: whether another number of seeds would replace the committed results.
        prepare: called before the first unit, for an error that each unit would meet.
        record: called with the checkout's results after drawing, to update the paper's README.
        check_quick: called with the results of a quick run.
        verify: called with the results for `--verify`; whether the files there agree with them.
        apart: table -> `stages` of what only `--only TABLE` makes, with one seed: it takes hours.
    """

    folder: Path
    description: str
    stages: Callable[..., Iterable[list[Unit]]]
    figures: Sequence[str]
    draw: Callable[..., list[Path]]
    seeds: int
    quick_seeds: int
    fixed_seeds: bool = False
    prepare: Callable[[], object] | None = None
    record: Callable[[Path], None] | None = None
    check_quick: Callable[[Path], None] | None = None
    verify: Callable[[Path], bool] | None = None
    apart: Mapping[str, Callable[..., Iterable[list[Unit]]]] = field(default_factory=dict)

    def places(self, out: Path | None) -> Places:
        """The checkout's folders, or those in `out`."""
        if out is None:
            root, name = self.folder.parents[1], self.folder.name
            return Places(self.folder / "results", root / "figures" / name, root / "runs" / name)
        return Places(out / "results", out / "figures", out)


# ----------------------------------------------------------------------------------- the units


def run_units(units: Iterable[Unit], results: Path, jobs: int) -> int:
    """Run the units that are not done yet, `jobs` at a time, and keep their results.

    When a unit fails no other begins; those that run already are finished and kept.

    Returns:
        How many were run.

    Raises:
        RuntimeError: if a unit fails; the unit is named.
    """
    units = list(units)
    todo = unfinished(units, results)
    ahead = {id(unit) for unit in todo}
    # A process may have been killed between a result and the end of its checkpoints.
    discard_checkpoints(unit for unit in units if id(unit) not in ahead)
    if not todo:
        return 0
    waiting, running = iter(todo), dict[Future[tuple[dict[str, Any], float]], Unit]()
    failed: tuple[Unit, Exception] | None = None
    others = set(multiprocessing.active_children())
    done, began = 0, time.monotonic()
    with _bar(Console(stderr=True)) as progress, _executor(jobs) as pool:
        bar = progress.add_task(
            "units", total=len(units), completed=len(units) - len(todo), left=""
        )
        work = _in_worker if jobs > 1 else Unit.__call__
        try:
            while True:
                if failed is None:
                    for unit in islice(waiting, jobs - len(running)):
                        running[pool.submit(work, unit)] = unit
                if not running:
                    break
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    unit = running.pop(ended)
                    try:
                        result, seconds = ended.result()
                    except Exception as error:
                        failed = failed or (unit, error)
                        continue
                    # It is written at the end of the stage; a kill leaves none rather than an old.
                    (results / "run.json").unlink(missing_ok=True)
                    keep(unit, result, seconds, results)
                    done += 1
                    pace = (time.monotonic() - began) / done
                    left = timedelta(seconds=round(pace * (len(todo) - done)))
                    text = f"about {left} left" if done < len(todo) else ""
                    label = f"{unit.table}: {unit.key}"
                    progress.update(bar, advance=1, description=label, left=text)
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    if failed is not None:
        unit, cause = failed
        raise RuntimeError(
            f"the unit {unit.key!r} of {unit.table} failed: {cause!r}; the results of the others "
            "are kept, and the same command goes on from here"
        ) from cause
    return done


def _bar(console: Console) -> Progress:
    """How far it is, in one line: the numbers first, and of a long name what there is room for."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        *((BarColumn(20),) if console.width >= 80 else ()),
        MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}", markup=False, table_column=rest),
    )  # fmt: skip
    return Progress(*columns, console=console, expand=True)


def _executor(jobs: int) -> Executor:
    if jobs == 1:
        return _Inline()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=signals.begin_worker)


class _Inline(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Stopped(BaseException):
    """Raised in a worker that is told to end, so that it deletes its temporary files."""


def _in_worker(unit: Unit) -> tuple[dict[str, Any], float]:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return unit()
    except _Stopped:
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------- command


def main(paper: Paper, argv: Sequence[str] | None = None) -> None:
    """Run a paper's units, write `run.json`, and draw the figures, as the command line says."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(paper).parse_args(argv)
    try:
        with signals.terminable():
            _run(paper, arguments, " ".join(["swsmix reproduce", paper.folder.name, *argv]))
    except KeyboardInterrupt as stopped:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        terminated = isinstance(stopped, signals.Terminated)
        sys.exit(signals.OF_TERMINATED if terminated else signals.OF_INTERRUPTED)
    except DamagedResultError as error:
        raise SystemExit(str(error)) from None


def _run(paper: Paper, arguments: argparse.Namespace, command: str) -> None:
    quick, figure = arguments.quick, arguments.figure
    out = arguments.out or (Path("runs") / f"{paper.folder.name}-quick" if quick else None)
    places = paper.places(out)
    if arguments.verify:
        if paper.verify is None:
            raise SystemExit(f"{paper.folder.name} has no compressed files to verify")
        sys.exit(0 if paper.verify(places.results) else 1)
    checkout = paper.places(None).results
    here = places.results.resolve() == checkout.resolve()
    seeds = arguments.seeds or (paper.quick_seeds if quick else paper.seeds)
    if figure not in (None, *paper.figures):
        raise SystemExit(f"the figures are {', '.join(paper.figures)}; got {figure!r}")
    if here and (quick or (paper.fixed_seeds and seeds != paper.seeds)):
        asked = "--quick" if quick else f"--seeds {seeds}"
        raise SystemExit(
            f"{checkout} holds the results of the full run, {paper.seeds} seeds per method, which "
            f"{asked} would replace: choose another folder with --out"
        )
    results = places.results
    if figure is None:
        jobs = arguments.jobs or os.cpu_count() or 1
        _run_stages(paper, places, seeds, jobs, quick=quick, only=arguments.only, command=command)
    elif arguments.out and not (results.is_dir() and any(results.iterdir())):
        print(f"{results} has no results: drawn from {checkout}", file=sys.stderr)
        results = checkout
    places.pictures.mkdir(parents=True, exist_ok=True)
    for path in paper.draw(results, places.pictures, only=figure):
        print(path)
    if here and paper.record is not None:
        paper.record(results)
    if quick and figure is None and arguments.only is None and paper.check_quick is not None:
        paper.check_quick(results)


def _run_stages(
    paper: Paper,
    places: Places,
    seeds: int,
    jobs: int,
    *,
    quick: bool,
    only: str | None,
    command: str,
) -> None:
    """Run the units stage by stage, and write what they were made with into `run.json`."""
    stages = paper.apart.get(only or "")
    seeds = 1 if stages else seeds
    if stages is None and paper.prepare is not None:
        try:
            paper.prepare()
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
    places.results.mkdir(parents=True, exist_ok=True)
    began, tables = time.monotonic(), dict[str, None]()
    for stage in (stages or paper.stages)(places, seeds, quick=quick):
        tables |= dict.fromkeys(unit.table for unit in stage)
        wanted = [unit for unit in stage if only in (None, unit.table)]
        made = run_units(wanted, places.results, jobs)
        discard_left(places.results / "run.json")
        if not wanted or (not made and (places.results / "run.json").is_file()):
            continue
        about = {
            "command": command,
            "seeds": seeds,
            "jobs": jobs,
            "minutes_of_units": round(total_seconds(places.results) / 60, 1),
            "minutes": round((time.monotonic() - began) / 60, 1),
            **machine(),
            "python": platform.python_version(),
            "swsmix": swsmix.__version__,
        }
        save_json(places.results / "run.json", about)
    if only not in (None, *tables):
        raise SystemExit(f"the tables are {', '.join([*tables, *paper.apart])}; got {only!r}")


def _parser(paper: Paper) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=paper.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few seeds and settings: does it run?")
    parser.add_argument("--verify", action="store_true", help="measure the kept files again")
    parser.add_argument("--only", metavar="TABLE", help="make only this table of the results")
    parser.add_argument("--figure", metavar="NAME", help="only draw this figure, from the results")
    parser.add_argument(
        "--seeds", type=_positive, metavar="N",
        help=f"seeds per method; {paper.seeds}, or {paper.quick_seeds} with --quick",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="processes; by default one per core"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for results and figures, instead of the checkout"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more; got {text!r}")
    return int(text)
