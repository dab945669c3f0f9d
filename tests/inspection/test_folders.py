"""Folders: an index is obeyed, shards are complete, no file is taken twice or silently omitted."""

import json
import os
import pickle
import socket
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swsmix.inspection import checkpoints

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ONE, TWO = {"l0.weight": torch.randn(9, 9)}, {"l1.weight": torch.randn(9, 9)}
MAP = {"l0.weight": A, "l1.weight": B}
INDEX = "model.safetensors.index.json"


def write_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    save_file(ONE, tmp_path / A)
    save_file(TWO, tmp_path / B)
    write_index(tmp_path, MAP)
    return tmp_path


class Arguments:
    """As a trainer's own class, which a file of its arguments holds pickled."""


# -- with an index ----------------------------------------------------------------------------


def test_only_the_shards_of_an_index_are_read_and_other_files_are_named(sharded):
    save_file({"x.weight": torch.randn(9, 9)}, sharded / "consolidated.safetensors")
    (sharded / "extra.pt").write_bytes(b"not read, so not a failure")
    for path in (sharded, sharded / INDEX):
        found = checkpoints.read(path)
        assert list(found.tensors) == ["l0.weight", "l1.weight"]
        assert torch.equal(found.tensors["l1.weight"], TWO["l1.weight"])
    left_out = checkpoints.read(sharded).left_out
    assert left_out.keys() == {"consolidated.safetensors", "extra.pt"}


def test_an_index_of_pytorch_files_is_obeyed(tmp_path):
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    torch.save(ONE, tmp_path / names[0])
    torch.save(TWO, tmp_path / names[1])
    weight_map = dict(zip(MAP, names, strict=True))
    write_index(tmp_path, weight_map, "pytorch_model.bin.index.json")
    torch.save(Arguments(), tmp_path / "training_args.bin")
    found = checkpoints.read_network(tmp_path)
    assert found.tensors.keys() == MAP.keys() and found.left_out.keys() == {"training_args.bin"}


def test_a_missing_shard_is_named_with_an_index_and_without(sharded):
    (sharded / B).unlink()
    for path in (sharded, sharded / INDEX):
        with pytest.raises(ValueError, match=rf"lacks {B}"):
            checkpoints.read(path)
    (sharded / INDEX).unlink()
    with pytest.raises(ValueError, match=rf"lacks {B}"):
        checkpoints.read(sharded)


def test_a_stale_index_is_named(sharded):
    (sharded / A).unlink()
    (sharded / B).unlink()
    save_file(ONE | TWO, sharded / "model.safetensors")
    with pytest.raises(ValueError, match=r"index\.json is stale.*Delete the index, or pass"):
        checkpoints.read(sharded)
    assert len(checkpoints.read(sharded / "model.safetensors").tensors) == 2


def test_a_stale_index_beside_a_live_one_is_left_out(sharded):
    write_index(sharded, {"l0.weight": "gone.bin"}, "pytorch_model.bin.index.json")
    found = checkpoints.read(sharded)
    assert len(found.tensors) == 2
    assert "stale" in found.left_out["pytorch_model.bin.index.json"]


def test_a_tensor_that_an_index_promises_must_be_in_its_shard(sharded):
    write_index(sharded, MAP | {"l2.weight": B})
    with pytest.raises(ValueError, match=rf"{B} lacks l2\.weight"):
        checkpoints.read(sharded)


def test_a_tensor_that_an_index_does_not_name_is_left_out(sharded):
    save_file(TWO | {"old.weight": torch.randn(9, 9)}, sharded / B)
    found = checkpoints.read(sharded)
    assert found.tensors.keys() == MAP.keys()
    assert found.left_out == {f"{B}: old.weight": f"not in {INDEX}"}


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x"]
)
def test_an_index_that_points_outside_its_folder_is_refused(sharded, name):
    save_file(TWO, sharded.parent / "x.safetensors")
    write_index(sharded, MAP | {"l1.weight": name})
    with pytest.raises(ValueError, match="points outside its folder"):
        checkpoints.read(sharded)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "null", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 200_000,
     '{"weight_map": ["a"]}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": "."}}',
     '{"weight_map": {"a": "x\\u0000"}}', '{"weight_map": {"a": "x", "a": "y"}}', "\xff"],
)  # fmt: skip
def test_a_damaged_index_is_named(sharded, text):
    (sharded / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"index\.json: needs an index"):
        checkpoints.read(sharded)


