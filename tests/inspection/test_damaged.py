"""Files of torch.save whose archives and tensors are not what they seem: refused by a sentence."""

import io
import zipfile

import pytest
import torch

from swsmix.inspection import checkpoints

STATE = {"a.weight": torch.arange(24.0).reshape(4, 6), "b.weight": torch.ones(3, 3)}


def archive(change):
    """The bytes of a file of torch.save after `change` of its list of (name, content)."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as file:
        parts = [(info.filename, file.read(info)) for info in file.infolist()]
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as file:
        for name, content in change(parts):
            file.writestr(name, content)
    return changed.getvalue()


def of_record(parts, number, change):
    return [(n, change(c) if n.endswith(f"data/{number}") else c) for n, c in parts]


def test_a_rewritten_archive_is_read(tmp_path):
    path = tmp_path / "net.pt"
    for change in (lambda parts: parts, lambda parts: parts[:1] + parts[:0:-1]):
        path.write_bytes(archive(change))
        read = checkpoints.read(path).tensors
        assert all(torch.equal(read[n], t) for n, t in STATE.items())


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [0, 4, 35, 37, 95, 97])
def test_a_tensor_does_not_read_on_beyond_its_record(tmp_path, number, size):
    path = tmp_path / "net.pt"
    path.write_bytes(archive(lambda parts: of_record(parts, number, lambda c: (c * 9)[:size])))
    with pytest.raises(ValueError, match=r"net\.pt: it is damaged"):
        checkpoints.read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_is_there_once(tmp_path):
    path = tmp_path / "net.pt"
    for other in (lambda c: c, lambda c: c[:8], lambda c: bytes(len(c))):
        for where in (0, -1):

            def change(parts, other=other, where=where):
                name, content = next(p for p in parts if p[0].endswith("data/0"))
                parts.insert(where % (len(parts) + 1), (name, other(content)))
                return parts

            path.write_bytes(archive(change))
            with pytest.raises(ValueError, match=r"holds '\w+/data/0' twice"):
                checkpoints.read(path)


@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_that_is_only_huge_is_named_and_a_small_one_is_read(tmp_path, old):
    path = tmp_path / "net.pt"
    for size, fits in ((1 << 40, False), ((1 << 25) + 1, False), (100, True)):
        state = STATE | {"c.weight": torch.tensor([0.5]).expand(1, size)}
        torch.save(state, path, _use_new_zipfile_serialization=not old)
        if fits:
            assert checkpoints.read(path).tensors["c.weight"].eq(0.5).all()
            continue
        found = checkpoints.read(path)
        assert "c.weight" not in found.tensors and "expanded from 1" in found.left_out["c.weight"]
        with pytest.raises(ValueError, match=r"such as c\.weight: .* numbers expanded from 1;"):
            checkpoints.read_network(path)
