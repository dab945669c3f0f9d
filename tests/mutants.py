"""Mutation testing: small faults are put into one module, and its tests must notice each.

    python tests/mutants.py em --count 40 --seed 0

mutmut and cosmic-ray start an interpreter for every mutant, and here importing torch takes longer
than the tests. This parent imports torch and the other libraries once, but never swsmix; every
mutant runs in a fork. A fork is handed the mutated text by Python's import: no file is edited.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
from mutations import Mutant, mutants, sample

ROOT = Path(__file__).parent.parent
MEMORY = 16 << 30  # bytes of address space: a mutant may allocate without end

# A module, and the tests that are its own. The fast ones; a mutant that lives is tried on all.
TESTS = {
    "schedule.py": ["tests/test_schedule.py"],
    "attach/proximal.py": ["tests/attach/test_proximal.py"],
    "attach/attachment.py": ["tests/attach", "tests/test_parameters.py"],
    "start/initial.py": ["tests/start/test_start.py", "tests/start/test_start_odd.py"],
    "start/cells.py": ["tests/start/test_cells.py", "tests/start/test_start_odd.py"],
    "start/segments.py": ["tests/start/test_segments.py", "tests/start/test_start_odd.py"],
    "start/moves.py": ["tests/start/test_moves.py", "tests/start/test_start_odd.py"],
    "em/steps.py": [
        *("tests/em/test_em.py", "tests/em/test_moments.py", "tests/em/test_em_extremes.py"),
        "tests/test_prior.py",
    ],
    "mixture.py": ["tests/test_mixture.py"],
    "_log_odds.py": ["tests/test_log_odds.py", "tests/test_mixture.py"],
    "compression/snap.py": ["tests/compression/test_snap.py"],
    "compression/merging.py": ["tests/compression/test_merging.py"],
    "compression/centres.py": ["tests/compression/test_centres.py"],
    "compression/codebooks.py": ["tests/compression/test_codebooks.py"],
    "compression/transforms.py": ["tests/compression/test_transforms.py"],
    "compression/entropy_constrained.py": [
        *("tests/compression/test_entropy_constrained.py", "tests/compression/test_rate.py"),
    ],
    "compression/rate.py": ["tests/compression/test_rate.py"],
    "compression/in_context.py": ["tests/compression/test_in_context.py"],
    "compression/context_gain.py": ["tests/compression/test_in_context.py"],
    "compression/context_trial.py": ["tests/compression/test_in_context.py"],
    "compression/lambda_search.py": [
        *("tests/compression/test_rate.py", "tests/compression/test_in_context.py"),
    ],
    "compression/matrices.py": ["tests/compression/test_rate.py"],
    "compression/compensation.py": ["tests/compression/test_compensation.py"],
    "compression/layerwise.py": [
        *("tests/compression/test_compensation.py", "tests/compression/test_layerwise.py"),
        *("tests/compression/test_calibration.py", "tests/compression/test_inputs.py"),
        "tests/compression/test_uses.py",
    ],
    "compression/hessians.py": [
        *("tests/compression/test_uses.py", "tests/compression/test_odd_networks.py"),
    ],
    "compression/uses.py": [
        *("tests/compression/test_uses.py", "tests/compression/test_odd_networks.py"),
    ],
    "compression/calibration.py": [
        *("tests/compression/test_calibration.py", "tests/compression/test_inputs.py"),
    ],
    "bayes/density.py": ["tests/bayes/test_joint.py"],
    "bayes/laplace.py": ["tests/bayes/test_laplace.py"],
    "em/variational.py": [
        *("tests/em/test_variational.py", "tests/attach/test_second_moments.py"),
    ],
    "diagnosis.py": ["tests/test_diagnosis.py"],
    "attach/watching.py": ["tests/test_diagnosis.py"],
    "_finalisers.py": ["tests/test_finalisers.py"],
    "attach/entry.py": ["tests/attach/test_entry.py", "tests/attach/test_entry_state.py"],
    "attach/second_moments.py": ["tests/attach/test_second_moments.py"],
    "compression/duplicates.py": ["tests/compression/test_duplicates.py"],
    "compression/multiplier.py": ["tests/compression/test_targets.py"],
    "compression/search.py": ["tests/compression/test_targets.py"],
    "compression/spending.py": ["tests/compression/test_spending.py"],
    "attach/_optimizers.py": ["tests/attach/test_optimizers.py", "tests/attach/test_steps.py"],
    "inspection/checkpoint_folders.py": ["tests/inspection/test_folders.py"],
    "inspection/checkpoints.py": [
        *("tests/inspection/test_checkpoints.py", "tests/inspection/test_folders.py"),
    ],
}
_ENSEMBLE = "lbfgs members mixtures recording saving stacking trainers"
TESTS |= {
    f"training/ensemble/{name}.py": [
        f"tests/training/test_ensemble{part}.py" for part in ("", "_parts", "_says")
    ]
    for name in _ENSEMBLE.split()
}
TESTS["training/ensemble/lbfgs.py"].append("tests/papers/test_papers_batch.py")
TESTS |= {"tables/batch.py": ["tests/em/test_em_batches.py"]}
_TABLES = (
    "address cell_histogram cells cutting exact fingerprint lookup numba_cells numba_certify "
    "numba_compiled numba_cubics numba_exact numba_exp numba_expand numba_loops numba_loops_16 "
    "numba_sums numba_together passes penalty recursions regions taylor threads together"
)
_RUNS = "claiming folder lock reading recovery saving schema"
_CODEC = (
    "accounting blocks budget choosing contents contexts decoder densities encoder header index "
    "mixing numba_mixing scans sections stream values"
)
TESTS |= {f"tables/{name}.py": ["tests/tables"] for name in _TABLES.split()}
TESTS |= {f"codec/{name}.py": ["tests/codec"] for name in _CODEC.split()}
_RUN_TESTS = [
    f"tests/training/{name}.py"
    for name in (
        "test_runs",
        "test_run_claiming",
        "test_run_recovery",
        "test_run_schema",
        "test_run_lock",
    )
]
TESTS |= {f"training/runs/{name}.py": _RUN_TESTS for name in _RUNS.split()}

# Module, old text, new text, and the test that notices: tried in every run of the tests.
CHOSEN = [
    (
        "schedule.py",
        "tick >= (self.start",
        "tick > (self.start",
        "tests/test_schedule.py::test_the_mixture_moves_from_the_end_of_its_burn_in_on",
    ),
    (
        "attach/proximal.py",
        "in _INIT_GROUPS\n        and all(",
        "in _INIT_GROUPS\n        or all(",
        "tests/attach/test_proximal.py::test_one_group_without_a_known_step_makes_the_optimizer_unknown",
    ),
    (
        "attach/attachment.py",
        "all(map(proximal.is_known",
        "any(map(proximal.is_known",
        "tests/attach/test_attach.py::test_one_unknown_optimizer_of_two_makes_the_default_the_gradient",
    ),
]


def preload() -> None:
    """Imports what swsmix and its tests import, but not swsmix itself."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("numpy", "torch", "torch.distributed", "torch.nn.utils.parametrize", "numba"):
        importlib.import_module(name)
    for name in (
        "torch.optim",
        "torch._dynamo",
        "jaxtyping",
        "beartype",
        "hypothesis",
        "safetensors.torch",
    ):
        importlib.import_module(name)
    for name in ("scipy.stats", "scipy.optimize", "sklearn.cluster", "hypothesis.extra.numpy"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
        "1"  # seconds per mutant, as is collecting garbage
    )
    gc.freeze()
    import hypothesis

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no time for shrinking
    hypothesis.settings.register_profile("mutants", database=None, phases=phases, derandomize=True)
    hypothesis.settings.load_profile("mutants")


