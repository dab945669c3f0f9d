"""Nothing has changed: today's code against the golden files, see golden/make.py."""

import pytest
import torch
from golden import make

from swsmix.codec import decode, encode, load_compressed

FILES = sorted(path.stem for path in (make.HERE / "codec").glob("*.sws"))


def test_seven_files_are_there():
    assert len(FILES) == 7


@pytest.mark.parametrize("name", FILES)
def test_encoding_gives_the_same_bytes(name):
    tensors = make.load_tensors(make.HERE / "codec" / f"{name}.safetensors")
    assert encode(tensors) == (make.HERE / "codec" / f"{name}.sws").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_decoding_gives_the_same_tensors(name):
    path = make.HERE / "codec" / f"{name}.sws"
    wanted = make.load_tensors(path.with_suffix(".safetensors"))
    for found in (decode(path.read_bytes()), load_compressed(path)):
        assert list(found) == list(wanted)
        for key, t in found.items():
            assert (t.dtype, t.shape) == (wanted[key].dtype, wanted[key].shape), key
            assert bits(t) == bits(wanted[key]), key


def bits(t):
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
