"""The sunspots experiment: the next yearly number from the last twelve, 12-8-1.

Three stages, so that no choice can see a test year:
`validate` scores one setting of one method on held-out *training* years, with all seeds in one
batch; `final` trains the setting with the lowest score on all training years and predicts 1921-55
and 1956-79; `confirm` predicts 1980-2008 with those same networks, once, at the very end.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from papers.nowlan1992.forecasts import (
    FLOAT,
    Forecast,
    Scale,
    digits,
    iterated,
    iterated_each,
    linear,
    measured,
    networks,
    numbers,
    predict,
)
from papers.nowlan1992.methods import SharingRecipe, sharing
from papers.nowlan1992.nets import Cases, Penalty, train
from papers.nowlan1992.penalties import Decay, Elimination
from papers.nowlan1992.sampling import sample
from swsmix.problems import data

HIDDEN = 8
Hyperparameters = Mapping[str, Any]
Members = Sequence[tuple[str, Hyperparameters]]


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


def fit(name: str, setting: Hyperparameters, cases: Cases, seeds: Sequence[int]) -> Tensor:
    """Train a method's networks.

    Args:
        name: of the method.
        setting: its hyper-parameters.
        cases: the data, one row of case weights per network.
        seeds: of the initial weights, one per network.

    Returns:
        theta (b, p); with `posterior` in the setting (b * draws, p), draws, a chain's together,
        started from the b nets.
    """
    setting = dict(setting)
    setting.pop("scale", None)
    posterior = dict(setting.pop("posterior", {}))
    num = len(seeds)
    theta = cases.start(seeds, setting.pop("start", 0.3))

    def same(value: float) -> Tensor:
        return torch.full((num,), value, dtype=FLOAT)

    if posterior or name.startswith("soft-sharing"):
        theta, prior, _ = sharing(cases, theta, replace(SHARING, **setting))
        if not posterior:
            return theta
        draws = posterior.pop("draws")
        drawn = sample(cases, theta, prior, **posterior)
        return drawn.unflatten(0, (draws, -1))[:, -1].transpose(0, 1).flatten(0, 1)
    if name == "weight decay":
        penalty: Penalty | None = Decay(same(setting["std"]))
    elif name == "weight elimination":
        penalty = Elimination(same(setting["strength"]), same(setting["unit"]))
    else:
        penalty = None
    return train(cases, theta, penalty, setting.get("iterations", 600))[0]


SHARING = SharingRecipe(
    warm_iterations=40, rounds=30, iterations=20, ramp=1, spread=1.0, std=0.5,
    hyper_std=0.1, hyper_count=0.3,
)  # fmt: skip


def validate(name: str, setting: Hyperparameters, seeds: Sequence[int]) -> dict[str, Any]:
    """Score a setting on held-out training years; nothing after 1920 is read.

    Returns:
        As `scored`.
    """
    scale = Scale(**setting.get("scale", {}))
    cases, held = held_out(scale, len(seeds))
    theta = fit(name, setting, cases, [*seeds] * len(held))
    draws = len(theta) // (len(held) * len(seeds))
    return scored(predict(cases, theta, scale).view(len(held), len(seeds), draws, -1).mean(2))


def held_out(scale: Scale, num: int) -> tuple[Cases, Tensor]:
    """The training years for `num` nets per fold, which learn what their fold does not hold out.

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


def final(members: Members, seeds: Sequence[int]) -> dict[str, Any]:
    """Train on all training years and predict 1921-55 and 1956-79; nothing after 1979 is read.

    Args:
        members: (method, setting), one, or those of a committee.
        seeds: of the initial weights. A seed's forecast is its net's, its chain's posterior mean,
            or the mean over the committee.

    Returns:
        The members and seeds; arv (over 1535) of each seed and of the ensemble of all, on every
        part; the ensemble's forecasts by year; the iterated arv by horizon.
    """
    forecast = trained(members, seeds)
    result = {"members": [[name, dict(setting)] for name, setting in members]}
    horizon = {"seeds": [*seeds], "horizon": iterated(forecast)}
    return result | measured(forecast) | horizon


def horizons(members: Members, seeds: Sequence[int]) -> dict[str, Any]:
    """The iterated errors of the networks of `final` one by one, for the spread of their figure.

    Returns:
        The members and seeds; the arv of 1921-55 by horizon and seed.
    """
    nets = iterated_each(trained(members, seeds))
    rows = [[float(f"{value:.4g}") for value in each.tolist()] for each in nets]
    lists = [[name, dict(setting)] for name, setting in members]
    return {"members": lists, "seeds": [*seeds], "horizons": rows}


def trained(members: Members, seeds: Sequence[int]) -> Forecast:
    """What has been trained on all training years, as a forecast a seed.

    Returns:
        The mean forecast over the members.
    """
    forecasts = [_trained(name, json.dumps(setting), tuple(seeds)) for name, setting in members]
    return lambda windows: torch.stack([forecast(windows) for forecast in forecasts]).mean(0)


@functools.cache
def _trained(name: str, setting_json: str, seeds: tuple[int, ...]) -> Forecast:
    """One member's forecast; several lines of the tables need the same."""
    setting = json.loads(setting_json)
    scale = Scale(**setting.get("scale", {}))
    cases = training(scale, len(seeds))
    theta = fit(name, setting, cases, seeds)
    return networks(cases, theta, scale, len(theta) // len(seeds))


def hindsight(name: str, setting: Hyperparameters, seeds: Sequence[int]) -> dict[str, Any]:
    """What any setting would have given on the test years: to judge the validation, not to choose.

    Returns:
        The method, the mean arv over seeds and the ensemble's on 1921-55 and 1956-79.
    """
    measures = measured(trained([(name, setting)], seeds), ("test", "late"))
    result: dict[str, Any] = {"method": name}
    for split, values in measures["arv"].items():
        result[split] = float(f"{sum(values) / len(values):.5g}")
        result[f"{split}_ensemble"] = measures["ensemble"][split]
    return result


def baseline(name: str) -> dict[str, Any]:
    """`final` for persistence and the linear model.

    Returns:
        As `final`, without members.
    """
    forecast = linear(name)
    return measured(forecast) | {"horizon": iterated(forecast)}


def confirm(name: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Predict 1980-2008 with what `final` has trained: the same training, the same forecasts.

    Args:
        name: of the line.
        line: in the table of `final`.

    Returns:
        As `measured`, for the split "confirm".

    Raises:
        ValueError: the training does not give the forecasts of `final` again.
    """
    forecast = trained(line["members"], line["seeds"]) if "members" in line else linear(name)
    again = measured(forecast, tuple(line["forecasts"]))["forecasts"]
    for split, values in line["forecasts"].items():
        off = max(abs(a - b) for a, b in zip(again[split], values, strict=True))
        if off > 0.1:
            raise ValueError(
                f"{name} forecasts {split} {off:.2f} off what results/sunspots-final.jsonl holds: "
                "it was made on another machine or by another version; delete that file, and run "
                "the same command again"
            )
    return measured(forecast, ("confirm",))
