"""Many small networks at once: one class, many seeds, data sets or settings, in one tensor program.

`fit_ensemble` trains them side by side, each under its own mixture prior (or none), and gives an
`Ensemble`: its members, their mean and spread, the one that agrees most with the others.

    fitting   fit_ensemble
    trainers  rounds of L-BFGS, or Adam over batches
    stacking  the networks as rows of one matrix, their losses and gradients
    mixtures  their priors, side by side: the penalty, the EM step
    lbfgs     L-BFGS on many small problems, each with its own step and memory
    members   Ensemble: what was trained
    recording their histories
    saving    checkpoints, in a run folder
"""

from swsmix.training.ensemble.fitting import fit_ensemble
from swsmix.training.ensemble.members import Ensemble

__all__ = ["Ensemble", "fit_ensemble"]
