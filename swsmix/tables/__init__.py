"""The mixture's scalar functions in O(N), whatever the number of components.

The prior acts on each weight alone: f(w) = -log p(w) and f'(w) are functions of *one* real
variable. They are tabulated once per mixture and looked up once per weight.

1. **Certify.** The real line is split into intervals. On each, a Taylor polynomial of f has a
   proven error bound.
2. **Cut.** The intervals are cut into cells. In a cell, f' and the curvature a are cubics.
3. **Address.** The bits of the float itself name its cell: log-spaced around zero, where a pruned
   network's spike sits, and down to single floats, where nothing is left to approximate.
4. **Look up.** A weight costs a few integer operations and two or three reads, in cache-sized
   chunks: no memory grows with N.
5. **Count.** The value and the EM moments need only the number, the sum and the sum of squares of
   the weights in each part of a cell: a histogram, then (intervals x K) work.

The mathematics is in float64 and log space, the arithmetic per weight in float32. Weights in 16
bits have tables of all their 65,536 values. These are evaluated exactly, a chunk at a time: float64
weights, weights far beyond the mixture, weights between narrow components where f' jumps from one
float to the next, mixtures that would need too many cells, and few weights: up to N K = 65,536, or
524,288 of a mixture in all where loops are compiled, since to cut its cells at each change would
take longer.

The modules:

- `lookup`: `Tables`, the room's main class, made by `build` and `direct`.
- `together`: a training step's calls for all tensors of all mixtures.
- `passes`: the same on flat vectors, chunk by chunk, through the cells.
- `batch`: the same for many small mixtures at once, each over its own row of weights.
- `penalty`: `neg_log_prior`, a differentiable function of the weights and the mixture.
- `exact`: the mixture's functions in float64, without tables.
- `taylor`: certified Taylor polynomials of f and a, interval by interval.
- `cutting`: from a mixture's intervals to its cells.
- `cells`: the cubics of f' and a in each cell, and their error bounds.
- `address`: the way from a float to its cell.
- `cell_histogram`: sums over the weights of each cell, which give the value and the moments.
- `fingerprint`: whether weights are those of before, so that one pass over them serves several.
- `scratch`: chunks of weights and scratch memory; `arrays`: tensors as numpy arrays.
- `threads`: ranges of many weights, on as many threads as torch has.
- `backends`: which compiled loops are installed; `uncompiled` switches them off.
- `numba_loops`, `triton_loops`: the passes over the weights, compiled for a CPU or a GPU. Without
  them, torch's operations make the passes. `numba_loops_16`: those over weights in 16 bits;
  `numba_cubics`: cubics two numbers at a time.
- `numba_certify`, `numba_cells`, `numba_sums`, `numba_exact`: steps 1, 2 and 5 and the exact
  evaluation of few weights, compiled for a CPU; `numba_expand`, `numba_exp`: the mixture around
  many centres at once, and the exponential function; `numba_together`: the loops of `together`;
  `numba_compiled`: how numba compiles them.
- `triton_certify`, `triton_cutting`, `triton_cells`, `triton_sums`: steps 1, 2 and 5 on a GPU;
  `triton_around`: the mixture around many centres at once; `triton_spans`: cells of one size.
- `recursions`: what numba's and Triton's certification have in common.
- `regions`: where each component is the most responsible.
"""

from swsmix.tables.backends import uncompiled
from swsmix.tables.batch import BatchTables
from swsmix.tables.fingerprint import fingerprint
from swsmix.tables.lookup import Adaptive, Full, MomentSums, Sums, Tables, build, direct
from swsmix.tables.penalty import neg_log_prior, one_pass
from swsmix.tables.together import add_gradient_each_, proximal_each_

__all__ = [
    "Adaptive",
    "BatchTables",
    "Full",
    "MomentSums",
    "Sums",
    "Tables",
    "add_gradient_each_",
    "build",
    "direct",
    "fingerprint",
    "neg_log_prior",
    "one_pass",
    "proximal_each_",
    "uncompiled",
]
