"""`swsmix compress` and `swsmix decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swsmix.cli.app import app

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.checkpoints import Checkpoint
    from swsmix.quantize import Quantized


@app.command()
def compress(
    source: Annotated[
        Path,
        typer.Argument(help="A run folder, a .safetensors file, one of torch.save, or a folder."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; SOURCE with .sws by default.")
    ] = None,
    values: Annotated[
        int, typer.Option(min=1, help="K, values a tensor, for a checkpoint that is no run.")
    ] = 16,
    zero: Annotated[
        bool, typer.Option("--zero", help="Keep one of the values at exactly 0 (a checkpoint).")
    ] = False,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Change nothing: for weights that are snapped.")
    ] = False,
    bias_bits: Annotated[
        int | None, typer.Option(help="8 or 16: biases and norms coarser; exact by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the fit.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write a network to a file that really is smaller, and say how much.

    The weights of a run are snapped to the centres of its mixtures. To any other checkpoint a
    mixture is fitted, tensor by tensor, without training data; its table shows what k-means with
    as many values would take. `swsmix decompress` gives back the snapped weights bit for bit.

    **Examples**

    - `swsmix compress runs/mnist` : a run of `swsmix train`

    - `swsmix compress model.safetensors --values 32 --bias-bits 16`

    - `swsmix compress snapped.pt --lossless --out small.sws`
    """
    from swsmix.codec import save_compressed
    from swsmix.posttraining import quantize_state, snapped
    from swsmix.quantize import snapped_state
    from swsmix.snapping import Report, compare

    out = out or source.with_suffix(".sws")
    checkpoint = _opened(source, out)
    original = checkpoint.tensors
    found = {}
    if not lossless:
        found = _by_its_mixtures(checkpoint) or quantize_state(
            original, values, zero=zero, seed=seed
        )
    state = snapped_state(snapped(original, found), keep=set(found), bias_bits=bias_bits)
    size = save_compressed(out, state)
    if not quiet:
        if found:
            typer.echo(Report(compare(original, state, found), bias_bits, None, None))
        _report(original, found, state, size, out, seed=seed)


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(help="A file of `swsmix compress`.")],
    out: Annotated[
        Path | None,
        typer.Option(help=".safetensors or .pt; SOURCE with .safetensors by default."),
    ] = None,
    max_weights: Annotated[
        int, typer.Option(min=1, help="The most numbers to allocate; a larger file is refused.")
    ] = 1 << 28,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Turn a compressed file back into a checkpoint for `model.load_state_dict`.

    **Examples**

    - `swsmix decompress model.sws`

    - `swsmix decompress model.sws --out model.pt`
    """
    from swsmix import checkpoints
    from swsmix.codec import load_compressed

    out = out or source.with_suffix(".safetensors")
    state = load_compressed(source, max_weights=max_weights)
    checkpoints.write(out, state)
    if not quiet:
        count = sum(t.numel() for t in state.values())
        typer.echo(f"{out}: {len(state)} tensors, {count:,} numbers")


def _opened(source: Path, out: Path) -> Checkpoint:
    from swsmix import checkpoints

    if out == source:
        raise ValueError(f"{out} would be written over itself: name another file by --out")
    checkpoint = checkpoints.read_network(source)
    if not checkpoint.tensors:
        raise ValueError(f"{source} holds no tensors")
    return checkpoint


def _by_its_mixtures(checkpoint: Checkpoint) -> dict[str, Quantized]:
    """A run's tensors under the prior, by the components of their mixtures; none of a file."""
    from swsmix.quantize import Quantized, assign

    found = {}
    for group, mixture in checkpoint.mixtures.items():
        for name in checkpoint.groups[group]:
            w = checkpoint.tensors[name]
            found[name] = Quantized(mixture.mean.to(w.dtype), assign(mixture, w))
    return found


def _report(
    original: dict[str, Tensor],
    found: dict[str, Quantized],
    state: dict[str, Tensor],
    size: int,
    out: Path,
    *,
    seed: int,
) -> None:
    import gzip

    from rich.console import Console
    from rich.table import Table

    from swsmix.codec import encode
    from swsmix.codec.header import to_patterns
    from swsmix.posttraining import packed_bytes, quantize_state, snapped

    plain = b"".join(to_patterns(t).tobytes() for t in original.values())
    floats = sum(t.numel() for t in original.values() if t.is_floating_point())
    rest = sum(t.nbytes for t in original.values() if not t.is_floating_point())
    full = 4 * floats + rest
    rows: list[tuple[str, int, float | None]] = [
        ("float32", full, 0.0),
        ("float16", 2 * floats + rest, None),
        ("gzip of the tensors as they are", len(gzip.compress(plain, 6, mtime=0)), 0.0),
    ]
    if found:
        most = max(len(q.codebook) for q in found.values())
        chosen = {name: original[name] for name in found}
        other = quantize_state(chosen, most, method="kmeans", seed=seed)
        palette = {n: state[n] for n in state if n not in found} | snapped(chosen, other)
        error = _error(original, palette, found)
        rows += [
            (f"k-means, {most} values, packed", packed_bytes(palette, other), error),
            (f"k-means, {most} values, in this format", len(encode(palette)), error),
        ]
    rows.append((f"{out}", size, _error(original, state, found)))
    table = Table(title="whole network, biases and headers included", title_justify="left")
    for column in ("", "bytes", "x float32", "rms error of the weights"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for name, count, deviation in rows:
        shown = "" if deviation is None else f"{deviation:.3g}"
        table.add_row(name, f"{count:,}", f"{full / count:.1f}", shown)
    Console(width=None).print(table)


def _error(
    before: dict[str, Tensor], after: dict[str, Tensor], names: dict[str, Quantized]
) -> float:
    squares = sum((before[n].double() - after[n].double()).square().sum().item() for n in names)
    count = sum(before[n].numel() for n in names)
    return float((squares / max(count, 1)) ** 0.5)
