"""Chains of the No-U-turn sampler: Pyro's warm-up, our trajectories; in turn or in processes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch

from swsmix.bayes import trajectory
from swsmix.bayes.joint import Joint
from swsmix.bayes.jumps import Jumps
from swsmix.bayes.layout import Array


class Transition(NamedTuple):
    """One iteration of a chain: the new state, and how it was reached.

    Attributes:
        z: the state (d,), in the coordinates of `Layout`.
        accept: the mean acceptance probability along the trajectory.
        steps: the number of leapfrog steps.
        diverged: whether the trajectory diverged.
        energy: potential and kinetic energy, in nats.
        log_density: minus the potential energy.
        step_size: the integrator's.
    """

    z: Array
    accept: float
    steps: int
    diverged: bool
    energy: float
    log_density: float
    step_size: float


def _transitions(
    joint: Joint, z: Array, seed: int, chain: int, options: dict[str, Any]
) -> Generator[Transition, None, None]:
    """The transitions of one chain, warm-up included."""
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
    jumps = Jumps(joint) if options["jumps"] else None
    window_ends = {window.end + 1 for window in adapter.adaptation_schedule}
    current = metric()
    for iteration in range(1, options["total"] + 1):
        step_size = float(adapter.step_size)
        draw = trajectory.nuts(
            potential,
            state,
            step=step_size,
            metric=current,
            rng=rng,
            max_depth=options["max_depth"],
        )
        state = draw.state
        if iteration <= options["warmup"]:
            at = {"z": torch.from_numpy(state.z)}
            adapter.step(
                iteration - 1, at, torch.tensor(draw.accept, dtype=torch.float32, device="cpu"), {}
            )
            if iteration in window_ends:
                current = metric()
        if jumps is not None and jumps.rounds:
            z = jumps(state.z, rng)
            state = trajectory.State(z, state.p, *potential(z))
        z, energy = joint.uncentre(state.z), draw.state.energy
        yield Transition(z, draw.accept, draw.steps, draw.diverged, energy, -state.value, step_size)


def in_turn(
    joint: Joint, starts: list[Array], seed: int, options: dict[str, Any], _: int
) -> Generator[tuple[int, int, Transition], None, None]:
    """The transitions of all chains, one of each in turn: (chain, iteration, transition)."""
    chains = [_transitions(joint, z, seed, number, options) for number, z in enumerate(starts)]
    for iteration in range(options["total"]):
        for number, chain in enumerate(chains):
            yield number, iteration, next(chain)


def _run_chains(
    queue: Any, joint: Joint, starts: list[tuple[int, Array]], seed: int, options: dict[str, Any]
) -> None:
    """The work of one process: put its chains' transitions into the queue, then None."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
    torch.set_num_threads(1)
    try:
        chains = [(n, _transitions(joint, z, seed, n, options)) for n, z in starts]
        for iteration in range(options["total"]):
            for number, chain in chains:
                queue.put((number, iteration, next(chain)))
        queue.put(None)
    except BaseException as error:
        queue.put(RuntimeError(f"a chain failed: {error!r}"))


def in_processes(
    joint: Joint, starts: list[Array], seed: int, options: dict[str, Any], processes: int
) -> Generator[tuple[int, int, Transition], None, None]:
    """As `in_turn`, with the chains spread over several processes."""
    import multiprocessing
    from queue import Empty

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    numbered = list(enumerate(starts))
    # Send a copy: tensors sent to a process move into shared memory, and arrays that share theirs,
    # ours and the user's, would be left with freed memory.
    sent = copy.deepcopy(joint)
    workers = [
        context.Process(target=_run_chains, args=(queue, sent, part, seed, options), daemon=True)
        for part in (numbered[n::processes] for n in range(processes))
        if part
    ]
    for worker in workers:
        worker.start()
    try:
        running = len(workers)
        while running:
            try:
                message = queue.get(timeout=10)
            except Empty:
                if failed := [w for w in workers if w.exitcode not in (None, 0)]:
                    raise RuntimeError(
                        f"a chain's process ended with exit code {failed[0].exitcode}"
                    ) from None
                continue
            if isinstance(message, Exception):
                raise message
            if message is None:
                running -= 1
            else:
                yield message
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
