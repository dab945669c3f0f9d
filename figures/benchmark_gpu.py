"""What the prior costs on a GPU: the tables against naive PyTorch, in one table.

    python figures/benchmark_gpu.py [--quick] [--out FOLDER]

Medians of wall-clock time between two synchronisations, everything in one run: only ratios count.
Writes benchmark-gpu.md beside this program, or into FOLDER. Without a GPU it says so and writes
nothing.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from pathlib import Path

import torch
import training_cost
from peers import differentiable, full_direct, full_tables, mixture_of, naive, torch_mixture

from swsmix import tables

FIGURES = Path(__file__).parent
MAX_NAIVE = 5e8  # N x K beyond which the N x K methods are not run (some 15 GB)
RESNET = dataclasses.replace(
    training_cost.RESNET, name="ResNet-18, batch 64", steps=100, em_every=10
)
NETS = [training_cost.LENET, RESNET]


def now():
    torch.cuda.synchronize()
    return time.perf_counter()


def measured(call):
    """The median of 9 calls in seconds after two to warm up, and the peak of extra memory."""
    call(), call()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(9):
        begin = now()
        call()
        times.append(now() - begin)
    return statistics.median(times), torch.cuda.max_memory_allocated() - before


def methods(w, mixture, out):
    """What is measured, by name."""
    table, second = tables.build(*mixture), torch.rand_like(w)
    table.full(w)
    step = tables.Adaptive(second, 1e-9, 1e-8)
    return {
        "naive": lambda: naive(w, *mixture),
        "torch MixtureSameFamily": lambda: torch_mixture(w, *mixture),
        "swsmix direct, full": lambda: full_direct(w, *mixture),
        "swsmix neg_log_prior, full": lambda: differentiable(w, *mixture),
        "swsmix tables alone": lambda: tables.build(*mixture).passes.cells.pieces,
        "swsmix tables, full": lambda: full_tables(w, *mixture),
        "swsmix full, tables at hand": lambda: table.full(w, out=out),
        "swsmix gradient": lambda: table.gradient(w, out=out),
        "swsmix proximal step": lambda: table.proximal_(w, w, step, 1e-9),
    }


def rows(quick):
    """Every measurement: N, K, name, seconds, times faster than naive, bytes per weight."""
    for n in (100_000,) if quick else (100_000, 1_000_000, 25_000_000):
        w = 0.05 * torch.randn(n, generator=torch.Generator().manual_seed(0)).cuda()
        w[: n // 2] *= 0.1
        out = torch.empty_like(w)
        yield n, "", "copy (the limit)", measured(functools.partial(out.copy_, w))[0], None, None
        for k in (4, 17, 64):
            reference = None
            for name, call in methods(w, tuple(each.cuda() for each in mixture_of(k)), out).items():
                if name in ("naive", "torch MixtureSameFamily") and n * k > MAX_NAIVE:
                    continue
                seconds, peak = measured(call)
                reference = seconds if name == "naive" else reference
                yield n, k, name, seconds, reference and reference / seconds, peak / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest N, the smaller network")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the folder to write to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device: nothing measured")
    lines = [
        "# What the prior costs on a GPU",
        "",
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}. `figures/benchmark_gpu.py`,",
        f"wall clock, medians. N x K methods are not run beyond N K = {MAX_NAIVE:.1e}.",
        "Bytes: extra peak memory per weight, results included.",
        "",
        "| N | K | method | ms | x naive | bytes per weight |",
        "|---|---|---|---|---|---|",
    ]
    for n, k, name, seconds, faster, size in rows(arguments.quick):
        cells = [f"{n:.1e}", str(k), name, f"{seconds * 1e3:.3g}"]
        cells += ["" if each is None else f"{each:.3g}" for each in (faster, size)]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    nets = NETS[:1] if arguments.quick else NETS
    steps = {net.name: training_cost.measure(net, device="cuda", now=now) for net in nets}
    lines += ["", *training_cost.table(steps)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmark-gpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
