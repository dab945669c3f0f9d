"""Mutation testing: small faults are put into one module, and its tests must notice each.

    python tests/mutants.py em --count 40 --seed 0

mutmut and cosmic-ray start an interpreter for every mutant, and here importing torch takes longer
than the tests. This parent imports torch and the other libraries once, but never swsmix; every
mutant runs in a fork. A fork is handed the mutated text by Python's import: no file is edited.
"""

import argparse
import ast
import contextlib
import copy
import dataclasses
import difflib
import gc
import importlib
import importlib.machinery
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

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
    "em/steps.py": ["tests/em/test_em.py", "tests/test_prior.py"],
    "mixture.py": ["tests/test_mixture.py"],
    "_log_odds.py": ["tests/test_log_odds.py", "tests/test_mixture.py"],
    "compression/snap.py": ["tests/compression/test_snap.py"],
    "compression/centres.py": ["tests/compression/test_centres.py"],
    "compression/codebooks.py": ["tests/compression/test_codebooks.py"],
    "compression/transforms.py": ["tests/compression/test_transforms.py"],
    "bayes/density.py": ["tests/bayes/test_joint.py"],
    "bayes/laplace.py": ["tests/bayes/test_laplace.py"],
    "em/variational.py": [
        *("tests/em/test_variational.py", "tests/attach/test_second_moments.py"),
    ],
    "diagnosis.py": ["tests/test_diagnosis.py"],
    "attach/entry.py": ["tests/attach/test_entry.py"],
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
_TABLES = "bits cell_histogram cells exact grid lookup numba_loops passes penalty regions taylor"
_RUNS = "claiming folder lock reading recovery saving schema"
_CODEC = "accounting contexts decoder encoder header index mixing scans stream values"
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


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one place; `new` is the text of the whole file."""

    path: Path
    function: str
    line: int
    new: str

    def __str__(self) -> str:
        old, new = self.path.read_text().splitlines(), self.new.splitlines()
        diff = [line for line in difflib.ndiff(old, new) if line.startswith(("-", "+"))]
        changed = [f"    {line}" for line in diff]
        return "\n".join([f"{os.path.relpath(self.path)}:{self.line}", *changed])


# ------------------------------------------------------------------ the changes

_OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
    ast.Or: ast.And,
}  # fmt: skip
_SWAPS = [("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum")]
_SWAPS += [("any", "all"), ("floor", "ceil"), ("zeros", "ones"), ("zeros_like", "ones_like")]
_NAMES = dict(_SWAPS + [(new, old) for old, new in _SWAPS])


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of `node`."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                if type(op) in _OPERATORS:
                    yield _changed(node, ops=[*ops[:i], _OPERATORS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in _OPERATORS:
            yield _changed(node, op=_OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
            yield ast.Constant(-value or -1.0)
        case ast.IfExp(test=test) if not _has_opposite(test):
            yield _changed(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield _changed(node, lower=None)
            if upper is not None:
                yield _changed(node, upper=None)
        case ast.Name(id=name, ctx=ast.Load()) if name in _NAMES:
            yield _changed(node, id=_NAMES[name])
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in _NAMES:
            yield _changed(node, attr=_NAMES[name])
        case ast.Expr(value=ast.Call() | ast.Yield()) | ast.AugAssign() | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
            yield ast.Pass()
        case ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield ast.Return(ast.Constant(None))


def _has_opposite(test: ast.AST) -> bool:
    """Whether swapping the operator negates the condition already."""
    opposites = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    not_twice = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return not_twice or (isinstance(test, ast.Compare) and isinstance(test.ops[-1], opposites))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _places(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Function, node and replacement; annotations, docstrings and texts of errors are skipped."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.JoinedStr():
            return
        case ast.keyword(arg="strict"):  # of zip: it guards against a programmer's slip
            return
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            function = f"{function}.{name}".lstrip(".")
    for new in _changes(node):
        yield function, node, new
    if isinstance(node, ast.If | ast.While) and not _has_opposite(node.test):
        yield function, node.test, ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Raise) or _is_warning(node):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _places(child, function)


def _is_warning(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("warn")


def _offset(lines: list[bytes], line: int, column: int) -> int:
    return sum(len(text) for text in lines[: line - 1]) + column


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a module, in the order of its text."""
    source = path.read_bytes()
    lines = source.splitlines(keepends=True)
    found = []
    for function, node, new in _places(ast.parse(source)):
        start = _offset(lines, node.lineno, node.col_offset)
        end = _offset(lines, node.end_lineno, node.end_col_offset)
        text = ast.unparse(ast.fix_missing_locations(new))
        if isinstance(node, ast.expr) and not isinstance(node, ast.Slice):
            text = f"({text})"
        mutated = source[:start] + text.encode() + source[end:]
        with contextlib.suppress(SyntaxError):  # a slice's bound in a match, a default's keyword
            ast.parse(mutated)
            found.append(Mutant(path, function, node.lineno, mutated.decode()))
    return found


def sample(found: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` mutants spread evenly over the functions, in the order of the file."""
    rng = random.Random(seed)
    by_function: dict[tuple[Path, str], list[Mutant]] = {}
    for mutant in rng.sample(found, len(found)):
        by_function.setdefault((mutant.path, mutant.function), []).append(mutant)
    rounds = max(map(len, by_function.values()), default=0)
    spread = [group[i] for i in range(rounds) for group in by_function.values() if i < len(group)]
    return sorted(spread[:count], key=lambda mutant: (mutant.path, mutant.line))


# ------------------------------------------------------------------ the runs


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
