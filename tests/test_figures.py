"""The programs of figures/: they use public names of swsmix, and these are there."""

import ast
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

PROGRAMS = sorted((Path(__file__).parents[1] / "figures").glob("*.py"))


def imported(program):
    """Module and name of each import from swsmix, wherever it stands in the program."""
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def test_there_are_programs():
    assert {"benchmark", "gallery", "pretrained", "updates"} <= {path.stem for path in PROGRAMS}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_uses_public_names_that_are_there(program):
    for module, name in imported(program):
        if module.split(".")[0] != "swsmix":
            continue
        assert not any(part.startswith("_") for part in [*module.split("."), name or ""])
        found = importlib.import_module(module)
        if name is not None and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_says_how_it_is_run(program):
    assert f"python figures/{program.name}" in ast.get_docstring(ast.parse(program.read_text()))


def test_the_evidence_program_makes_its_rows_and_tables(tmp_path):
    evidence = importlib.import_module("figures.evidence")
    rows = [
        evidence.run("iris", split, method, rounds=2, iterations=5)
        for split in (0, 1)
        for method in ("decay", "map-4", "post-1", "evidence")
    ]
    assert not [row for row in rows if "failed" in row]
    assert all(0.0 <= row["error"] <= 100.0 and row["nll"] > 0.0 for row in rows)
    evidence.write_tables(rows, tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text()
    assert "| iris | 2 |" in text and "8 runs, 0 failed" in text


@pytest.mark.parametrize("name", ["shift", "sunspots", "diabetes", "iris", "wine", "cancer"])
def test_no_case_of_the_evidence_program_is_both_trained_and_tested_on(name):
    evidence = importlib.import_module("figures.evidence")
    (x, y), (x_test, y_test) = evidence.cases(name, 3)
    assert len(x) == len(y) and len(x_test) == len(y_test)
    rows = {tuple(row) for row in x.tolist()}
    twice = sum(tuple(row) in rows for row in x_test.tolist())
    assert twice <= 1  # iris holds one flower twice
    assert x.mean(0).abs().max() < 1e-9  # standardised by the training cases alone
    if name == "sunspots":
        assert len(x) + len(x_test) == 209  # 1712-1920


def test_the_table_of_targets_is_that_of_its_rows():
    from figures import targets

    assert (targets.HERE / "targets.md").read_text() == targets.page(
        targets.read(targets.HERE / "targets.jsonl")
    )


@pytest.mark.mnist
@pytest.mark.slow
def test_the_program_of_targets_runs_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    from figures import targets

    def small(generator):
        """A fortieth of the network's weights; the program is the same."""
        layers = nn.Linear(784, 8), nn.Linear(8, 10)
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(0.05 * torch.randn(layer.weight.shape, generator=generator))
        return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1])

    monkeypatch.setitem(targets.NETS, "lenet-300-100", (small, *targets.NETS["lenet-300-100"][1:]))
    targets.main(["--smoke", "--net", "lenet-300-100"], tmp_path)
    rows = targets.read(tmp_path / "targets.jsonl")
    assert tuple(row["unit"] for row in rows) == targets.UNITS
    asked = int(rows[-1]["asked"].removeprefix("size_bytes="))
    assert rows[-1]["size_bytes"] <= asked or "not_met" in rows[-1]
    targets.main(["--smoke", "--net", "lenet-300-100"], tmp_path)
    assert targets.read(tmp_path / "targets.jsonl") == rows


@pytest.fixture
def small_regressions(monkeypatch):
    from figures import regressions

    for name, value in (("STDS", (0.2, 0.7)), ("MEMBERS", 2), ("SETS", ("diabetes",))):
        monkeypatch.setattr(regressions, name, value)
    tiny = {"chains": 2, "draws": 4, "warmup": 20, "max_depth": 2}
    monkeypatch.setattr(regressions.unit, "__defaults__", (tiny,))
    return regressions


def test_the_program_of_regressions_makes_its_rows_and_page_and_goes_on(
    small_regressions, tmp_path, capsys
):
    small_regressions.main(["--splits", "2"], tmp_path)
    rows = small_regressions.read(tmp_path / "regressions.jsonl")
    assert [row["split"] for row in rows] == [0, 1]
    for row in rows:
        assert (row["train"], row["test"]) == (398, 44)
        for found in row["methods"].values():
            assert 0.0 <= found["coverage"] <= 100.0 and 0.3 < found["rmse"] < 1.5
    text = (tmp_path / "regressions.md").read_text()
    assert "| diabetes | 2 |" in text and "2 of 2" in text  # draws so few are not to be used
    capsys.readouterr()
    small_regressions.main(["--splits", "2"], tmp_path)
    assert not capsys.readouterr().out  # nothing was left to do


