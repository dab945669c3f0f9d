"""Nothing has changed: today's code against the golden files, see golden/make.py."""

import shutil

import numpy as np
import pytest
import torch
from golden import compressed_files, drawings, make, run_folders, stored

from swsmix.codec import decode, encode, load_compressed

FILES = sorted(path.stem for path in (stored.HERE / "codec").glob("*.sws"))


def known_then(found):
    """Without what priors have kept since: the EM steps taken, the weights' std at the start."""
    return {k: v for k, v in found.items() if not k.endswith((".steps", ".start_std"))}


def close(found, golden):
    """The same keys in the same order; numbers up to rounding, all else the same."""
    found = known_then(found)
    assert list(found) == list(golden)
    for key, wanted in golden.items():
        if all(isinstance(v, float) for v in wanted):
            np.testing.assert_allclose(found[key], wanted, rtol=1e-6, atol=1e-6, err_msg=key)
        else:
            assert found[key] == wanted, key


def of_run(name):
    return {k: v for k, v in stored.read("runs").items() if k.startswith(f"{name}/")}


def test_seven_files_are_there():
    assert len(FILES) == 7


@pytest.mark.parametrize("name", FILES)
def test_encoding_gives_the_same_bytes(name):
    tensors = compressed_files.load_tensors(stored.HERE / "codec" / f"{name}.safetensors")
    assert encode(tensors) == (stored.HERE / "codec" / f"{name}.sws").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_decoding_gives_the_same_tensors(name):
    path = stored.HERE / "codec" / f"{name}.sws"
    wanted = compressed_files.load_tensors(path.with_suffix(".safetensors"))
    for found in (decode(path.read_bytes()), load_compressed(path)):
        assert list(found) == list(wanted)
        for key, t in found.items():
            assert (t.dtype, t.shape) == (wanted[key].dtype, wanted[key].shape), key
            assert bits(t) == bits(wanted[key]), key


def bits(t):
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", run_folders.RUNS)
def test_a_run_folder_of_then_is_read_restored_and_continued(name, tmp_path):
    path = tmp_path / name
    shutil.copytree(stored.HERE / "runs" / name, path)
    found = (
        run_folders.loaded(name, path)
        | run_folders.restored(name, path)
        | run_folders.resumed(name, path)
    )
    close(found, of_run(name))


@pytest.mark.parametrize("name", run_folders.RUNS)
def test_a_run_made_now_is_that_of_then(name, tmp_path):
    path = tmp_path / name
    run_folders.trained(name, path, run_folders.EPOCHS)
    shutil.copy(stored.HERE / "runs" / name / "config.toml", path)
    found = run_folders.loaded(name, path)
    close(found, {key: value for key, value in of_run(name).items() if key in found})
    files = [
        sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
        for folder in (path, stored.HERE / "runs" / name)
    ]
    assert files[0] == files[1]


def test_the_keys_of_a_priors_state_are_the_same():
    assert list(known_then(make.keys()).items()) == list(stored.read("keys").items())


def test_the_papers_tables_are_the_same_and_those_committed():
    texts = make.indices()
    assert make.digests(texts) == stored.read("tables")
    for name, text in texts.items():
        assert text == (make.FIGURES / name / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_same_numbers_are_drawn():
    found, golden = drawings.drawings(), stored.read("drawings")
    assert list(found) == list(golden)
    for key, wanted in golden.items():
        assert found[key][:2] == wanted[:2], key  # how many, and how many finite
        size = abs(wanted[3])  # their root mean square
        np.testing.assert_allclose(
            found[key][2:], wanted[2:], rtol=1e-6, atol=1e-6 * size, err_msg=key
        )
