"""What the prior costs: the tables against the alternatives, in one table and one picture.

    python figures/benchmark.py [--quick] [--out FOLDER]

Measured on one thread, as medians of processor time (the wall clock of a shared machine is
noise), everything in one run: only ratios count.
"Full" is the value, the gradient and the EM moments of float32 weights, building the tables
included; "gradient" is one call with the tables at hand, as in most training steps. Writes
benchmark.md and benchmark.png beside this program, or into FOLDER.
"""

import argparse
import contextlib
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # scikit-learn's threads too, hence before the imports

import torch
import training_cost

from swsmix import tables
from swsmix.tables import backends, passes

FIGURES = Path(__file__).parent
MAX_NAIVE = 6.5e7  # N x K beyond which the N x K methods are not run (28 GB at N = 2.5e7)


def mixture_of(k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zero with half of the mass, the other components spread over the weights."""
    mean = torch.cat([torch.zeros(1), torch.linspace(-0.6, 0.6, k - 1)])
    return torch.tensor([0.5] + [0.5 / (k - 1)] * (k - 1)), mean, torch.full((k,), 0.05)


def naive(w, mixing, mean, std):
    """Broadcasting, logsumexp and autograd for the weights and the mixture."""
    leaves = [each.detach().requires_grad_() for each in (w, mixing, mean, std)]
    z = (leaves[0][:, None] - leaves[2]) / leaves[3]
    joint = leaves[1].log() - leaves[3].log() - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    loss = -joint.logsumexp(1).sum()
    return torch.autograd.grad(loss, leaves)[0]


def torch_mixture(w, mixing, mean, std, family=torch.distributions):
    leaves = [each.detach().requires_grad_() for each in (w, mixing, mean, std)]
    law = family.MixtureSameFamily(
        family.Categorical(leaves[1]), family.Normal(leaves[2], leaves[3])
    )
    return torch.autograd.grad(-law.log_prob(leaves[0]).sum(), leaves)[0]


def pyro_mixture(w, mixing, mean, std):
    import pyro.distributions

    return torch_mixture(w, mixing, mean, std, pyro.distributions)


def scikit_learn(w, mixing, mean, std):
    """One EM iteration: neither the value nor the gradient."""
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        len(mixing),
        max_iter=1,
        weights_init=(mixing.double() / mixing.double().sum()).numpy(),
        means_init=mean[:, None].double().numpy(),
        precisions_init=(1 / std.double()[:, None, None] ** 2).numpy(),
    )
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one iteration does not converge
        model.fit(w[:, None].numpy())


def full_tables(w, *mixture):
    return tables.build(*mixture).full(w).gradient


@contextlib.contextmanager
def without_numba():
    """As where numba is not installed."""
    kernels, backends.numba_kernels = backends.numba_kernels, lambda: None
    try:
        yield
    finally:
        backends.numba_kernels = kernels


def full_torch(w, *mixture):
    with without_numba():
        return full_tables(w, *mixture)


def full_direct(w, *mixture):
    return tables.direct(*mixture).full(w).gradient


def differentiable(w, *mixture):
    leaves = [each.detach().requires_grad_() for each in (w, *mixture)]
    return torch.autograd.grad(tables.neg_log_prior(*leaves), leaves)[0]


METHODS: dict[str, Callable] = {
    "naive": naive,
    "torch MixtureSameFamily": torch_mixture,
    "pyro MixtureSameFamily": pyro_mixture,
    "scikit-learn, one EM step": scikit_learn,
    "swsmix direct, full": full_direct,
    "swsmix neg_log_prior, full": differentiable,
    "swsmix tables, full": full_tables,
    "the same without numba": full_torch,
}
N_BY_K = {"naive", "torch MixtureSameFamily", "pyro MixtureSameFamily", "scikit-learn, one EM step"}


def seconds(call: Callable[[], object], budget: float) -> float:
    """The median of 3 to 15 calls after a warm-up; of one, where one outlasts the budget."""
    times: list[float] = []
    start = time.process_time()
    call()
    slow = time.process_time() - start > budget
    while len(times) < 3 or (len(times) < 15 and sum(times) < budget):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
        if slow:
            break
    return statistics.median(times)


def peak_bytes(method: str, n: int, k: int) -> float:
    """Extra bytes per weight at the peak, without the result; in a process of its own."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import benchmark as b\n"
        "torch.set_num_threads(1); n, k = int(sys.argv[3]), int(sys.argv[4])\n"
        "call = b.METHODS[sys.argv[2]]; w, mixture = 0.05 * torch.randn(n), b.mixture_of(k)\n"
        "call(w[:5000], *mixture); call(w[:100_000], *mixture)\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith('VmHWM'))\n"
        "before = peak(); out = call(w, *mixture)\n"
        "print(max(0.0, (peak() - before) / n - (0 if out is None else out.element_size())))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), method, str(n), str(k)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def error_of(call: Callable, w: torch.Tensor, mixture: tuple) -> float:
    """Relative L2 error of the gradient against float64."""
    part = w[:200_000]
    exact = tables.direct(*(each.double() for each in mixture)).gradient(part.double())
    got = call(part, *mixture)
    return float((got - exact).norm() / exact.norm()) if got is not None else math.nan


def rows(quick: bool) -> Iterator[dict]:
    """Every measurement as a row, in the order of the table."""
    generator = torch.Generator().manual_seed(0)
    for n in (100_000, 1_000_000) if quick else (100_000, 1_000_000, 25_000_000):
        w = 0.05 * torch.randn(n, generator=generator)
        w[: n // 2] *= 0.1
        out = torch.empty_like(w)
        limit = seconds(lambda w=w, out=out: out.copy_(w), 0.5)
        yield {"n": n, "k": 0, "method": "copy (the limit)", "seconds": limit}
        for k in (4, 17, 64):
            mixture = mixture_of(k)
            reference = None
            for name, call in METHODS.items():
                if (name in N_BY_K or "direct" in name) and n * k > MAX_NAIVE:
                    continue
                taken = seconds(lambda c=call, w=w, m=mixture: c(w, *m), 1.0 if quick else 3.0)
                reference = taken if name == "naive" else reference
                yield {
                    "n": n,
                    "k": k,
                    "method": name,
                    "seconds": taken,
                    "faster": reference / taken if reference else math.nan,
                    "limits": taken / limit,
                    "error": error_of(call, w, mixture),
                    "bytes": peak_bytes(name, 1_000_000, k) if n == 1_000_000 else math.nan,
                }
            table = tables.build(*mixture)
            table.full(w)
            half, slot = w.bfloat16(), out.bfloat16()
            table.gradient(half)
            few = passes.DIRECT // k + 1  # the fewest weights that use tables

            def gradient_without_numba(t=table, w=w, o=out):
                with without_numba():
                    t.gradient(w, out=o)

            for name, call in {
                "swsmix build": lambda m=mixture, w=w[:few]: tables.build(*m).gradient(w),
                "swsmix full, tables at hand": lambda t=table, w=w, o=out: t.full(w, out=o),
                "swsmix gradient": lambda t=table, w=w, o=out: t.gradient(w, out=o),
                "swsmix gradient, no numba": gradient_without_numba,
                "swsmix add_gradient_": lambda t=table, w=w, o=out: t.add_gradient_(o, w, 1e-9),
                "swsmix gradient, bfloat16": lambda t=table, w=half, o=slot: t.gradient(w, out=o),
            }.items():
                taken = seconds(call, 0.5)
                faster = reference / taken if reference and "build" not in name else math.nan
                yield {
                    "n": n,
                    "k": k,
                    "method": name,
                    "seconds": taken,
                    "faster": faster,
                    "limits": taken / limit,
                }


def threads() -> str:
    """Wall-clock time of "full" at N = 1e6, K = 17 with two threads over that with one."""
    w, taken = 0.05 * torch.randn(1_000_000), {1: [], 2: []}
    table = tables.build(*mixture_of(17))
    for _ in range(15):
        for number, times in taken.items():
            torch.set_num_threads(number)
            start = time.perf_counter()
            table.full(w)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(1)
    one, two = (statistics.median(times) for times in taken.values())
    times = f"{two / one:.2f} times as long as one"
    return f"Two threads take {times} (full, N = 1e6, K = 17, wall clock)."


def machine() -> str:
    """The processor, its cores and the versions that matter."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    try:
        numba = metadata.version("numba")
    except metadata.PackageNotFoundError:
        numba = "not installed"
    return (
        f"{names[0] if names else platform.machine()} ({len(names)} visible), "
        f"{torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread, numba {numba}, Python {platform.python_version()}"
    )


def as_markdown(measured: list[dict], foot: list[str]) -> str:
    """The table."""

    def cell(row: dict, key: str, form: str) -> str:
        value = row.get(key, math.nan)
        return "" if math.isnan(value) else format(value, form)

    lines = [
        "# What the prior costs",
        "",
        f"{machine()}. `figures/benchmark.py`, processor time, medians. N x K methods are",
        f"not run beyond N K = {MAX_NAIVE:.1e}. Error: relative L2 of the gradient. Bytes: extra",
        "peak memory per weight, without the gradient itself.",
        "",
        "| N | K | method | ms | x naive | x copy | error | bytes per weight |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in measured:
        cells = [
            f"{row['n']:.1e}",
            str(row["k"] or ""),
            row["method"],
            format(row["seconds"] * 1e3, ".3g"),
            cell(row, "faster", ".3g"),
            cell(row, "limits", ".3g"),
            cell(row, "error", ".1e"),
            cell(row, "bytes", ".3g"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *foot])


def draw(measured: list[dict], path: Path) -> None:
    """Cost per weight in ns, against K (at N = 1e6) and against N (at K = 17)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = {
        "naive": "#000000",
        "pyro MixtureSameFamily": "#E69F00",
        "scikit-learn, one EM step": "#009E73",
        "swsmix direct, full": "#56B4E9",
        "swsmix tables, full": "#0072B2",
        "swsmix gradient": "#CC79A7",
    }
    for axis, key, other, fixed in zip(axes, "kn", "nk", (1_000_000, 17), strict=True):
        for method, colour in methods.items():
            points = [r for r in measured if r["method"] == method and r[other] == fixed]
            x, y = [r[key] for r in points], [r["seconds"] / r["n"] * 1e9 for r in points]
            axis.loglog(x, y, "o-", color=colour, markersize=4, label=method)
        limits = [r for r in measured if r["method"].startswith("copy")]
        limits = [r for r in limits if key == "n" or r["n"] == fixed]
        x = [r["n"] for r in limits] if key == "n" else [4, 64]
        y = [r["seconds"] / r["n"] * 1e9 for r in limits]
        axis.loglog(x, y if key == "n" else y * 2, "k--", label="copy (the limit)")
        axis.set_xlabel({"k": "components K, at N = 1e6", "n": "weights N, at K = 17"}[key])
        axis.spines[["top", "right"]].set_visible(False)
        axis.minorticks_off()
    axes[0].set_xticks([4, 17, 64], ["4", "17", "64"])
    axes[0].set_ylabel("cost per weight (ns)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the folder to write to")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    measured = []
    for row in rows(quick):
        measured.append(row)
        print(
            f"{row['n']:.1e} {row['k']:3} {row['method']:28} {row['seconds'] * 1e3:10.3f} ms",
            flush=True,
        )
    nets = [training_cost.LENET] if quick else [training_cost.LENET, training_cost.RESNET]
    text = as_markdown(measured, [*training_cost.lines(nets), "", threads()])
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmark.md").write_text(text + "\n")
    draw(measured, arguments.out / "benchmark.png")


if __name__ == "__main__":
    main()
