"""`swsmix train`: train a built-in problem, and write a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from swsmix._files import save_json
from swsmix.cli import _interrupts
from swsmix.cli import posterior as posteriors
from swsmix.cli.app import app
from swsmix.cli.train_settings import Data, Dtype, Mode, Net, check_config, resumed


@app.command()
def train(
    context: typer.Context,
    data: Annotated[Data, typer.Option(help="The built-in problem.")] = Data.sunspots,
    net: Annotated[Net | None, typer.Option(help="The network for MNIST or CIFAR-10.")] = None,
    components: Annotated[
        int | None, typer.Option(min=1, help="K, the number of components, the zero one included.")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(min=0.0, help="Strength of the prior; 1 for Bayes.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="How the mixture learns: by EM, or by gradient as in 1992.")
    ] = Mode.em,
    em_every: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps (or full-batch rounds) per EM step.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, or full-batch rounds.")] = None,
    dense_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs before the prior comes (cifar10).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial weights and batches.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many seeds, from --seed on, side by side; 10 by default, or 1 for mnist and "
            "cifar10.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="The device, such as cpu or cuda.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Dtype of data and network.")] = Dtype.float32,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/DATA.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, with its own settings.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline",
            help="Also train under weight decay, to compare; by default for the small ones.",
        ),
    ] = None,
    posterior: Annotated[
        posteriors.Method | None,
        typer.Option(help="Also sample the posterior (sunspots, shift), by NUTS or SVI."),
    ] = None,
    chains: Annotated[int, typer.Option(min=1, help="Number of NUTS chains.")] = 4,
    draws: Annotated[
        int,
        typer.Option(
            min=50, help="Draws: per chain, after as many of warm-up (NUTS); in all (SVI)."
        ),
    ] = 1000,
    live: Annotated[
        bool,
        typer.Option("--live", help="Show the weights' histogram and the mixture during training."),
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also log to this folder for TensorBoard (needs the extra).")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no progress and no table.")
    ] = False,
) -> None:
    """Train a network under a learned mixture prior and watch its weights collapse into clusters.

    Writes a run folder with checkpoints, `config.toml`, the history, the results and figures.

    **Examples**

    - `swsmix train` : the 12-8-1 net of the 1992 paper on the yearly sunspots, ten seeds

    - `swsmix train --seeds 1 --seed 3` : one network from one seed

    - `swsmix train --data mnist --components 16 --out runs/lenet`

    - `swsmix train --data cifar10 --net wrn-16-4 --device cuda`

    - `swsmix train --data shift --mode gradient --live`

    - `swsmix train --out runs/lenet --resume --epochs 10`

    - `swsmix train --posterior nuts --draws 300` : predictive intervals for the sunspots
    """
    settings: dict[str, Any] = {
        "data": data.value,
        "net": None if net is None else net.value,
        "components": components,
        "tau": tau,
        "mode": mode.value,
        "em_every": em_every,
        "epochs": epochs,
        "dense_epochs": dense_epochs,
        "seed": seed,
        "seeds": seeds or (1 if data.large else 10),
        "device": device,
        "dtype": dtype.value,
        "baseline": not data.large if baseline is None else baseline,
    }
    from swsmix.training import runs

    callbacks = []
    if tensorboard is not None:
        from swsmix.training.loggers import tensorboard as log_to

        callbacks.append(log_to(tensorboard))
    out = out or Path("runs") / data.value
    options: dict[str, Any] = {
        "live": live, "quiet": quiet, "callbacks": callbacks,
        "sampling": {"method": posterior, "chains": chains, "draws": draws},
    }  # fmt: skip
    given = {
        name
        for name in settings
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    with _interrupts.as_exit_codes():
        if resume:
            with runs.old_run(out):
                saved = runs.load_config(out)
                check_config(saved, out / "config.toml")
                settings = resumed(saved, settings, given, force=force)
                _run(settings, out, resume=True, **options)
        else:
            with runs.new_run(out, force=force):
                _run(settings, out, resume=False, **options)


@contextmanager
def _said_if_interrupted(advice: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted: {advice()}", err=True)
        raise


def _run(
    settings: dict[str, Any],
    out: Path,
    *,
    resume: bool,
    live: bool,
    quiet: bool,
    callbacks: list[Callable[[int, Any], None]],
    sampling: dict[str, Any],
) -> None:
    from swsmix.problems import experiments, seeds
    from swsmix.training import runs

    if live and quiet:
        raise ValueError("--live shows the training and --quiet nothing: give one of them")
    posteriors.check_settings(sampling["method"], settings["data"], settings["tau"])
    problem = _problem(settings)
    settings |= {  # the values in use: the defaults may change
        "components": problem.num_components,
        "epochs": problem.epochs,
        "tau": problem.schedule.tau,
        "em_every": problem.schedule.em_every,
        "dense_epochs": None if problem.dense is None else problem.dense.epochs,
    }
    if not resume:
        runs.save_config(out, settings)

    def advice() -> str:
        if runs.has_checkpoint(out):
            return "continue with --resume"
        dense = "the same command goes on with the dense network"
        return "nothing was saved yet" if problem.dense is None else dense

    began = time.monotonic()
    with _said_if_interrupted(advice), _callback(callbacks, live=live) as callback:
        first, several = settings["seed"], settings.get("seeds") or 1  # runs of before have none
        options: dict[str, Any] = dict(
            mode=settings["mode"],
            device=settings["device"],
            run=str(out),
            resume=resume,
            progress=False if quiet or live else "soft weight-sharing",
            baseline_progress=not quiet,
            baseline=settings["baseline"],
            callback=callback,
        )
        if several == 1:
            outcome = experiments.train(problem, seed=first, **options)
        else:
            outcome = seeds.train_seeds(problem, range(first, first + several), **options)
    with _said_if_interrupted(lambda: f"the training in {out}/ is complete, its figures are not"):
        runs.save_config(out, settings)  # a resumed run may have more epochs now
        facts = outcome.facts | {"seconds": time.monotonic() - began}
        results = {
            "measure": problem.measure_name,
            "rows": outcome.rows,
            "spread": outcome.spread,
            "facts": facts,
        }
        save_json(out / "results.json", results)
        figures = _save_figures(outcome, out)
    if sampling["method"] is not None:
        with _said_if_interrupted(
            lambda: f"the training in {out}/ is complete, its posterior is not"
        ):
            posterior_facts, posterior_figures = posteriors.sample_and_save(
                problem, outcome, out, data=settings["data"], seed=settings["seed"], quiet=quiet,
                **sampling,
            )  # fmt: skip
        facts |= posterior_facts
        figures += posterior_figures
        save_json(out / "results.json", results)
    if not quiet:
        _print_results(results, out, figures, seeds=several)


def _problem(settings: dict[str, Any]) -> Any:
    """The built-in problem, with the settings that are not None in place of its own."""
    import torch

    from swsmix.problems import recipes

    try:
        torch.empty(0, dtype=torch.float32, device=settings["device"])
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {settings['device']!r} here: {error}") from error
    problem = recipes.load_problem(
        settings["data"],
        net=settings["net"],
        seed=settings["seed"],
        dtype=getattr(torch, settings["dtype"]),
    )
    changes = {"num_components": settings["components"], "epochs": settings["epochs"]}
    problem = replace(problem, **{n: v for n, v in changes.items() if v is not None})
    if (epochs := settings.get("dense_epochs")) is not None:
        if problem.dense is None:
            raise ValueError(
                f"--dense-epochs must be for cifar10, got {settings['data']}, whose networks see "
                "the prior from the start: omit it"
            )
        problem = replace(problem, dense=replace(problem.dense, epochs=epochs))
    changes = {"tau": settings["tau"], "em_every": settings["em_every"]}
    schedule = replace(problem.schedule, **{n: v for n, v in changes.items() if v is not None})
    if problem.lr is None:
        torch.set_num_threads(1)  # networks this small are slower with several threads
    return replace(problem, schedule=schedule)


@contextmanager
def _callback(
    callbacks: list[Callable[[int, Any], None]], *, live: bool
) -> Iterator[Callable[[int, Any], None]]:
    """All callbacks as one; with `live`, the view in the terminal is the last of them."""
    from swsmix.inspection import watch

    with watch() if live else nullcontext() as view:
        every = [*callbacks, *([view] if view else [])]

        def callback(epoch: int, history: Any) -> None:
            for each in every:
                each(epoch, history)

        yield callback


def _save_figures(outcome: Any, out: Path) -> list[str]:
    """Draw and save the figures of the training; their file names."""
    from swsmix import plots

    history = outcome.history
    saved = []
    for group, mixture in outcome.prior.mixtures.items():
        suffix = "" if len(history.groups) == 1 else f"-{group}"
        weights = outcome.prior.flat_weights(group)
        figures = {
            "clusters": plots.clusters(weights, mixture),
            "collapse": plots.collapse(history, group),
            "trajectories": plots.trajectories(history, group),
            "before-after": plots.before_after(history.initial[group], weights, mixture),
        }
        first = next(iter(outcome.prior.parameters_of(group).values())).detach()
        if first.ndim == 2 and max(first.shape) <= 64:
            figures["hinton"] = plots.hinton(first, mixture=mixture)
        for name, figure in figures.items():
            plots.save(figure, out / f"{name}{suffix}.png")
            saved.append(f"{name}{suffix}.png")
    return saved


def _print_results(results: dict[str, Any], out: Path, figures: list[str], *, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{results['measure']}, lower is better"
    if results["spread"]:
        title += f"; mean ± sd over {seeds} seeds"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("train", "validation", "test"):
        table.add_column(name, justify="right")
    for row, values in results["rows"].items():
        spread = results["spread"].get(row, {})
        table.add_row(
            row,
            *(
                f"{values[n]:.4g}" + (f" ± {spread[n]:.2g}" if spread else "")
                for n in ("train", "validation", "test")
            ),
        )
    console = Console()
    console.print(table)
    if results["spread"]:
        console.print("means over the seeds:", highlight=False)
    for name, value in results["facts"].items():
        console.print(f"{name}: {value:.4g}", highlight=False)
    console.print(f"run folder: {out}/", highlight=False, soft_wrap=True)
    console.print(f"figures: {', '.join(figures)}", highlight=False, soft_wrap=True)
