"""`swsmix compress` and `swsmix decompress`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swsmix.cli import _streams
from swsmix.cli.app import app
from swsmix.cli.inspect import left_out_lines

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.compression.snap import Quantized
    from swsmix.inspection.checkpoints import Checkpoint


@app.command()
def compress(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a .safetensors file, a file of torch.save, a folder of these, or "
            "its index (.index.json)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write, by default SOURCE with .sws; it must not exist yet (--force)."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    values: Annotated[
        int,
        typer.Option(
            min=1, help="K, the most values per tensor. Not for a run, which has its mixtures."
        ),
    ] = 16,
    zero: Annotated[
        bool, typer.Option("--zero", help="Keep one of the values at exactly 0. Not for a run.")
    ] = False,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="Change no weight: for weights that are snapped already."),
    ] = False,
    bias_bits: Annotated[
        int | None, typer.Option(help="Round biases and norms to 8 or 16 bits; exact by default.")
    ] = None,
    distortion: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Of a run: components merge where that moves no weight by more than so many stds "
            "of its component; 0 merges none.",
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="For the sample of very many weights.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Write a network to a small file, and print its size beside those of other formats.

    The weights of a run are snapped to the centres of its mixtures. For any other checkpoint a
    mixture is fitted to each tensor, without training data; the table also shows k-means with as
    many values. `swsmix decompress` gives back the snapped weights bit for bit.

    **Examples**

    - `swsmix compress runs/mnist` : a run of `swsmix train`

    - `swsmix compress model.safetensors --values 32 --bias-bits 16`

    - `swsmix compress snapped.pt --lossless --out small.sws`
    """
    from swsmix.compression import save_compressed
    from swsmix.compression.codebooks import quantize_state, snapped
    from swsmix.compression.report import SnappingReport, tensor_reports
    from swsmix.compression.snap import snapped_state

    if out is None:
        stem = source.stem
        if source.is_dir():  # a dot in its name, as in lr0.1, begins no suffix
            stem = source.name if source.name.strip(".") else source.resolve().name
        out = source.parent / f"{stem}.sws"
    _check_not_itself(source, out)
    _check_free(out, force=force)
    checkpoint = _opened(source, out)
    original = checkpoint.tensors
    found = {}
    if not lossless:
        found = _by_its_mixtures(checkpoint, distortion) or quantize_state(
            original, values, zero=zero, seed=seed, progress=not quiet
        )
    state = snapped_state(snapped(original, found), keep=set(found), bias_bits=bias_bits)
    size = save_compressed(out, state, progress=not quiet)
    _streams.work_is_saved()
    if not quiet:
        for line in left_out_lines(checkpoint):
            typer.echo(line)
        if found:
            reports = tensor_reports(original, state, found)
            typer.echo(SnappingReport(reports, bias_bits, before=None, after=None))
            small = [n for n, t in original.items() if t.is_floating_point() and t.ndim > 1]
            if not checkpoint.mixtures and (small := [n for n in small if n not in found]):
                typer.echo(f"too few weights for {values} values: {', '.join(small)}")
        rows = _sizes(original, found, state, size, out, bias_bits=bias_bits, seed=seed)
        _print_table(rows)
        if lossless and 10 * size > 9 * sum(t.nbytes for t in original.values()):
            typer.echo("little gained: these weights are not snapped; omit --lossless to snap them")


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(help="A file of `swsmix compress`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The .safetensors or .pt file to write, by default SOURCE with .safetensors; it "
            "must not exist yet (--force)."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    max_weights: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most numbers to allocate; by default what the file's size makes plausible. "
            "The decoding effort grows with it.",
        ),
    ] = None,
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
        out = source.parent / f"{source.stem}.safetensors"
    _check_not_itself(source, out)
    _check_free(out, force=force)
    check_writable(out)
    state = load_compressed(source, max_weights=max_weights)
    checkpoints.write(out, state)
    _streams.work_is_saved()
    if not quiet:
        count = sum(t.numel() for t in state.values())
        typer.echo(f"{out}: {len(state)} tensors, {count:,} numbers")


def _check_free(out: Path, *, force: bool) -> None:
    """A file is replaced only if asked to: it may be the only copy of a network."""
    if out.is_file() and not force:
        raise FileExistsError(
            f"{out} is there already: replace it by --force, or name another file by --out"
        )


