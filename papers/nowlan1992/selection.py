"""The sunspot methods, the settings among which validation chooses, and the rule that chooses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

Members = list[tuple[str, dict[str, Any]]]


def _grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


_SCALES = ({"divisor": 191.0}, {"divisor": 100.0}, {"divisor": 100.0, "centre": 0.5})
_POSTERIOR = {"burn": 100, "keep": 200, "draws": 10}
BASELINES = ("persistence", "linear AR(12)")
METHODS: dict[str, list[dict[str, Any]]] = {
    "back-propagation": _grid(iterations=(600,), scale=_SCALES),
    "early stopping": _grid(iterations=(20, 30, 40, 50, 60, 80, 100, 130, 160), scale=_SCALES),
    "weight decay": _grid(std=(0.2, 0.25, 0.3, 0.4, 0.5), scale=_SCALES),
    "weight elimination": _grid(strength=(4.0, 8.0, 12.0, 18.0), unit=(1.0,), scale=_SCALES),
} | {
    f"soft-sharing, {k} components, {mode}": [
        *_grid(components=(k,), mode=(mode,), tau=(0.5, 1.0), scale=_SCALES),
        *_grid(components=(k,), mode=(mode,), warm_iterations=(100,), scale=_SCALES),
    ]
    for k in (3, 8)
    for mode in ("em", "gradient")
} | {
    "weight decay, posterior mean": _grid(
        components=(1,), std=(0.3,), hyper_std=(0.3,), hyper_count=(1e7,),
        posterior=(_POSTERIOR,), scale=_SCALES[:2],
    ),
} | {
    f"soft-sharing, {k} components, posterior mean": _grid(
        components=(k,), posterior=(_POSTERIOR,), scale=_SCALES[:2]
    )
    for k in (3, 8)
}  # fmt: skip
"""Each method of training nets, and the settings among which validation chooses."""


def candidates(*, quick: bool = False) -> list[tuple[str, str, dict[str, Any]]]:
    """What `sunspots.validate` scores.

    Args:
        quick: one setting per method, and neither posterior means nor mode "gradient".

    Returns:
        (key, method, setting).
    """
    listed = []
    for name, settings in METHODS.items():
        if quick:
            few = not name.endswith(("posterior mean", "gradient"))
            settings = settings[len(settings) // 2 :][:few]
        for setting in settings:
            text = ", ".join(
                f"{k} {v:g}"
                for k, v in (setting | setting["scale"]).items()
                if k not in ("components", "mode", "scale", "posterior")
            )
            listed.append((f"{name}: {text}", name, setting))
    return listed


BY = ("single", "ensemble", "committee")
POOLS: dict[str, Callable[[str], bool]] = {
    "soft-sharing, all kinds": lambda name: name.startswith("soft-sharing"),
    "all others": lambda name: not name.startswith("soft-sharing"),
}
"""Methods whose settings compete with each other, for a single answer."""


def chosen(scores: Mapping[str, Mapping[str, Any]], by: str) -> dict[str, Members]:
    """The selection rule: the lowest mean logarithm of the arv over the folds of both schemes.

    Args:
        scores: key -> what `sunspots.validate` returned.
        by: `"single"`, the setting whose single nets score lowest on average; `"ensemble"`, whose
            ensemble does; `"committee"`, the five settings whose ensembles do.

    Returns:
        method or pool -> (method, setting), one or five.
    """
    known = [
        (score(scores[key], "single" if by == "single" else "ensemble"), name, setting)
        for key, name, setting in candidates()
        if key in scores
    ]
    known.sort(key=lambda one: one[0])
    many = 5 if by == "committee" else 1
    best = {}
    for group in (*METHODS, *POOLS):
        within = POOLS.get(group, group.__eq__)
        if members := [(name, setting) for _, name, setting in known if within(name)][:many]:
            best[group] = members
    return best


def score(line: Mapping[str, Any], by: str = "single") -> float:
    """A setting's score: the mean of the two schemes' mean log arv.

    Returns:
        Its exponential, so an arv.
    """
    name = {"single": "folds", "ensemble": "ensemble_folds"}[by]
    return math.exp(fmean(fmean(map(math.log, line[s][name])) for s in ("blocks", "rolling")))
