"""Whether draws may be used: agreement of the chains and the sampler's own signs, with remedies.

Only what no permutation changes is judged, see `swsmix.bayes.symmetric`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swsmix.bayes.agreement import Agreement, energy_fraction

_RHAT, _BAD_RHAT = 1.05, 1.1  # above the second the draws are not to be used
_DRIFT = 1.2  # within one chain of several: halves alone are noisy, 1 + chi^2 / ESS by chance
_ESS, _BAD_ESS = 100.0, 25.0
_ENERGY_FRACTION = 0.3
_SATURATED = 0.1  # of the draws at the tree's limit
_DIVERGED = 10, 0.01, 0.1  # so many, and this share: a warning; the last share: not to be used
_MOVED = 0.1  # of the draws: a chain below this stands still
_FEWEST = 50  # draws of a chain, twice as many of all: fewer say nothing


class PosteriorWarning(UserWarning):
    """A posterior that is not to be trusted; the message says why, and what to do."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with draws.

    Attributes:
        sentence: what was found, and the remedy.
        unusable: whether the draws are not to be used at all.
    """

    sentence: str
    unusable: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is wrong with draws; nothing, if there is no problem.

    Attributes:
        problems: the problems, the worst first.

    Example:
        >>> print(Verdict((Problem("One chain says nothing: sample with chains=4"),)))
        Use this posterior with care. One chain says nothing: sample with chains=4.
    """

    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        """Whether the draws may be used, if with care."""
        return not any(problem.unusable for problem in self.problems)

    def __str__(self) -> str:
        """One line."""
        if not self.problems:
            return "Nothing speaks against this posterior."
        head = "Use this posterior with care. " if self.usable else "Do not use this posterior. "
        return head + ". ".join(problem.sentence for problem in self.problems) + "."

    def warn(self, stacklevel: int = 2) -> None:
        """Give a `PosteriorWarning` if there is a problem."""
        if self.problems:
            warnings.warn(str(self), PosteriorWarning, stacklevel=stacklevel + 1)


class Summary(dict[str, float]):
    """The numbers of `Posterior.summary`, by name; printed, with the verdict.

    Attributes:
        agreements: of each quantity, between chains and within each.
        verdict: whether the draws may be used.
    """

    def __init__(
        self, agreements: Mapping[str, Agreement], steps: Mapping[str, Tensor], verdict: Verdict
    ) -> None:
        super().__init__()
        self.agreements, self.verdict = dict(agreements), verdict
        for name, found in agreements.items():
            self |= {f"R-hat of {name}": found.rhat, f"ESS of {name}": found.ess}
        if "diverged" in steps:
            self["divergences"] = float(steps["diverged"].sum())
            self["acceptance"] = float(steps["accept"].double().mean())
            self["steps per draw"] = float(steps["steps"].double().mean())
            self["energy fraction"] = energy_fraction(steps["energy"])

    def __str__(self) -> str:
        """A line for each quantity, then the sampler's numbers, then the verdict."""
        lines = []
        for name, found in self.agreements.items():
            within = " ".join(f"{value:.2f}" for value in found.within)
            lines.append(
                f"{name}: R-hat {found.rhat:.2f} (between chains {found.between:.2f}, within each "
                f"{within}), ESS {found.ess:.0f} (tails {found.tail_ess:.0f})"
            )
        judged = {f"{kind} of {name}" for name in self.agreements for kind in ("R-hat", "ESS")}
        lines += [f"{name}: {value:.4g}" for name, value in self.items() if name not in judged]
        return "\n".join([*lines, str(self.verdict)])


def judge(
    z: Tensor,
    steps: Mapping[str, Tensor],
    about: Mapping[str, Any],
    agreements: Mapping[str, Agreement],
) -> Verdict:
    """What is wrong with draws.

    Args:
        z: the draws (chains, draws, d).
        steps: how each was made.
        about: the sampler's settings, for the remedies.
        agreements: by quantity; `"predictions"` decides whether the draws may be used.
    """
    found = _broken(z)
    if found or about.get("method") == "svi":  # a guide's draws are independent
        return Verdict(tuple(found))
    chains, draws = z.shape[:2]
    if draws < _FEWEST or chains * draws < 2 * _FEWEST:
        found.append(
            Problem(
                f"{chains} x {draws} draws are too few to judge: draw at least {_FEWEST} in each "
                f"chain, {2 * _FEWEST} in all",
                unusable=True,
            )
        )
    else:
        found += _of_rhat(agreements) + _of_sizes(agreements) + _of_energy(steps)
    found += _of_steps(steps, about)
    if chains == 1:
        found.append(
            Problem("One chain cannot say whether another would agree: sample with chains=4")
        )
    return Verdict(tuple(sorted(found, key=lambda problem: not problem.unusable)))


