"""When the prior enters and how strong it becomes, where the user has not said: by the data.

Weights that have learned nothing yet say nothing about the data, and a prior on them holds them
where they are. So the prior waits *until the data have spoken*. The level of the loss is followed,
from the losses that are observed or else from the gradients alone: between two records s < T of it,

    level(T) - level(s) = 2 mean_t g_t . (w_t - w_s),

which is exact for a constant gradient and speed. The batch of g_t had no part in the way to w_t,
so that its noise averages out, and a step that is too long for a sharp direction counts once for
each record, not at every step, as it would in a sum of g_t . (w_t - w_{t-1}).

The data have spoken at T if the level has moved by three standard errors in all, and has since
T / 2 fallen by at most a tenth of that. (Or, after 1,000 gradients without such a move: the network
was trained already. By gradients the level moves up where steps oscillate; that is a move too.)
Then tau rises linearly, for as long as the wait took, to

    min(tau asked, PRICE * num_data / N)        N weights, counted with their group's tau

At the second, the objective is loss + PRICE * R / N: a nat per weight of the prior is worth PRICE
nats per case of the data. While observed losses lie above their level at the entry by more than a
tenth of the fall, tau goes back at the same pace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from swsmix import _shards

SHARE = 0.1  # of the fall of the loss: what may be still to come, and what the prior may take back
PRICE = 0.003  # nats of loss per case for a nat of the prior per weight
FIRST = 32  # the time of the first record of the level; the first decision is at twice this
DEADLINE = 1000  # a network that has not learned by then was trained before
ERRORS = 3.0  # standard errors that count as a fall or a rise
_SAMPLE = 1 << 16  # weights of a tensor that are followed


def ceiling(asked: float, *, num_weights: float, num_data: int) -> float:
    """The strongest that a prior becomes by itself.

    Args:
        asked: the tau that was asked for, which is never exceeded.
        num_weights: N, each weight counted with the tau of its group.
        num_data: the number of training examples; at 1 (a loss that is a sum) they are not known,
            and what is asked for is allowed.

    Example:
        >>> round(ceiling(1.0, num_weights=1000.0, num_data=500), 4)
        0.0015
    """
    known = num_data > 1 and num_weights > 0
    return min(asked, PRICE * num_data / num_weights) if known else asked


@dataclass
class _Mean:
    """The mean of a series, and its standard error, to which a trend adds little."""

    count: int = 0
    total: float = 0.0
    last: float = 0.0
    differences: float = 0.0  # squares of those between neighbours

    def add_(self, value: float) -> None:
        if self.count:
            self.differences += (value - self.last) ** 2
        self.count += 1
        self.total += value
        self.last = value

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def error(self) -> float:
        return math.sqrt(self.differences / 2.0 / max(1, self.count - 1) / max(1, self.count))


@dataclass
class _Progress:
    """All numbers of an entry, as a checkpoint keeps them."""

    time: int = 0  # gradients of the whole loss that were taken
    due: int = FIRST  # when the level is recorded next
    level: float = 0.0  # by the gradients
    variance: float = 0.0  # of that
    moved: float = 0.0  # the sum of its changes, up or down
    # level by the gradients; mean loss since the last record, and its standard error
    records: list[tuple[float, float, float]] = field(default_factory=list)
    entered: int | None = None  # the time of the entry
    reference: float = math.nan  # the observed loss at the entry
    tolerance: float = math.nan  # how far above it is too far
    done: int = 0  # of the ramp, in units of time
    falling: bool = False  # whether tau goes back


class Entry:
    """The strength of a prior that enters by itself; one clock with its attachment.

    Args:
        asked: the tau that was asked for, which is never exceeded.
        num_weights: N, each weight counted with the tau of its group.
        num_data: the number of training examples; at 1 (a loss that is a sum) they are not known,
            and what is asked for is allowed.

    Example:
        >>> entry = Entry(1.0, num_weights=1000.0, num_data=500)
        >>> round(entry.allowed, 4), entry.tau
        (0.0015, 0.0)
    """

    def __init__(self, asked: float, *, num_weights: float, num_data: int) -> None:
        self.allowed = ceiling(asked, num_weights=num_weights, num_data=num_data)
        self._state = _Progress()
        self._losses, self._now = _Mean(), _Mean()
        # Since the last record: of g_t . (w_t - w_s) their number, sum and sum of squares; this
        # tick's, as it comes; and w_s by name.
        self._sums: Tensor | None = None
        self._product: Tensor | None = None
        self._start: dict[str, Tensor] = {}

    @property
    def tau(self) -> float:
        """The strength now: 0 while waiting, at most `allowed`."""
        if self._state.entered is None:
            return 0.0
        return self.allowed * min(1.0, self._state.done / self._state.entered)

    @property
    def waits(self) -> bool:
        """Whether the data have not spoken yet."""
        return self._state.entered is None

    def observe(self, loss: object) -> None:
        """Take note of the data loss of this step; of several, the mean counts.

        Raises:
            TypeError: if it is not a number.
            ValueError: if it is not one finite number.
        """
        self._now.add_(checked(loss))

    @torch.no_grad()
    def feel(self, held: Iterable[tuple[str, Tensor]], scale: float = 1.0) -> None:
        """Before a step: how the data's gradients lie to the way since the last record.

        Args:
            held: name and parameter of the prior's tensors in the optimiser, with the data's
                gradients.
            scale: by which these gradients are multiplied.
        """
        for name, p in held:
            grad = None if p.grad is None else p.grad.detach()
            if grad is None or grad.layout is not torch.strided:
                continue
            w, start = _sample(p.detach()), self._start.get(name)
            if start is None or start.shape != w.shape:
                with torch.inference_mode(False):  # what is made inside it could never change
                    self._start[name] = w.clone()
                continue
            way = w.float() - start.to(w.device).float()
            product = (_sample(grad).float() * way).sum(dtype=torch.float64) / scale
            product = _shards.sum_over_(product, _shards.shard_groups(p))
            so_far = self._product
            self._product = product if so_far is None else so_far + product.to(so_far.device)

    def tick(self, gradients: int = 1) -> None:
        """After a step of all optimisers.

        Args:
            gradients: how many were taken in it; a step of L-BFGS takes several.
        """
        state = self._state
        if self._now.count:
            self._losses.add_(self._now.mean)
            self._now = _Mean()
        state.time += gradients
        if state.entered is not None:
            self._ramp(gradients)
            return
        if self._product is not None:
            x, self._product = self._product, None
            sums = torch.stack([torch.ones_like(x), x, x.square()])
            self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)
        if state.time >= state.due:
            self._decide()
            state.due = math.ceil(state.time * math.sqrt(2.0))
            if state.time < DEADLINE:
                state.due = min(state.due, DEADLINE)

    def _decide(self) -> None:
        state, losses = self._state, self._losses
        if self._sums is not None:
            count, total, squares = self._sums.tolist()
            mean = total / count
            state.level += 2.0 * mean
            state.moved += abs(2.0 * mean)
            state.variance += 4.0 * max(0.0, squares / count - mean**2) / count
        state.records.append((state.level, losses.mean, losses.error))
        self._sums, self._losses = None, _Mean()
        self._start.clear()
        if len(state.records) < 3:
            return
        level_before, loss_before, _ = state.records[-3]
        level, loss, loss_error = state.records[-1]
        if not any(math.isnan(loss) for _, loss, _ in state.records):
            _, highest, its_error = max(state.records, key=lambda record: record[1])
            fall, recent = highest - loss, loss_before - loss
            error = math.hypot(its_error, loss_error)
        else:
            fall, recent = state.moved, level_before - level
            error = math.sqrt(state.variance)
        has_moved = fall > ERRORS * error
        if (has_moved and recent <= SHARE * fall) or (not has_moved and state.time >= DEADLINE):
            state.entered = state.time
            state.reference = loss
            state.tolerance = SHARE * (fall if has_moved else abs(loss))

    def _ramp(self, gradients: int) -> None:
        state, losses = self._state, self._losses
        assert state.entered is not None
        if losses.count >= max(16, state.entered // 8):
            above = losses.mean - ERRORS * losses.error - state.reference
            state.falling = above > state.tolerance
            self._losses = _Mean()
        pace = -gradients if state.falling else gradients
        state.done = min(state.entered, max(0, state.done + pace))

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on: numbers, and the followed weights while waiting."""
        return {
            **asdict(self._state),
            "losses": asdict(self._losses),
            "now": asdict(self._now),
            "sums": self._sums,
            "product": self._product,
            "start": dict(self._start),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if a field is missing or is something else.
        """
        check_state(state)
        rest = dict(state)
        self._losses, self._now = _Mean(**rest.pop("losses")), _Mean(**rest.pop("now"))
        self._sums, self._product = rest.pop("sums"), rest.pop("product")
        self._start = dict(rest.pop("start"))
        rest["records"] = [tuple(record) for record in rest["records"]]
        self._state = _Progress(**rest)


def checked(loss: object) -> float:
    """An observed loss as a number.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not one finite number.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or loss.is_complex():
            raise ValueError(
                "observe needs the mean data loss of the step, one real number; got a tensor of "
                f"shape {tuple(loss.shape)} and {loss.dtype}"
            )
        loss = loss.item()
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        raise TypeError(
            "observe needs the mean data loss of the step, a number or a tensor of one; got "
            f"{type(loss).__name__}"
        )
    if not math.isfinite(loss):
        raise ValueError(f"observe needs a finite loss; got {loss}: has training diverged?")
    return float(loss)


_LIMIT = 2.0**53  # of times; far above any
_HUGE = 1e100  # of losses: their squares stay finite


def check_state(state: Any) -> None:
    """Check what `Entry.load_state_dict` is given against what `state_dict` gives.

    Raises:
        ValueError: naming the field that is missing or something else.
    """
    wanted = Entry(1.0, num_weights=1.0, num_data=2).state_dict()
    if not isinstance(state, dict) or state.keys() != wanted.keys():
        names = sorted(state) if isinstance(state, dict) else state
        raise ValueError(f"an entry's state has the fields {sorted(wanted)}; got {names!r}")
    for name, like in wanted.items():
        value = state[name]
        if isinstance(like, dict) and like:  # a mean
            good = isinstance(value, dict) and value.keys() == like.keys()
            good = good and all(_is_like(value[key], like[key]) for key in like)
        elif name == "start":
            good = isinstance(value, dict) and all(map(_is_finite, value.values()))
        elif name in ("sums", "product"):
            shape = (3,) if name == "sums" else ()
            good = value is None or (_is_finite(value) and tuple(value.shape) == shape)
        elif name == "records":
            good = isinstance(value, list) and all(
                isinstance(record, list | tuple)
                and len(record) == 3
                and all(_is_like(number, 0.0) for number in record)
                for record in value
            )
        else:
            good = (value is None and like is None) or _is_like(value, 0 if like is None else like)
            good = good and not (name == "entered" and value == 0)  # what tau is divided by
        if not good:
            raise ValueError(f"an entry's `{name}` is not what it saves; got {value!r:.80}")


def _is_like(value: object, like: object) -> bool:
    if isinstance(like, bool):
        return isinstance(value, bool)
    if isinstance(like, int):
        return type(value) is int and 0 <= value <= _LIMIT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not abs(value) > _HUGE


def _is_finite(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isfinite().all())


def _sample(t: Tensor) -> Tensor:
    flat = _shards.local(t).reshape(-1)
    return flat[:: max(1, -(-len(flat) // _SAMPLE))]
