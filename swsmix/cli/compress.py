"""`swsmix compress` and `swsmix decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swsmix.cli import _streams
from swsmix.cli.app import app
from swsmix.cli.asked import check_one, parse_size
from swsmix.cli.inspect import left_out_lines
from swsmix.cli.sizes import bits_per_weight, print_table, relative_loss, sizes, ties

if TYPE_CHECKING:
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
    bits: Annotated[
        float | None, typer.Option(help="Bits per weight on average, such as 2.5.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="The largest file: 8MB, 500kB, 4MiB, or bytes.", metavar="SIZE"),
    ] = None,
    loss: Annotated[
        float | None,
        typer.Option(
            help="Relative distortion, the squared change over the weights' variance; 0.004 if "
            "nothing is asked for."
        ),
    ] = None,
    values: Annotated[
        int | None, typer.Option(min=1, help="K, the most values per tensor, however rare.")
    ] = None,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve",
            help="Print size against distortion, and draw it to SOURCE-curve.png. The file itself "
            "is written only if --out or what it is to be is given too.",
        ),
    ] = False,
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
    seed: Annotated[int, typer.Option(help="With --values: for the sample of weights.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Write a network to a small file, and print its size beside those of other formats.

    The weights of a run are snapped to the centres of its mixtures. For any other checkpoint,
    without training data, each tensor gets as many values as pay for themselves: a bit is worth
    the same squared error everywhere. Say how many bits, how large a file or how much distortion
    (one of --bits, --size, --loss, --values); by default nearly nothing is lost. `swsmix
    decompress` gives back the snapped weights bit for bit.

    **Examples**

    - `swsmix compress model.safetensors` : nearly nothing is lost

    - `swsmix compress model.safetensors --size 8MB` : the best network in such a file

    - `swsmix compress model.safetensors --bits 2.5 --bias-bits 16`

    - `swsmix compress model.safetensors --curve` : what each size costs

    - `swsmix compress runs/mnist` : a run of `swsmix train`

    - `swsmix compress snapped.pt --lossless --out small.sws`
    """
    from swsmix.compression import save_compressed
    from swsmix.compression.codebooks import quantize_state, snapped
    from swsmix.compression.matrices import MIN_WEIGHTS, is_quantised
    from swsmix.compression.report import SnappingReport, tensor_reports
    from swsmix.compression.snap import snapped_state

    given = check_one(
        bits=bits, size=size, loss=loss, values=values, lossless=lossless, curve=curve
    )
    most = None if size is None else parse_size(size)
    is_written = not curve or out is not None or bool(given)
    if out is None:
        stem = source.stem
        if source.is_dir():  # a dot in its name, as in lr0.1, begins no suffix
            stem = source.name if source.name.strip(".") else source.resolve().name
        out = source.parent / f"{stem}.sws"
    _check_not_itself(source, out)
    if is_written:
        check_free(out, force=force)
    picture = out.with_name(f"{out.stem}-curve.png")
    if curve:
        check_free(picture, force=force)
    checkpoint = _opened(source, out)
    original = checkpoint.tensors
    if checkpoint.mixtures and (given or curve):
        _refuse_for_run(source, given or "--curve")
    # The size of the file is that with its biases rounded.
    large = [name for name, t in original.items() if is_quantised(t)]
    rest = snapped_state(original, keep=large, bias_bits=bias_bits)
    if curve:
        from swsmix.cli.curve import print_curve

        print_curve(rest, picture, zero=zero, quiet=quiet)
        if not is_written:
            return
    found = {}
    if not lossless:
        found = by_its_mixtures(checkpoint, distortion)
    if not lossless and not found:
        found = quantize_state(
            rest if values is None else original,
            values,
            bits=bits,
            size_bytes=most,
            loss=loss,
            zero=zero,
            seed=seed,
            progress=not quiet,
        )
    state = snapped_state(snapped(original, found), keep=set(found), bias_bits=bias_bits)
    written = save_compressed(out, state, progress=not quiet)
    _streams.work_is_saved()
    if not quiet:
        for line in left_out_lines(checkpoint):
            typer.echo(line)
        if found:
            reports = tensor_reports(original, state, found)
            typer.echo(SnappingReport(reports, bias_bits, before=None, after=None))
            lost = relative_loss(original, state, found)
            typer.echo(f"{bits_per_weight(found):.3f} bits per weight, loss {lost:.3g}")
            small = [n for n, t in original.items() if t.is_floating_point() and t.ndim > 1]
            if not checkpoint.mixtures and (small := [n for n in small if n not in found]):
                few = f"for {values} values" if values else f"(below {MIN_WEIGHTS}), kept as are"
                typer.echo(f"too few weights {few}: {', '.join(small)}")
        if checkpoint.mixtures and found:
            values = max(len(q.codebook) for q in found.values())
        rows = sizes(
            original, found, state, written, out, values=values, bias_bits=bias_bits, seed=seed
        )
        print_table(rows)
        if lossless and 10 * written > 9 * sum(t.nbytes for t in original.values()):
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
    check_free(out, force=force)
    check_writable(out)
    state = load_compressed(source, max_weights=max_weights)
    checkpoints.write(out, state)
    _streams.work_is_saved()
    if not quiet:
        count = sum(t.numel() for t in state.values())
        typer.echo(f"{out}: {len(state)} tensors, {count:,} numbers")


def _refuse_for_run(source: Path, option: str) -> None:
    raise ValueError(
        f"{source} is a run, whose mixtures say which values it has: `swsmix compress` has no "
        f"{option} for it; omit it, or compress a checkpoint that holds the weights alone"
    )


def check_free(out: Path, *, force: bool) -> None:
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


def by_its_mixtures(checkpoint: Checkpoint, distortion: float) -> dict[str, Quantized]:
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
    tied = ties(checkpoint.tensors)
    return found | {name: found[first] for name, first in tied.items() if first in found}
