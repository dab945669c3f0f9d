"""The sunspots experiment: the next yearly number from the last twelve, 12-8-1.

Three stages, so that no choice can see a test year:
`validate` scores one setting of one method on held-out *training* years, with all seeds in one
batch; `final` trains the setting with the lowest score on all training years and predicts 1921-55
and 1956-79; `confirm` predicts 1980-2008 with those same networks, once, at the very end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from papers.nowlan1992.forecasts import (
    FLOAT,
    Scale,
    digits,
    iterated,
    linear,
    measured,
    networks,
    numbers,
    predict,
)
from papers.nowlan1992.methods import Recipe, sharing
from papers.nowlan1992.nets import Cases, train
from papers.nowlan1992.penalties import Decay, Elimination, Sharing
from swsmix import data

HIDDEN = 8
Setting = Mapping[str, Any]


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


_SCALES = ({"divisor": 191.0}, {"divisor": 100.0})
_PRIOR_GRID = _grid(tau=(0.35, 0.5, 0.7, 1.0), hyper_count=(0.3, 1.0), scale=_SCALES)
BASELINES = ("persistence", "linear AR(12)")
METHODS: dict[str, list[dict[str, Any]]] = {
    "back-propagation": _grid(iterations=(600,), scale=_SCALES),
    "early stopping": _grid(iterations=(25, 40, 60, 80, 100, 130, 160, 200), scale=_SCALES),
    "weight decay": _grid(std=(0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0), scale=_SCALES),
    "weight elimination": _grid(
        strength=(1.0, 3.0, 6.0, 9.0, 14.0), unit=(0.3, 1.0, 2.0), scale=_SCALES
    ),
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
            flat = {k: v for k, v in setting.items() if k not in ("components", "mode", "scale")}
            text = ", ".join(f"{k} {v:g}" for k, v in (flat | setting["scale"]).items())
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
        As `scored`.
    """
    scale = Scale(**setting.get("scale", {}))
    cases, held = held_out(scale, len(seeds))
    theta, _, _ = fit(name, setting, cases, [*seeds] * len(held))
    return scored(predict(cases, theta, scale).view(len(held), len(seeds), -1))


def held_out(scale: Scale, num: int) -> tuple[Cases, Tensor]:
    """The training years for `num` networks a fold, each learning what its fold does not hold out.

    Returns:
        The cases, fold after fold, and what is held out (folds, n).
    """
    x, y = numbers(*data.SUNSPOT_SPLITS["train"])
    schemes = folds(len(y)).values()
    share = torch.cat([learned for learned, _ in schemes]).to(FLOAT).repeat_interleave(num, 0)
    cases = Cases(scale.there(x), scale.there(y), share, "gaussian", HIDDEN)
    return cases, torch.cat([held for _, held in schemes])


def scored(predicted: Tensor) -> dict[str, Any]:
    """What forecasts of held-out training years are worth.

    Args:
        predicted: numbers, by fold, network and year (folds, b, n).

    Returns:
        For each scheme the arv (over 1535) of single networks on average, and of their ensemble,
        over all its years (`single`, `ensemble`) and by fold (`folds`, `ensemble_folds`); the
        ensemble's `forecasts` of the held-out years, fold after fold.
    """
    _, y = numbers(*data.SUNSPOT_SPLITS["train"])
    result: dict[str, Any] = {}
    first = 0
    for scheme, (_, mask) in folds(len(y)).items():
        out, first = predicted[first : first + len(mask)], first + len(mask)
        count = mask.sum(1) * data.VARIANCE_1535
        single = ((out - y).square() * mask[:, None]).sum(2).mean(1)
        ensemble = ((out.mean(1) - y).square() * mask).sum(1)
        result[scheme] = {
            "single": digits(single.sum() / count.sum()),
            "ensemble": digits(ensemble.sum() / count.sum()),
            "folds": [digits(v) for v in single / count],
            "ensemble_folds": [digits(v) for v in ensemble / count],
            "forecasts": [round(v, 1) for v in out.mean(1)[mask].tolist()],
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
    result["objective"] = [digits(v) for v in value]
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


def _rows(values: Tensor) -> list[list[float]]:
    return [[float(f"{v:.7g}") for v in row] for row in values.tolist()]
