"""NUTS on a joint density: the settings, the chains' draws as a posterior, and warnings."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch

from swsmix._progress import watched
from swsmix.bayes import checks, symmetric
from swsmix.bayes.agreement import Agreement
from swsmix.bayes.chains import Transition, in_processes, in_turn
from swsmix.bayes.joint import Joint
from swsmix.bayes.layout import Array
from swsmix.bayes.posterior import Posterior

_TYPICAL_STEPS = 128  # leapfrog steps of a transition, to estimate the time
_LONG_SECONDS = 1800.0
Metric = Literal["diagonal", "dense"]


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
    jumps: bool = True,
    seed: int = 0,
    processes: int = 1,
    progress: bool = True,
) -> Posterior:
    """Draw from the posterior by the No-U-turn sampler (Hoffman & Gelman 2014).

    Pyro adapts step size and mass matrix during the warm-up (dual averaging, windows of Welford
    covariances). Trajectories are computed in numpy (`swsmix.bayes.trajectory`), gradients by hand
    (`Joint.log_joint`), in centred coordinates (`Joint.centre`). Chains advance in turn. After a
    KeyboardInterrupt the draws so far are returned, with a warning.

    Args:
        joint: the model.
        chains: the number of independent chains.
        draws: the number of draws kept per chain.
        warmup: iterations per chain before the first draw that is kept.
        start: one z to start from, or one per chain; `joint.start()`, the MAP fit, by default.
        jitter: std of the noise added to the start of each chain.
        target_accept: the acceptance probability that the step size is adapted to; nearer to 1
            means smaller steps and fewer divergences.
        metric: adapt the `"diagonal"` of the mass matrix, or all of it, `"dense"`: for some tens of
            coordinates and a long warm-up.
        max_depth: a draw takes at most 2^max_depth steps.
        jumps: after each trajectory, let single weights jump between the components, and draw the
            mixtures given the weights; in sequences of linear layers and activations alone. See
            `swsmix.bayes.jumps`.
        seed: seed of starts, momenta and choices.
        processes: the number of processes to run the chains in; with more than one, a script needs
            the usual `if __name__ == "__main__":`.
        progress: show a progress bar.

    Returns:
        The posterior. A `PosteriorWarning` says if the draws are not to be trusted, and what to do
        (`Posterior.verdict`): it judges the predictions at the given inputs.

    Raises:
        ValueError: for settings out of range, a start of the wrong length, or one where the density
            is not finite.
        KeyboardInterrupt: if interrupted before any chain has a draw.
        SystemError: if compiled code fails.
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
    checks.warn_if_untrained(joint.prior, "the warm-up must find what training would have found")
    warn_if_long(joint, starts[0], chains * (warmup + draws), min(processes, chains))
    options = {
        "target_accept": target_accept, "metric": metric, "max_depth": max_depth, "warmup": warmup,
        "jumps": jumps, "total": warmup + draws,
    }  # fmt: skip
    kept: list[list[Transition]] = [[] for _ in range(chains)]
    began = time.monotonic()
    run = in_turn if processes == 1 else in_processes
    try:
        with closing(run(joint, starts, seed, options, processes)) as transitions:
            for chain, iteration, transition in _with_progress(
                transitions, chains, warmup, draws, progress
            ):
                if iteration >= warmup:
                    kept[chain].append(transition)
    except (KeyboardInterrupt, SystemError) as error:
        if not _is_interruption(error):
            raise
        kept = _complete_part(kept)
        if not kept[0]:
            raise KeyboardInterrupt from error
        warnings.warn(
            f"interrupted: {len(kept)} of {chains} chains with {len(kept[0])} of {draws} draws "
            "are kept",
            stacklevel=2,
        )
    about = {"method": "nuts", "seed": seed, "seconds": time.monotonic() - began}
    about |= {name: value for name, value in options.items() if name != "total"}
    posterior = _collected(joint, kept, about)
    posterior.verdict.warn()
    return posterior


def _complete_part(kept: list[list[Transition]]) -> list[list[Transition]]:
    """The n longest chains, cut to the shortest of them, for the n that keeps the most draws."""
    lengths = sorted((len(chain) for chain in kept), reverse=True)
    num = max(range(1, len(kept) + 1), key=lambda n: n * lengths[n - 1])
    shortest = lengths[num - 1]
    return [chain[:shortest] for chain in kept if len(chain) >= shortest][:num]


def _collected(joint: Joint, kept: list[list[Transition]], about: dict[str, Any]) -> Posterior:
    steps = {
        name: torch.from_numpy(np.array([[getattr(t, name) for t in chain] for chain in kept]))
        for name in ("accept", "steps", "diverged", "energy", "log_density", "step_size")
    }
    z = torch.from_numpy(np.array([[t.z for t in chain] for chain in kept]))
    predicted = symmetric.predictions(joint.layout, z, joint.net, joint.x)
    about = about | {"predictions": Agreement.of(predicted).to_dict()}
    return Posterior(z, joint.layout, steps, about)


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the user interrupted: inside compiled code that becomes a SystemError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def warn_if_long(joint: Joint, z: Array, transitions: int, processes: int) -> None:
    """Warn, with an estimate, if the transitions would take more than half an hour."""
    joint.potential(z)  # compiles
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.02 and len(times) < 100):
        began = time.perf_counter()
        joint.potential(z)
        times.append(time.perf_counter() - began)
    fastest = min(times)
    seconds = fastest * _TYPICAL_STEPS * transitions / processes
    if seconds > _LONG_SECONDS:
        warnings.warn(
            f"NUTS on {joint.layout.size:,} coordinates: a gradient takes {1e3 * fastest:.3g} ms, "
            f"so {transitions:,} transitions of about {_TYPICAL_STEPS} steps take some "
            f"{seconds / 3600:.1f} hours: use swsmix.bayes.fit_guide (SVI), or fewer draws",
            stacklevel=3,
        )


def _starts(
    joint: Joint, start: Array | Sequence[Array] | None, chains: int, jitter: float, seed: int
) -> list[Array]:
    """A start of each chain, with noise; less of it where the density there is not finite."""
    given = joint.start() if start is None else np.asarray(start, dtype=np.float64)
    rows = np.broadcast_to(given, (chains, given.shape[-1])) if given.ndim == 1 else given
    if rows.shape != (chains, joint.layout.size):
        raise ValueError(
            f"start needs {joint.layout.size} numbers, once or for each of {chains} chains; got "
            f"shape {given.shape}"
        )
    starts = []
    for chain, row in enumerate(rows):
        rng = np.random.default_rng([seed, chain, 1])
        for attempt in range(20):
            z = row + jitter * 0.7**attempt * rng.standard_normal(len(row))
            if math.isfinite(joint.potential(z)[0]):
                starts.append(z)
                break
        else:
            raise ValueError(
                f"the log joint density is not finite at the start of chain {chain}: pass another "
                "start, or a smaller jitter"
            )
    return starts


def _with_progress(
    transitions: Generator[tuple[int, int, Transition], None, None],
    chains: int,
    warmup: int,
    draws: int,
    progress: bool,
) -> Generator[tuple[int, int, Transition], None, None]:
    """The same transitions, with a progress bar."""
    divergences, text = 0, ""
    total = chains * (warmup + draws)
    bar = watched(transitions, "NUTS", shown=progress, total=total, note=lambda: text)
    for chain, iteration, transition in bar:
        drawing = iteration >= warmup
        divergences += transition.diverged and drawing
        phase = "draws" if drawing else "warm-up"
        text = f"{phase}: {transition.steps} steps, {divergences} divergences"
        yield chain, iteration, transition
