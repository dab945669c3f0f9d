"""The sunspots experiment: the next yearly number from the last twelve, 12-8-1.

Three stages, so that no choice can see a test year:
`validate` scores one setting of one method on held-out *training* years, with all seeds in one
batch; `final` trains the setting with the lowest score on all training years and predicts 1921-55
and 1956-79; `confirm` predicts 1980-2008 with those same networks, once, at the very end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from papers.nowlan1992.methods import Recipe, sharing
from papers.nowlan1992.nets import Cases, train
from papers.nowlan1992.penalties import Decay, Elimination, Sharing
from swsmix import data

LAGS, HIDDEN = 12, 8
Setting = Mapping[str, Any]
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


def folds(num: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The validation schemes on the training years: which cases are learned, which are held out.

    `blocks`: ten contiguous blocks, about two cycles each, the rest learned. `rolling`: the next
    35 years after 1815, 1850 and 1885, everything before them learned, as in the test.

    Returns:
        scheme -> two masks (folds, n).
    """
    at = torch.arange(num)
    block = at * 10 // num
    held = block[None] == torch.arange(10)[:, None]
    starts = torch.tensor([1816, 1851, 1886])[:, None] - 1712
    ahead = (at >= starts) & (at < starts + 35)
    return {"blocks": (~held, held), "rolling": (at < starts, ahead)}


def fit(
    name: str, setting: Setting, cases: Cases, seeds: Sequence[int]
) -> tuple[Tensor, Sharing | None, Tensor]:
    """Train a method's networks.

    Args:
        name: of the method.
        setting: its hyper-parameters.
        cases: the data, one row of case weights a network.
        seeds: of the initial weights, one a network.

    Returns:
        theta (b, p), the prior of soft weight-sharing, the objectives (b,).
    """
    setting = dict(setting)
    setting.pop("scale", None)
    num = len(seeds)
    theta = cases.start(seeds, setting.pop("start", 0.3))

    def same(value: float) -> Tensor:
        return torch.full((num,), value, dtype=FLOAT)

    if name.startswith("soft-sharing"):
        theta, prior, value = sharing(cases, theta, replace(SHARING, **setting))
        return theta, prior, value
    if name == "weight decay":
        theta, value = train(cases, theta, Decay(same(setting["std"])), 600)
    elif name == "weight elimination":
        penalty = Elimination(same(setting["strength"]), same(setting["unit"]))
        theta, value = train(cases, theta, penalty, 600)
    else:
        theta, value = train(cases, theta, None, setting["iterations"])
    return theta, None, value


SHARING = Recipe(
    warm_iterations=40, rounds=30, iterations=20, ramp=1, spread=1.0, std=0.5,
    hyper_std=0.1, hyper_count=0.3,
)  # fmt: skip


def _grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


_PRIOR_GRID = _grid(warm_iterations=(40, 100), tau=(0.25, 0.5, 1.0), hyper_count=(0.3, 1.0))
BASELINES = ("persistence", "linear AR(12)")
METHODS: dict[str, list[dict[str, Any]]] = {
    "back-propagation": [{"iterations": 600}],
    "early stopping": _grid(iterations=(25, 40, 60, 80, 100, 130, 160, 200)),
    "weight decay": _grid(std=(0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0)),
    "weight elimination": _grid(strength=(1.0, 3.0, 6.0, 9.0), unit=(0.3, 1.0, 2.0)),
} | {
    f"soft-sharing, {k} components, {mode}": [
        {"components": k, "mode": mode, **setting} for setting in _PRIOR_GRID
    ]
    for k in (3, 8)
    for mode in ("em", "gradient")
}
"""Each method of training nets, and the settings among which validation chooses."""


