"""Damaged files that pass the outer checks: checksums, lengths and archives are mended.

Every mutator takes a random generator (numpy), and returns a file's bytes.
"""

import io
import json
import warnings
import zipfile
import zlib

import numpy as np
import torch
from safetensors.torch import load, save

EXTREMES = (
    -1, 0, 1, 2, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**53 + 1, 2**62,
    2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**31), -(2**63), -(10**30),
)  # fmt: skip
NAMES = (
    "",
    ".",
    "..",
    "../up",
    "/etc/hostname",
    "a\0b",
    "weight",
    "0.weight",
    "é\ud7ff",
    "x" * 5000,
)


def choose(rng, options):
    return options[int(rng.integers(len(options)))]


def bytes_(data, rng, other=b""):
    """Flipped bits, extreme bytes, cuts, pieces twice or moved, a piece of another file."""
    bad = bytearray(data) or bytearray(1)
    kind = rng.integers(6)
    begin, end = (int(i) for i in np.sort(rng.integers(0, len(bad) + 1, 2)))
    if kind == 0:
        for _ in range(rng.integers(1, 5)):
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
    elif kind == 1:
        at = rng.integers(len(bad))
        bad[at : at + rng.integers(1, 9)] = bytes([choose(rng, (0, 1, 127, 128, 255))]) * 4
    elif kind == 2:
        del bad[begin:]
    elif kind == 3:
        bad[begin:end] = bad[begin:end] * int(choose(rng, (0, 2, 3)))
    elif kind == 4:
        piece = bytes(bad[begin:end])
        del bad[begin:end]
        at = rng.integers(len(bad) + 1)
        bad[at:at] = piece
    else:
        piece = (other or bytes(data))[: end - begin]
        bad[begin:end] = piece
    return bytes(bad)


def _number(value):
    data = bytearray()
    while value >= 0x80:
        data.append(0x80 | (value & 0x7F))
        value >>= 7
    return bytes(data + bytes([value]))


def compressed(data, rng, other):
    """A .sws file; the length of its table and its checksum are right."""
    tables, streams = zip(*(_parts(d) for d in (data, other)), strict=True)
    (table, stream), (other_table, other_stream) = zip(tables, streams, strict=True)
    kind = rng.integers(6)
    if kind in (0, 1, 2):
        table = bytes_(table, rng, other_table)
    if kind in (2, 3):
        stream = bytes_(stream, rng, other_stream)
        stream = stream[: len(stream) // 4 * 4]
    if kind == 4:  # an extreme number in the place of a byte
        at = int(rng.integers(len(table)))
        table = table[:at] + _number(abs(choose(rng, EXTREMES))) + table[at + 1 :]
    if kind == 5:
        stream = choose(rng, (other_stream, b"", b"\xff" * len(stream), bytes(len(stream))))
    body = data[:5] + _number(len(table)) + table + stream
    return body + zlib.crc32(body).to_bytes(4, "little")


def _parts(data):
    size = shift = 0
    at = 5
    while True:
        size |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return data[at : at + size], data[at + size : -4]


# -- JSON and Python values ---------------------------------------------------------------------


def _places(value, where=()):
    yield where
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*where, key))


def _replaced(value, where, change):
    """The value with `change` applied to the (container, key, inner) at a place."""
    if not where:
        return change(value)
    key, *rest = where
    if isinstance(value, tuple):
        return tuple(_replaced(list(value), where, change))
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = _replaced(value[key], rest, change)
    return copy


