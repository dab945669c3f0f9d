"""What the prior costs: the public calls, the tables and training steps against alternatives.

    python figures/benchmark.py [--quick] [--out FOLDER]

Everything is measured in one run: old and new, ours and theirs take turns within each round, so
that the noise of a shared machine meets all of them, and only ratios within a round are compared.
Times are of the processor, on one thread; where threads are compared, of the wall clock. Writes
the rounds' times, benchmark.jsonl, and from them (benchmark_page.py) benchmark.md and
benchmark.png beside this program, or into FOLDER.
"""

import argparse
import contextlib
import copy
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # scikit-learn's threads too, hence before the imports

import benchmark_page
import peers
import torch
import training_cost
from torch import nn

from swsmix import MixturePrior, tables

FIGURES = Path(__file__).parent
MAX_NAIVE = 6.5e7  # N x K beyond which the N x K methods are not run (28 GB at N = 2.5e7)
LEAST_SECONDS = 0.002  # of a measurement: shorter calls are repeated within it
QUICK = (training_cost.MLP, training_cost.LENET)
Call = Callable[[], object]


def measure(
    calls: dict[str, Call],
    rounds: int,
    budget: float,
    *,
    before: Call = lambda: None,
    now: Callable[[], float] = time.process_time,
) -> dict[str, list[float | None]]:
    """Seconds of each call in each round; they take turns within a round.

    Args:
        calls: what to measure, by name; each is called once before, to warm up.
        rounds: how many.
        budget: seconds for one of the calls; one that would need more sits some rounds out, but
            is there in three.
        before: called before each measurement, and not measured.
        now: the clock.

    Returns:
        name -> seconds by round, None where it sat out.
    """
    repeats, every, times = {}, {}, {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(2):  # the second decides
            before()
            start = now()
            call()
            taken = max(now() - start, 1e-7)
            if taken > budget / 3:
                break
        repeats[name] = max(1, int(LEAST_SECONDS / taken))
        every[name] = min(max(1, round(rounds * taken / budget)), max(1, rounds // 3))
    for turn in range(rounds):
        for name, call in calls.items():
            if turn % every[name]:
                times[name].append(None)
                continue
            before()
            start = now()
            for _ in range(repeats[name]):
                call()
            times[name].append((now() - start) / repeats[name])
    return times


def rows_of(times: dict[str, list[float | None]], **what: object) -> Iterator[dict]:
    """A row of benchmark.jsonl for each method."""
    for name, seconds in times.items():
        rounded = [None if each is None else float(f"{each:.4g}") for each in seconds]
        yield {**what, "method": name, "seconds": rounded}


class PublicCalls:
    """`penalty().backward()` and `em_step_()` of a default prior, from its start each time.

    Args:
        w: the weights.
        k: the number of components.
    """

    def __init__(self, w: torch.Tensor, k: int) -> None:
        self.layer = nn.Linear(1000, len(w) // 1000, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(w.view(-1, 1000))
        self.prior = MixturePrior(self.layer, k)
        for state in self.prior.groups.values():
            state.steps.fill_(1000)  # the steps 1, 2, 4, ... try to split and merge; this does not
        self.start = copy.deepcopy(self.prior.state_dict())

    def reset(self) -> None:
        """Back to the start, without what the last call has found, or its tables."""
        self.layer.weight.grad = None
        self.prior.load_state_dict(self.start)
        self.prior.last_passes.clear()
        self.prior._tables.clear()

    def __call__(self) -> None:
        self.prior.penalty().backward()
        self.prior.em_step_()

    @property
    def mixture(self) -> tuple[torch.Tensor, ...]:
        """The mixture at the start."""
        mixture = self.prior.mixtures["all"]
        return tuple(each.clone() for each in (mixture.mixing, mixture.mean, mixture.std))


def uncompiled(call: Call) -> Call:
    """The call, as where numba is not installed."""

    def without() -> object:
        with tables.uncompiled():
            return call()

    return without


def public(quick: bool) -> Iterator[dict]:
    """The public calls beside naive PyTorch and the others, on the same weights and mixture."""
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000, 25_000_000)
    for n in sizes:
        w = peers.weights_of(n)
        copied, part = torch.empty_like(w), w[:: max(1, n // 200_000)].clone()
        for k in (4, 17, 64):
            if (k != 17 and n not in (100_000, 1_000_000)) or (quick and k > 17):
                continue
            ours = PublicCalls(w, k)
            ours.reset()
            mixture = ours.mixture
            calls: dict[str, Call] = {
                "swsmix": ours,
                "swsmix, no numba": uncompiled(ours),
                "copy": functools.partial(copied.copy_, w),
            }
            errors = {"swsmix": peers.error_of(peers.differentiable(part, *mixture), part, mixture)}
            if n * k <= MAX_NAIVE:
                for name, method in peers.METHODS.items():
                    calls[name] = functools.partial(method, w, *mixture)
                    gradient = method(part, *mixture)
                    errors[name] = peers.error_of(gradient, part, mixture)
            found = measure(calls, 3 if quick else 11, 0.5 if quick else 6.0, before=ours.reset)
            for row in rows_of(found, part="public", n=n, k=k):
                error = errors.get(row["method"])
                yield row if error is None else row | {"error": float(f"{error:.1e}")}


def of_tables(quick: bool) -> Iterator[dict]:
    """The tables' own calls, soft and hard mixtures (std 0.05 and 0.005, spaced by 0.08)."""
    for n in (100_000,) if quick else (100_000, 1_000_000, 25_000_000):
        w = peers.weights_of(n)
        out, second, half = torch.empty_like(w), torch.rand_like(w), w.bfloat16()
        moved, slot = w.clone(), torch.empty_like(half)
        few = w[:70_000]
        for k in (4, 17, 64):
            if k != 17 and n != 1_000_000:
                continue
            for kind, std in (("soft", 0.05), ("hard", 0.005)):
                mixture = peers.mixture_of(k, std)
                table = tables.build(*mixture)
                step = tables.Adaptive(second, 1e-9, 1e-8)
                calls: dict[str, Call] = {
                    "copy": functools.partial(out.copy_, w),
                    "build": lambda m=mixture, w=few: tables.build(*m).gradient(w),
                    "gradient": functools.partial(table.gradient, w, out=out),
                    "add_gradient_": functools.partial(table.add_gradient_, out, w, 1e-9),
                    "proximal_": functools.partial(table.proximal_, moved, w, step, 1e-9),
                    "sums": functools.partial(table.value_and_moments, w),
                    "full": functools.partial(table.full, w, out=out),
                    "build and full": lambda m=mixture, w=w, o=out: tables.build(*m).full(w, out=o),
                    "gradient, bfloat16": functools.partial(table.gradient, half, out=slot),
                    "gradient, no numba": uncompiled(functools.partial(table.gradient, w, out=out)),
                    "full, no numba": uncompiled(functools.partial(table.full, w, out=out)),
                }
                found = measure(calls, 5 if quick else 15, 0.3 if quick else 3.0)
                yield from rows_of(found, part="tables", n=n, k=k, mixture=kind)


def threads(quick: bool) -> Iterator[dict]:
    """Wall-clock time on one and on two threads; they take turns."""

    def on(number: int, call: Call) -> Call:
        def several() -> None:
            torch.set_num_threads(number)
            try:
                call()
            finally:
                torch.set_num_threads(1)

        return several

    for n in (1_000_000,) if quick else (1_000_000, 25_000_000):
        w = peers.weights_of(n)
        out, ours = torch.empty_like(w), PublicCalls(w, 17)
        table = tables.build(*peers.mixture_of(17))
        calls = {
            "public": ours,
            "full": functools.partial(table.full, w, out=out),
            "gradient": functools.partial(table.gradient, w, out=out),
        }
        each = {f"{name} {t}": on(t, call) for name, call in calls.items() for t in (1, 2)}
        found = measure(
            each, 5 if quick else 21, 0.5 if quick else 6.0, before=ours.reset,
            now=time.perf_counter,
        )  # fmt: skip
        for row in rows_of(found, part="threads", n=n, k=17):
            name, number = row["method"].split()
            yield row | {"method": name, "threads": int(number)}


def steps(quick: bool) -> Iterator[dict]:
    """Training steps, plain and under the prior."""
    for net in QUICK if quick else training_cost.NETS:
        if quick:
            net = training_cost.Net(net.name, net.make, net.shape, 10, 3)
        found = training_cost.measure(net, parts=training_cost.PARTS)
        yield from rows_of(found, part="steps", net=net.name)


def peak_bytes(method: str, n: int, k: int) -> float:
    """Extra bytes per weight at the peak, without the result; in a process of its own."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import benchmark as b\n"
        "torch.set_num_threads(1); n, k = int(sys.argv[3]), int(sys.argv[4])\n"
        "calls = b.peers.METHODS | {'swsmix': b.peers.differentiable}\n"
        "call, mixture = calls[sys.argv[2]], b.peers.mixture_of(k)\n"
        "w = b.peers.weights_of(n); call(w[:5000], *mixture); call(w[:100_000], *mixture)\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith('VmHWM'))\n"
        "before = peak(); out = call(w, *mixture)\n"
        "print(max(0.0, (peak() - before) / n - (0 if out is None else out.element_size())))"
    )
    command = [sys.executable, "-c", code, str(FIGURES), method, str(n), str(k)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(quick: bool) -> Iterator[dict]:
    """Extra memory per weight, of each method."""
    for method in () if quick else (*peers.METHODS, "swsmix"):
        yield {
            "part": "memory", "n": 1_000_000, "k": 17, "method": method,
            "bytes": round(peak_bytes(method, 1_000_000, 17), 1),
        }  # fmt: skip


def others(quick: bool) -> Iterator[dict]:
    """Coremltools' differentiable k-means, or why it was not measured."""
    n = 100_000 if quick else 1_000_000
    call = peers.dkm(n, 16)
    if isinstance(call, str):
        yield {"part": "others", "method": "DKM", "absent": call}
        return
    yield from rows_of(measure({"DKM": call}, 3, 6.0), part="others", n=n, k=16)


def machine() -> str:
    """The processor, its cores and the versions that matter."""
    names = []
    with contextlib.suppress(OSError):  # not on Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "numba", "numpy", "scikit-learn", "pyro-ppl"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    processor = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}; " + ", ".join(versions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the folder to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, measured = time.perf_counter(), []
    for part in (public, of_tables, threads, steps, memory, others):
        for row in part(arguments.quick):
            measured.append(row)
            print(benchmark_page.line(row), flush=True)
    head = {
        "part": "head",
        "machine": machine(),
        "command": "python figures/benchmark.py" + " --quick" * arguments.quick,
        "date": datetime.date.today().isoformat(),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "benchmark.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [head, *measured]))
    benchmark_page.write(path)
    print((arguments.out / "benchmark.md").read_text())


if __name__ == "__main__":
    main()
