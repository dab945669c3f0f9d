"""The settings that are run: which networks, how hard, how many seeds.

They were chosen on validation images alone, see README.md; nothing here depends on a result.
"""

from __future__ import annotations

from dataclasses import replace

from papers.ullrich2017.work import Setting
from swsmix.compress import Recipe

NUM_SEEDS = 5
QUICK_IMAGES = 6_000

PUBLISHED = Setting("lenet-300-100-published", "lenet-300-100", portrait=True)
SHIFTED = Setting("lenet-300-100-shifted", "lenet-300-100", shift=1, recipe=Recipe(), portrait=True)
PLAIN = Setting("lenet-300-100-plain", "lenet-300-100", dropout=0.35, recipe=Recipe())
CONV_SHIFTED = Setting(
    "lenet-5-caffe-shifted", "lenet-5-caffe", shift=1, recipe=Recipe(), portrait=True
)
CONV_PLAIN = Setting("lenet-5-caffe-plain", "lenet-5-caffe", recipe=Recipe())
MAIN = (PUBLISHED, SHIFTED, PLAIN, CONV_SHIFTED, CONV_PLAIN)


def sweep() -> list[Setting]:
    """The settings behind the figure of error against compression, one seed each."""
    found = []
    for base in (SHIFTED, PLAIN):
        for tau in (0.02, 0.05, 0.1, 0.2, 0.3):
            for components in (5, 9, 17):
                recipe = replace(
                    base.recipe, sparsify_tau=tau, quantise_tau=tau, num_components=components
                )
                name = f"sweep-{base.name}-tau{tau:g}-k{components}"
                found.append(replace(base, name=name, recipe=recipe, portrait=False))
    return found


def full(seeds: int) -> list[tuple[Setting, int]]:
    """Everything: the rows of the tables with several seeds, the sweep with one."""
    main = [(setting, seed) for seed in range(seeds) for setting in MAIN]
    return main + [(setting, 0) for setting in sweep()]


def quick() -> list[tuple[Setting, int]]:
    """Every kind of unit, short."""
    short = {"sparsify_epochs": 4, "quantise_epochs": 4, "finetune_epochs": 1, "em_every": 10}
    found = []
    for setting in (PUBLISHED, SHIFTED, PLAIN, CONV_SHIFTED):
        recipe = None if setting.recipe is None else replace(setting.recipe, **short)
        found.append((replace(setting, recipe=recipe, pretrain_epochs=4, retrain_epochs=4), 0))
    return found