def tree(value, rng, extra=()):
    """A nested value with one place changed: extreme, of another type, renamed, cut, reordered."""
    where = choose(rng, list(_places(value)))
    simple = (*EXTREMES, *NAMES, 0.5, float("nan"), float("inf"), 1e308, True, None, [], {}, [[]])
    kind = rng.integers(6)

    def change(inner):
        if kind == 1 and isinstance(inner, dict) and inner:
            gone = choose(rng, list(inner))
            return {k: v for k, v in inner.items() if k != gone}
        if kind == 2 and isinstance(inner, dict) and inner:
            old, new = choose(rng, list(inner)), choose(rng, (*NAMES, *inner, 7))
            return {(new if k == old else k): v for k, v in inner.items()}
        if kind == 3 and isinstance(inner, dict | list | tuple) and inner:
            items = list(inner.items()) if isinstance(inner, dict) else list(inner)
            items = [items[i] for i in rng.permutation(len(items))]
            if isinstance(inner, dict):
                values = rng.permutation(len(items))
                return {k: items[j][1] for (k, _), j in zip(items, values, strict=True)}
            return items + items[:1]
        if kind == 4:
            for _ in range(int(choose(rng, (1, 60, 400)))):
                inner = [inner] if rng.integers(2) else {"x": inner}
            return inner
        return choose(rng, (*simple, *extra))

    return _replaced(value, where, change)


def json_(text, rng):
    """A JSON text: its values changed, a key twice, very deep, or its bytes changed."""
    kind = rng.integers(8)
    if kind == 0:
        return bytes_(text, rng)
    value = json.loads(text)
    if kind == 1 and isinstance(value, dict) and value:
        pairs = list(value.items())
        key = choose(rng, list(value))
        pairs.append((key, tree(value[key], rng)))
        return ("{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in pairs) + "}").encode()
    depth = int(choose(rng, (100, 100_000)))
    try:
        changed = json.dumps(tree(value, rng))
    except (TypeError, ValueError):
        changed = json.dumps(value)
    if kind == 2:
        numbers = [i for i, c in enumerate(changed) if c.isdigit()]
        at = int(choose(rng, numbers)) if numbers else 0
        changed = changed[:at] + "[" * depth + "]" * depth + changed[at + 1 :]
    return changed.encode()


# -- safetensors --------------------------------------------------------------------------------


def safetensors(data, rng, other=b""):
    """A safetensors file whose header has the length that it says."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    kind = rng.integers(6)
    if kind == 0:
        return abs(choose(rng, EXTREMES) % 2**64).to_bytes(8, "little") + header + body
    if kind == 1:
        body = bytes_(body, rng, other)
    elif kind == 2:
        return tensors(data, rng)
    else:
        header = json_(header, rng)
    return len(header).to_bytes(8, "little") + header + body


def metadata(data):
    """The metadata of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]).get("__metadata__", {})


def tensors(data, rng):
    """A whole safetensors file of other tensors or other metadata."""
    found, about = load(data), metadata(data)
    name = choose(rng, list(found))
    kind = rng.integers(5)
    if kind == 0 and about:
        key = choose(rng, list(about))
        about[key] = json_(about[key].encode(), rng).decode("utf-8", "replace")
    elif kind == 1:
        new = choose(rng, [*NAMES[:-1], *found, name.replace("/", "."), f"steps.{name}"])
        found[new.replace("\0", "")] = found.pop(name)
    elif kind == 2:
        del found[name]
    else:
        found[name] = tensor(found[name], rng)
    return save({n: t.contiguous() for n, t in found.items()}, about or None)


def tensor(t, rng):
    """Another tensor: of other values, shape or dtype."""
    kind = rng.integers(7)
    if kind == 0 and t.numel():
        flat = t.clone().reshape(-1)
        worst = choose(rng, (float("nan"), float("inf"), -1e308, 1e-320, -1.0, 0.0))
        if t.is_floating_point():
            flat[int(rng.integers(len(flat)))] = worst
        return flat.reshape(t.shape)
    if kind == 1:
        return t[:0] if t.ndim else t.reshape(1)
    if kind == 2:
        return t.reshape(-1)
    if kind == 3:
        return t[None]
    if kind == 4:
        dtypes = (torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8, torch.int8)
        return t.to(choose(rng, (*dtypes, torch.complex64, torch.float8_e4m3fn)))
    if kind == 5:
        return torch.cat([t, t]) if t.ndim else t
    return t.T.contiguous() if t.ndim == 2 else t.new_zeros((0, 3))


