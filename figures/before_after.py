"""What changes of the library have gained: an older checkout against this one, in one run.

    git worktree add ../before c712135
    python figures/before_after.py ../before [--rounds 11]

Each checkout has a process of its own; they take turns within each round, so that the noise of a
shared machine meets both, and only ratios within a round are compared. Times are of the processor,
on one thread. Last, each takes training steps under Python's profiler, which makes Python's own
share look larger than it is. Writes before_after.json and, from it, before_after.md beside this
program.
"""

import argparse
import cProfile
import json
import os
import pstats
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

FIGURES = Path(__file__).resolve().parent
HERE = FIGURES.parent
NUM_DATA, EM_EVERY = 50_000, 10
UPDATES = ("proximal", "gradient")
ROOMS = ("tables", "em", "prior", "attach", "rest of swsmix", "torch and the network")
STEPS = {"MLP of 800 weights": 300, "LeNet-300-100": 60, "conv + batch norm": 20}
OF_TABLES = {
    "hard mixture: tables, and 70,000 gradients": ("hard", "gradient"),
    "hard mixture: tables, and 70,000 proximal steps": ("hard", "proximal"),
    "collapsed mixture: tables, and 70,000 gradients": ("collapsed", "gradient"),
    "collapsed mixture: tables, and 70,000 proximal steps": ("collapsed", "proximal"),
}
PUBLIC = "penalty().backward(), em_step_(), a million weights"


