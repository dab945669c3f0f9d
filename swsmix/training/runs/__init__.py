"""The run folder: config, checkpoints, history, results, each written whole or not at all.

    RUN/config.toml              how the run was made
    RUN/checkpoint-000012/       the newest checkpoint, after epoch or round 12
        network.safetensors      the network's state
        prior.safetensors        the mixtures, hyper-priors and running moments; the names of the
                                 tensors under each mixture
        history.safetensors      the history up to here
        training.pt              optimiser, generators, clock (torch.load, weights_only=True)
    RUN/final/                   the same four, as `fit` returned them, once it has ended
    RUN/*.json, *.png            results and pictures

Files and checkpoints are written beside their place and then renamed, so that an interruption
leaves the old ones. Nothing is ever unpickled.

The modules:

    folder      what lies where            lock       one process at a time writes
    saving      config and checkpoints     reading    load_run
    schema      what the files must hold
    claiming    a folder to write to       recovery   what a killed process has begun
"""

from swsmix._files import discard_left as discard_left
from swsmix._files import replacing as replacing
from swsmix._files import save_json as save_json
from swsmix.training.runs.claiming import claim as claim
from swsmix.training.runs.claiming import held_run as held_run
from swsmix.training.runs.claiming import new_run as new_run
from swsmix.training.runs.claiming import old_run as old_run
from swsmix.training.runs.folder import has_checkpoint as has_checkpoint
from swsmix.training.runs.folder import is_run as is_run
from swsmix.training.runs.lock import locked as locked
from swsmix.training.runs.reading import Run as Run
from swsmix.training.runs.reading import load_config as load_config
from swsmix.training.runs.reading import load_run as load_run
from swsmix.training.runs.reading import restore_ as restore_
from swsmix.training.runs.recovery import recover as recover
from swsmix.training.runs.saving import save_checkpoint as save_checkpoint
from swsmix.training.runs.saving import save_config as save_config
