"""`swsmix train --data cifar10`, on a hundred random images in CIFAR-10's place."""

import hashlib
import json

import numpy as np
import pytest
import torch
from commands import MAIN, run

from swsmix import load_run
from swsmix.codec import load_compressed
from swsmix.compression.batch_norms import fold_batch_norms_
from swsmix.problems import nets

NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The command, which takes 6 x 20 random images for CIFAR-10."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 20, 3, 32, 32), dtype=np.uint8)
    y = rng.integers(0, 10, (6, 20), dtype=np.uint8)
    np.savez(
        tmp_path / "cifar10.npz", x_train=x[:5].reshape(-1, 3, 32, 32), y_train=y[:5].reshape(-1),
        x_test=x[5], y_test=y[5],
    )  # fmt: skip
    records = np.concatenate([y[:, :, None], x.reshape(6, 20, -1)], axis=2)
    md5 = {n: hashlib.md5(r.tobytes()).hexdigest() for n, r in zip(NAMES, records, strict=True)}
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    patch = f"from swsmix.problems import cifar10 as c\nc._IMAGES = 20\nc._MD5_OF_FILES = {md5}\n"
    return patch + MAIN


def test_resnet_trains_dense_then_folded_under_the_prior_and_its_file_decodes(tmp_path, program):
    out = tmp_path / "run"
    job = ["train", "--data", "cifar10", "--epochs", 1, "--dense-epochs", 1, "-q", "--out", out]
    run(*job, program=program)
    results = json.loads((out / "results.json").read_text())
    assert results["measure"] == "errors (%)"
    assert set(results["rows"]) == {"soft weight-sharing", "the same, snapped to its centres"}
    dense = load_run(tmp_path / "dense-resnet-20-float32-1-epochs-seed0")
    assert "bn.running_var" in dense.network
    saved = load_run(out)
    assert saved.config["dense_epochs"] == 1 and "net" not in saved.config
    net = nets.resnet20()
    fold_batch_norms_(net.eval())
    net.load_state_dict(saved.network)  # no batch norm is left
    run("compress", out, "-q")
    decoded = load_compressed(tmp_path / "run.sws")
    assert all(len(decoded[n].unique()) <= 16 for n, p in net.named_parameters() if p.ndim > 1)

    # A second run takes the dense network as it is; one that is resumed goes on as if it had not
    # been stopped.
    (checkpoint,) = dense.folder.parent.glob("checkpoint-*/network.safetensors")
    before = checkpoint.stat().st_mtime_ns
    whole = [*job[:4], 2, *job[5:-1], tmp_path / "whole"]
    run(*whole, program=program)
    assert before == checkpoint.stat().st_mtime_ns
    run("train", "--resume", "--epochs", 2, "-q", "--out", out, program=program)
    states = [load_run(tmp_path / name).network for name in ("run", "whole")]
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())


def test_what_does_not_fit_cifar_is_refused(tmp_path, program):
    def fails(*options, words):
        run("train", *options, "-q", "--out", tmp_path / "run", fails=words, program=program)

    fails("--data", "cifar10", "--seeds", 2, words="has batch norms and must be trained alone")
    fails("--data", "cifar10", "--baseline", words="baseline must be False")
    fails("--data", "cifar10", "--net", "lenet-5-caffe", words="the networks for cifar10 are")
    fails("--dense-epochs", 2, words="--dense-epochs must be for cifar10, got sunspots")
    assert not (tmp_path / "run").exists()
