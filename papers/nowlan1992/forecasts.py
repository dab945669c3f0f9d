"""The sunspot series' windows and scales, and what a forecast of it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from papers.nowlan1992.nets import Cases
from swsmix.problems import data

Forecast = Callable[[Tensor], Tensor]
FLOAT = torch.float64


@dataclass(frozen=True)
class Scale:
    """How numbers become inputs and targets: x = root(number) / divisor - centre.

    Attributes:
        divisor: in sunspot numbers, or their square roots.
        centre: subtracted afterwards.
        root: take square roots first, which evens out the noise (Tong & Lim 1980 did).
    """

    divisor: float = 191.0
    centre: float = 0.0
    root: bool = False

    def there(self, numbers: Tensor) -> Tensor:
        """Sunspot numbers to the network's units.

        Returns:
            The same shape.
        """
        return (numbers.sqrt() if self.root else numbers) / self.divisor - self.centre

    def back(self, outputs: Tensor, variance: Tensor) -> Tensor:
        """The expected number, given the output and sigma_y^2 in the network's units.

        Returns:
            The same shape as the outputs.
        """
        value = (outputs + self.centre) * self.divisor
        if not self.root:
            return value
        return value.clamp_min(0.0).square() + variance * self.divisor**2


def numbers(first: int, last: int) -> tuple[Tensor, Tensor]:
    """Windows of twelve years and the year after them, in sunspot numbers, by target year.

    Returns:
        Inputs (n, 12) and targets (n,).
    """
    series = data.sunspots(scale=1.0, dtype=FLOAT)
    rows = (series.target_years >= first) & (series.target_years <= last)
    return series.inputs[rows], series.targets[rows]


def measured(
    forecast: Forecast, splits: Sequence[str] = ("train", "test", "late")
) -> dict[str, Any]:
    """The arv (over 1535) of every network and of their ensemble, on each split.

    Returns:
        `arv` (by seed) and `ensemble` by split, and the ensemble's `forecasts` (numbers).
    """
    result: dict[str, Any] = {"arv": {}, "ensemble": {}, "forecasts": {}}
    for split in splits:
        x, y = numbers(*data.SUNSPOT_SPLITS[split])
        out = forecast(x[None])
        error = (out - y).square().mean(1) / data.VARIANCE_1535
        result["arv"][split] = [digits(v) for v in error]
        result["ensemble"][split] = float(f"{data.arv(out.mean(0), y, scale=1.0):.5g}")
        result["forecasts"][split] = [round(v, 2) for v in out.mean(0).tolist()]
    return result


def iterated(forecast: Forecast, most: int = 25) -> list[float]:
    """The arv of h-step forecasts of 1921-55, h = 1 to 25, each net feeding on its own forecasts.

    Returns:
        By horizon, averaged over the networks.
    """
    return [digits(nets.mean()) for nets in iterated_each(forecast, most)]


def iterated_each(forecast: Forecast, most: int = 25) -> list[Tensor]:
    """As `iterated`, for each of the networks.

    Returns:
        By horizon (b,).
    """
    x, y = numbers(*data.SUNSPOT_SPLITS["test"])
    window = x[None]
    errors = []
    for ahead in range(most):
        out = forecast(window)
        left = len(y) - ahead  # origins whose target is still in the split
        off = out[:, :left] - y[ahead:]
        errors.append(off.square().mean(1) / data.VARIANCE_1535)
        window = window.expand(len(out), *x.shape)
        window = torch.cat([window[..., 1:], out[..., None]], 2)
    return errors


def networks(cases: Cases, theta: Tensor, scale: Scale, draws: int = 1) -> Forecast:
    """The one-step forecast of each network, or the mean forecast of every `draws` in a row.

    Returns:
        Windows of numbers (b or 1, n, 12) to forecasts (b, n).
    """

    def forecast(windows: Tensor) -> Tensor:
        windows = scale.there(windows).expand(len(theta) // draws, *windows.shape[1:])
        pairs = zip(theta.split(draws), windows, strict=True)
        return torch.stack([predict(cases, nets, scale, window).mean(0) for nets, window in pairs])

    return forecast


def linear(name: str) -> Forecast:
    """Persistence, or AR(12) with a constant by least squares on the training years.

    Returns:
        Windows of numbers (1, n, 12) to forecasts (1, n).
    """
    if name == "persistence":
        return lambda windows: windows[..., -1]
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    one = torch.ones(len(x), 1, dtype=FLOAT)
    solution = torch.linalg.lstsq(torch.cat([x, one], 1), y[:, None]).solution[:, 0]
    return lambda windows: windows @ solution[:-1] + solution[-1]


def predict(cases: Cases, theta: Tensor, scale: Scale, inputs: Tensor | None = None) -> Tensor:
    """One-step forecasts in sunspot numbers.

    Args:
        cases: the network's shape.
        theta: (b, p).
        scale: of inputs and outputs.
        inputs: in the network's units; those of the cases by default.

    Returns:
        (b, n).
    """
    variance = theta[:, cases.num_parameters - 1 :][:, :1].exp()
    return scale.back(cases.outputs(theta, inputs), variance)


def digits(value: Tensor) -> float:
    """Five significant digits, for the tables."""
    return float(f"{value.item():.5g}")
