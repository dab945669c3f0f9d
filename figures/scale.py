"""A large checkpoint made on the spot, compressed and brought back: minutes, memory, speed.

    python figures/scale.py --weights 100e6
    python figures/scale.py --weights 1e9 --folder /somewhere/with/5GB

A bfloat16 checkpoint in shards of at most a gigabyte, with an index, as language models have: an
embedding and blocks of matrices whose rows have different scales. `swsmix compress` and `swsmix
decompress` run in processes of their own. Memory is the largest resident size of such a process,
less that of one that has done the same to a network of a million weights: the libraries and their
compiled loops. What comes back is checked: dtypes, shapes, shards, and the distortion. Prints
figures/scale.md, with a row per size; rows of sizes that are not run again are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WIDTH = 1024
SHARD = 1 << 30  # bytes
HERE = Path(__file__).parent
# Linux's own peak of the process: `ru_maxrss` begins with that of the process that started it.
CHILD = """
import resource, sys
from swsmix.cli import main
try:
    main()
finally:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = status["VmHWM"].split()[0]
    print("spent", peak, spent.ru_utime + spent.ru_stime, file=sys.stderr)
"""


def tensors_of(weights: int, seed: int = 0):
    """Names and tensors of a network of about so many weights."""
    generator = torch.Generator().manual_seed(seed)
    rows = min(max(weights // 8 // WIDTH, 16), 131_072)
    yield "embed.weight", 0.02 * torch.randn(rows, WIDTH, generator=generator)
    left, layer = weights - rows * WIDTH, 0
    shapes = {"q": (1, 1), "k": (1, 1), "v": (1, 1), "o": (1, 1), "up": (4, 1), "down": (1, 4)}
    while layer == 0 or left >= 12 * WIDTH * WIDTH:
        width = WIDTH if weights > 2e7 else WIDTH // 8
        for name, (out, fan_in) in shapes.items():
            w = torch.randn(out * width, fan_in * width, generator=generator)
            scale = torch.rand(out * width, 1, generator=generator) / (fan_in * width) ** 0.5
            yield f"layers.{layer}.{name}.weight", w * scale
            left -= w.numel()
        yield f"layers.{layer}.norm.weight", torch.ones(width)
        layer += 1


def make(folder: Path, weights: int) -> tuple[int, int]:
    """Write a sharded checkpoint; the numbers it has, and the bytes of its largest tensor."""
    shards: list[list[str]] = [[]]
    held: dict[str, torch.Tensor] = {}
    size = count = largest = 0

    def flush() -> None:
        save_file(held, folder / f"part-{len(shards):05}.safetensors", {"format": "pt"})
        held.clear()

    for name, t in tensors_of(weights):
        if size + 2 * t.numel() > SHARD:
            flush()
            shards.append([])
            size = 0
        held[name] = t.bfloat16()
        shards[-1].append(name)
        size += 2 * t.numel()
        count += t.numel()
        largest = max(largest, 2 * t.numel())
    flush()
    weight_map = {}
    for i, names in enumerate(shards, 1):
        new = f"model-{i:05}-of-{len(shards):05}.safetensors"
        (folder / f"part-{i:05}.safetensors").rename(folder / new)
        weight_map |= dict.fromkeys(names, new)
    index = {"metadata": {"total_size": 2 * count}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count, largest


def run(*arguments: object) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and the largest resident megabytes of a command."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr)
    _, memory, seconds = done.stderr.strip().splitlines()[-1].split()
    return wall, float(seconds), float(memory) / 1000.0


def check(before: Path, after: Path) -> float:
    """The relative distortion; the two folders have the same files, tensors and dtypes."""
    squares = whole = 0.0
    assert sorted(p.name for p in before.iterdir()) == sorted(p.name for p in after.iterdir())
    for path in sorted(before.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names, texts = list(file.keys()), file.metadata()
        with safe_open(after / path.name, "pt") as file:
            assert list(file.keys()) == names
            assert file.metadata() == texts
        for name in names:
            pair = []
            for place in (path, after / path.name):
                with safe_open(place, "pt") as file:
                    pair.append(file.get_tensor(name))
            old, new = pair
            assert old.dtype == new.dtype
            assert old.shape == new.shape
            if old.ndim < 2:
                assert torch.equal(old, new)
                continue
            for w, v in zip(old.split(1024), new.split(1024), strict=True):
                squares += (w.float() - v.float()).square().sum().item()
                whole += w.float().square().sum().item()
    return squares / whole


def measure(weights: int, folder: Path) -> str:
    """A row of the table."""
    source, small, back = folder / "net", folder / "net.sws", folder / "back"
    tiny = folder / "tiny"
    for place in (source, tiny):
        place.mkdir()
    make(tiny, 1_000_000)
    libraries = [run("compress", tiny)[2], run("decompress", folder / "tiny.sws", "--out",
                                               folder / "tiny-back")[2]]  # fmt: skip
    count, largest = make(source, weights)
    wall, busy, memory = run("compress", source)
    back_wall, back_busy, back_memory = run("decompress", small, "--out", back)
    loss = check(source, back)
    size = small.stat().st_size
    print(f"loss {loss:.4g}; libraries {libraries[0]:.0f} and {libraries[1]:.0f} MB", flush=True)
    bound = 3 * largest / 1e6 + 300
    return (
        f"| {count / 1e6:,.0f} | {2 * count / 1e6:,.0f} | {size / 1e6:,.1f} | {loss:.4f} "
        f"| {wall / 60:.1f} | {busy / 60:.1f} | {memory - libraries[0]:.0f} "
        f"| {back_wall / 60:.1f} | {back_busy / 60:.1f} | {back_memory - libraries[1]:.0f} "
        f"| {bound:.0f} | {count / busy / 1e6:.1f} | {count / back_busy / 1e6:.1f} |"
    )


HEAD = """# A large checkpoint, compressed and brought back

Made by `python figures/scale.py --weights 100e6` and so on: bfloat16 weights in shards, `swsmix
compress` and `swsmix decompress` without options, OMP_NUM_THREADS={threads}. Memory is the largest
resident size above that of the libraries and their compiled loops; the bound is three times the
largest tensor and 300 MB. Busy minutes are those of the processor, which others' work on the same
machine stretches less than minutes on the clock. Speeds are in millions of weights per busy second,
from the start of the program to its end.

| million weights | MB | MB compressed | loss | minutes | busy | memory | minutes back | busy | \
memory | bound, MB | M/s | M/s back |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=float, default=100e6)
    parser.add_argument("--folder", type=Path, help="where there is room for the files")
    parser.add_argument("--out", type=Path, default=HERE / "scale.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        row = measure(int(given.weights), Path(folder))
    rows = {}
    if given.out.exists():
        old = [r for r in given.out.read_text().splitlines() if r.startswith("| ")]
        rows = {r.split("|")[1]: r for r in old if r.split("|")[1].strip()[0].isdigit()}
    rows[row.split("|")[1]] = row
    ordered = sorted(rows, key=lambda text: float(text.replace(",", "")))
    threads = os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()
    text = HEAD.format(threads=threads) + "\n".join(rows[k] for k in ordered) + "\n"
    given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