def test_what_is_cross_validated_is_predicted_without_its_own_target(small_regressions):
    (x, y), _ = small_regressions.cases("diabetes", 0)
    assert x.mean(0).abs().max() < 1e-9 and y.mean().abs() < 1e-9  # by the training cases alone
    other = torch.cat([y[:1] + 9.0, y[1:60]])
    before, after = (
        small_regressions.cross_validated((x[:60], targets), [3, 4], 0)[0]
        for targets in (y[:60], other)
    )
    assert before.shape == (2, 2, 60)
    changes = (after - before).abs().mean((0, 1))
    assert changes[0] < 0.01  # rounding, after 200 iterations
    assert changes.max() > 0.1  # the others have learned from it


def test_densities_and_intervals_of_regressions_are_those_of_the_mixture():
    from scipy import stats

    from figures import regressions

    mean, std = torch.tensor([[0.0], [4.0]]).double(), torch.tensor([[1.0], [0.5]]).double()
    y = torch.linspace(-3.0, 6.0, 50).double()
    slow = [(stats.norm.pdf(v, 0.0, 1.0) + stats.norm.pdf(v, 4.0, 0.5)) / 2.0 for v in y.tolist()]
    found = regressions.measured(mean, std, y)
    assert found["nll"] == pytest.approx(-sum(math.log(p) for p in slow) / 50)
    # Of each half .1 lies outside on its own side: -1.28 and 4 + 0.5 * 1.28.
    inside = sum(-1.2816 <= v <= 4.6408 for v in y.tolist())
    assert found["coverage"] == pytest.approx(100.0 * inside / 50)


def test_the_interval_of_regressions_is_the_t_interval_of_one_set_and_narrower_of_four():
    from scipy import stats

    from figures import regressions

    values = torch.randn(10, generator=torch.Generator().manual_seed(0)).numpy()
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    mean, half = regressions.interval([values])
    assert (mean - half, mean + half) == pytest.approx((low, high))
    mean, of_four = regressions.interval([values + shift for shift in range(4)])
    assert mean == pytest.approx(values.mean() + 1.5)  # sets may differ in their means
    expected = half / 2 * stats.t.ppf(0.975, 36) / stats.t.ppf(0.975, 9)
    assert of_four == pytest.approx(expected)


def test_the_page_of_regressions_is_that_of_its_rows():
    from figures import regressions

    assert (regressions.HERE / "regressions.md").read_text() == regressions.page(
        regressions.read(regressions.HERE / "regressions.jsonl")
    )


