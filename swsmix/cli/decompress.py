"""`swsmix decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swsmix._progress import watched
from swsmix.cli import _streams
from swsmix.cli._interrupts import as_exit_codes
from swsmix.cli.app import app
from swsmix.cli.compress import check_free, check_not_itself


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(help="A file of `swsmix compress`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The .safetensors or .pt file to write, by default SOURCE with .safetensors; it "
            "must not exist yet (--force). If the checkpoint had shards: a new folder for them, by "
            "default SOURCE without .sws."
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
    from swsmix import codec
    from swsmix._files import check_writable
    from swsmix.inspection.writing import is_file, write_decoded

    if out is not None:
        _check(source, out, force=force)
        check_writable(out)
    with as_exit_codes(), codec.reading(source, max_weights=max_weights) as reader:
        if out is None:
            stem = source.parent / source.stem
            suffix = stem.with_name(f"{stem.name}.safetensors")
            out = suffix if is_file(stem, reader) else stem
            _check(source, out, force=force)
        count = sum(entry.numel for entry in reader.entries)
        parts = watched(
            reader.parts(),
            "decoding",
            shown=not quiet,
            total=count + len(reader.entries),
            weight=lambda part: part.tensor.numel() + 1,
        )
        write_decoded(out, reader, parts)
    _streams.work_is_saved()
    if not quiet:
        typer.echo(f"{out}: {len(reader.entries)} tensors, {count:,} numbers")


def _check(source: Path, out: Path, *, force: bool) -> None:
    check_not_itself(source, out)
    check_free(out, force=force)