# -- torch.save ---------------------------------------------------------------------------------


def torch_values(value, rng):
    """A file of torch.save with one place of its contents changed."""
    huge = torch.zeros(1).expand(1 << 36)
    loop = []
    loop.append(loop)
    extra = (
        torch.zeros(0), torch.tensor(float("nan")), torch.zeros(3, dtype=torch.int8), huge, loop,
        torch.zeros(2, 2), torch.zeros(2, device="meta"), torch.zeros(3).to_sparse(), (), {1: 2},
        torch.zeros(2, 2).as_strided((2, 2), (0, 1)), torch.zeros(2, dtype=torch.complex64),
    )  # fmt: skip
    places = [w for w in _places(value) if isinstance(_at(value, w), torch.Tensor)]
    if places and rng.integers(3) == 0:
        changed = _replaced(value, choose(rng, places), lambda t: tensor(t, rng))
    else:
        changed = tree(value, rng, extra)
    buffer = io.BytesIO()
    torch.save(changed, buffer)
    return buffer.getvalue()


def _at(value, where):
    for key in where:
        value = value[key]
    return value


def archive(data, rng, other):
    """A zip archive of torch.save, some part of it changed; its own checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(io.BytesIO(other)) as file:
        foreign = [file.read(info) for info in file.infolist()]
    kind = rng.integers(7)
    at = int(rng.integers(len(parts)))
    name, content = parts[at]
    pickle_at = next(i for i, (n, _) in enumerate(parts) if n.endswith("data.pkl"))
    if kind == 0:
        parts.insert(int(rng.integers(len(parts))), (name, bytes_(content, rng)))
    elif kind == 1:
        parts = [parts[i] for i in rng.permutation(len(parts))]
    elif kind == 2:
        del parts[at]
    elif kind == 3:
        parts[at] = name, bytes_(content, rng, choose(rng, foreign))
    elif kind == 4:
        parts[at] = choose(rng, NAMES[1:]), content
    else:
        name, content = parts[pickle_at]
        parts[pickle_at] = name, _pickle(content, rng)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        warnings.simplefilter("ignore")  # a name twice
        for name, content in parts:
            file.writestr(name, content)
    return buffer.getvalue()


def _pickle(data, rng):
    """A pickle with an integer made extreme, an instruction twice or gone, or bytes changed."""
    import pickletools

    found = list(pickletools.genops(data))
    starts = [at for _, _, at in found] + [len(data)]
    numbers = [
        i for i, (code, _, _) in enumerate(found) if code.name in ("BININT", "BININT1", "BININT2")
    ]
    kind = rng.integers(4)
    if kind == 0 or not numbers:
        return bytes_(data, rng)
    if kind == 1:
        i = int(rng.integers(len(found)))
        piece = data[starts[i] : starts[i + 1]] * int(choose(rng, (0, 2)))
    else:
        i = choose(rng, numbers)
        value = choose(rng, EXTREMES)
        piece = b"\x8a\x10" + value.to_bytes(16, "little", signed=True)  # LONG1
    return data[: starts[i]] + piece + data[starts[i + 1] :]


def raw_tensors(data):
    """name -> dtype, shape and bytes, in a safetensors file: a reader of its own."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: (e["dtype"], tuple(e["shape"]), body[slice(*e["data_offsets"])])
        for name, e in header.items()
    }


def as_raw(t):
    """A tensor's dtype, shape and bytes, as `raw_tensors` gives them."""
    if t.layout != torch.strided:
        return str(t.layout), tuple(t.shape), b""
    raw = t.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if t.numel() else b""
    return dtype_name(t), tuple(t.shape), bytes(raw)


def dtype_name(t):
    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
        torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
        torch.float8_e4m3fn: "F8_E4M3",
    }  # fmt: skip
    return names.get(t.dtype, str(t.dtype))
