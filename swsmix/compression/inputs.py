"""A trained network to a small file, with inputs and without labels.

feeding        batches of any kind, a part of each held out
hessians       what the network's weights multiply, and its second moments
uses           which weights are used how, in which order
compensation   the column loop
layerwise      one weight: plain or compensated, by the held-out inputs
calibration    the whole network at one lambda; what a tensor's error costs at the outputs
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from swsmix import codec
from swsmix.compression.calibration import Attempt, Calibration
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.feeding import Inputs, Output, batches_of, first_tensor
from swsmix.compression.layerwise import Done

_FEWEST = 64  # weights of a tensor that gets values of its own
_LOSS = 0.005  # by default: the answers' relative error
_ATTEMPTS = 8  # twice as many where none of these meets the bound
_NEAR = 0.03  # of a target, on its right side
_MOST_BITS = 8.0  # per weight, from which a search begins: more change little
_ALIKE = 1e-10  # of the answers' squares, below which they are the same
_ENOUGH = 0.2  # rows of inputs times damping, in units of the fan-in


@dataclasses.dataclass(frozen=True)
class InputsReport:
    """What `quantize_` did.

    Attributes:
        layers: what became of each weight, in the order of use.
        codebooks: name -> its values, their bits, and its lambda.
        bits: the order-0 entropy per weight.
        error: of the outputs on held-out inputs, in units of the outputs' squares.
        agreement: how often the largest output is the same; nan if there is but one.
        plain_error: the error of plain entropy-constrained quantisation at as many bits.
        compensated: the compensated network was kept; otherwise the plain one had less error.
        tried: lambda, bits per weight and error of each attempt.
    """

    layers: tuple[Done, ...]
    codebooks: dict[str, Codebook]
    bits: float
    error: float
    agreement: float
    plain_error: float
    compensated: bool
    tried: tuple[tuple[float, float, float], ...]

    def __str__(self) -> str:
        """A table of the weights, and the whole below it."""
        width = max(len(done.name) for done in self.layers)
        lines = [f"{'':{width}}  weights values  bits    error   plain  way"]
        for d in self.layers:
            errors = "".join(
                "       -" if math.isnan(e) else f"{e:8.4f}" for e in (d.error, d.plain_error)
            )
            note = f" ({d.note})" if d.note else ""
            lines.append(
                f"{d.name:{width}} {d.weights:8,} {d.values:6} {d.bits:5.2f} {errors}"
                f"  {d.way}{note}"
            )
        same = (
            "" if math.isnan(self.agreement) else f", the largest the same in {self.agreement:.2%}"
        )
        lines.append(
            f"{self.bits:.3f} bits per weight; outputs on held-out inputs: "
            f"relative error {self.error:.4f} (plain at as many bits {self.plain_error:.4f}){same}"
        )
        return "\n".join(lines)


def quantize_(
    model: nn.Module,
    inputs: Inputs,
    *,
    bits: float | None = None,
    size_bytes: int | None = None,
    loss: float | None = None,
    damping: float = 0.1,
    output: Output = first_tensor,
    progress: bool = False,
) -> InputsReport:
    """Quantise a trained network in place with some of its inputs, and no labels.

    Each weight of at least two dimensions gets values of its own (entropy-constrained, as many as
    pay for themselves). Layer by layer, on the outputs of the quantised layers before it, the
    error of each weight is made good by the others (`compensation`), and that of the mean by the
    bias. A bit is worth as much error of the network's outputs in every tensor. A quarter of the
    inputs is held out: they choose between compensated and plain, for each layer and for all.

    Give at most one of `bits`, `size_bytes` and `loss`. The file is written by
    `save_compressed(path, model)`.

    Args:
        model: the network; any device, any floating-point dtype. It runs in evaluation mode.
        inputs: batches: a tensor, a tuple of arguments or a mapping of keyword arguments each; or
            one tensor, of which batches are made. A few thousand rows for each layer, see
            `damping`.
        bits: per weight on average, at most, by the order-0 entropy.
        size_bytes: of the whole file, at most.
        loss: the relative squared error of the outputs on held-out inputs, at most; 0.005 by
            default.
        damping: added to the diagonal of H, in units of its mean. More of it needs fewer inputs,
            and compensates less.
        output: from the network's answer to the tensor that counts; by default `logits`, or the
            first floating-point tensor.
        progress: show progress bars.

    Returns:
        What became of each weight and of the outputs; print it.

    Raises:
        ValueError: if a target or the damping is out of range or cannot be met, there are no
            inputs or nothing to quantise, or something is not finite. The network is then as it
            was.

    Reference:
        Frantar et al. 2022 (GPTQ); Chou, Lookabaugh & Gray 1989; CERWU 2025.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> import torch
        >>> report = quantize_(net, torch.randn(2000, 20), bits=2.5)
        >>> report.bits <= 2.5, len(report.codebooks)
        (True, 2)
    """
    goal = _goal(bits, size_bytes, loss)
    if not 0.0 < damping < math.inf:
        raise ValueError(f"damping must be positive, 0.1 for instance; got {damping}")
    weights = _weights(model)
    device = next(iter(weights.values())).device
    used, held = batches_of(inputs, device)
    given = {n: p.detach().clone() for n, p in model.named_parameters()}
    try:
        job = Calibration(model, weights, used, held, output, damping, progress)
        _warn_of_few(job)
        _warn_of_alike(job.first)
        return _search(job, *goal)
    except BaseException:
        for name, p in model.named_parameters():
            p.detach().copy_(given[name])
        raise


def _goal(bits: float | None, size_bytes: int | None, loss: float | None) -> tuple[str, float]:
    """The name of what is bounded, and the bound."""
    asked = {"bits": bits, "size_bytes": size_bytes, "loss": loss}
    given = {name: float(value) for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"needs at most one of bits, size_bytes and loss, got {given}")
    name, value = next(iter(given.items()), ("loss", _LOSS))
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value:g}")
    return name, value


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters to quantise."""
    found: dict[str, Tensor] = {
        name: p
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.ndim >= 2 and p.numel() >= _FEWEST
    }
    if not found:
        raise ValueError(
            f"the network has no parameter of at least two dimensions and {_FEWEST} numbers: "
            "there is nothing to quantise"
        )
    for name, p in found.items():
        if not bool(p.detach().isfinite().all()):
            raise ValueError(f"{name} holds nan or inf: only finite weights can be quantised")
    return found


