"""The settings of `swsmix train`: what they may be, and those of a run that is resumed."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Any


class Data(StrEnum):
    """The built-in problems."""

    sunspots = "sunspots"
    shift = "shift"
    mnist = "mnist"
    cifar10 = "cifar10"

    @property
    def large(self) -> bool:
        """Whether one seed, without weight decay to compare with, is enough by default."""
        return self in (Data.mnist, Data.cifar10)


class Net(StrEnum):
    """The networks for MNIST, and for CIFAR-10."""

    lenet_300_100 = "lenet-300-100"
    lenet_5_caffe = "lenet-5-caffe"
    resnet_20 = "resnet-20"
    wrn_16_4 = "wrn-16-4"


class Mode(StrEnum):
    """How the mixture learns."""

    em = "em"
    gradient = "gradient"


class Dtype(StrEnum):
    """Floating-point types."""

    float32 = "float32"
    float64 = "float64"


def check_config(saved: dict[str, Any], file: Path) -> None:
    """Check the types of a run's settings: someone may have edited them."""
    wanted: dict[str, Any] = {
        "data": Data, "net": Net, "mode": Mode, "dtype": Dtype, "components": int, "em_every": int,
        "epochs": int, "dense_epochs": int, "seed": int, "seeds": int, "tau": float,
        "baseline": bool, "device": str,
    }  # fmt: skip
    for name, kind in wanted.items():
        if name not in saved:
            continue
        value = saved[name]
        if issubclass(kind, StrEnum):
            good, what = value in [*kind], f"one of {', '.join(kind)}"
        elif kind in (int, float):
            good = isinstance(value, (int, kind)) and not isinstance(value, bool)
            good &= good and abs(value) < math.inf and (value >= 0 or name == "seed")
            what = "a number from 0 on" if name != "seed" else "a whole number"
        else:
            good, what = isinstance(value, kind), f"a {kind.__name__}"
        if not good:
            raise ValueError(
                f"{file}: `{name}`: needs {what}, got {value!r}: correct it, or start the run "
                "again (--force)"
            )


def resumed(
    saved: dict[str, Any], asked: dict[str, Any], given: set[str], *, force: bool
) -> dict[str, Any]:
    """The settings of a resumed run; only epochs and device may change."""
    if force:
        raise ValueError("--resume continues a run and --force replaces it: give one of them")
    changed = [n for n in given - {"epochs", "device"} if saved.get(n) != asked[n]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"the run was made with {name} = {saved.get(name)}, not {asked[name]}: a resumed run "
            f"keeps its settings (only --epochs and --device may change): omit --{name}"
        )
    kept = {name: saved.get(name) for name in asked}
    return kept | {name: asked[name] for name in given}
