"""The mixture's scalar functions in O(N), whatever the number of components.

The prior acts on each weight alone: f(w) = -log p(w) and f'(w) are functions of *one* real
variable. They are tabulated once per mixture and looked up once per weight.

1. **Certify.** The real line is split into intervals. On each, a Taylor polynomial of f has a
   proven error bound.
2. **Cut.** The intervals are cut into cells. In a cell, f' and the curvature a are straight lines.
3. **Address.** A soft mixture has cells of one width, and a multiplication finds them. A hard one
   has cells named by the bits of the float itself: log-spaced around zero, where a pruned network's
   spike sits, and down to single floats, where nothing is left to approximate.
4. **Look up.** A weight costs a few integer operations and one or two reads, in cache-sized chunks:
   no memory grows with N.
5. **Count.** The value and the EM moments need only the number, the sum and the sum of squares of
   the weights in each cell: a histogram, then (intervals x K) work.

The mathematics is in float64 and log space, the arithmetic per weight in float32. Weights in 16
bits have tables of all their 65,536 values. These are evaluated exactly, a chunk at a time: few
weights, float64 weights, weights far beyond the mixture, weights between narrow components where
f' jumps from one float to the next, and mixtures that would need too many cells.

The modules:

- `lookup`: `Tables`, the room's main class, made by `build` and `direct`.
- `passes`: the same on flat vectors, chunk by chunk, through the cells.
- `batch`: the same for many small mixtures at once, each over its own row of weights.
- `penalty`: `neg_log_prior`, a differentiable function of the weights and the mixture.
- `exact`: the mixture's functions in float64, without tables.
- `taylor`: certified Taylor polynomials of f and a, interval by interval.
- `cells`: the lines of f' and a in each cell, and their error bounds.
- `grid`, `bits`: the two kinds of cells and how a weight finds its own.
- `cell_histogram`: sums over the weights of each cell, which give the value and the moments.
- `scratch`: chunks of weights and scratch memory.
- `backends`: which compiled loops are installed; `uncompiled` switches them off.
- `numba_loops`, `triton_loops`: the passes over the weights, compiled for a CPU or a GPU. Without
  them, torch's operations make the passes.
- `numba_certify`, `numba_cut`: steps 1 and 2, compiled for a CPU: `taylor`'s bounds and the cells.
- `numba_exp`: their exponential function.
- `regions`: where each component is the most responsible.
"""

from swsmix.tables.backends import uncompiled
from swsmix.tables.batch import BatchTables
from swsmix.tables.lookup import Adaptive, Full, MomentSums, Tables, build, direct
from swsmix.tables.penalty import neg_log_prior

__all__ = [
    "Adaptive",
    "BatchTables",
    "Full",
    "MomentSums",
    "Tables",
    "build",
    "direct",
    "neg_log_prior",
    "uncompiled",
]
