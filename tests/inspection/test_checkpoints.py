"""Checkpoints of every kind: their tensors are found, and none can make it run code."""

import os
import pickle
import shutil
import zipfile

import cases
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swsmix import MixturePrior
from swsmix.compression import save_compressed
from swsmix.compression.snap import snapped_state
from swsmix.inspection import checkpoints
from swsmix.inspection.inspect import inspect

# -- every kind of checkpoint -----------------------------------------------------------------


def write_shards(tensors, path):
    path.mkdir()
    names = list(tensors)
    save_file({n: tensors[n] for n in names[:2]}, path / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[2:]}, path / "model-00002-of-00002.safetensors")


def write_alone(tensors, path):
    path.mkdir()
    save_file(tensors, path / "network.safetensors")


WRITERS = {
    "state_dict": lambda t, path: torch.save(t, path),
    "before 1.6": lambda t, p: torch.save(t, p, _use_new_zipfile_serialization=False),
    "training state": lambda t, p: torch.save(
        {"epoch": 3, "state_dict": t, "optimizer_states": [{"exp_avg": torch.ones(3, 3)}]}, p
    ),
    "with an optimiser": lambda t, p: torch.save(
        {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 3)}}}}, p
    ),
    "safetensors": lambda t, path: save_file(t, path),
    "shards": write_shards,
    "alone in a folder": write_alone,
    "list": lambda t, path: torch.save([t], path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_checkpoint_gives_the_networks_weights(kind, tmp_path):
    WRITERS[kind](cases.state(), tmp_path / "any.name")
    found = inspect(tmp_path / "any.name")
    assert [layer.name for layer, _ in found.layers] == ["0.weight", "2.weight"]
    assert all(torch.equal(layer.weights, cases.state()[layer.name]) for layer, _ in found.layers)
    assert found.left_out == dict.fromkeys(("0.bias", "2.bias"), "1 dimension, fewer than 2")
    assert found.history is None and found.groups[0].mixture.num_components == 7


def test_several_networks_in_one_file_keep_their_names(tmp_path):
    torch.save({"generator": cases.state(0), "critic": cases.state(1)}, tmp_path / "a.pt")
    names = [layer.name for layer, _ in inspect(tmp_path / "a.pt").layers]
    assert names == [
        "generator.0.weight",
        "generator.2.weight",
        "critic.0.weight",
        "critic.2.weight",
    ]


def test_networks_in_a_list_are_numbered(tmp_path):
    torch.save([cases.state(0), (cases.state(1), {"epoch": 3})], tmp_path / "a.pt")
    names = [layer.name for layer, _ in inspect(tmp_path / "a.pt").layers]
    assert names == ["0.0.weight", "0.2.weight", "1.0.weight", "1.2.weight"]


def test_an_incomplete_checkpoint_of_ours_is_named_and_not_taken_for_another(run_folder, tmp_path):
    shutil.copytree(run_folder / "final", tmp_path / "final")
    (tmp_path / "final" / "training.pt").unlink()
    with pytest.raises(ValueError, match=r"lacks training\.pt"):
        inspect(tmp_path / "final")


def test_a_bare_tensor_is_a_checkpoint_too(tmp_path):
    torch.save(torch.randn(20, 20), tmp_path / "a.pt")
    assert inspect(tmp_path / "a.pt").groups[0].size == 400


def test_a_compressed_file_is_a_checkpoint(tmp_path):
    net = torch.nn.Linear(40, 30)
    prior = MixturePrior(net, 5, zero=True)
    save_compressed(tmp_path / "net.sws", net, prior)
    found = checkpoints.read(tmp_path / "net.sws")
    assert found.kind == "compressed file of swsmix"
    snapped = snapped_state(net, prior)
    assert all(torch.equal(found.tensors[name], t) for name, t in snapped.items())


def test_tensors_beside_a_nested_state_dict_do_not_hide_it(tmp_path):
    wanted = torch.nn.Parameter(torch.randn(4, 5))
    saved = {"state_dict": {"w": wanted}, "best": torch.tensor(0.5), "epoch": 3}
    torch.save(saved, tmp_path / "a.pt")
    found = checkpoints.read(tmp_path / "a.pt").tensors
    assert list(found) == ["best", "w"] and torch.equal(found["w"], wanted)
    assert not found["w"].requires_grad


def test_a_folder_of_epochs_is_not_taken_for_one_network(tmp_path):
    for epoch in (1, 2):
        torch.save(cases.state(epoch), tmp_path / f"epoch{epoch}.pt")
    with pytest.raises(ValueError, match="2 files with tensors of the same names"):
        checkpoints.read(tmp_path)


# -- no code ----------------------------------------------------------------------------------


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped):
    mark = tmp_path / "mark"
    content = {"w": torch.ones(3, 3), "evil": Evil(mark)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pickled code \((os|posix)\.system\).*refused") as error:
        inspect(tmp_path / "a.pt")
    assert "weights_only=False" not in str(error.value)
    assert not mark.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)  # and it would have worked
    assert mark.exists()


def test_a_pickled_module_and_a_program_are_refused(tmp_path):
    torch.save(cases.network(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"pickled code \(torch.nn.*state_dict\(\)"):
        inspect(tmp_path / "module.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data.pkl", pickle.dumps(()))
        archive.writestr("a/code/x.py", "")
        archive.writestr("a/version", "3\n")
    with pytest.raises(ValueError, match=r"TorchScript|damaged"):
        inspect(tmp_path / "script.pt")


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    torch.save(cases.state(), tmp_path / "whole.pt")
    save_file(cases.state(), tmp_path / "whole.safetensors")
    np.savez(tmp_path / "a.npz", a=np.ones((3, 3)))
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "absent", "is not there"),
        (tmp_path / "empty", "holds neither a run"),
        (write("text", b"hello world, I am no checkpoint"), "begins with b'hello world, I a"),
        (write("nothing", b""), "begins with b''"),
        (write("half.pt", (tmp_path / "whole.pt").read_bytes()[:900]), "checkpoint"),
        (write("half", (tmp_path / "whole.safetensors").read_bytes()[:300]), "safetensors"),
        (write("pickle", pickle.dumps([1, 2], protocol=2)), "no weights to inspect|damaged"),
        (tmp_path / "a.npz", r"NumPy archive: write .*numpy\.load"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            inspect(path)
        assert path.name in str(error.value)
    with pytest.raises(ValueError, match=r"'fc\*' matches no tensor; there are 0.weight"):
        inspect(tmp_path / "whole.pt", include=["fc*"])
    torch.save({"a": torch.full((3, 3), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="a: 9 of its 9 weights are nan or inf"):
        inspect(tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="at least 1; got 0"):
        inspect(tmp_path / "whole.pt", num_components=0)