def tiny_network(networks):
    """A classifier of 20 numbers whose answers are those of a rule, in two halves."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
    halves = {h: [torch.randn(300, 20, generator=generator)] for h in networks.HALVES}
    labels = {h: networks.answers(model, x).argmax(-1) for h, x in halves.items()}

    def wrong(half, found):
        return 100.0 * (found != labels[half]).double().mean().item() + 1.0

    return networks.classifier(model, halves, wrong, [torch.randn(3000, 20, generator=generator)])


def test_the_program_of_pretrained_networks_measures_every_method_and_goes_on(
    tmp_path, monkeypatch, capsys
):
    from figures import pretrained

    networks = importlib.import_module("pretrained_networks")
    page = importlib.import_module("pretrained_page")

    def missing():
        raise networks.MissingError("nothing-like-it is not installed")

    made = {"cnn": lambda: tiny_network(networks), "magika": missing}
    monkeypatch.setattr(pretrained, "NETWORKS", made)
    settings = {
        "k-means": ["2", "8"], "rtn": ["2", "4"], "gptq": ["2", "3"], "nncodec": ["-28", "-20"],
        "swsmix": ["default", "0.05", "0.3"], "swsmix with inputs": ["1", "3"],
    }  # fmt: skip
    for method, chosen in settings.items():
        monkeypatch.setitem(pretrained.SETTINGS, method, {"": chosen})
    pretrained.main([], tmp_path)
    said = capsys.readouterr().out
    assert "magika: skipped: nothing-like-it" in said
    rows = pretrained.read(tmp_path / "pretrained.jsonl")
    found = [r for r in rows if "network" in r]
    for method in pretrained.METHODS:
        if f"cnn/{method}: skipped" not in said:
            assert page.find(found, method=method), method
    (dense,) = page.find(found, method="float32")
    assert dense["report"]["other"] == 0.0 and dense["report"]["errors"] == pytest.approx(1.0)
    for row in found:
        assert 0 < row["size_bytes"] <= dense["size_bytes"] and row["distortion"] >= 0.0
        assert row["report"]["errors"] == pytest.approx(row["report"]["other"] + 1.0)
    rounded = page.find(found, method="rtn", setting="2")[0]
    compensated = page.find(found, method="gptq", setting="2")[0]
    assert compensated["distortion"] > rounded["distortion"]  # for the outputs' sake
    assert compensated["report"]["kl"] < rounded["report"]["kl"]
    text = (tmp_path / "pretrained.md").read_text()
    assert "| gptq | 3 |" in text and (tmp_path / "pretrained.png").stat().st_size > 10_000
    pretrained.main(["--only", "cnn/*"], tmp_path)
    assert pretrained.read(tmp_path / "pretrained.jsonl") == rows  # nothing was left to do
    pretrained.main(["--only", "cnn/rtn", "--again"], tmp_path)
    again = [r for r in pretrained.read(tmp_path / "pretrained.jsonl") if "network" in r]
    assert len(again) == len(found)
    # Where the network as it is scores otherwise, its rows are of other cases than these.
    dense["report"]["cases"] += 1
    (tmp_path / "pretrained.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pretrained.main(["--only", "cnn/rtn", "--again"], tmp_path)
    assert "cnn: skipped: the cases of this installation" in capsys.readouterr().out
    assert pretrained.read(tmp_path / "pretrained.jsonl") == rows


def test_bytes_at_equal_measure_are_between_the_points_that_no_smaller_file_equals():
    importlib.import_module("figures.pretrained")
    page = importlib.import_module("pretrained_page")
    curve = [(100.0, 4.0), (400.0, 2.0), (500.0, 3.0), (1600.0, 1.0)]
    assert page.front(curve) == [(100.0, 4.0), (400.0, 2.0), (1600.0, 1.0)]
    assert page.bytes_at(curve, 3.0) == pytest.approx(200.0)  # the geometric mean
    assert page.bytes_at(curve, 2.0) == pytest.approx(400.0)
    assert page.bytes_at(curve, 0.5) is None and page.bytes_at(curve, 5.0) is None


def test_magikas_network_as_a_module_answers_as_the_package_does():
    pytest.importorskip("onnx", reason="Magika's weights are read by onnx")
    magika = pytest.importorskip("magika", reason="pip install magika")
    importlib.import_module("figures.pretrained")
    networks = importlib.import_module("pretrained_networks")
    model = networks.magika(1).model
    paths = [path for path, _ in networks.files(1, networks.EXTENSIONS[:12])]
    found = model(torch.tensor([networks.features(path) for path in paths])).argmax(-1).tolist()
    folder = Path(magika.__file__).parent / "models" / "standard_v3_3"
    labels = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    results = magika.Magika().identify_paths(paths)
    named = [str(result.dl.label) for result in results]
    assert named == [labels[i] for i in found]


@pytest.mark.parametrize(
    ("file", "room"),
    [
        ("swsmix/tables/exact.py", "tables"), ("swsmix/em/steps.py", "em"),
        ("swsmix/em.py", "em"), ("swsmix/prior/keys.py", "prior"), ("swsmix/prior.py", "prior"),
        ("swsmix/proximal.py", "attach"), ("swsmix/attach/clock.py", "attach"),
        ("swsmix/schedule.py", "rest of swsmix"), ("swsmix/_shards.py", "rest of swsmix"),
        ("torch/optim/adam.py", "torch and the network"), ("~", "torch and the network"),
    ],
)  # fmt: skip
def test_a_file_of_either_version_is_profiled_in_its_room(file, room, monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS[0].parent))
    assert importlib.import_module("before_after")._room(f"/home/me/{file}") == room


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS[0].parent))
    return importlib.import_module("benchmark")


def test_the_methods_of_the_benchmark_take_turns_within_each_round(benchmark):
    calls, now = [], [0.0]

    def call(name, seconds):
        calls.append(name)
        now[0] += seconds

    slow, fast = (lambda: call("slow", 1.0)), (lambda: call("fast", 0.1))
    found = benchmark.measure({"slow": slow, "fast": fast}, 9, 4.5, now=lambda: now[0])
    assert "".join(name[0] for name in calls[-14:]) == "sffsffsffsffsf"
    measured = [None if each is None else round(each, 9) for each in found["slow"]]
    assert measured == [1.0, None] * 4 + [1.0]  # sits out, since 9 s are above the budget
    assert [round(each, 9) for each in found["fast"]] == [0.1] * 9


def test_ratios_of_the_benchmark_are_of_the_rounds_in_which_both_were_measured(benchmark):
    one, other = {"seconds": [4.0, None, 9.0]}, {"seconds": [2.0, 1.0, 3.0]}
    assert benchmark.benchmark_page.ratios(one, other) == [2.0, 3.0]


@pytest.mark.slow
def test_the_benchmark_measures_and_draws(benchmark, tmp_path):
    command = [sys.executable, benchmark.__file__, "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    text = (tmp_path / "benchmark.md").read_text()
    assert "coremltools" in text or "DKM" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 1e5 | 17 | naive |")]
    assert "| 1 (1 to 1) |" in row  # against itself
    assert "| MLP of 800 weights" in text and "not measured" in text  # the large sizes
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
