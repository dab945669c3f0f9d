"""The colour of a component, by its mean: the same in figures, in the terminal and on the page."""

from __future__ import annotations

import torch
from jaxtyping import Float

NEGATIVE, NEUTRAL, POSITIVE = "#0072b2", "#595959", "#d55e00"
_COLD = ("#009e73", "#56b4e9", NEGATIVE)  # small, middle and large values; colours of Okabe and Ito
_WARM = ("#cc79a7", "#e69f00", POSITIVE)
_STEPS = (1 / 9, 4 / 9)  # of the largest magnitude: equal steps of its square root
_NEAR_ZERO = 1 / 50  # of the largest magnitude


def component_colors(mean: Float[torch.Tensor, " k"]) -> list[str]:
    """The colour of each component, by the sign and size of its mean: at most seven colours.

    Cold is negative: green, sky blue, blue, from small to large. Warm is positive: pink, orange,
    vermilion. Grey is zero, to within a fiftieth of the largest magnitude. Small is up to 1/9 of
    the largest magnitude, large beyond 4/9. So components of about one value share a colour, and
    equal magnitudes of both signs have colours of one strength. All are of Okabe and Ito, safe for
    the colour-blind. Figures of a history use its last means, so that all figures of a run agree.

    Args:
        mean: the component means (k,), in units of the weights.

    Raises:
        TypeError: if mean is no tensor of real numbers.

    Returns:
        k colours as "#rrggbb", in the order of the components.

    Example:
        >>> component_colors(torch.tensor([0.2, 0.0, -0.2]))
        ['#d55e00', '#595959', '#0072b2']
    """
    if not isinstance(mean, torch.Tensor) or mean.is_complex() or mean.is_meta:
        kind = mean.device if isinstance(mean, torch.Tensor) else type(mean).__name__
        raise TypeError(f"mean: needs a tensor of real means (k,), got {kind}: pass mixture.mean")
    means = mean.detach().to_dense().double().cpu().reshape(-1).tolist()
    largest = max(map(abs, means), default=0.0)

    def color(value: float) -> str:
        if abs(value) <= _NEAR_ZERO * largest:
            return NEUTRAL
        size = sum(abs(value) > step * largest for step in _STEPS)
        return (_WARM if value > 0 else _COLD)[size]

    return [color(value) for value in means]
