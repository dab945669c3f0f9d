"""`swsmix compress`."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from swsmix._progress import watched
from swsmix.cli import _streams
from swsmix.cli._interrupts import as_exit_codes
from swsmix.cli.app import app
from swsmix.cli.asked import check_one, parse_size
from swsmix.cli.inspect import left_out_lines
from swsmix.cli.sizes import Formats, bits_per_weight, print_table, relative_loss, ties

if TYPE_CHECKING:
    from torch import Tensor

    from swsmix.codec import Notes
    from swsmix.compression.snap import Quantized
    from swsmix.compression.streamed import Choose
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
            help="Relative distortion, the squared change over the weights' variance; 0.005 if "
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
    the same relative error everywhere. Say how many bits, how large a file or how much distortion
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
    from swsmix._files import replacing
    from swsmix.codec import encode_to
    from swsmix.compression.lost_rows import warn_of_lost_rows
    from swsmix.compression.matrices import MIN_WEIGHTS, is_quantised
    from swsmix.compression.report import SnappingReport, TensorReport
    from swsmix.compression.streamed import Rounded, snapped_tensors

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
    check_not_itself(source, out)
    if is_written:
        check_free(out, force=force)
    picture = out.with_name(f"{out.stem}-curve.png")
    if curve:
        check_free(picture, force=force)
    checkpoint = _opened(source, out)
    original = checkpoint.tensors
    if checkpoint.mixtures and (given or curve):
        _refuse_for_run(source, given or "--curve")
    numel = {name: t.numel() for name, t in original.items()}
    matrices = {n for n, t in original.items() if is_quantised(t)} - checkpoint.exact
    with as_exit_codes():
        # The size of the file is that with its biases rounded.
        rest = Rounded(original, bias_bits, keep=matrices | checkpoint.exact)
        if curve:
            from swsmix.cli.curve import print_curve

            print_curve(rest, picture, zero=zero, exact=checkpoint.exact, quiet=quiet)
            if not is_written:
                return
        found = {} if lossless else by_its_mixtures(checkpoint, distortion)
        asked = Asked(bits, most, loss, values, zero, seed)
        lost: Mapping[str, tuple[int, int]] = {}
        if lossless or found:
            choose: Choose = _given(found)
        else:
            choose, lost = _chooser(rest, asked, checkpoint.exact, quiet=quiet)
        formats = Formats(numel, sum(t.nbytes for t in original.values()))
        reports: dict[str, TensorReport] = {}
        names = watched(original, "coding", shown=not quiet, weight=lambda n: max(numel[n], 1))
        tensors = snapped_tensors(
            original,
            choose,
            names,
            rest=Rounded(original, bias_bits, keep=checkpoint.exact),
            reports=reports,
            seen=None if quiet else formats.add,
        )
        with replacing(out) as temporary, temporary.open("wb") as file:
            total = sum(numel.values())
            written = encode_to(file, tensors, total=total, notes=_notes(checkpoint))
    _streams.work_is_saved()
    warn_of_lost_rows(lost)
    if quiet:
        return
    for line in left_out_lines(checkpoint):
        typer.echo(line)
    if reports:
        typer.echo(SnappingReport((*reports.values(),), bias_bits, before=None, after=None))
        loss = relative_loss(reports)
        typer.echo(f"{bits_per_weight(reports):.3f} bits per weight, loss {loss:.3g}")
        small = [n for n, t in original.items() if t.is_floating_point() and t.ndim > 1]
        small = [n for n in small if n not in reports and n not in checkpoint.exact]
        if not checkpoint.mixtures and small:
            few = f"for {values} values" if values else f"(below {MIN_WEIGHTS}), kept as are"
            typer.echo(f"too few weights {few}: {', '.join(small)}")
    if checkpoint.exact:
        typer.echo(f"8-bit floats and their scales, kept as are: {len(checkpoint.exact)} tensors")
    if checkpoint.mixtures and found:
        values = max(len(q.codebook) for q in found.values())
    rows = formats.rows(reports, written, out, values=values, bias_bits=bias_bits, seed=seed)
    print_table(rows)
    if lossless and 10 * written > 9 * formats.whole:
        typer.echo("little gained: these weights are not snapped; omit --lossless to snap them")


class Asked(NamedTuple):
    """What is asked of the file."""

    bits: float | None
    size_bytes: int | None
    loss: float | None
    values: int | None
    zero: bool
    seed: int


def _given(found: Mapping[str, Quantized]) -> Choose:
    """What gives each tensor what was found for it."""
    return lambda name, t: found.get(name)


def _chooser(
    state: Mapping[str, Tensor], asked: Asked, exact: Collection[str], *, quiet: bool
) -> tuple[Choose, Mapping[str, tuple[int, int]]]:
    """What gives each tensor its codebook and index, and the rows that it will have lost."""
    from swsmix.compression.codebooks import quantize_tensor
    from swsmix.compression.rate import Network, check_asked

    bits, size_bytes, loss, values, zero, seed = asked
    check_asked(num_values=values, bits=bits, size_bytes=size_bytes, loss=loss)
    if values is not None:
        one = functools.partial(quantize_tensor, num_values=values, zero=zero, seed=seed)
        return (lambda name, t: None if name in exact else one(name, t)), {}
    network = Network(state, zero=zero, exact=exact, progress=not quiet)
    outcome = network.asked(bits=bits, size_bytes=size_bytes, loss=loss)
    return (lambda name, t: network.quantized_tensor(outcome, name, t)), network.lost


def _notes(checkpoint: Checkpoint) -> Notes:
    """Where the tensors came from."""
    from swsmix.codec import Notes
    from swsmix.inspection.on_disk import metadata_of

    places, names = checkpoint.places, list(checkpoint.tensors)
    files = sorted({*places.values()})
    metadata = {key: text for file in files for key, text in metadata_of(file).items()}
    alone = len(files) < 2 and not (files and checkpoint.index)
    if alone or len({file.parent for file in files}) > 1:
        seen: dict[object, int] = {}
        ties = {}
        for place, t in enumerate(checkpoint.tensors.values() if not places else ()):
            memory = t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride()
            first = seen.setdefault((*memory, t.dtype), place) if t.numel() else place
            if first < place:
                ties[place] = first
        return Notes(metadata=metadata, ties=ties)
    number = {file: i for i, file in enumerate(files)}
    shards = tuple(file.name for file in files)
    return Notes(shards, tuple(number[places[name]] for name in names), checkpoint.index, metadata)


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


def check_not_itself(source: Path, out: Path) -> None:
    """Check that a file is not written over what it is made from."""
    if out.exists() and source.exists() and out.samefile(source) and not out.is_dir():
        raise ValueError(f"{out} would be written over itself: name another file by --out")


def _opened(source: Path, out: Path) -> Checkpoint:
    from swsmix._files import check_writable
    from swsmix.codec import check
    from swsmix.inspection import checkpoints

    check_not_itself(source, out)
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
