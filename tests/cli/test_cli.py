import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import MAIN, UNDRAWN, ended, run
from typer.testing import CliRunner

from swsmix import codec, load_run
from swsmix._labels import file_name
from swsmix.cli import app

QUICK = ["train", "--epochs", "3", "--no-baseline"]


def test_train_writes_a_run_folder_with_pictures_and_prints_the_table(tmp_path):
    out = tmp_path / "run"
    printed = run(*QUICK, "--baseline", "--out", out)
    for words in ("soft weight-sharing", "snapped to its centres", "weight decay", "validation",
                  "bits per weight", "clusters (components", "clusters.png"):  # fmt: skip
        assert words in printed
    results = json.loads((out / "results.json").read_text())
    assert results["measure"] == "arv (1535)" and len(results["rows"]) == 5
    assert "mean ± sd over 10 seeds" in printed and "ensemble" in printed
    for rows in (results["rows"], results["spread"]):
        for row in rows.values():
            assert all(0.0 < row[part] < 10.0 for part in ("train", "validation", "test"))
    for picture in ("clusters", "collapse", "trajectories", "before-after", "hinton"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert load_run(out).epoch == 3 and load_run(out).config["data"] == "sunspots"


def test_the_network_that_was_saved_is_the_one_that_was_measured(tmp_path):
    from swsmix.problems import data, nets

    run(*QUICK, "--seeds", 1, "--out", tmp_path / "run", program=UNDRAWN)
    net = nets.sunspot_net()
    net.load_state_dict(load_run(tmp_path / "run").network)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    series = data.sunspots()
    x, _ = series.split("test")
    measured = series.arv(net(x).detach(), "test")
    assert measured == pytest.approx(results["rows"]["soft weight-sharing"]["test"], rel=1e-5)


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    undrawn = {"program": UNDRAWN}
    run(*QUICK, "-q", "--out", tmp_path / "whole", **undrawn)
    run("train", "--epochs", 1, "--no-baseline", "-q", "--out", tmp_path / "half", **undrawn)
    run("train", "--resume", "--epochs", 3, "-q", "--out", tmp_path / "half", **undrawn)
    whole, half = load_run(tmp_path / "whole"), load_run(tmp_path / "half")
    assert half.epoch == 3 and half.config["epochs"] == 3
    assert all(torch.equal(v, half.network[k]) for k, v in whole.network.items())
    run(
        "train",
        "--resume",
        "--seed",
        4,
        "--out",
        tmp_path / "half",
        fails="made with seed = 0, not 4",
    )


def test_an_existing_run_is_kept_unless_forced(tmp_path):
    out = tmp_path / "run"
    run(*QUICK, "-q", "--out", out, program=UNDRAWN)
    before = (out / "results.json").read_bytes()
    run(*QUICK, "-q", "--out", out, fails="continue it (--resume")
    assert (out / "results.json").read_bytes() == before
    for bad in (("--components", 1000), ("--device", "abacus")):
        run(*QUICK, "--force", *bad, "--out", out, fails=str(bad[1]))
        assert (out / "results.json").read_bytes() == before
    run(*QUICK, "-q", "--seed", 1, "--out", out, "--force", program=UNDRAWN)
    assert (out / "results.json").read_bytes() != before


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_the_shift_problem_trains_in_both_modes(tmp_path, mode):
    run(*QUICK, "-q", "--data", "shift", "--mode", mode, "--components", 4, "--tau", 0.2,
        "--dtype", "float64", "--out", tmp_path / "run", program=UNDRAWN)  # fmt: skip
    saved = load_run(tmp_path / "run")
    assert saved.mixtures["all"].num_components == 4
    assert saved.network["hidden.weight"].dtype == torch.float64
    assert saved.history.scalars["tau"][-1] == 0.2


@pytest.mark.mnist
def test_lenet_trains_on_mnist(tmp_path):
    out = tmp_path / "run"
    run("train", "--data", "mnist", "--epochs", 1, "--no-baseline", "-q", "--out", out)
    results = json.loads((out / "results.json").read_text())
    assert results["measure"] == "errors (%)"
    assert results["rows"]["soft weight-sharing"]["validation"] < 10.0


def test_quiet_is_quiet(tmp_path):
    assert run(*QUICK, "--quiet", "--out", tmp_path / "run") == ""


def test_help_has_examples_and_the_version_is_told():
    text = run("train", "--help")
    assert "swsmix train --data mnist" in text and "--em-every" in text
    assert run("--version").startswith("swsmix 0.")


def test_errors_are_one_clear_line(tmp_path):
    run(*QUICK, "--out", tmp_path / "a", "--device", "abacus", fails="no device 'abacus' here")
    run(*QUICK, "--out", tmp_path / "a", "--components", 1000, fails="104 weights, K = 1000")
    run(*QUICK, "--out", tmp_path / "a", "--net", "lenet-5-caffe", fails="networks for sunspots")
    run("train", "--resume", "--out", tmp_path / "nothing", fails="no config.toml")
    (tmp_path / "file").write_text("")
    run(*QUICK, "--out", tmp_path / "file" / "run", fails="cannot write the run folder")


def test_a_gpu_that_is_not_there_is_an_error(tmp_path):
    run(*QUICK, "--device", "cuda:99", "--out", tmp_path / "run", fails="no device 'cuda:99' here")


def test_ctrl_c_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "swsmix", "train", "--epochs", "100000", "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (out / "checkpoint-000001").exists() and not list(out.glob("checkpoint-00000[2-9]")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "continue with --resume" in errors
    assert load_run(out).epoch >= 1


def test_a_damaged_checkpoint_is_named_on_resume(tmp_path):
    out = tmp_path / "run"
    run(*QUICK, "-q", "--out", out)
    file = out / "checkpoint-000003" / "network.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    run("train", "--resume", "--epochs", 4, "--out", out, fails="network.safetensors is damaged")


# -- inspect ----------------------------------------------------------------------------------


def here(*arguments):
    """The command line in this process, which spares the imports; what it prints."""
    threads = torch.get_num_threads()
    try:
        done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    finally:
        torch.set_num_threads(threads)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_inspect_prints_a_table_and_writes_figures_a_page_and_a_film(tmp_path, monkeypatch):
    run(*QUICK, "-q", "--out", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    text = here("inspect", tmp_path / "run", "--html", "--animate")
    assert "hidden.weight" in text and "(not under the prior): hidden.bias, output" in text
    written = {path.name for path in (tmp_path / "run-inspect").iterdir()}
    assert written == set(text.rsplit(": ", 1)[1].strip().split(", "))
    assert {"report.html", "collapse.gif", "clusters.png", "loss-terms.png"} <= written
    assert "drawing" not in text
    with pytest.raises(ValueError, match=r"num_components: .*has its own.*--refit"):
        here("inspect", tmp_path / "run", "--components", 3, "--no-figures")


def test_inspect_writes_the_same_bytes_again_and_only_what_is_asked_for(tmp_path):
    torch.save({"a/b": torch.randn(20, 30), "c": torch.randn(9, 9)}, tmp_path / "net.pt")
    contents = []
    for out in ("one", "two"):
        here("inspect", tmp_path / "net.pt", "--out", tmp_path / out, "--format", "svg", "--html",
             "-q", "--exclude", "c", "--components", 3)  # fmt: skip
        contents.append({p.name: p.read_bytes() for p in (tmp_path / out).iterdir()})
    assert contents[0] == contents[1]
    hinton = f"{file_name('hinton-a/b')}.svg"
    names = {"clusters.svg", "responsibilities.svg", "layers.svg", hinton, "report.html"}
    assert set(contents[0]) == names
    before = sorted(tmp_path.iterdir())
    assert "K = 7" in here("inspect", tmp_path / "net.pt", "--no-figures")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="history of a run"):
        here("inspect", tmp_path / "net.pt", "--animate", "--no-figures", "--out", tmp_path / "x")


def test_inspect_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("not a checkpoint")
    run("inspect", tmp_path / "a.txt", fails="no checkpoint that swsmix can read")
    torch.save({"\x1b[2Jw": torch.ones(3, 3)}, tmp_path / "net.pt")
    error = run("inspect", tmp_path / "net.pt", "--include", "x", fails="there are \\x1b[2Jw")
    assert "\x1b" not in error


def test_inspect_fails_before_the_work(tmp_path, monkeypatch):
    torch.save({"w": torch.randn(9, 9)}, tmp_path / "net.pt")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "swsmix.inspection.inspect.inspect", lambda *_, **__: pytest.fail("it went to work")
    )
    with pytest.raises(ValueError, match=r"--out needs a folder; .*file is a file"):
        here("inspect", tmp_path / "net.pt", "--out", tmp_path / "file")
    with pytest.raises(ValueError, match=r"--animate needs the history of a run; .*PyTorch"):
        here("inspect", tmp_path / "net.pt", "--animate", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_inspect_takes_a_compressed_file_and_its_help_says_so(tmp_path):
    state = {"w": torch.tensor([0.0, 0.5]).repeat(30, 10)}
    (tmp_path / "net.sws").write_bytes(codec.encode(state))
    text = here("inspect", tmp_path / "net.sws", "--no-figures")
    assert "the file's codebook" in text and "50 50" in text
    assert "model.sws" in here("inspect", "--help")


def test_live_and_tensorboard_watch_a_run(tmp_path):
    out = tmp_path / "run"
    text = run(*QUICK, "--live", "--tensorboard", tmp_path / "logs", "--out", out)
    assert "epoch 3" in text and "weights   share" in text and "arv (1535)" in text
    assert list((tmp_path / "logs").glob("events.*"))
    run(*QUICK, "--live", "--quiet", "--out", tmp_path / "other", fails="give one of them")
    assert not (tmp_path / "other").exists()


def test_a_warning_is_one_line_without_its_source():
    code = """
import sys, warnings, swsmix.cli
module = sys.modules["swsmix.cli.app"]
module.app = lambda: warnings.warn("take care", stacklevel=2)
module.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "swsmix: take care\n"


def test_a_posterior_is_written_and_inspected(tmp_path, monkeypatch):
    out = tmp_path / "run"
    sampled = ("--posterior", "nuts", "--chains", 1, "--draws", 50)
    code, said = ended(*QUICK, "--out", out, *sampled, "--quiet")
    assert code == 0 and said.count("Do not use this posterior. 1 x 50 draws") == 1, said
    results = json.loads((out / "results.json").read_text())
    assert results["facts"]["posterior draws"] == 50
    assert 0.0 <= results["facts"]["test targets in the 90 % interval (%)"] <= 100.0
    assert results["facts"]["ESS of predictions"] > 0.0
    for name in ("posterior-band.png", "posterior-mixture.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    printed = run("inspect", out, "--out", tmp_path / "look")
    for words in (
        "posterior.safetensors",
        "ESS of log density",
        "divergences",
        "effective clusters",
    ):
        assert words in printed
    assert "Do not use this posterior. 1 x 50 draws are too few to judge" in printed
    _, said = ended("inspect", out, "--no-figures", "--quiet")
    assert said.count("Do not use this posterior. 1 x 50 draws") == 1, said
    assert (tmp_path / "look" / "posterior-mixture.png").is_file()
    other = ("train", "--out", tmp_path / "other", *sampled)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path / "none"))  # refused before data are read
    run(*other, "--data", "mnist", fails="--posterior is for the small problems")
    run(*other, "--tau", 0, fails="--tau above 0")
    (out / "posterior.safetensors").write_bytes(b"damaged")
    run("inspect", out, "--no-figures", fails="is damaged")


def test_an_interruption_before_any_draw_leaves_the_trained_run_whole(tmp_path):
    out = tmp_path / "run"
    interrupted = """
from swsmix import bayes
def sample(*_, **__):
    raise KeyboardInterrupt
bayes.sample = sample
"""
    code, said = ended(*QUICK, "--posterior", "nuts", "--out", out, program=interrupted + MAIN)
    said = " ".join(said.split())  # lines are broken where the path's length says
    assert code == 130 and "its posterior is not" in said, said
    assert "soft weight-sharing" in json.loads((out / "results.json").read_text())["rows"]
    assert (out / "clusters.png").is_file() and not (out / "posterior.safetensors").exists()


def test_a_variational_posterior_too(tmp_path):
    from swsmix import bayes

    out = tmp_path / "run"
    fewer = """
from swsmix import bayes
fit_guide = bayes.fit_guide
bayes.fit_guide = lambda *a, **o: fit_guide(*a, **o | {"epochs": 20})
"""
    sampled = ["--posterior", "svi", "--draws", 70, "--quiet", "--out", out]
    run(*QUICK, *sampled, program=fewer + MAIN)
    facts = json.loads((out / "results.json").read_text())["facts"]
    assert facts["posterior draws"] == 70 and "divergences" not in facts
    assert 0.0 <= facts["test targets in the 90 % interval (%)"] <= 100.0
    posterior = bayes.Posterior.load(out / "posterior.safetensors")
    assert posterior.about["method"] == "svi" and posterior.z.shape[:2] == (1, 70)
