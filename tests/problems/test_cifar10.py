"""CIFAR-10: where it is found, what is refused, and what it becomes for training."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swsmix.problems import cifar10
from swsmix.problems.cifar10 import CIFAR10, cifar10_tensors, jitter


def arrays(files):
    """The slow twin of the reader: one image at a time, colour after colour."""
    found = {}
    for part in ("train", "test"):
        images, classes = [], []
        for name, data in files.items():
            for i in range(4) if ("test" in name) == (part == "test") else ():
                record = data[3073 * i : 3073 * (i + 1)]
                classes.append(record[0])
                images.append([list(record[1 + 1024 * c : 1025 + 1024 * c]) for c in range(3)])
        found[f"x_{part}"] = np.array(images, np.uint8).reshape(-1, 3, 32, 32)
        found[f"y_{part}"] = np.array(classes)
    return found


def put(folder, files, kind):
    if kind == "npz":
        np.savez(folder / "cifar10.npz", **arrays(files))
    elif kind == "folder":
        (folder / "cifar-10-batches-bin").mkdir()
        for name, data in files.items():
            (folder / "cifar-10-batches-bin" / name).write_bytes(data)
    else:
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def same(images, files):
    return all(
        np.array_equal(getattr(images, key).numpy(), array) for key, array in arrays(files).items()
    )


kinds = pytest.mark.parametrize("kind", ["npz", "folder", "archive"])


@kinds
def test_each_form_of_the_data_is_read_alike(few, tmp_path, monkeypatch, kind):
    put(tmp_path, few, kind)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    images = cifar10.cifar10(mirrors=[])
    assert same(images, few)
    assert images.x_train.dtype == torch.uint8 and images.y_train.dtype == torch.int64


@kinds
def test_other_data_are_refused(few, tmp_path, monkeypatch, kind):
    data = bytearray(few["data_batch_3.bin"])
    data[700] ^= 1
    put(tmp_path, {**few, "data_batch_3.bin": bytes(data)}, kind)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not hold CIFAR-10: needs data_batch_3.bin of MD5"):
        cifar10.cifar10(mirrors=[])


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "lacking"])
@kinds
def test_damaged_files_are_named_with_what_to_do(few, tmp_path, monkeypatch, kind, damage):
    if damage == "lacking":
        few = {name: data for name, data in few.items() if name != "test_batch.bin"}
    put(tmp_path, few, kind)
    path = next(p for p in sorted(tmp_path.rglob("*"), reverse=True) if p.is_file())
    if damage != "lacking":
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:-100], "empty": b"", "text": b"hello " * 900}[damage])
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not hold CIFAR-10.*replace it, or delete it"):
        cifar10.cifar10(mirrors=[])


def test_the_archive_is_downloaded_once(few, tmp_path, monkeypatch, serve):
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    put(shelf, few, "archive")
    path = shelf / "cifar-10-binary.tar.gz"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "_MD5_OF_ARCHIVE", md5)
    mirror = serve(shelf)
    assert same(cifar10.cifar10(mirrors=[mirror], cache=cache), few)
    path.unlink()
    assert same(cifar10.cifar10(mirrors=[mirror], cache=cache), few)


def test_where_there_is_none_the_error_says_what_was_tried(few, tmp_path, monkeypatch):
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Tried:\n.*no cifar10.npz.*\n.*SWSMIX_DATA"):
        cifar10.cifar10(mirrors=[])


def drawn(n=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return CIFAR10(x, torch.arange(n) % 10, x[:6].clone(), torch.arange(6))


@pytest.mark.parametrize("seed", [None, 3])
def test_training_images_have_mean_0_and_variance_1_and_the_rest_the_same_scale(seed):
    images = drawn()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    data = cifar10_tensors(images, num_validation=10, generator=generator, dtype=torch.float64)
    assert data.x_train.mean((0, 2, 3)).abs().max() < 1e-9
    assert (data.x_train.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-9
    every = (
        torch.cat([data.x_train, data.x_validation]),
        torch.cat([data.y_train, data.y_validation]),
    )
    order = every[1] if seed is None else None
    assert order is None or torch.equal(order, images.y_train)
    # One line for each colour takes pixels to numbers, in all three parts.
    for colour in range(3):
        x = images.x_test[:, colour].double().flatten()
        y = data.x_test[:, colour].flatten()
        slope, start = np.polyfit(x.numpy(), y.numpy(), 1)
        assert torch.allclose(slope * x + start, y, atol=1e-9)
        pixels = every[0][:, colour].sub(start).div(slope).round()
        assert sorted(pixels.sum((1, 2)).tolist()) == sorted(
            images.x_train[:, colour].double().sum((1, 2)).tolist()
        )


@pytest.mark.parametrize("number", [-1, 40])
def test_as_many_validation_images_as_there_are_is_an_error(number):
    with pytest.raises(ValueError, match=f"needs 0 to 39 validation images.*got {number}"):
        cifar10_tensors(drawn(), num_validation=number)


@given(st.integers(0, 3), st.integers(0, 99), st.booleans())
def test_a_jittered_image_is_one_of_those_that_may_come(shift, seed, channels_last):
    x = torch.rand(5, 3, 6, 7)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y = jitter(x, shift=shift, generator=torch.Generator().manual_seed(seed))
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert y.shape == x.shape and y.is_contiguous(memory_format=form)
    wide = torch.nn.functional.pad(x, (shift,) * 4)
    for image, big in zip(y, wide, strict=True):
        moves = [
            big[:, a : a + 6, b : b + 7] for a in range(2 * shift + 1) for b in range(2 * shift + 1)
        ]
        assert any(torch.equal(image, each) or torch.equal(image, each.flip(2)) for each in moves)


def test_all_moves_come_about_equally_often():
    x = torch.zeros(9000, 1, 9, 9)
    x[:, :, 4, 3] = 1  # not in the middle: a mirrored one is told apart
    y = jitter(x, shift=1, generator=torch.Generator().manual_seed(0))
    count = y.sum((0, 1))
    assert (count > 0).sum() == 18 - 3  # columns 2 to 4 and 4 to 6: one is shared
    for row in (3, 4, 5):
        assert (count[row, [2, 3, 5, 6]] - 500).abs().max() < 100
        assert abs(count[row, 4] - 1000) < 150


def test_a_generator_says_what_comes():
    x = torch.rand(20, 3, 8, 8)
    one, two = (jitter(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