def test_a_damaged_shard_of_an_index_is_an_error(sharded):
    (sharded / B).write_bytes((sharded / B).read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{B} is damaged"):
        checkpoints.read(sharded)


# -- without an index -------------------------------------------------------------------------


def test_the_folder_of_a_trainer_gives_its_network(tmp_path):
    net = torch.nn.Linear(30, 20)
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 30)).sum().backward()
    adam.step()
    torch.save(adam.state_dict(), tmp_path / "optimizer.pt")
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.pt")
    states = {"cpu": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()}
    torch.save(states, tmp_path / "rng_state.pth")
    torch.save(Arguments(), tmp_path / "training_args.bin")
    for name, save in (
        ("model.pt", torch.save),
        ("pytorch_model.bin", torch.save),
        ("model.safetensors", save_file),
    ):
        save(net.state_dict(), tmp_path / name)
        found = checkpoints.read_network(tmp_path)
        assert found.tensors.keys() == {"weight", "bias"} and name in found.kind
        assert {name.partition(": ")[0] for name in found.left_out} >= {"optimizer.pt"}
        assert torch.equal(found.tensors["weight"], net.weight)
    files = {path.name for path in tmp_path.iterdir()} - {"model.safetensors"}
    assert found.left_out.keys() == files


def test_an_unreadable_file_is_omitted_if_it_has_no_weights_and_refused_if_it_may(tmp_path):
    torch.save(ONE, tmp_path / "model.pt")
    torch.save(Arguments(), tmp_path / "args.pt")
    torch.save([Arguments(), torch.zeros(3, dtype=torch.uint8)], tmp_path / "rng.pt")
    torch.save(Arguments(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = checkpoints.read(tmp_path)
    assert found.tensors.keys() == ONE.keys()
    assert found.left_out.keys() == {"args.pt", "rng.pt", "old.pt"}
    assert all("pickled code" in why for why in found.left_out.values())
    for zipped in (True, False):
        torch.save([Arguments(), TWO], tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"b\.pt.*may hold weights.*not omitted") as error:
            checkpoints.read(tmp_path)
        assert "weights_only" not in str(error.value)
    (tmp_path / "b.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:700])  # damaged
    with pytest.raises(ValueError, match=r"b\.pt"):
        checkpoints.read(tmp_path)


def test_pickled_arrays_may_be_weights(tmp_path):
    torch.save(ONE, tmp_path / "model.pt")
    with (tmp_path / "b.pt").open("wb") as file:
        pickle.dump([Arguments(), np.random.default_rng(0).normal(size=(99, 99))], file, protocol=2)
    with pytest.raises(ValueError, match=r"b\.pt.*not omitted"):
        checkpoints.read(tmp_path)


def test_names_count_in_any_case_and_hidden_files_do_not(sharded):
    (sharded / "._model.safetensors").write_bytes(b"what macOS leaves beside a file")
    upper = {name: name.upper() for name in (A, B, INDEX)}
    for name, other in upper.items():
        (sharded / name).rename(sharded / other)
    write_index(sharded, {name: upper[shard] for name, shard in MAP.items()}, upper[INDEX])
    for path in (sharded, sharded / upper[INDEX]):
        assert checkpoints.read(path).tensors.keys() == MAP.keys()
    (sharded / upper[INDEX]).unlink()
    torch.save(ONE, sharded / "EXTRA.PT")
    found = checkpoints.read(sharded)
    assert found.tensors.keys() == MAP.keys() and found.left_out.keys() == {"EXTRA.PT"}
    (sharded / upper[A]).unlink()
    with pytest.raises(ValueError, match=f"lacks {upper[A]}"):
        checkpoints.read(sharded)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_a_file_with_the_same_tensors_under_a_prefix_is_an_error(tmp_path, prefix):
    torch.save(ONE, tmp_path / "model.pt")
    torch.save({prefix + name: t for name, t in ONE.items()}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"files with the same tensors.*pass one"):
        checkpoints.read(tmp_path)


def test_averages_and_moments_in_files_of_their_own_are_left_out(tmp_path):
    save_file(ONE, tmp_path / "model.safetensors")
    save_file({f"ema.{name}": t + 1 for name, t in ONE.items()}, tmp_path / "b.safetensors")
    save_file({"state.0.sum": ONE["l0.weight"] + 1}, tmp_path / "optimizer.safetensors")
    found = checkpoints.read_network(tmp_path)
    assert found.tensors.keys() == ONE.keys() and len(found.left_out) == 2


def test_a_file_that_was_not_fetched_is_not_omitted(tmp_path):
    torch.save(TWO, tmp_path / "other.pt")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a Git LFS pointer.*not omitted"):
        checkpoints.read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("gone")
    with pytest.raises(ValueError, match=r"is a link to gone.*not omitted"):
        checkpoints.read(tmp_path)


def test_the_folder_of_another_trainer_is_no_run_of_ours_and_its_folders_are_named(tmp_path):
    for number in (10, 20):
        (tmp_path / f"checkpoint-{number}").mkdir()
        save_file(ONE, tmp_path / f"checkpoint-{number}" / "model.safetensors")
    with pytest.raises(ValueError, match="pass one of its folders checkpoint-10, checkpoint-20"):
        checkpoints.read(tmp_path)
    save_file(ONE, tmp_path / "model.safetensors")
    found = checkpoints.read(tmp_path)
    assert found.tensors.keys() == ONE.keys()
    assert found.left_out.keys() == {"checkpoint-10/", "checkpoint-20/"}


@pytest.mark.parametrize("name", ["consolidated.safetensors", "consolidated.00.safetensors"])
def test_a_consolidated_file_is_not_counted_twice(sharded, name):
    (sharded / INDEX).unlink()
    save_file({"layers.0": ONE["l0.weight"], "layers.1": TWO["l1.weight"]}, sharded / name)
    found = checkpoints.read(sharded)
    assert found.tensors.keys() == MAP.keys() and found.left_out.keys() == {name}
    for shard in (A, B):
        (sharded / shard).unlink()
    assert len(checkpoints.read(sharded).tensors) == 2  # alone it is the network
    save_file(ONE | TWO, sharded / "model.safetensors")
    found = checkpoints.read(sharded)
    assert found.tensors.keys() == MAP.keys() and found.left_out.keys() == {name}


def test_a_name_in_two_files_is_an_error_that_names_both(tmp_path):
    save_file(ONE | TWO, tmp_path / "model.safetensors")
    save_file(ONE, tmp_path / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"l0\.weight is in model.fp16\S+ and in model\.safet"):
        checkpoints.read(tmp_path)


def test_two_sets_of_shards_are_an_error(sharded):
    (sharded / INDEX).unlink()
    save_file(ONE, sharded / "model-00001-of-00003.safetensors")
    with pytest.raises(ValueError, match="2 sets of shards"):
        checkpoints.read(sharded)


# -- files that are no files, other formats ---------------------------------------------------


def test_pipes_devices_sockets_and_lost_links_are_not_opened(sharded):
    os.mkfifo(sharded / "pipe.safetensors")
    (sharded / "lost").symlink_to(sharded / "gone")
    with socket.socket(socket.AF_UNIX) as server:
        old = os.getcwd()
        os.chdir(sharded)  # the path of a socket must be short
        try:
            server.bind("s")
        finally:
            os.chdir(old)
        for path in (sharded / "pipe.safetensors", sharded / "s", "/dev/zero"):
            with pytest.raises(ValueError, match="not a regular file"):
                checkpoints.read(checkpoints.Path(path))
    with pytest.raises(FileNotFoundError, match="is a link to"):
        checkpoints.read(sharded / "lost")
    assert "pipe.safetensors" in checkpoints.read(sharded).left_out
    (sharded / INDEX).unlink()
    assert checkpoints.read(sharded).left_out == {"pipe.safetensors": "not a regular file"}
    write_index(sharded, MAP | {"l1.weight": "pipe.safetensors"})
    with pytest.raises(ValueError, match="not a regular file"):
        checkpoints.read(sharded)


def write_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


FOREIGN = {
    "a.npz": (lambda p: np.savez(p, a=np.ones(3)), r"NumPy archive.*numpy\.load"),
    "a.npy": (lambda p: np.save(p, np.ones(3)), r"NumPy array.*from_numpy"),
    "a.gguf": (lambda p: p.write_bytes(b"GGUF\3\0\0\0"), "GGUF.*dequantise"),
    "a.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "HDF5.*Keras"),
    "a.tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(50)), "TensorFlow Lite"),
    "a.onnx": (lambda p: p.write_bytes(b"\x08\x0a\x12\x07pytorch"), r"ONNX.*numpy_helper"),
    "a.msgpack": (lambda p: p.write_bytes(b"\x81\xa6params\x80"), "Flax.*msgpack_restore"),
    "a.keras": (lambda p: write_zip(p, "config.json", "model.weights.h5"), "Keras archive"),
    "a.zip": (lambda p: write_zip(p, "readme.txt"), "zip archive.*unpack"),
    "a.pt": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer.*git lfs pull",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_have_a_sentence_that_says_how_to_convert(name, tmp_path):
    write, message = FOREIGN[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.read(tmp_path / name)
    assert name in str(error.value) and "weights_only" not in str(error.value)


def test_programs_of_torch_have_their_sentences(tmp_path):
    write_zip(tmp_path / "a.pt2", "a/archive_format", "a/models/model.json", "a/data/x.pkl")
    with pytest.raises(ValueError, match=r"torch\.export\.load"):
        checkpoints.read(tmp_path / "a.pt2")
    write_zip(tmp_path / "s.pt", "s/data.pkl", "s/code/m.py", "s/constants.pkl")
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.jit\.load"):
        checkpoints.read(tmp_path / "s.pt")
