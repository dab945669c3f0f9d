"""NUTS on a joint density: Pyro's warm-up, our trajectories, the finished draws kept."""

from __future__ import annotations

import copy
import functools
import math
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from swsmix._progress import watched
from swsmix.bayes import checks, trajectory
from swsmix.bayes.joint import Joint
from swsmix.bayes.layout import Array
from swsmix.bayes.posterior import Posterior

# A transition takes about this many leapfrog steps; the estimate of the time starts from it.
_TYPICAL_STEPS = 128
_LONG_SECONDS = 1800.0
_FEW, _MANY = 10, 0.01  # no warning up to so many divergences, or this share of the draws
Metric = Literal["diagonal", "dense"]


class _Step(NamedTuple):
    z: Array
    accept: float
    steps: int
    diverged: bool
    energy: float
    step_size: float


def sample(
    joint: Joint,
    *,
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 1000,
    start: Array | Sequence[Array] | None = None,
    jitter: float = 0.1,
    target_accept: float = 0.8,
    metric: Metric | str = "diagonal",
    max_depth: int = 10,
    seed: int = 0,
    processes: int = 1,
    progress: bool = True,
) -> Posterior:
    """Draw from the posterior by the No-U-turn sampler.

    Step size and mass matrix are adapted by Pyro during the warm-up (dual averaging, windows of
    Welford covariances); a trajectory is computed in numpy (`swsmix.bayes.trajectory`), and a
    gradient by hand (`Joint.log_joint`), in centred coordinates (`Joint.centre`). Interrupted by
    the user (KeyboardInterrupt), it returns what has been drawn, with a warning. Chains advance in
    turn, so that all are equally long then.

    Args:
        joint: the model.
        chains: independent chains.
        draws: kept of each chain.
        warmup: iterations before them, not kept.
        start: z to start from, one or one a chain; `joint.start()`, the MAP fit, by default.
        jitter: std of the noise added to the start of each chain.
        target_accept: of the step size; nearer to 1 for fewer divergences and smaller steps.
        metric: adapt the `"diagonal"` of the mass matrix, or all of it, `"dense"`: for some tens of
            coordinates and a long warm-up.
        max_depth: at most 2^max_depth steps a draw.
        seed: of everything random.
        processes: run the chains in as many processes; scripts then need the usual
            `if __name__ == "__main__":`.
        progress: show a progress bar.

    Returns:
        The posterior. A warning is given if more than 10 draws, and more than 1 %, are from
        trajectories that diverged; `Posterior.divergences` counts them all.

    Raises:
        ValueError: for settings out of range, a start of another length, or one without a density.
        KeyboardInterrupt: if interrupted before any chain has a draw.
        SystemError: if compiled code fails by itself.
    """
    for name, value, least in (
        ("chains", chains, 1),
        ("draws", draws, 1),
        ("warmup", warmup, 20),
        ("max_depth", max_depth, 1),
        ("processes", processes, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if not 0.0 < target_accept < 1.0:
        raise ValueError(f"target_accept must lie between 0 and 1; got {target_accept}")
    if metric not in ("diagonal", "dense"):
        raise ValueError(f"metric must be 'diagonal' or 'dense'; got {metric!r}")
    starts = _starts(joint, start, chains, jitter, seed)
    checks.warn_if_untrained(joint.prior, "the warm-up has to find")
    warn_if_long(joint, starts[0], chains * (warmup + draws), min(processes, chains))
    options = {
        "target_accept": target_accept, "metric": metric, "max_depth": max_depth, "warmup": warmup,
        "total": warmup + draws,
    }  # fmt: skip
    kept: list[list[_Step]] = [[] for _ in range(chains)]
    began = time.monotonic()
    source = _in_turn if processes == 1 else _in_processes
    try:
        with closing(source(joint, starts, seed, options, processes)) as steps:
            for chain, iteration, step in _watched(steps, chains, warmup, draws, progress):
                if iteration >= warmup:
                    kept[chain].append(step)
    except (KeyboardInterrupt, SystemError) as error:
        if not _is_interruption(error):
            raise
        lengths = sorted((len(c) for c in kept), reverse=True)
        if lengths[0] == 0:
            raise KeyboardInterrupt from error
        # Of the rectangles chains x draws that are complete, the largest.
        num = max(range(1, chains + 1), key=lambda n: n * lengths[n - 1])
        kept = [chain[: lengths[num - 1]] for chain in kept if len(chain) >= lengths[num - 1]][:num]
        warnings.warn(
            f"interrupted: {len(kept)} of {chains} chains with {lengths[num - 1]} of {draws} draws "
            "are kept",
            stacklevel=2,
        )
    stacked = {
        name: torch.tensor(np.array([[getattr(s, name) for s in chain] for chain in kept]))
        for name in ("accept", "steps", "diverged", "energy", "step_size")
    }
    z = torch.from_numpy(np.array([[s.z for s in chain] for chain in kept]))
    drawn = Posterior(
        z,
        joint.layout,
        stacked,
        {"method": "nuts", "seed": seed, "seconds": time.monotonic() - began}
        | {k: v for k, v in options.items() if k != "total"},
    )
    if drawn.divergences > max(_FEW, _MANY * drawn.num_draws):
        warnings.warn(
            f"{drawn.divergences:,} of {drawn.num_draws:,} draws are from trajectories that "
            "diverged: parts of the posterior may be missing (Betancourt 2017). Warm up longer "
            f"(warmup is {warmup}), raise target_accept (it is {target_accept:g}), or keep the "
            "components from getting narrow, by std or std_count of the hyper-prior",
            stacklevel=2,
        )
    return drawn


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the user wants to stop: caught in compiled code, that becomes a SystemError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def warn_if_long(joint: Joint, z: Array, transitions: int, processes: int) -> None:
    """Warn, with an estimate, if so many NUTS transitions would take more than half an hour."""
    joint.potential(z)  # compiles
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.02 and len(times) < 100):
        began = time.perf_counter()
        joint.potential(z)
        times.append(time.perf_counter() - began)
    one = min(times)
    seconds = one * _TYPICAL_STEPS * transitions / processes
    if seconds > _LONG_SECONDS:
        warnings.warn(
            f"NUTS on {joint.layout.size:,} coordinates: a gradient takes {1e3 * one:.3g} ms, so "
            f"{transitions:,} transitions of about {_TYPICAL_STEPS} steps take some "
            f"{seconds / 3600:.1f} hours: use swsmix.bayes.fit_guide (SVI), or fewer draws",
            stacklevel=3,
        )


def _starts(
    joint: Joint, start: Array | Sequence[Array] | None, chains: int, jitter: float, seed: int
) -> list[Array]:
    given = joint.start() if start is None else np.asarray(start, dtype=np.float64)
    rows = np.broadcast_to(given, (chains, given.shape[-1])) if given.ndim == 1 else given
    if rows.shape != (chains, joint.layout.size):
        raise ValueError(
            f"start wants {joint.layout.size} numbers, once or for each of {chains} chains; got "
            f"shape {given.shape}"
        )
    found = []
    for chain, row in enumerate(rows):
        rng = np.random.default_rng([seed, chain, 1])
        for attempt in range(20):  # ever less noise, should it hit a place without density
            z = row + jitter * 0.7**attempt * rng.standard_normal(len(row))
            if math.isfinite(joint.potential(z)[0]):
                found.append(z)
                break
        else:
            raise ValueError(
                f"the start of chain {chain} has no density: its log joint is not finite"
            )
    return found


def _chain(
    joint: Joint, z: Array, seed: int, chain: int, options: dict[str, Any]
) -> Generator[_Step, None, None]:
    """The iterations of one chain, warm-up included, without end."""
    from pyro.infer.mcmc.adaptation import WarmupAdapter

    rng = np.random.default_rng([seed, chain])
    potential = functools.partial(joint.potential, centred=True)
    z = joint.centre(z)
    state = trajectory.State(z, z, *potential(z))
    dense = options["metric"] == "dense"
    adapter = WarmupAdapter(
        step_size=0.1, adapt_step_size=True, adapt_mass_matrix=True,
        target_accept_prob=options["target_accept"], dense_mass=dense,
    )  # fmt: skip
    matrix = adapter.mass_matrix_adapter

    def metric() -> trajectory.Metric:
        return trajectory.Metric.of(matrix.inverse_mass_matrix[("z",)].numpy())

    def find_step(_: Any) -> float:
        return trajectory.reasonable_step(
            potential, state, step=float(adapter.step_size), metric=metric(), rng=rng
        )

    adapter.configure(
        options["warmup"], mass_matrix_shape={("z",): (len(z),) * (2 if dense else 1)},
        find_reasonable_step_size_fn=find_step, options={"dtype": torch.float64, "device": "cpu"},
    )  # fmt: skip
    adapter.reset_step_size_adaptation({})
    ends = {window.end + 1 for window in adapter.adaptation_schedule}
    now = metric()
    for iteration in range(1, options["total"] + 1):
        step_size = float(adapter.step_size)
        draw = trajectory.nuts(
            potential, state, step=step_size, metric=now, rng=rng, max_depth=options["max_depth"]
        )
        state = draw.state
        if iteration <= options["warmup"]:
            at = {"z": torch.from_numpy(state.z)}
            adapter.step(iteration - 1, at, torch.tensor(draw.accept), {})
            if iteration in ends:
                now = metric()
        z = joint.uncentre(state.z)
        yield _Step(z, draw.accept, draw.steps, draw.diverged, state.energy, step_size)


def _in_turn(
    joint: Joint, starts: list[Array], seed: int, options: dict[str, Any], _: int
) -> Generator[tuple[int, int, _Step], None, None]:
    chains = [_chain(joint, z, seed, number, options) for number, z in enumerate(starts)]
    for iteration in range(options["total"]):
        for number, chain in enumerate(chains):
            yield number, iteration, next(chain)


def _work(
    queue: Any, joint: Joint, starts: list[tuple[int, Array]], seed: int, options: dict[str, Any]
) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)
    try:
        chains = [(n, _chain(joint, z, seed, n, options)) for n, z in starts]
        for iteration in range(options["total"]):
            for number, chain in chains:
                queue.put((number, iteration, next(chain)))
        queue.put(None)
    except BaseException as error:
        queue.put(RuntimeError(f"a chain failed: {error!r}"))


