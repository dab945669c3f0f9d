"""Split and merge in the EM steps of a prior: when, and only where the objective falls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swsmix.prior.evaluation import nll_and_moments
from swsmix.start.cells import cells_for, cells_of
from swsmix.start.moves import moved

if TYPE_CHECKING:
    from swsmix.prior.mixture_prior import MixturePrior

# Moves are tried at EM steps 1, 2, 4, ... and then at every so many.
_EVERY = 256


def is_due(step: int) -> bool:
    """Whether moves are tried at this EM step."""
    return step % _EVERY == 0 if step >= _EVERY else step & (step - 1) == 0


def move_(prior: MixturePrior, group: str) -> None:
    """Split and merge, if the objective on the weights themselves is lower for it."""
    state, w = prior._state(group), prior.flat_weights(group)
    mixture = state.mixture
    better = moved(mixture, cells_of(w, cells_for(mixture.num_components)), state.hyper)
    if better is None:
        return
    before, old = _objective(prior, group), mixture.plain_copy()
    mixture.load_state_dict(better.state_dict())
    if _objective(prior, group) < before:
        state.forget_()
    else:
        mixture.load_state_dict(old.state_dict())


def _objective(prior: MixturePrior, group: str) -> float:
    nll = nll_and_moments(prior, group)[0]
    return float(nll.double() - prior._log_hyper_prior(group).double())
