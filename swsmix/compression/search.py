"""The way to a target: a bound on the validation loss or measure, or the size of the file.

    minimise R(w) subject to  C(w) <= start + allowed       C on validation data, snapped network

First `compress_` as it is without a target. If that is not it, its phases again, with the prior's
strength as the constraint's multiplier (`multiplier`). Then what the snapped network has to spare
is spent: weights move to cheaper values at a second multiplier (`spending`), the centres are
fine-tuned, which gives some of it back, and so on until the bound is reached. If no trial has
anything to spare, the pretrained weights are snapped as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swsmix import codec
from swsmix.compression import clusters
from swsmix.compression.multiplier import Multiplier
from swsmix.compression.phases import Job, finetune_, quantise_, snap_, sparsify_
from swsmix.compression.snap import snapped_state
from swsmix.compression.spending import (
    Index,
    Spender,
    curvatures,
    entropy_bytes,
    spend_to_bound,
    spend_to_size,
)
from swsmix.compression.targets import Reached, Step, Target, TargetError
from swsmix.training.evaluation import Loss, evaluate

_ROUNDING = 0.02  # the share that biases in fewer bits may use
_WORTH = 0.99  # a round of spending should leave at most this share of the file
_ROUNDS = 5  # of spending and fine-tuning
_FITS = 1.0 + 1e-6  # of the allowed increase: means are rounded
_GOAL = 0.7  # the share that sparsifying should use, where tau follows the bound
_ENOUGH = 0.2  # less, and the phases are repeated, harder
_WITHIN = 0.95  # the least share of the asked size that a file should have
_GIVEN = (63, 255, 1023)  # values per tensor at which pretrained weights are snapped


@dataclass(frozen=True, eq=False)
class _Snapped:
    """A snapped network: its state, its clusters, and where it stands.

    The bytes are about those of the file, as the entropy has it; encoding takes seconds.
    """

    state: dict[str, Tensor]
    index: Index
    value: float
    bytes: float
    tau: float
    size_bytes: int | None = None


def reach_(job: Job, target: Target, measure: Loss) -> tuple[Index, Reached]:
    """Compress the network of a job, in place, until a target is met.

    Args:
        job: model, data and recipe; its validation data are measured.
        target: what is asked.
        measure: what the target bounds; the loss for a size.

    Returns:
        The clusters of the snapped weights, and what was reached.

    Raises:
        TargetError: if no snapped network meets it.
    """
    search = _Search(job, target, measure)
    before = _copy(job)
    try:
        search.run_(before)
        found = search.best
        if found is None:
            raise TargetError(search.reached(search.nearest), search.nearest.state)
    except BaseException:
        # An interrupted call leaves the network as it was; what is in `run` can be continued.
        job.model.load_state_dict(before)
        raise
    job.model.load_state_dict(found.state)
    reached = search.reached(found)
    if target.size_bytes is not None and reached.used < _WITHIN:
        warnings.warn(
            f"the file takes {reached.size_bytes:,} of the {target.size_bytes:,} bytes that were "
            f"asked for: nothing between was found up to {_GIVEN[-1]} values per tensor; save the "
            "weights as they are if they should keep more",
            stacklevel=3,
        )
    return found.index, reached


class _Search:
    """The trials on the way to one target."""

    def __init__(self, job: Job, target: Target, measure: Loss) -> None:
        self.job, self.target, self.measure = job, target, measure
        self.start = self.value()
        self.found: list[_Snapped] = []
        self.path: list[Step] = []
        # For a size, a generous bound keeps the network alive while its size comes down.
        generous = 0.3 * abs(self.start) + 0.02
        self.allowed = generous if target.allowed is None else target.allowed

    # -- where we stand -------------------------------------------------------------------------

    def value(self) -> float:
        """The validation measure of the network as it is."""
        return evaluate(self.job.model, self.measure, self.job.fit_options["validation"])

    def used(self, value: float) -> float:
        """The share of the allowed increase."""
        if not math.isfinite(value):
            return math.inf
        return (value - self.start) / max(self.allowed, 1e-12 + 1e-7 * abs(self.start))

    def fixed(self) -> int:
        """About how many bytes of the file the clusters do not decide."""
        tensors = {t.data_ptr(): t for t in self.job.model.state_dict().values()}
        for p in self.job.weights.values():
            tensors.pop(p.data_ptr(), None)
        return sum(t.nbytes for t in tensors.values())

    def meets(self, state: _Snapped) -> bool:
        """Whether a snapped network is within the target."""
        if self.target.size_bytes is not None:
            return state.size_bytes is not None and state.size_bytes <= self.target.size_bytes
        return self.used(state.value) <= _FITS

    @property
    def best(self) -> _Snapped | None:
        """Of what meets a bound the smallest, of what meets a size the best on validation."""
        met = [state for state in self.found if self.meets(state)]
        if self.target.size_bytes is None:
            return min(met, key=lambda state: (state.bytes, state.value), default=None)
        full = [s for s in met if (s.size_bytes or 0) >= _WITHIN * self.target.size_bytes]
        return min(full or met, key=lambda state: state.value, default=None)

    @property
    def nearest(self) -> _Snapped:
        """The one that is nearest to the target."""
        if self.target.size_bytes is None:
            return min(self.found, key=lambda state: state.value)
        return min(self.found, key=lambda state: state.size_bytes or math.inf)

    def reached(self, state: _Snapped) -> Reached:
        """What a snapped network has reached."""
        size = len(codec.encode(state.state)) if state.size_bytes is None else state.size_bytes
        return Reached(self.target, self.start, state.value, size, state.tau, tuple(self.path))

    def keep(
        self, phase: str, index: Index, multiplier: float, tau: float, *, encoded: bool = True
    ) -> _Snapped:
        """Remember the snapped network as it is, other tensors in fewer bits too."""
        value, share, size = self.value(), 1.0, None
        # A bound needs no file before the end.
        asked = self.target.size_bytes if encoded else None
        if asked is not None:
            size = len(codec.encode(_copy(self.job)))
        if size is None or asked is None or size > asked:
            value, share = self._round_others_(value)
        state = _copy(self.job)
        if asked is not None and share < 1.0:
            size = len(codec.encode(state))
        about = entropy_bytes(index) + share * self.fixed()
        found = _Snapped(state, index, value, about, tau, size)
        self.found.append(found)
        self.path.append(Step(phase, multiplier, found.value, found.size_bytes))
        return found

    def _round_others_(self, value: float) -> tuple[float, float]:
        """Biases and norms to 8 or 16 bits, if that costs little.

        Returns:
            The value then, and the share of their bytes that is left.
        """
        exact = _copy(self.job)
        for bits, share in ((8, 0.3), (16, 0.5)):
            state = snapped_state(self.job.model, bias_bits=bits, keep=self.job.weights)
            self.job.model.load_state_dict(state)
            rounded = self.value()
            cost = self.used(rounded) - self.used(value)
            if cost <= _ROUNDING and (self.used(rounded) <= _FITS or self.used(value) > _FITS):
                return rounded, share
            self.job.model.load_state_dict(exact)
        return value, 1.0

    # -- the trials -----------------------------------------------------------------------------

    def run_(self, before: dict[str, Tensor]) -> None:
        """Trials of the phases; what may be spent of the best one is; else the gentlest.

        First the recipe as it is: what it gives is never worse than without a target. If it takes
        too much, or its file is too small, a quarter of its strength, and then a sixteenth. If a
        bound leaves something to spare, tau follows it from the recipe's own strength.
        """
        bounded = self.target.size_bytes is None
        tau, rate = self.job.recipe.sparsify_tau, 0.0
        trials: list[tuple[Job, _Snapped]] = []
        for suffix in ("", "-2", "-3"):
            self.job.model.load_state_dict(before)
            job = replace(self.job, suffix=suffix)
            state = self._phases_(job, tau, rate)
            trials.append((job, state))
            used = self.used(state.value)
            if _ENOUGH <= used <= _FITS if bounded else self._can_start(state):
                break
            if bounded and suffix and any(self.meets(state) for _, state in trials):
                break
            if bounded and used < _ENOUGH:
                rate = 12.0 / job.recipe.sparsify_epochs
            else:
                tau = 0.25 * tau
        able = [(job, state) for job, state in trials if self._can_start(state)]
        if not able:
            job = replace(self.job, suffix="-given")
            job.model.load_state_dict(before)
            none = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in job.weights.items()}
            for most in _GIVEN:  # more values where a file should be larger
                job.model.load_state_dict(before)
                phase = "snap-given" if most == _GIVEN[0] else f"snap-given-{most}"
                able = [(job, self._snap_finely_(job, none, phase, 0.0, most))]
                if bounded or self._can_start(able[0][1]):
                    break
            if bounded and not self._can_start(able[0][1]):
                return
        job, state = min(able, key=lambda each: each[1].bytes)
        job.model.load_state_dict(state.state)
        self._spend_(job, state)

    def _can_start(self, state: _Snapped) -> bool:
        """Whether there is anything to spend: within the bound, or not below the size."""
        if self.target.size_bytes is None:
            return self.meets(state)
        return (state.size_bytes or 0) >= _WITHIN * self.target.size_bytes

    def _phases_(self, job: Job, tau: float, rate: float) -> _Snapped:
        """The phases of `compress_`, where log tau moves by at most the rate in an epoch."""
        multiplier = Multiplier(
            tau,
            rate,
            start=self.start,
            allowance=max(self.allowed, 1e-3 * abs(self.start), 1e-12),
            goal=_GOAL,
            least=tau,
        )
        zero = sparsify_(job, multiplier)
        sparse = _copy(job)
        history = job.histories[f"sparsify{job.suffix}"]
        values = history.scalars["validation_measure"]
        pairs = zip(history.scalars["tau"][1:], values[1:], strict=True)
        self.path += [Step(f"sparsify{job.suffix}", t, v) for t, v in pairs]
        prior = quantise_(job, zero)
        index = snap_(job, prior, zero)
        finetune_(job, index)
        tau = history.scalars["tau"][-1]
        state = self.keep(f"snap{job.suffix}", index, tau, tau)
        if self.target.size_bytes is None and not self.meets(state):
            # If it is quantising that took too much: as many values as it takes.
            job.model.load_state_dict(sparse)
            finer = self._snap_finely_(job, zero, f"snap-finely{job.suffix}", tau)
            if self.meets(finer):
                return finer
        return state

    def _snap_finely_(
        self, job: Job, zero: Mapping[str, Tensor], phase: str, tau: float, most: int = 63
    ) -> _Snapped:
        """Snap the weights to many values each, without training; `zero` says which become 0."""
        index = {}
        with torch.no_grad():
            for name, p in job.weights.items():
                mean, nearest = clusters.many_centres(zero[name], p, most, job.unit[name], job.seed)
                order = mean.double().sort()
                edges = (order.values[1:] + order.values[:-1]) / 2.0
                j = order.indices[torch.bucketize(p.detach().double(), edges)]
                j[zero[name]] = 0
                index[name] = clusters.merge_clusters(j, p, nearest=nearest, rare=0)
                clusters.set_to_centres_(p, index[name])
        return self.keep(phase, index, tau, tau)

    # -- spending -------------------------------------------------------------------------------

    def _spend_(self, job: Job, state: _Snapped) -> None:
        """Move weights to cheaper values and fine-tune, until nothing is left to spend."""
        asked = self.target.size_bytes
        rounds = _ROUNDS
        size = float(state.size_bytes or 0)
        if asked is not None:
            rounds = min(max(1, math.ceil(math.log(max(size / asked, 1.0), 1.4))), rounds)
        for left in range(rounds, 0, -1):
            number, before = 1 + rounds - left, state.bytes
            # A size is come down to in equal ratios.
            goal = None if asked is None else asked * max(size / asked, 1.0) ** (1.0 - 1.0 / left)
            state = self._spend_once_(
                job, state, f"spend-{number}", size=size, goal=goal, last=left == 1
            )
            size = float(state.size_bytes or 0)
            # A bound is reached by spending, a size may be kept while the centres move.
            if not job.recipe.finetune_epochs or (asked is None and left == 1):
                return
            if asked is None and number > 1 and state.bytes > _WORTH * before:
                return
            finetune_(job, state.index, f"finetune-{number}")
            state = self.keep(
                f"finetune-{number}{job.suffix}", state.index, state.tau, state.tau,
                encoded=left == 1,
            )  # fmt: skip
            if asked is None and self.used(state.value) > 0.95:
                return

    def _spend_once_(
        self, job: Job, state: _Snapped, phase: str, *, size: float, goal: float | None, last: bool
    ) -> _Snapped:
        """Spend down to a bound, or to a size from a known one."""
        curvature = curvatures(
            job.model, job.loss, job.data, job.weights, job.fit_options["batch_size"]
        )
        spender = Spender(job.weights, state.index, curvature)

        def used(index: Index) -> float:
            spender.place_(index)
            return self.used(self.value())

        def encoded(index: Index) -> int:
            spender.place_(index)
            return len(codec.encode(job.model.state_dict()))

        if goal is None:
            index, price = spend_to_bound(spender, used, full=0.95, fits=_FITS)
        else:
            index, price = spend_to_size(
                spender, encoded, size=int(size),
                fixed=int(state.bytes - entropy_bytes(state.index)),
                low=0.97 * goal, high=0.995 * goal, rough=not last,
            )  # fmt: skip
        return self.keep(phase + job.suffix, spender.place_(index), price, state.tau)


def _copy(job: Job) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in job.model.state_dict().items()}