def _in_processes(
    joint: Joint, starts: list[Array], seed: int, options: dict[str, Any], processes: int
) -> Generator[tuple[int, int, _Step], None, None]:
    import multiprocessing
    from queue import Empty

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    numbered = list(enumerate(starts))
    # A copy goes: tensors sent to a process move into shared memory, and the arrays that view
    # them, ours and the user's, would be left with memory that is freed.
    sent = copy.deepcopy(joint)
    workers = [
        context.Process(target=_work, args=(queue, sent, part, seed, options), daemon=True)
        for part in (numbered[n::processes] for n in range(processes))
        if part
    ]
    for worker in workers:
        worker.start()
    try:
        running = len(workers)
        while running:
            try:
                got = queue.get(timeout=10)
            except Empty:
                if dead := [w for w in workers if w.exitcode not in (None, 0)]:
                    raise RuntimeError(f"a chain's process ended with {dead[0].exitcode}") from None
                continue
            if isinstance(got, Exception):
                raise got
            if got is None:
                running -= 1
            else:
                yield got
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _watched(
    steps: Generator[tuple[int, int, _Step], None, None],
    chains: int,
    warmup: int,
    draws: int,
    progress: bool,
) -> Generator[tuple[int, int, _Step], None, None]:
    """The steps as they come, with a progress bar."""
    divergences, text = 0, ""
    bar = watched(steps, "NUTS", shown=progress, total=chains * (warmup + draws), note=lambda: text)
    for chain, iteration, step in bar:
        drawing = iteration >= warmup
        divergences += step.diverged and drawing
        text = f"{'draws' if drawing else 'warm-up'}: {step.steps} steps, {divergences} divergences"
        yield chain, iteration, step
