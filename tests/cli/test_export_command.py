import pytest
import torch
from commands import UNDRAWN, run
from test_cli import QUICK

from swsmix import load_run
from swsmix.codec import load_compressed
from swsmix.problems import nets

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def test_a_run_is_exported_as_it_is_compressed(tmp_path):
    folder = tmp_path / "run"
    run(*QUICK, "--data", "shift", "-q", "--out", folder, program=UNDRAWN)
    printed = run("export", folder)
    file = tmp_path / "run.onnx"
    assert f"{file.stat().st_size:,} bytes" in printed and "hidden.weight (" in printed
    run("compress", folder, "-q")
    net = nets.shift_net()
    net.load_state_dict(load_compressed(tmp_path / "run.sws"))
    x = torch.randn(7, 20)
    (out,) = runtime.InferenceSession(str(file)).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), net(x).detach(), rtol=1e-5, atol=1e-5)

    run("export", folder, fails="replace it by --force")
    other = tmp_path / "other.onnx"
    run("export", folder, "--weights", tmp_path / "run.sws", "--out", other, "-q")
    assert other.read_bytes() == file.read_bytes()
    assert load_run(folder).epoch  # it is as it was


def test_what_is_no_run_or_has_other_weights_is_refused(tmp_path):
    run("export", tmp_path, fails="must have a run folder of `swsmix train`")
    torch.save({"w": torch.zeros(3, 3)}, tmp_path / "net.pt")
    run(*QUICK, "-q", "--out", tmp_path / "run", program=UNDRAWN)
    run(
        "export", tmp_path / "run", "--weights", tmp_path / "net.pt",
        fails="the weights must be those of the run's network",
    )  # fmt: skip
    assert not list(tmp_path.glob("*.onnx"))