class Worker:
    """What one version of the library does; runs in its own process, and imports it there."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.calls = {PUBLIC: self.public()}
        self.calls |= {name: self.of_tables(*how) for name, how in OF_TABLES.items()}
        self.trainings = {}
        for net in STEPS:
            for update in ("plain", *UPDATES):
                self.trainings[net, update] = self.training(net, update)

    def public(self):
        import torch

        from swsmix import MixturePrior

        torch.manual_seed(0)
        layer = torch.nn.Linear(1000, 1000, bias=False)
        torch.nn.init.normal_(layer.weight, std=0.05)
        prior = MixturePrior(layer, 17)
        prior.moves = False  # split and merge, which the older version does not have

        def call() -> None:
            layer.weight.grad = None
            prior.penalty().backward()
            prior.em_step_()

        return call

    def of_tables(self, kind: str, what: str):
        import torch

        from swsmix import tables

        w = 0.2 * torch.randn(70_000, generator=torch.Generator().manual_seed(0))
        moved, second = w.clone(), torch.ones_like(w)
        mean = 0.08 * (torch.arange(17) - 8.0)
        std = torch.full((17,), 0.005)
        if kind == "collapsed":  # as of a LeNet-300-100 late in training
            std = torch.logspace(-5.2, -2.6, 17)[torch.randperm(17, generator=_seeded(1))]
        mixture = torch.full((17,), 1 / 17), mean, std

        def call() -> None:
            table = tables.build(*mixture)
            if what == "gradient":
                table.gradient(w)
            else:
                table.proximal_(moved, w, tables.Adaptive(second, 1e-9, 1e-8), 1e-9)

        return call

    def training(self, name: str, update: str):
        import torch
        from torch import nn

        from swsmix import MixturePrior, Schedule

        torch.manual_seed(0)
        net, shape, batch = {
            "MLP of 800 weights": lambda: (
                nn.Sequential(nn.Linear(39, 20), nn.Tanh(), nn.Linear(20, 1)), (39,), 128
            ),
            "LeNet-300-100": lambda: (
                nn.Sequential(
                    nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
                    nn.Linear(100, 10),
                ), (784,), 128,
            ),
            "conv + batch norm": lambda: (
                nn.Sequential(
                    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                    nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10),
                ), (1, 28, 28), 64,
            ),
        }[name]()  # fmt: skip
        x, optimizer = torch.randn(batch, *shape), torch.optim.Adam(net.parameters())
        outputs = net(x).shape[1]
        y = torch.randn(batch, 1) if outputs == 1 else torch.randint(outputs, (batch,))
        loss = nn.functional.mse_loss if outputs == 1 else nn.functional.cross_entropy
        if update != "plain":
            MixturePrior(net, 17).attach(
                optimizer, num_data=NUM_DATA, update=update, schedule=Schedule(em_every=EM_EVERY)
            )

        def call() -> None:
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()

        return call

    def seconds(self) -> dict[str, float]:
        """Processor seconds of each call, and of each training step."""
        found = {}
        for name, call in self.calls.items():
            repeats = 1 if name == PUBLIC else 5
            began = time.process_time()
            for _ in range(repeats):
                call()
            found[name] = (time.process_time() - began) / repeats
        for (net, update), step in self.trainings.items():
            began = time.process_time()
            for _ in range(STEPS[net]):
                step()
            found[f"{net}, {update}"] = (time.process_time() - began) / STEPS[net]
        return found

    def profile(self) -> dict[str, dict[str, float]]:
        """Milliseconds of a proximal training step by room, of each network.

        What is written in C counts where it is called.
        """
        found = {}
        for net, steps in STEPS.items():
            step, profiler = self.trainings[net, "proximal"], cProfile.Profile()
            profiler.enable()
            for _ in range(steps):
                step()
            profiler.disable()
            rooms = Counter(dict.fromkeys(ROOMS, 0.0))
            for (file, *_), (*_, own, _, callers) in pstats.Stats(profiler).stats.items():
                if file == "~":
                    for caller, (*_, inside, _) in callers.items():
                        rooms[_room(caller[0])] += inside
                else:
                    rooms[_room(file)] += own
            found[net] = {room: 1e3 * spent / steps for room, spent in rooms.items()}
        return found


def _seeded(seed: int):
    import torch

    return torch.Generator().manual_seed(seed)


def _room(file: str) -> str:
    """The room of swsmix in which a file lies; a module of its name in the older layout."""
    inside = re.search(r"swsmix[/\\](\w+)", file)
    if not inside:
        return ROOMS[-1]
    name = {"proximal": "attach"}.get(inside.group(1), inside.group(1))
    return name if name in ROOMS else "rest of swsmix"


def work() -> None:
    """Answer each line with a line of JSON."""
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)


def started(checkout: Path) -> subprocess.Popen:
    """A worker with the library of a checkout."""
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--work"]
    return subprocess.Popen(
        command, env=env, cwd=checkout, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def asked(worker: subprocess.Popen, what: str) -> dict:
    """A worker's answer."""
    worker.stdin.write(what + "\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"the worker has ended with {worker.wait()}, see above")
    return json.loads(answer)


def commit(checkout: Path) -> str:
    """Of a checkout, in short."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the older checkout")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    import benchmark

    checkouts = {"before": arguments.before.resolve(), "after": HERE}
    began, workers = time.monotonic(), {name: started(path) for name, path in checkouts.items()}
    rounds = []
    for _ in range(arguments.rounds + 1):
        rounds.append({name: asked(worker, "seconds") for name, worker in workers.items()})
        print(f"round {len(rounds) - 1} of {arguments.rounds}", flush=True)
    found = {
        "command": f"python figures/before_after.py BEFORE --rounds {arguments.rounds}",
        "commits": {name: commit(path) for name, path in checkouts.items()},
        "machine": benchmark.machine(),
        "seconds": rounds[1:],  # the first warms up
        "profile": {name: asked(worker, "profile") for name, worker in workers.items()},
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    (FIGURES / "before_after.json").write_text(json.dumps(found, indent=1) + "\n")
    page = "\n".join(written(found)) + "\n"
    (FIGURES / "before_after.md").write_text(page)
    print(page)


def written(found: dict) -> list[str]:
    """The tables in Markdown."""
    from training_cost import in_brackets

    rounds = found["seconds"]

    def row(name: str, of) -> str:
        pair = [[of(each[when]) for each in rounds] for when in ("before", "after")]
        ratio = [b / a for b, a in zip(*pair, strict=True)]
        return f"| {name} | " + " | ".join(map(in_brackets, (*pair, ratio))) + " |"

    lines = [
        "# Before and after",
        "",
        f"`{found['command']}`, commits {found['commits']['before']} and "
        f"{found['commits']['after']}; {found['machine']}; {found['minutes']} minutes. One thread, "
        "processor time, K = 17. Medians over the rounds, and in brackets the 10th and the 90th "
        "percentile; a ratio is the median of those within the rounds.",
        "",
        "| milliseconds | before | after | before / after |",
        "|---|---|---|---|",
    ]
    for name in (PUBLIC, *OF_TABLES):
        lines.append(row(name, lambda each, name=name: 1e3 * each[name]))
    lines += [
        "",
        "The public calls leave split and merge out.",
        "",
        "| training step (Adam, an EM step every ten) over the plain one | before | after | before "
        "/ after |",
        "|---|---|---|---|",
    ]
    for net in STEPS:
        for update in UPDATES:

            def over(each: dict, net: str = net, update: str = update) -> float:
                return each[f"{net}, {update}"] / each[f"{net}, plain"]

            lines.append(row(f"{net}, {update}", over))
    lines += [
        "",
        "Where a proximal step's time goes, in milliseconds under Python's profiler:",
        "",
        "| network | version | " + " | ".join(ROOMS) + " |",
        "|---|---|" + "---|" * len(ROOMS),
    ]
    for net in STEPS:
        for when, profile in found["profile"].items():
            cells = " | ".join(f"{profile[net][room]:.3f}" for room in ROOMS)
            lines.append(f"| {net} | {when} | {cells} |")
    return lines


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--work"] else main()
