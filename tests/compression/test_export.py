"""A snapped network in ONNX Runtime: the same weights to the last bit, the same outputs."""

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, snap_
from swsmix.compression import export_onnx, load_compressed, save_compressed

# Networks that no prior has trained are snapped here.
pytestmark = pytest.mark.filterwarnings("ignore:snapping took")

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


class Net(nn.Module):
    """A convolution, a batch norm, two dense layers, and a parameter used by itself."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 36, 40), nn.Tanh(), nn.Linear(40, 10),
        )  # fmt: skip
        self.gain = nn.Parameter(torch.randn(10, 6))
        self.to(dtype)

    def forward(self, x):
        return self.body(x) @ self.gain


def session(path, **options):
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"], **options)


def outputs(path, x, **options):
    return torch.from_numpy(session(path, **options).run(None, {"x": x.numpy()})[0])


def tensors_of(path):
    """name -> what the graph computes for a looked-up tensor, or holds."""
    graph = onnx.load(path).graph
    held = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy().astype("float64"))
            for t in graph.initializer}  # fmt: skip
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0].endswith(".codebook"):
            codebook, index = held[node.input[0]], held[node.output[0] + ".index"]
            held[node.output[0]] = codebook[index.long()]
    return held


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A snapped network, one tensor of it too small for a codebook, and its file."""
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(50, 1, 8, 8))  # running means and variances
    snap_(MixturePrior(net, {"few": 7, "many": 30}, groups={"few": "body.*", "many": "gain"}))
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    net.train()
    report = export_onnx(path, net, torch.randn(1, 1, 8, 8))
    assert net.training
    return net.eval(), path, report


def test_every_weight_is_the_same_to_the_last_bit(shipped):
    net, path, report = shipped
    held = tensors_of(path)
    for name, p in net.state_dict().items():
        if p.is_floating_point():
            assert torch.equal(held[name], p.double()), name
    assert report.num_values == {
        name: len(p.unique()) for name, p in net.named_parameters() if p.ndim > 1 and name != "gain"
    }
    assert report.as_they_are == ("gain",)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_runtime_gives_the_outputs_of_the_network(shipped, folded, batch):
    net, path, _ = shipped
    x = torch.randn(batch, 1, 8, 8)
    options = {} if folded else {"disabled_optimizers": ["ConstantFolding"]}
    torch.testing.assert_close(outputs(path, x, **options), net(x).detach(), rtol=1e-5, atol=1e-5)


def test_the_bytes_are_those_of_the_file_and_four_bits_per_weight(shipped):
    net, path, report = shipped
    assert report.size_bytes == path.stat().st_size
    few = sum(net.get_parameter(name).numel() for name in report.num_values)
    assert report.float_bytes - report.size_bytes > 3.4 * few
    assert report.float_bytes < 1.1 * 4 * sum(t.numel() for t in net.state_dict().values()) + 3000
    assert "with a codebook" in str(report) and "as they are: gain" in str(report)
    names = [each.name for each in session(path).get_inputs()]
    assert list(report.inputs) == names and f"inputs: {names[0]}\n" in str(report)


def test_a_state_of_load_compressed_is_what_is_written(tmp_path):
    net, other = nn.Linear(60, 51, dtype=torch.float64), nn.Linear(60, 51, dtype=torch.float64)
    save_compressed(tmp_path / "net.sws", net, MixturePrior(net, 40))
    state = load_compressed(tmp_path / "net.sws")
    before = {name: p.clone() for name, p in other.state_dict().items()}
    report = export_onnx(tmp_path / "n.onnx", other, torch.randn(3, 60).double(), state=state)
    assert 16 < report.num_values["weight"] <= 40  # a byte for each
    assert torch.equal(tensors_of(tmp_path / "n.onnx")["weight"], state["weight"])
    assert all(torch.equal(p, before[name]) for name, p in other.state_dict().items())


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    class Branches(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    path = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=r"at most 256 values .* among \['weight'\]: snap it"):
        export_onnx(path, nn.Linear(60, 60), torch.randn(2, 60))
    with pytest.raises(ValueError, match=r"can trace, got Branches: .*: rewrite that part"):
        export_onnx(path, Branches(60, 60), torch.randn(2, 60))
    with pytest.raises(TypeError, match=r"must be a tensor or a sequence of tensors, got \['list"):
        export_onnx(path, nn.Linear(60, 60), [[1.0]])
    assert not list(tmp_path.iterdir())


def test_types_that_the_runtime_does_not_compute_in_are_refused(tmp_path):
    net = nn.Linear(20, 20)
    snap_(MixturePrior(net, 4))
    with pytest.raises(ValueError, match=r"got bfloat16 in \['weight', 'bias'\]: export model"):
        export_onnx(tmp_path / "n.onnx", net.bfloat16(), torch.randn(1, 20).bfloat16())
    assert not list(tmp_path.iterdir())
