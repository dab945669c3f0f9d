"""How `swsmix train` ends: signals, a full disk, a second process, settings that were edited."""

import importlib
import signal
import subprocess
import sys
import time

import pytest
import torch

from swsmix import load_run
from swsmix.cli.train_settings import check_config
from swsmix.problems import experiments
from swsmix.problems.seeds import train_seeds
from swsmix.training import runs

CLI = importlib.import_module("swsmix.cli.train")
OPTIONS = ["train", "--no-baseline", "--quiet"]
SEEDS = pytest.mark.parametrize("seeds", [1, 10])


def started(path, *options, lines=""):
    """A training in a process of its own, long enough to be interrupted, with a new checkpoint."""
    before = {p.name for p in path.glob("checkpoint-*")} | {"checkpoint-000000"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"{lines}\nfrom swsmix.cli import main\nmain()", *OPTIONS,
         "--epochs", "100000", *options, "--out", str(path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: {p.name for p in path.glob("checkpoint-*")} - before, process)
    return process


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)


def trained(epochs, seeds=10, **options):
    """What the command trains, in this process."""
    threads = torch.get_num_threads()
    settings = {
        "data": "sunspots", "net": None, "components": None, "tau": None, "em_every": None,
        "epochs": epochs, "seed": 0, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    try:
        problem, shared = CLI._problem(settings), {"progress": False, "baseline": False}
        if seeds > 1:
            return train_seeds(problem, range(seeds), **shared, **options)
        return experiments.train(problem, **shared, **options)
    finally:
        torch.set_num_threads(threads)


@SEEDS
def test_signals_leave_checkpoints_that_go_on_bit_for_bit(seeds, tmp_path):
    path, first = tmp_path / "run", ("--seeds", str(seeds))
    for number, code, options in (
        (signal.SIGTERM, 143, first), (signal.SIGINT, 130, ("--resume",))
    ):  # fmt: skip
        process = started(path, *options)
        with pytest.raises(BlockingIOError, match=f"^process {process.pid} on .* wait until"):
            runs.new_run(path, force=True).__enter__()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code
        assert said.strip() == "interrupted: continue with --resume"
        done = load_run(path).epoch
        names = {p.name for p in path.iterdir()}  # the older one may be there, not yet removed
        assert names - {f"checkpoint-{done - 1:06d}"} == {
            ".swsmix-run", "config.toml", f"checkpoint-{done:06d}",
        }  # fmt: skip
    halves = trained(done + 1, seeds, run=str(path), resume=True)
    whole = trained(done + 1, seeds)
    for one, other in ((halves.net, whole.net), (halves.prior, whole.prior)):
        for key, value in one.state_dict().items():
            assert torch.equal(value.nan_to_num(), other.state_dict()[key].nan_to_num()), key
    assert halves.history.scalars["objective"] == whole.history.scalars["objective"]


SLOW_DISK = """
import time
from swsmix.training.runs import saving
sync = saving.sync
def slowly(path):
    if path.name == "training.pt" and "2" in str(saving.epoch):
        (path.parent / "now").touch()
        time.sleep(1)
    sync(path)
save = saving.torch.save
def seen(state, file):
    saving.epoch = state["epoch"]
    save(state, file)
saving.sync, saving.torch.save = slowly, seen
"""


def test_two_signals_in_the_middle_of_a_save_lose_nothing(tmp_path):
    process = started(tmp_path, lines=SLOW_DISK)
    wait_for(lambda: list(tmp_path.glob(".writing-*/now")), process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    before = load_run(tmp_path)
    assert before.epoch >= 1
    names = {p.name for p in tmp_path.iterdir()}
    assert names - {f"checkpoint-{before.epoch - 1:06d}"} == {
        ".swsmix-run",
        "config.toml",
        f"checkpoint-{before.epoch:06d}",
    }


def test_a_full_disk_after_the_training_is_one_sentence_and_the_outcome_is_kept(tmp_path):
    pytest.importorskip("resource")
    lines = """
import resource, sys
from swsmix.cli import main
module = sys.modules["swsmix.cli.train"]
draw = module._save_figures
def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    return draw(*arguments)
module._save_figures = limited
main()
"""
    path = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", lines, *OPTIONS, "--epochs", "2", "--out", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"swsmix: cannot write {path}/clusters.png: File too large\n"
    assert load_run(path).epoch == 2 and (path / "results.json").is_file()
    assert not [p for p in path.rglob(".*") if p.name != ".swsmix-run"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("tau", "strong"), ("epochs", 2.5), ("components", -3), ("data", "shape"), ("dtype", "int8"),
     ("mode", "magic"), ("baseline", "yes"), ("device", 1), ("seed", True), ("tau", float("nan")),
     ("net", "resnet"), ("net", 3)],
)  # fmt: skip
def test_settings_that_were_edited_are_named(tmp_path, name, value):
    good = {
        "data": "sunspots", "components": 8, "tau": 1, "mode": "em", "em_every": 1, "epochs": 3,
        "seed": -4, "device": "cpu", "dtype": "float32", "baseline": True,
    }  # fmt: skip
    check_config(good, tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}: `{name}`: needs .*, got .*: correct it"):
        check_config(good | {name: value}, tmp_path)
