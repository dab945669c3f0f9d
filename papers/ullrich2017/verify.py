"""The compressed files beside the results: decode each, measure it, and compare with the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from papers.ullrich2017 import cifar, work
from swsmix.codec import load_compressed
from swsmix.problems.mnist import mnist
from swsmix.training.evaluation import evaluate

POINTS = (
    0.02  # by which errors may differ: two of 10,000 images, where a processor rounds otherwise
)


def verify(results: Path) -> bool:
    """Print a line for every row and seed; whether all files that are there agree with the results.

    A file must have the size of its result, decode, and make as many errors on the test images. One
    whose images are not there is "not measured", and does not count as agreeing.
    """
    points = "points of a figure, without files"
    count = dict.fromkeys(("agrees", "differs", "not measured", "no file kept", points), 0)
    for path in sorted(results.glob("*-seed*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["kind"] not in ("compressed", "cifar10"):
            continue
        file = path.with_suffix(".sws")
        if not file.is_file() and path.stem.startswith("sweep-"):
            count[points] += 1
            continue
        if not file.is_file():
            said, line = "no file kept", f"to make it, delete {path.name} and run the paper again"
        else:
            said, line = _compared(file, result)
        count[said] += 1
        print(f"{path.stem}: {said}; {line}", flush=True)
    print("; ".join(f"{said}: {n}" for said, n in count.items()))
    return count["differs"] == count["not measured"] == 0


def _compared(file: Path, result: dict[str, Any]) -> tuple[str, str]:
    """Whether a file agrees with its result, and its numbers."""
    size, wanted = file.stat().st_size, result["compressed_test_error_percent"]
    try:
        net = network(result)
        net.load_state_dict(load_compressed(file))
    except (ValueError, RuntimeError) as error:
        return "differs", f"it is not the network of the row: {' '.join(str(error).split())}"
    try:
        pair = _test_images(result["kind"], result.get("subset"), result["seed"])
    except FileNotFoundError as error:
        return "not measured", f"{size:,} bytes, which decode; {' '.join(str(error).split())}"
    found = evaluate(net, work.errors, pair)
    numbers = f"{size:,} bytes, {found:.2f} % errors on the {len(pair[0]):,} test images"
    if size == result["size_bytes"] and abs(found - wanted) <= POINTS:
        return "agrees", numbers
    return "differs", f"{numbers}, where the table has {result['size_bytes']:,} and {wanted:.2f} %"


def network(result: dict[str, Any]) -> nn.Module:
    """The row's network, with any weights."""
    if result["kind"] == "cifar10":
        return cifar.network(cifar.ROWS[result["net"]], 0, folded=True)
    make: Callable[[], nn.Module] = work.NETS[result["net"]]
    return make()


@cache
def _test_images(kind: str, subset: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """The test images as the row's unit has measured them."""
    if kind == "cifar10":
        data = cifar.images(seed, subset)
        return data.x_test, data.y_test
    digits = mnist()
    return digits.x_test[:subset].float() / 255, digits.y_test[:subset]