def _broken(z: Tensor) -> list[Problem]:
    """Draws that are no numbers, chains that stand still."""
    bad = int((~torch.isfinite(z)).any(-1).sum())
    if bad:
        total = z.shape[0] * z.shape[1]
        return [Problem(f"{bad:,} of {total:,} draws hold nan or inf: sample again", unusable=True)]
    if z.shape[1] < 2:
        return []
    moved = (z[:, 1:] != z[:, :-1]).any(-1).double().mean(1)
    still = [str(chain) for chain, share in enumerate(moved.tolist()) if share < _MOVED]
    if not still:
        return []
    return [
        Problem(
            f"Chain {', '.join(still)} stands still, its draws repeat each other: warm up longer, "
            "or start elsewhere (start=, jitter=)",
            unusable=True,
        )
    ]


def _decide(agreements: Mapping[str, Agreement]) -> list[str]:
    """The quantities that say whether draws may be used at all: the predictions, if they are known.

    The others say whether the mixture may be read.
    """
    return ["predictions"] if "predictions" in agreements else list(agreements)


def _of_rhat(agreements: Mapping[str, Agreement]) -> list[Problem]:
    """The quantities on which the chains disagree, in one sentence."""
    wrong = {
        name: a
        for name, a in agreements.items()
        if a.worst > _RHAT or (a.several and a.drift > _DRIFT)
    }
    if not wrong:
        return []
    named = ", ".join(f"{max(a.worst, a.drift):.2f} ({name})" for name, a in wrong.items())
    first, worst = max(wrong.items(), key=lambda item: max(item[1].worst, item[1].drift))
    where = "between the halves of the chain"
    if worst.several:
        within = ", ".join(f"{value:.2f}" for value in worst.within)
        where = f"of the {first}: between chains {worst.between:.2f}, within each {within}"
    if worst.several and worst.between > _RHAT >= worst.drift:
        remedy = (
            "each chain agrees with itself, so they are in regions of their own: start them from "
            "several trained networks (start=), or strengthen the hyper-prior (std_count)"
        )
    else:
        remedy = (
            "the chains move too slowly: draw more, warm up longer, use fewer components, or "
            "strengthen the hyper-prior (std_count)"
        )
    unusable = any(
        agreements[name].worst > _BAD_RHAT or agreements[name].drift > _DRIFT
        for name in _decide(agreements)
    )
    return [Problem(f"R-hat is above {_RHAT}: {named}; {where}; {remedy}", unusable)]


def _of_sizes(agreements: Mapping[str, Agreement]) -> list[Problem]:
    """The quantities of too small effective sizes, in one sentence."""
    least = {name: float(np.fmin(a.ess, a.tail_ess)) for name, a in agreements.items()}
    named = ", ".join(f"{size:.0f} ({name})" for name, size in least.items() if size < _ESS)
    if not named:
        return []
    unusable = any(least[name] < _BAD_ESS for name in _decide(agreements))
    return [Problem(f"Effective sample sizes are below {_ESS:.0f}: {named}; draw more", unusable)]


def _of_energy(steps: Mapping[str, Tensor]) -> list[Problem]:
    """The fraction of missing information of the energy (Betancourt 2016)."""
    if "energy" not in steps:
        return []
    least = energy_fraction(steps["energy"])
    if not least < _ENERGY_FRACTION:
        return []
    return [
        Problem(
            f"The energy fraction of a chain (E-BFMI) is {least:.2f}, below {_ENERGY_FRACTION}: "
            "the energy changes too slowly, as in the funnels of narrow components: raise std or "
            "std_count of the hyper-prior, or draw more"
        )
    ]


def _of_steps(steps: Mapping[str, Tensor], about: Mapping[str, Any]) -> list[Problem]:
    """Divergences, and trajectories cut short by the tree's limit."""
    problems = []
    if "diverged" in steps:
        count, total = int(steps["diverged"].sum()), steps["diverged"].numel()
        allowed, share, bad = _DIVERGED
        if count > max(allowed, share * total):
            problems.append(
                Problem(
                    f"{count:,} of {total:,} draws are from trajectories that diverged: parts of "
                    "the posterior may be missing (Betancourt 2017). Warm up longer (warmup is "
                    f"{about.get('warmup', 'unknown')}), raise target_accept (it is "
                    f"{about.get('target_accept', 'unknown')}), or keep the components from "
                    "becoming narrow, by std or std_count of the hyper-prior",
                    unusable=count > bad * total,
                )
            )
    depth = about.get("max_depth")
    if "steps" in steps and isinstance(depth, int):
        at_limit = float((steps["steps"] >= 2.0**depth - 1.0).double().mean())
        if at_limit > _SATURATED:
            problems.append(
                Problem(
                    f"{at_limit:.0%} of the draws stopped at the tree's limit of 2^{depth} steps: "
                    f"raise max_depth (it is {depth}), or warm up longer"
                )
            )
    return problems
