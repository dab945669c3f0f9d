"""The exponential function for loops that numba compiles: unlike a library's, several at a time."""

from __future__ import annotations

import math

import numpy as np

from swsmix.tables.numba_compiled import inlined

_LEAST = -708.0  # exp of less is no normal float, and counts as zero
_E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12, _E13 = (
    1.0 / math.factorial(n) for n in range(3, 14)
)
_LOG_2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # log 2 = their sum
_ROUNDS = 1.5 * 2.0**52  # a float that is so large has no fraction
_TO_EXPONENT = 1023 - int(np.float64(_ROUNDS).view(np.int64))


@inlined
def exp(x):
    """The exponential of x <= 700, to one unit of the last digit; 0 where x < -708."""
    # The sum's last bits are a whole number, the power of 2: no conversion, which would be slow.
    bounded = max(x, _LEAST)
    shifted = bounded * 1.4426950408889634 + _ROUNDS
    power = shifted - _ROUNDS
    rest = (bounded - power * _LOG_2[0]) - power * _LOG_2[1]
    high = (((_E13 * rest + _E12) * rest + _E11) * rest + _E10) * rest + _E9
    high = (((high * rest + _E8) * rest + _E7) * rest + _E6) * rest + _E5
    taylor = ((((high * rest + _E4) * rest + _E3) * rest + 0.5) * rest + 1.0) * rest + 1.0
    exponent = np.float64(shifted).view(np.int64) + np.int64(_TO_EXPONENT)
    two_to_power = np.int64(exponent << np.int64(52)).view(np.float64)
    return taylor * two_to_power if x >= _LEAST else (0.0 if x < _LEAST else x)  # NaN stays NaN
