"""Compress a network that we did not train, and count its errors.

    python figures/pretrained.py

Magika (Fratantonio et al. 2024) ships a convolutional network that tells the type of a file from
its bytes, 0.8 million weights, in its package (pip install magika onnx). It is evaluated on files
of this Python installation, whose names tell their types. No training data are used: each of its
three large tensors gets k-means with K values, a mixture of at most K, or as many values as pay
for themselves at one price of a bit, for the error that k-means makes and for its bytes. Writes
pretrained.md beside this program, or the file that `--out` names.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from swsmix.codec import decode, encode
from swsmix.compression.codebooks import packed_bytes, quantize_state, snapped

EXTENSIONS = (
    "py", "html", "css", "js", "json", "md", "c", "h", "cpp", "yaml", "xml", "csv", "svg", "toml",
    "ini", "png", "gif", "so", "sh", "pyc", "rst", "pdf", "ttf", "npz", "jpg", "f90", "pyx", "cu",
    "hpp", "ts", "cmake", "proto",
)  # fmt: skip


def files(per_type, extensions):
    """Files of this installation, evenly from each type in the order of their names."""
    root = Path(sys.prefix)
    chosen = []
    for extension in extensions:
        paths = sorted(root.rglob(f"*.{extension}"))
        paths = [p for p in paths if p.is_file() and p.stat().st_size >= 200]
        step = max(len(paths) // per_type, 1)
        chosen += [(p, extension) for p in paths[::step][:per_type]]
    return chosen


def error(model, folder, labelled, known):
    """The share of files, in percent, whose type the model gets wrong."""
    import onnx
    from magika import Magika

    onnx.save(model, str(folder / "model.onnx"))
    results = Magika(model_dir=folder).identify_paths([p for p, _ in labelled])
    wrong = sum(
        extension not in known[str(result.dl.label)]["extensions"]
        for result, (_, extension) in zip(results, labelled, strict=True)
    )
    return 100.0 * wrong / len(labelled)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-type", type=int, default=30, help="files of each type, at most")
    parser.add_argument("--values", type=int, nargs="+", default=[16, 8, 4], help="K")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()

    import magika
    import onnx

    package = Path(magika.__file__).parent
    known = json.loads((package / "config" / "content_types_kb.min.json").read_text())
    source = package / "models" / "standard_v3_3"
    model = onnx.load(str(source / "model.onnx"))
    initial = {t.name: t for t in model.graph.initializer}
    arrays = {n: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for n, t in initial.items()}
    state = {n: t for n, t in arrays.items() if t.is_floating_point()}
    large = {n: t for n, t in state.items() if sum(s > 1 for s in t.shape) > 1}
    labels = json.loads((source / "config.min.json").read_text())["target_labels_space"]
    told = {extension for label in labels for extension in known[label]["extensions"]}
    labelled = files(arguments.per_type, [e for e in EXTENSIONS if e in told])
    numbers = sum(t.numel() for t in state.values())

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in source.iterdir():
            shutil.copy(path, folder)

        def measure(new):
            for n, t in new.items():
                initial[n].CopyFrom(onnx.numpy_helper.from_array(t.numpy(), n))
            squares = sum((new[n].double() - t.double()).square().sum() for n, t in large.items())
            rms = (squares / sum(t.numel() for t in large.values())).sqrt().item()
            return f"{rms:.2g} | {error(model, folder, labelled, known):.2f} |"

        def add(label, size, measured, others="exact"):
            ratio = 4 * numbers / size
            rows.append(f"| {label} | {others} | {size:,} | {ratio:.1f} | {measured}")
            print(rows[-1], flush=True)

        add("float32", 4 * numbers, measure(state))
        half = measure({n: t.half().float() for n, t in state.items()})
        add("float16", 2 * numbers, half, "float16")
        name = "one price of a bit"

        def add_encoded(label, **asked):
            new = snapped(state, quantize_state(large, **asked))
            data = encode(new)
            add(f"{label}, in our format", len(data), measure(decode(data)))
            return len(data), loss(new)

        def loss(new):
            squares = sum((new[n].double() - t.double()).square().sum() for n, t in large.items())
            whole = sum(t.double().var(correction=0) * t.numel() for t in large.values())
            return (squares / whole).item()

        add_encoded(f"{name}, the default")
        for values in arguments.values:
            books = quantize_state(large, values, method="kmeans")
            packed = packed_bytes(state, books)
            add(f"k-means, {values} values, packed", packed, measure(snapped(state, books)))
            size, lost = add_encoded(
                f"k-means, {values} values", num_values=values, method="kmeans"
            )
            add_encoded(f"mixture, {values} values", num_values=values)
            add_encoded(f"{name}, at the error of k-means", loss=lost)
            rest = sum(t.nbytes for n, t in state.items() if n not in large)
            add_encoded(f"{name}, at the bytes of k-means", size_bytes=size - rest)
    table = [
        "# A pretrained network: Magika's file types",
        "",
        f"{numbers:,} numbers, of which {sum(t.numel() for t in large.values()):,} weights in "
        f"{len(large)} tensors are quantised; the others are counted too. Errors on "
        f"{len(labelled):,} files of a Python installation, {len({e for _, e in labelled})} types. "
        "With so few files a difference of about 1.7 points or less tells nothing (one standard "
        "error of an error rate is 1.2 points). Made by `python figures/pretrained.py`.",
        "",
        "| | biases etc. | bytes | x float32 | rms change of a weight | errors % |",
        "|---|---|---:|---:|---:|---:|",
        *rows,
    ]
    arguments.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