def _warn_of_few(job: Calibration) -> None:
    """Warn where H is made of too few inputs for its size and damping."""
    few = []
    for name, layer in job.layers.items():
        w = job.weights[name]
        fan_in = len(w) if layer.transposed else w[0].numel()
        rows = layer.rows * 3 // 4  # the rest is held out
        if not layer.note and not layer.tokens and rows * job.damping < _ENOUGH * fan_in:
            few.append((fan_in / max(rows, 1), name, rows, fan_in))
    if few:
        _, name, rows, fan_in = max(few)
        more = math.ceil(_ENOUGH * fan_in / job.damping * 4 / 3)
        warnings.warn(
            f"few inputs for {len(few)} of {len(job.layers)} weights: {name} saw {rows:,} rows, "
            f"its fan-in is {fan_in:,}, and damping is {job.damping:g}. Compensation then fits "
            f"the inputs rather than the data: give about {more:,} rows or raise damping to "
            f"{min(_ENOUGH * fan_in / max(rows, 1), 1.0):.2g}",
            stacklevel=3,
        )


def _warn_of_alike(answers: Sequence[Tensor]) -> None:
    """Warn where the network answers the same to all: biases alone would do, for these inputs."""
    rows = [y.reshape(-1, y.shape[-1] if y.ndim > 1 else 1) for y in answers]
    first = rows[0][:1]
    if sum(map(len, rows)) < 2 or any(len(y.mT) != len(first.mT) for y in rows):
        return
    change = sum(float((y.double() - first.double()).square().sum()) for y in rows)
    if change <= _ALIKE * sum(float(y.double().square().sum()) for y in rows):
        warnings.warn(
            "the network answers the same to all held-out inputs, so they tell nothing of its "
            "weights: give inputs such as it was trained on",
            stacklevel=3,
        )


def _search(job: Calibration, name: str, value: float) -> InputsReport:
    """The attempt that meets the bound, compensated or plain."""
    tried: list[tuple[float, float, float]] = []

    def amount(attempt: Attempt) -> float:
        tried.append((attempt.lam, attempt.bits, attempt.answers.error))
        if name == "bits":
            return attempt.bits
        if name == "loss":
            return attempt.answers.error
        return float(len(codec.encode(job.model.state_dict())))

    def attempt(lam: float) -> Attempt:
        return job.quantise_(lam, compensating=True)

    def plain(lam: float) -> Attempt:
        return job.quantise_(lam, compensating=False)

    total = sum(w.numel() for w in job.weights.values())
    guess = {"bits": value, "size_bytes": 8.0 * value / total, "loss": 2.0}[name]
    start = job.lambda_of(min(guess, _MOST_BITS))
    rising = name == "loss"
    best, state = _meet(job, attempt, amount, start, value, rising, name)
    other = plain(job.lambda_of(best.bits))
    keep = best.answers.error <= other.answers.error
    if not keep:
        best, state = _meet(job, plain, amount, other.lam, value, rising, name)
    for parameter, t in state.items():
        job.parameters[parameter].detach().copy_(t)
    return InputsReport(
        best.layers, best.books, best.bits, *best.answers, other.answers.error, keep, tuple(tried)
    )


def _meet(
    job: Calibration,
    attempt: Callable[[float], Attempt],
    amount: Callable[[Attempt], float],
    lam: float,
    bound: float,
    rising: bool,
    name: str,
) -> tuple[Attempt, dict[str, Tensor]]:
    """The attempt whose amount is nearest below the bound: secants within a bracket.

    Args:
        job: the network.
        attempt: quantises it at a lambda.
        amount: what is bounded.
        lam: the lambda to start from.
        bound: the most that is allowed.
        rising: the amount grows with lambda.
        name: of the bound.

    Raises:
        ValueError: if no attempt meets the bound.
    """
    sign = 1.0 if rising else -1.0
    x, best, state, nearest = math.log(lam), None, dict[str, Tensor](), math.inf
    # sign * log(amount / bound) grows with x: the ends of the bracket, where it is known.
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    least = math.inf
    for number in range(2 * _ATTEMPTS):
        if number >= _ATTEMPTS and best is not None:
            break
        now = attempt(math.exp(x))
        got = amount(now)
        excess = math.log(max(got, 1e-30) / bound)
        least = min(least, got)
        if excess <= 0.0 and -excess < nearest:
            best, nearest = now, -excess
            state = {n: p.detach().clone() for n, p in job.parameters.items()}
        if -_NEAR <= excess <= 0.0:
            break
        y = sign * (excess + _NEAR / 2.0)
        low, high = ((x, y), high) if y < 0.0 else (low, (x, y))
        if low is None or high is None:
            step = max(abs(y) / (1.0 if rising else 0.7), 0.05 * 2.0**number)
            x -= math.copysign(min(step, 3.0), y)
            continue
        (a, p), (b, q) = low, high
        if b - a < 1e-3:
            break
        x = a + (b - a) * min(max(-p / (q - p), 0.1), 0.9)
    if best is None:
        raise ValueError(f"needs {name} of at most {bound:g}; the least reached is {least:.4g}")
    return best, state
