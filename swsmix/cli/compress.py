"""`swsmix compress` and `swsmix decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swsmix.cli.app import app

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.compression.snap import Quantized
    from swsmix.inspection.checkpoints import Checkpoint


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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
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
    from swsmix.compression import save_compressed
    from swsmix.compression.codebooks import quantize_state, snapped
    from swsmix.compression.report import Report, compare
    from swsmix.compression.snap import snapped_state

    if out is None:
        stem = source.stem
        if source.is_dir():  # the dots in its name, such as lr0.1, begin no suffix
            stem = source.name if source.name.strip(".") else source.resolve().name
        out = source.parent / f"{stem}.sws"
    checkpoint = _opened(source, out)
    original = checkpoint.tensors
    found = {}
    if not lossless:
        found = _by_its_mixtures(checkpoint) or quantize_state(
            original, values, zero=zero, seed=seed, progress=not quiet
        )
    state = snapped_state(snapped(original, found), keep=set(found), bias_bits=bias_bits)
    size = save_compressed(out, state, progress=not quiet)
    if not quiet:
        if found:
            typer.echo(Report(compare(original, state, found), bias_bits, None, None))
            small = [n for n, t in original.items() if t.is_floating_point() and t.ndim > 1]
            if not checkpoint.mixtures and (small := [n for n in small if n not in found]):
                typer.echo(f"too few weights for {values} values: {', '.join(small)}")
        _report(original, found, state, size, out, bias_bits=bias_bits, seed=seed)
        if lossless and 10 * size > 9 * sum(t.nbytes for t in original.values()):
            typer.echo("little gained: these weights are not snapped; without --lossless they are")


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(help="A file of `swsmix compress`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help=".safetensors or .pt, replaced if it is there; SOURCE with .safetensors by "
            "default, if there is none yet."
        ),
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
    from swsmix._files import check_writable
    from swsmix.codec import load_compressed
    from swsmix.inspection import checkpoints

    if out is None:
        out = _beside(source)
    else:
        check_writable(out)
    state = load_compressed(source, max_weights=max_weights)
    checkpoints.write(out, state)
    if not quiet:
        count = sum(t.numel() for t in state.values())
        typer.echo(f"{out}: {len(state)} tensors, {count:,} numbers")


def _beside(source: Path) -> Path:
    """Where a file comes back by default: never over another, most likely what was compressed."""
    out = source.parent / f"{source.stem}.safetensors"
    if out.exists():
        raise FileExistsError(f"{out} is there already: name a file by --out, it or another")
    return out


def _opened(source: Path, out: Path) -> Checkpoint:
    from swsmix._files import check_writable
    from swsmix.codec import check
    from swsmix.inspection import checkpoints

    if out.exists() and source.exists() and out.samefile(source) and not out.is_dir():
        raise ValueError(f"{out} would be written over itself: name another file by --out")
    checkpoint = checkpoints.read_network(source)
    if not checkpoint.tensors:
        raise ValueError(f"{source} holds no tensors")
    check_writable(out)
    for name, t in checkpoint.tensors.items():
        check(name, t)
    return checkpoint


def _by_its_mixtures(checkpoint: Checkpoint) -> dict[str, Quantized]:
    """A run's tensors under the prior, by the components of their mixtures; none of a file."""
    from swsmix.compression.snap import Quantized, assign

    found = {}
    for group, mixture in checkpoint.mixtures.items():
        for name in checkpoint.groups[group]:
            w = checkpoint.tensors[name]
            found[name] = Quantized(mixture.mean.to(w.dtype), assign(mixture, w))
    # A tied tensor has its other names in the checkpoint too.
    tied = _ties(checkpoint.tensors)
    return found | {name: found[first] for name, first in tied.items() if first in found}


def _ties(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Matrices that equal an earlier one bit for bit, as tied ones are stored: name -> its name."""
    from zlib import crc32

    from swsmix.codec.header import to_patterns

    seen: dict[tuple[object, ...], list[str]] = {}
    tied = {}
    for name, t in tensors.items():
        if t.ndim < 2 or not t.is_floating_point() or not t.any():
            continue
        patterns = to_patterns(t)
        before = seen.setdefault((t.dtype, t.shape, crc32(patterns.data)), [])
        same = [n for n in before if (to_patterns(tensors[n]) == patterns).all()]
        if same:
            tied[name] = same[0]
        before.append(name)
    return tied


def _report(
    original: dict[str, Tensor],
    found: dict[str, Quantized],
    state: dict[str, Tensor],
    size: int,
    out: Path,
    *,
    bias_bits: int | None,
    seed: int,
) -> None:
    import gzip

    from rich.console import Console
    from rich.table import Table

    from swsmix.codec import encode
    from swsmix.codec.header import to_patterns
    from swsmix.compression.codebooks import packed_bytes, quantize_state, snapped

    tied = _ties(original)
    once = {n: t for n, t in original.items() if n not in tied}
    plain = b"".join(to_patterns(t).tobytes() for t in once.values())
    floats = sum(t.numel() for t in once.values() if t.is_floating_point())
    rest = sum(t.nbytes for t in once.values() if not t.is_floating_point())
    full = 4 * floats + rest
    kept = "exact" if bias_bits is None else f"{bias_bits} bits"
    rows: list[tuple[str, int, str, float | None]] = [
        ("float32", full, "exact", 0.0),
        ("float16", 2 * floats + rest, "float16", None),
        ("the tensors as they are", len(plain), "exact", 0.0),
        ("gzip of them", len(gzip.compress(plain, 6, mtime=0)), "exact", 0.0),
    ]
    if found:
        most = max(len(q.codebook) for q in found.values())
        chosen = {name: original[name] for name in found}
        other = quantize_state(chosen, most, method="kmeans", seed=seed, progress=True)
        palette = {n: state[n] for n in state if n not in found} | snapped(chosen, other)
        error = _error(original, palette, found)
        packed = {n: t for n, t in palette.items() if n not in tied}
        coded = len(encode(palette, progress=True))
        rows += [
            (f"k-means, {most} values, packed", packed_bytes(packed, other), kept, error),
            (f"k-means, {most} values, in this format", coded, kept, error),
        ]
    rows.append((f"{out}", size, kept, _error(original, state, found)))
    title = "whole network, biases and headers included; the error is that of the weights"
    table = Table(title=title, title_justify="left")
    for column in ("", "bytes", "x float32", "biases etc.", "rms error"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for name, count, others, deviation in rows:
        shown = "" if deviation is None else f"{deviation:.3g}"
        ratio = f"{full / count:.1f}" if count else ""
        table.add_row(name, f"{count:,}", ratio, others, shown)
    Console(width=None).print(table)


def _error(
    before: dict[str, Tensor], after: dict[str, Tensor], names: dict[str, Quantized]
) -> float:
    squares = sum((before[n].double() - after[n].double()).square().sum().item() for n in names)
    count = sum(before[n].numel() for n in names)
    return float((squares / max(count, 1)) ** 0.5)