def _replace(path: Path, text: str) -> None:
    """From now on, importing the file `path` reads `text` and no cached bytecode."""
    loader = importlib.machinery.SourceFileLoader
    get_data, path_stats = loader.get_data, loader.path_stats

    def mutated_data(self, name):
        return text.encode() if Path(name) == path else get_data(self, name)

    def mutated_stats(self, name):
        if Path(name) == path:
            raise OSError("mutated: no cache")
        return path_stats(self, name)

    loader.get_data, loader.path_stats = mutated_data, mutated_stats


class _Recorder:
    """Runs the likely and the fast tests first; remembers seconds and what failed."""

    def __init__(self, order: dict[str, float]):
        self.order, self.seconds, self.failed = order, {}, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        if self.order:
            items[:] = [item for item in items if item.nodeid in self.order]
        items.sort(key=lambda item: self.order.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed = self.failed or "the import"


def _child(path: Path, text: str | None, tests: Sequence[str], order: dict[str, float], to: int):
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    log = os.open(
        f"{tempfile.gettempdir()}/mutant{os.getppid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    )
    os.dup2(log, 1), os.dup2(log, 2)
    if text is not None:
        _replace(path, text)
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = tempfile.mkdtemp() if "numba_" in path.name else ""
    recorder = _Recorder(order)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not hunt"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # for what was preloaded
    code = pytest.main([*options, *tests], plugins=[recorder])
    if code and not recorder.failed:
        recorder.failed = f"pytest's code {int(code)}"
    with open(to, "w") as file:
        json.dump([recorder.failed, recorder.seconds], file)


def run(path: Path, text: str | None, tests: Sequence[str], order: dict[str, float], limit: float):
    """What failed ("" if all passed) and seconds per test, for one text of the file `path`."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            _child(path, text, tests, order, write)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    with open(read) as file:
        answer = file.read()
    timed_out = signal.setitimer(signal.ITIMER_REAL, 0)[0] == 0
    os.waitpid(pid, 0)
    if not answer:
        return ("time" if timed_out else "a crash"), {}
    return json.loads(answer)


def _fastest(seconds: dict[str, float], budget: float) -> dict[str, float]:
    order, spent = {}, 0.0
    for test in sorted(seconds, key=seconds.get):
        spent += seconds[test]
        if spent <= budget or not order:
            order[test] = seconds[test]
    return order


def hunt(name: str, chosen: Sequence[Mutant], tests: Sequence[str], budget: float) -> list[Mutant]:
    """The mutants that no test noticed, each printed."""
    failed, order = run(Path(), None, tests, {}, 1800)
    if failed:
        raise SystemExit(f"The tests of {name} fail without a mutant: {failed}")
    everything, order = len(order), _fastest(order, budget)
    print(f"{name}: {len(order)} of {everything} tests, {sum(order.values()):.0f} s", flush=True)
    limit, survivors = 3 * sum(order.values()) + 30, []
    for mutant in chosen:
        began = time.monotonic()
        failed, _ = run(mutant.path, mutant.new, tests, order, limit)
        if failed in order:
            order[failed] -= 100  # it may well notice the next one
        verdict = f"killed by {failed}" if failed else f"SURVIVED\n{mutant}"
        where = f"{mutant.path.name}:{mutant.line} {mutant.function}"
        print(f"{where} ({time.monotonic() - began:.0f} s) {verdict}", flush=True)
        survivors += [] if failed else [mutant]
    print(f"{name}: {len(chosen) - len(survivors)} of {len(chosen)} killed", flush=True)
    return survivors


def _replaced(name: str, old: str, new: str) -> Mutant:
    path = ROOT / "swsmix" / name
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{path} must hold {old!r} once; it holds it {text.count(old)} times")
    line = text[: text.index(old)].count("\n") + 1
    return Mutant(path, "", line, text.replace(old, new))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = "'chosen', or files: paths, or of swsmix/: " + ", ".join(TESTS)
    parser.add_argument("modules", nargs="+", help=known)
    parser.add_argument("--count", type=int, default=30, help="mutants, spread over the functions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--line", type=int, nargs="*", help="only mutants of these lines")
    parser.add_argument("--tests", nargs="*", help="test files or node ids, instead of the table's")
    parser.add_argument("--seconds", type=float, default=20.0, help="the fastest tests, so long")
    options = parser.parse_args()
    names = [name.removesuffix(".py") + ".py" for name in options.modules]
    paths = [(ROOT / "swsmix" / name if name in TESTS else Path(name)).resolve() for name in names]
    os.environ.pop("PYTEST_ADDOPTS", None)  # each mutant is a process already
    if options.modules == ["chosen"] or all(path.is_relative_to(ROOT) for path in paths):
        os.chdir(ROOT)
        preload()
    if options.modules == ["chosen"]:
        found = [_replaced(*chosen) for *chosen, _ in CHOSEN]
        return 1 if hunt("chosen", found, [test for *_, test in CHOSEN], options.seconds) else 0
    found = [mutant for path in paths for mutant in mutants(path)]
    found = [mutant for mutant in found if not options.line or mutant.line in options.line]
    chosen = sample(found, options.count, options.seed)
    tests = options.tests or list(dict.fromkeys(test for name in names for test in TESTS[name]))
    return 1 if hunt(" ".join(options.modules), chosen, tests, options.seconds) else 0


if __name__ == "__main__":
    sys.exit(main())
