"""Which rule of selection chooses well? Judged on training years alone, from the log of attempts.

A rule sees nine of the ten blocks (and the rolling folds without a year of the tenth), chooses, and
is judged on the tenth: the law of cross-validation, applied to the rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from papers.nowlan1992.forecasts import numbers
from papers.nowlan1992.sunspots import folds
from swsmix.problems import data

Array = NDArray[np.float64]
RULES: dict[str, Callable[[Array], Array]] = {
    "mean of the folds": lambda e: e.mean(1),
    "median of the folds": lambda e: np.median(e, axis=1),
    "mean logarithm": lambda e: np.log(e).mean(1),
    "mean rank": lambda e: rankdata(e, axis=0).mean(1),
    "mean, without the worst fold": lambda e: np.delete(e, e.mean(0).argmax(), 1).mean(1),
}
"""Rule -> the score of each setting (s,), low is good, from its errors by fold (s, folds)."""
METHODS = ("all", "early stopping", "weight decay", "weight elimination", "soft-sharing")


def report(log: Path) -> str:
    """The folds' agreement and each rule's loss, as Markdown."""
    _, y = numbers(*data.SUNSPOT_SPLITS["train"])
    schemes = folds(len(y))
    masks = np.concatenate([held.numpy() for _, held in schemes.values()])
    lines = [json.loads(line) for line in (log / "sunspots.jsonl").read_text().splitlines()]
    names = [line["unit"].split(":")[0].replace("posterior", "soft-sharing") for line in lines]
    held = np.array([[v for s in schemes for v in line[s]["forecasts"]] for line in lines])
    first = np.cumsum([0, *masks.sum(1)])
    target = y.numpy()

    def errors(forecast: Array, fold: int) -> Array:
        out = forecast[..., first[fold] : first[fold + 1]]
        return np.square(out - target[masks[fold]]).mean(-1) / data.VARIANCE_1535

    by_fold = np.stack([errors(held, f) for f in range(len(masks))], 1)
    blocks = range(len(schemes["blocks"][1]))
    text = [f"{len(lines)} attempts.", "", *_agreement(by_fold, masks, blocks), ""]
    header = ["rule", *METHODS]
    text += ["Loss on the tenth block, % above the best setting of all in hindsight:", ""]
    text += [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    best = by_fold[:, blocks].min(0)
    for many in (1, 5, 15):
        for rule, score in RULES.items():
            cells = []
            for method in METHODS:
                rows = np.array([method in ("all", name) for name in names]).nonzero()[0]
                loss = []
                for f in blocks:
                    seen = [g for g in range(len(masks)) if not (masks[g] & masks[f]).any()]
                    order = score(by_fold[np.ix_(rows, seen)]).argsort(kind="stable")
                    committee = held[rows[order[:many]]].mean(0)
                    loss.append(np.log(errors(committee, f) / best[f]))
                cells.append(f"{100 * np.expm1(np.mean(loss)):.1f}")
            who = "" if many == 1 else f", committee of {many}"
            text.append(f"| {rule}{who} | {' | '.join(cells)} |")
    return "\n".join(text)


def _agreement(by_fold: Array, masks: NDArray[np.bool_], blocks: range) -> list[str]:
    """How the ten blocks differ: their errors, their weight, and whether they rank alike."""
    years = np.arange(masks.shape[1]) + data.SUNSPOT_SPLITS["train"][0]
    error, share = by_fold[:, blocks], masks[blocks].sum(1)
    weight = (error.mean(0) * share) / (error.mean(0) * share).sum()
    ranks = spearmanr(error).statistic
    spread = (error - error.mean(0)).var(0)
    text = [
        "| block | mean arv | part of the squared error | part of the variance between settings"
    ]
    text[0] += " | rank correlation with the other blocks |"
    text.append("| --- | --- | --- | --- | --- |")
    for f in blocks:
        others = np.delete(ranks[f], f).mean()
        when = years[masks[f]]
        text.append(
            f"| {when[0]}-{when[-1]} | {error[:, f].mean():.3f} | {100 * weight[f]:.0f} % "
            f"| {100 * spread[f] / spread.sum():.0f} % | {others:.2f} |"
        )
    return text