def _check_not_itself(source: Path, out: Path) -> None:
    if out.exists() and source.exists() and out.samefile(source) and not out.is_dir():
        raise ValueError(f"{out} would be written over itself: name another file by --out")


def _opened(source: Path, out: Path) -> Checkpoint:
    from swsmix._files import check_writable
    from swsmix.codec import check
    from swsmix.inspection import checkpoints

    _check_not_itself(source, out)
    checkpoint = checkpoints.read_network(source)
    if not checkpoint.tensors:
        raise ValueError(f"{source} holds no tensors")
    check_writable(out)
    for name, t in checkpoint.tensors.items():
        check(name, t)
    return checkpoint


def _by_its_mixtures(checkpoint: Checkpoint, distortion: float) -> dict[str, Quantized]:
    """A run's tensors under the prior, as `quantize` has them; empty for other files."""
    from swsmix.compression.duplicates import file_values
    from swsmix.compression.snap import Quantized

    found = {}
    for group, mixture in checkpoint.mixtures.items():
        values = file_values(mixture, distortion)
        for name in checkpoint.groups[group]:
            w = checkpoint.tensors[name]
            found[name] = Quantized(values.codebook.to(w.dtype), values.regions.assign(w))
    # A tied tensor is in the checkpoint under each of its names.
    tied = _ties(checkpoint.tensors)
    return found | {name: found[first] for name, first in tied.items() if first in found}


def _ties(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Name of a matrix -> name of an earlier one that it equals bit for bit, as tied ones do."""
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


@dataclass(frozen=True)
class _Size:
    """A row of the table; the error is None where it is not measured."""

    format: str
    bytes: int
    biases: str
    error: float | None


def _sizes(
    original: dict[str, Tensor],
    found: dict[str, Quantized],
    state: dict[str, Tensor],
    size: int,
    out: Path,
    *,
    bias_bits: int | None,
    seed: int,
) -> list[_Size]:
    """The size of the file and of the same network in other formats, float32 first."""
    import gzip

    from swsmix.codec import encode
    from swsmix.codec.header import to_patterns
    from swsmix.compression.codebooks import packed_bytes, quantize_state, snapped

    tied = _ties(original)
    once = {n: t for n, t in original.items() if n not in tied}
    plain = b"".join(to_patterns(t).tobytes() for t in once.values())
    floats = sum(t.numel() for t in once.values() if t.is_floating_point())
    rest = sum(t.nbytes for t in once.values() if not t.is_floating_point())
    kept = "exact" if bias_bits is None else f"{bias_bits} bits"
    rows = [
        _Size("float32", 4 * floats + rest, "exact", 0.0),
        _Size("float16", 2 * floats + rest, "float16", None),
        _Size("the tensors as they are", len(plain), "exact", 0.0),
        _Size("the same, gzip", len(gzip.compress(plain, 6, mtime=0)), "exact", 0.0),
    ]
    if found:
        most = max(len(q.codebook) for q in found.values())
        chosen = {name: original[name] for name in found}
        other = quantize_state(chosen, most, method="kmeans", seed=seed, progress=True)
        palette = {n: state[n] for n in state if n not in found} | snapped(chosen, other)
        error = _rms_error(original, palette, found)
        packed = {n: t for n, t in palette.items() if n not in tied}
        coded = len(encode(palette, progress=True))
        name = f"k-means, {most} values"
        rows += [
            _Size(f"{name}, packed", packed_bytes(packed, other), kept, error),
            _Size(f"{name}, in this format", coded, kept, error),
        ]
    return [*rows, _Size(f"{out}", size, kept, _rms_error(original, state, found))]


def _print_table(rows: list[_Size]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "the whole network, with biases and headers; the error is that of the weights"
    table = Table(title=title, title_justify="left")
    for column in ("", "bytes", "x float32", "biases etc.", "rms error"):
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for row in rows:
        error = "" if row.error is None else f"{row.error:.3g}"
        ratio = f"{rows[0].bytes / row.bytes:.1f}" if row.bytes else ""
        table.add_row(row.format, f"{row.bytes:,}", ratio, row.biases, error)
    Console(width=None).print(table)


def _rms_error(before: dict[str, Tensor], after: dict[str, Tensor], names: Iterable[str]) -> float:
    squares = sum((before[n].double() - after[n].double()).square().sum().item() for n in names)
    count = sum(before[n].numel() for n in names)
    return float((squares / max(count, 1)) ** 0.5)
