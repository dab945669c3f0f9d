"""The mixture's scalar functions in O(N), whatever the number of components.

The prior acts on each weight alone: f(w) = -log p(w) and f'(w) are functions of *one* real
variable. They are tabulated once per mixture and looked up once per weight.

1. **Certify** (`taylor`). The real line is split into intervals, on each of which a Taylor
   polynomial of f provably holds.
2. **Cut** (`cells`). The intervals are cut into cells, each a straight piece of f' and of a.
3. **Address**. A soft mixture has cells of one width, and a multiplication finds them (`grid`).
   A hard one has cells named by the bits of the float itself: log-spaced around zero, where a
   pruned net's spike sits, and down to single floats, where nothing is left to approximate
   (`bits`).
4. **Look up**. A weight costs a few integer operations and a gather or two, in cache-sized chunks:
   no memory grows with N.
5. **Count**. The value and the EM moments need only the number, the sum and the sum of squares of
   the weights in each cell: a histogram, then (intervals x K) work.

The passes over the weights (`lookup`) are loops compiled by numba (`kernels`) or, on a GPU, by
Triton (`fused`); without these (`backends`), operations of torch. `penalty` makes a differentiable
function of it.

The mathematics is in float64 and log space, the arithmetic per weight in float32. Weights in 16
bits have tables of all their 65,536 values. Evaluated directly (`direct`), a chunk at a time: few
weights, float64 weights, weights far beyond the mixture, weights between narrow components where
f' jumps from one float to the next, and mixtures that would need too many cells.
"""

from swsmix.tables.backends import uncompiled
from swsmix.tables.lookup import Adaptive, Full, Moments, Tables, build, direct
from swsmix.tables.penalty import neg_log_prior

__all__ = [
    "Adaptive",
    "Full",
    "Moments",
    "Tables",
    "build",
    "direct",
    "neg_log_prior",
    "uncompiled",
]
