"""`swsmix export`: a run's network as an ONNX file with codebooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swsmix.cli import _streams
from swsmix.cli.app import app

if TYPE_CHECKING:
    from torch import Tensor, nn


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="A run folder of `swsmix train`, whose network is known.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write, by default RUN with .onnx; it must not exist yet (--force)."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Other weights of the same network, snapped already: a file of `swsmix compress`, "
            "or another checkpoint."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write a run's network, snapped, to an ONNX file: indices and codebooks, not floats.

    The weights are those of `swsmix compress RUN`. Of a network of your own, use
    `swsmix.compression.export_onnx` in Python. It needs the extra onnx.

    **Examples**

    - `swsmix export runs/mnist`

    - `swsmix export runs/mnist --weights mnist.sws --out small.onnx`
    """
    from swsmix.cli.compress import by_its_mixtures, check_free
    from swsmix.compression import export_onnx
    from swsmix.compression.codebooks import snapped
    from swsmix.inspection import checkpoints

    if out is None:
        out = run.parent / f"{run.resolve().name}.onnx"
    check_free(out, force=force)
    network, example = _network(run)
    state: Mapping[str, Tensor]
    if weights is None:
        checkpoint = checkpoints.read_network(run)
        state = snapped(checkpoint.tensors, by_its_mixtures(checkpoint, 1.0))
    else:
        state = checkpoints.read_network(weights).tensors
    _load_(network, state, weights or run)
    report = export_onnx(out, network, example)
    _streams.work_is_saved()
    if not quiet:
        typer.echo(f"{out}: {report}")


def _network(run: Path) -> tuple[nn.Module, Tensor]:
    """The network of a run, and a batch of its inputs."""
    import torch

    from swsmix.cli.train_settings import check_config
    from swsmix.compression.batch_norms import fold_batch_norms_
    from swsmix.problems import nets
    from swsmix.training.runs import load_config

    file = run / "config.toml"
    if not file.is_file():
        raise ValueError(
            f"`swsmix export` must have a run folder of `swsmix train`, whose network is known, "
            f"got {run}: of a network of your own, use swsmix.compression.export_onnx in Python"
        )
    config = load_config(run)
    check_config(config, file)
    data, net = config.get("data"), config.get("net")
    dtype = torch.float64 if config.get("dtype") == "float64" else torch.float32
    make, shape = {
        "sunspots": (nets.sunspot_net, (12,)),
        "shift": (nets.shift_net, (20,)),
        "mnist": (nets.lenet_5_caffe if net == "lenet-5-caffe" else nets.lenet_300_100, (784,)),
        "cifar10": (nets.wrn if net == "wrn-16-4" else nets.resnet20, (3, 32, 32)),
    }.get(str(data), (None, ()))
    if make is None:
        raise ValueError(
            f"{file}: `data` must be that of `swsmix train`, got {data!r}: of a network of your "
            "own, use swsmix.compression.export_onnx in Python"
        )
    network = make(dtype=dtype).eval()
    if data == "cifar10":
        fold_batch_norms_(network)  # as `swsmix train` has
    return network, torch.zeros(2, *shape, dtype=dtype, device="cpu")


def _load_(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the weights must be those of the run's network, got others in {source}: "
            f"{' '.join(str(error).split())}: name a file of that network"
        ) from error
