"""The settings that are run: which networks, how hard, how many seeds.

They were chosen on validation images alone, see README.md; nothing here depends on a result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from swsmix.compression.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """One way to compress one network.

    Attributes:
        name: of the setting.
        net: `"lenet-300-100"` or `"lenet-5-caffe"`.
        shift: the augmentation: images are shifted by up to so many pixels; 0 is none.
        dropout: of the input pixels, while training.
        recipe: of `compress_`; None for the paper's own single phase.
        batch_size: images per step.
        pretrain_epochs: epochs before the prior comes.
        retrain_epochs: of the single phase.
        retrain_tau: the prior's strength in it.
        bias_bits: 8 puts the biases on a grid of 8 bits; None keeps them exactly.
        biases: whether the biases are under the prior too, instead.
        tau: factors of tau by tensor; 1 where there is none.
        distil: the share of the loss that learns from the dense network's answers; 0 is none.
        limit: the errors on the validation images, in percent, up to which the network may be made
            smaller: the target of `compress_`. None for its phases alone.
        points: the same as points more than the dense network; if the phases end with more, then
            what they end with.
        portrait: whether seed 0 is kept for the figures.
    """

    name: str
    net: str
    shift: int = 0
    dropout: float = 0.0
    recipe: Recipe | None = None
    batch_size: int = 256
    pretrain_epochs: int = 20
    retrain_epochs: int = 30
    retrain_tau: float = 0.003
    bias_bits: int | None = 8
    biases: bool = False
    tau: tuple[tuple[str, float], ...] = ()
    distil: float = 0.0
    limit: float | None = None
    points: float | None = None
    portrait: bool = False

    @property
    def pretraining(self) -> str:
        """What the pretrained network depends on, beside the seed."""
        return f"{self.net}-shift{self.shift}-dropout{self.dropout:g}"


NUM_SEEDS = 3
QUICK_IMAGES = 6_000

LONG = Recipe(num_components=5, sparsify_epochs=50, quantise_epochs=12)

PUBLISHED = Setting("lenet-300-100-published", "lenet-300-100", retrain_tau=0.01, portrait=True)
SHIFTED = Setting(
    "lenet-300-100-shifted",
    "lenet-300-100",
    shift=1,
    recipe=replace(LONG, sparsify_tau=0.13),
    batch_size=128,
    biases=True,
    portrait=True,
)
PLAIN = Setting(
    "lenet-300-100-plain",
    "lenet-300-100",
    dropout=0.35,
    recipe=replace(
        LONG, num_components=6, sparsify_tau=0.06, quantise_tau=0.01, quantise_epochs=20
    ),
    batch_size=128,
    biases=True,
)
CONV_SHIFTED = Setting(
    "lenet-5-caffe-shifted",
    "lenet-5-caffe",
    shift=1,
    # Slowly: a prior that comes at once, or closes before it has come, destroys this network.
    recipe=replace(
        LONG,
        num_components=8,
        sparsify_tau=2.5,
        quantise_tau=0.01,
        warmup_epochs=15,
        zero_start=0.5,
        quantise_epochs=10,
        finetune_epochs=1,
    ),
    batch_size=128,
    biases=True,
    portrait=True,
)
CONV_PLAIN = replace(
    CONV_SHIFTED,
    name="lenet-5-caffe-plain",
    shift=0,
    recipe=replace(CONV_SHIFTED.recipe, sparsify_tau=1.2, sparsify_epochs=40),
    portrait=False,
)
RAW = replace(
    PLAIN,
    name="lenet-300-100-raw",
    recipe=replace(PLAIN.recipe, sparsify_tau=0.08),
    limit=1.9,
)
RAW_LONGER = replace(
    RAW,
    name="lenet-300-100-raw-longer",
    recipe=replace(RAW.recipe, sparsify_tau=0.06, sparsify_epochs=80),
    limit=None,
    points=0.2,
)
CONV_RAW = replace(
    CONV_PLAIN,
    name="lenet-5-caffe-raw",
    recipe=replace(CONV_PLAIN.recipe, sparsify_tau=2.0, sparsify_epochs=50),
    points=0.2,
)
CONV_LONGER = replace(
    CONV_SHIFTED,
    name="lenet-5-caffe-shifted-longer",
    recipe=replace(CONV_SHIFTED.recipe, sparsify_tau=3.0, sparsify_epochs=70),
    points=0.25,
    portrait=False,
)
MAIN = (
    PUBLISHED, SHIFTED, PLAIN, CONV_SHIFTED, CONV_PLAIN, RAW, RAW_LONGER, CONV_RAW, CONV_LONGER,
)  # fmt: skip
SWEEP = {
    SHIFTED: ((0.05, 0.13, 0.3, 0.7), (4, 7)),
    PLAIN: ((0.03, 0.06, 0.12, 0.25), (4, 7)),
    CONV_SHIFTED: ((0.7, 2.5, 6.0), (8,)),
    CONV_PLAIN: ((0.4, 3.0), (8,)),
}
"""Setting -> the strengths of the first phase and the numbers of components to cross."""
SHORT = {"sparsify_epochs": 25, "quantise_epochs": 8, "finetune_epochs": 1}


def sweep() -> list[Setting]:
    """The settings behind the figure of error against compression: shorter, one seed each."""
    variants = []
    for base, (strengths, numbers) in SWEEP.items():
        for tau in strengths:
            for k in numbers:
                recipe = replace(base.recipe, sparsify_tau=tau, num_components=k, **SHORT)
                name = f"sweep-{base.name}-tau{tau:g}-k{k}"
                variants.append(replace(base, name=name, recipe=recipe, portrait=False))
    return variants


def full(seeds: int) -> list[tuple[Setting, int]]:
    """Everything: the rows of the tables with several seeds, the sweep with one."""
    main = [(setting, seed) for seed in range(seeds) for setting in MAIN]
    return main + [(setting, 0) for setting in sweep()]


def quick(seeds: int) -> list[tuple[Setting, int]]:
    """Every kind of unit, short."""
    short = {"sparsify_epochs": 4, "warmup_epochs": 1, "quantise_epochs": 4, "finetune_epochs": 1}
    shortened = []
    for setting in (PUBLISHED, SHIFTED, PLAIN, CONV_SHIFTED):
        recipe = None if setting.recipe is None else replace(setting.recipe, em_every=20, **short)
        shortened.append(replace(setting, recipe=recipe, pretrain_epochs=4, retrain_epochs=4))
    return [(setting, seed) for seed in range(seeds) for setting in shortened]