def candidates(*, quick: bool = False) -> list[tuple[str, str, dict[str, Any]]]:
    """What `validate` scores.

    Returns:
        (key, method, setting).
    """
    found = []
    for name, settings in METHODS.items():
        if quick:
            settings = settings[len(settings) // 2 :][:1]
        for setting in settings:
            text = " ".join(
                f"{k}={v}" for k, v in setting.items() if k not in ("components", "mode")
            )
            found.append((f"{name}: {text}", name, setting))
    return found


def chosen(
    scores: Mapping[str, Mapping[str, Any]], by: str = "single"
) -> dict[str, dict[str, Any]]:
    """The selection rule: the lowest mean of the two schemes' arv.

    Args:
        scores: key -> what `validate` returned.
        by: `"single"`, the arv of single nets on average, or `"ensemble"`.

    Returns:
        method -> setting.
    """
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for key, name, setting in candidates():
        if key in scores:
            score = 0.5 * sum(scores[key][scheme][by] for scheme in ("blocks", "rolling"))
            if name not in best or score < best[name][0]:
                best[name] = (score, setting)
    return {name: setting for name, (_, setting) in best.items()}


def validate(name: str, setting: Setting, seeds: Sequence[int]) -> dict[str, Any]:
    """Score a setting on held-out training years; nothing after 1920 is read.

    Returns:
        For each scheme the arv (over 1535) of the single networks on average, and of their
        ensemble; the first with its standard error over the folds.
    """
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    scale = Scale(**setting.get("scale", {}))
    schemes = folds(len(y))
    learned = torch.cat([a for a, _ in schemes.values()]).to(FLOAT)
    held = torch.cat([b for _, b in schemes.values()])
    share = learned.repeat_interleave(len(seeds), 0)
    cases = Cases(scale.there(x), scale.there(y), share, "gaussian", HIDDEN)
    theta, _, _ = fit(name, setting, cases, [*seeds] * len(held))
    predicted = predict(cases, theta, scale).view(len(held), len(seeds), -1)
    result: dict[str, Any] = {}
    first = 0
    for scheme, (_, mask) in schemes.items():
        part = slice(first, first + len(mask))
        first += len(mask)
        out = predicted[part]
        errors = (out - y).square() * mask[:, None]
        single = errors.sum((0, 2)) / mask.sum() / data.VARIANCE_1535
        ensemble = ((out.mean(1) - y).square() * mask).sum() / mask.sum() / data.VARIANCE_1535
        by_fold = errors.sum(2).mean(1) / mask.sum(1) / data.VARIANCE_1535
        result[scheme] = {
            "single": _digits(single.mean()),
            "ensemble": _digits(ensemble),
            "folds": [_digits(v) for v in by_fold],
        }
    return result


def training(scale: Scale, num: int) -> Cases:
    """All training years, for `num` networks.

    Returns:
        The cases.
    """
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    share = torch.ones(num, len(y), dtype=FLOAT)
    return Cases(scale.there(x), scale.there(y), share, "gaussian", HIDDEN)


def final(name: str, setting: Setting, seeds: Sequence[int]) -> dict[str, Any]:
    """Train on all training years and predict 1921-55 and 1956-79; nothing after 1979 is read.

    Returns:
        The setting; arv (over 1535) of each seed and of the ensemble on every part; forecasts of
        the ensemble by year; the iterated arv by horizon; the networks and their mixtures.
    """
    scale = Scale(**setting.get("scale", {}))
    cases = training(scale, len(seeds))
    theta, prior, value = fit(name, setting, cases, seeds)
    forecast = networks(cases, theta, scale)
    result = measured(forecast)
    result["setting"] = dict(setting)
    result["objective"] = [_digits(v) for v in value]
    result["horizon"] = iterated(forecast)
    result["networks"] = _rows(theta)
    if prior is not None:
        result["mixtures"] = {
            "mixing": _rows(prior.mixing),
            "mean": _rows(prior.mean),
            "std": _rows(prior.std),
        }
    return result


def hindsight(name: str, setting: Setting, seeds: Sequence[int]) -> dict[str, Any]:
    """What any setting would have given on the test years: to judge the validation, not to choose.

    Returns:
        The method, the mean arv over seeds and the ensemble's on 1921-55 and 1956-79.
    """
    scale = Scale(**setting.get("scale", {}))
    cases = training(scale, len(seeds))
    theta, _, _ = fit(name, setting, cases, seeds)
    found = measured(networks(cases, theta, scale), ("test", "late"))
    result: dict[str, Any] = {"method": name}
    for split, values in found["arv"].items():
        result[split] = float(f"{sum(values) / len(values):.5g}")
        result[f"{split}_ensemble"] = found["ensemble"][split]
    return result


def baseline(name: str) -> dict[str, Any]:
    """`final` for persistence and the linear model.

    Returns:
        As `final`, without networks.
    """
    forecast = linear(name)
    return measured(forecast) | {"setting": {}, "horizon": iterated(forecast)}


def confirm(name: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Predict 1980-2008 with what `final` has trained, unchanged.

    Args:
        name: of the method.
        line: its line in the table of `final`.

    Returns:
        As `measured`, for the split "confirm".
    """
    if "networks" not in line:
        return measured(linear(name), ("confirm",))
    theta = torch.tensor(line["networks"], dtype=FLOAT)
    scale = Scale(**line["setting"].get("scale", {}))
    return measured(networks(training(scale, len(theta)), theta, scale), ("confirm",))


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
        result["arv"][split] = [_digits(v) for v in error]
        result["ensemble"][split] = float(f"{data.arv(out.mean(0), y, scale=1.0):.5g}")
        result["forecasts"][split] = [round(v, 2) for v in out.mean(0).tolist()]
    return result


def iterated(forecast: Forecast, most: int = 25) -> list[float]:
    """The arv of h-step forecasts of 1921-55, h = 1 to 25, each net feeding on its own forecasts.

    Returns:
        By horizon, averaged over the networks.
    """
    x, y = numbers(*data.SUNSPOT_SPLITS["test"])
    window = x[None]
    errors = []
    for ahead in range(most):
        out = forecast(window)
        left = len(y) - ahead  # origins whose target is still in the split
        off = out[:, :left] - y[ahead:]
        errors.append(_digits(off.square().mean() / data.VARIANCE_1535))
        window = window.expand(len(out), *x.shape)
        window = torch.cat([window[..., 1:], out[..., None]], 2)
    return errors


def networks(cases: Cases, theta: Tensor, scale: Scale) -> Forecast:
    """The one-step forecast of each network.

    Returns:
        Windows of numbers (b or 1, n, 12) to forecasts (b, n).
    """

    def forecast(windows: Tensor) -> Tensor:
        windows = scale.there(windows).expand(len(theta), *windows.shape[1:])
        pairs = zip(theta.split(1), windows, strict=True)
        return torch.cat([predict(cases, net, scale, window) for net, window in pairs])

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


def _digits(value: Tensor) -> float:
    return float(f"{value.item():.5g}")


def _rows(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.7g}") for v in row] for row in values.tolist()]
