"""The methods that pretrained.py compares: a network and a setting to the bytes of a whole file.

    python figures/pretrained_methods.py

prints them. A file holds every number of the network. Tensors of fewer than two dimensions are in
float16 in all files that are written by our codec, those of the peers too, unless it is said
otherwise; NNCodec rounds them in its own way.
"""

import contextlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from pretrained_networks import MissingError, Trained
from torch import Tensor

from swsmix.codec import decode, encode
from swsmix.compression import quantize_, quantize_state
from swsmix.compression.codebooks import snapped
from swsmix.compression.compensation import Codebook, compensate, factor
from swsmix.compression.feeding import batches_of
from swsmix.compression.layerwise import Chosen, matrix, pieces_of, put_, unit_of
from swsmix.compression.uses import moments, scout

State = dict[str, Tensor]
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of a row's range, of which the best is taken
DAMPING = 0.1  # of H, as in quantize_
TOKEN_BITS = 4  # of an embedding under GPTQ, at least: no H is known there


class File(NamedTuple):
    """What a method made.

    Attributes:
        size: bytes of the whole file.
        state: the network that it holds.
        more: what else is worth noting: name -> number or text.
    """

    size: int
    state: State
    more: dict[str, float | str]


def small(state: State) -> State:
    """Tensors of fewer than two dimensions as float16 holds them."""
    return {n: t if t.ndim >= 2 else t.half().to(t.dtype) for n, t in state.items()}


def ours(state: State) -> File:
    """The network in our format; what is measured is what the file gives back."""
    data = encode(state)
    return File(len(data), decode(data), {})


# --- nothing asked ---


def dense(trained: Trained, setting: str) -> File:
    state = trained.state()
    return File(sum(t.nbytes for t in state.values()), state, {})


def float16(trained: Trained, setting: str) -> File:
    """All of it in float16, by zstd at its highest level."""
    state = {n: t.half() for n, t in trained.state().items()}
    raw = b"".join(t.numpy().tobytes() for t in state.values())
    if setting == "zstd":
        if find_spec("zstandard") is None:
            raise MissingError("zstd is not installed (pip install zstandard)")
        import zstandard

        raw = zstandard.ZstdCompressor(level=22).compress(raw)
    return File(len(raw), {n: t.float() for n, t in state.items()}, {})


def data_free(trained: Trained, setting: str) -> File:
    """`quantize_state`; the default, `swsmix compress FILE`, leaves small tensors exact."""
    if setting == "default":
        state = trained.state()
        return ours(snapped(state, quantize_state(state)))
    state = small(trained.state())
    return ours(snapped(state, quantize_state(state, loss=float(setting))))


def k_means(trained: Trained, setting: str) -> File:
    """k-means for each tensor, in our format."""
    state = small(trained.state())
    return ours(snapped(state, quantize_state(state, int(setting), method="kmeans")))


# --- uniform grids for each row ---


def grid(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step and lowest value of a grid for each row (m, n), of the least squared error."""
    middle, reach = (rows.amax(1) + rows.amin(1)) / 2.0, (rows.amax(1) - rows.amin(1)) / 2.0
    best = torch.full_like(middle, torch.inf)
    chosen = torch.ones_like(middle)
    for clip in CLIPS:
        step = (2.0 * clip * reach / (2**bits - 1)).clamp_min(1e-12).half().float().clamp_min(6e-8)
        low = (middle - clip * reach).half().float()
        code = ((rows - low[:, None]) / step[:, None]).round().clamp(0, 2**bits - 1)
        error = (low[:, None] + step[:, None] * code - rows).square().sum(1)
        chosen = torch.where(error < best, clip, chosen)
        best = torch.minimum(best, error)
    step = (2.0 * chosen * reach / (2**bits - 1)).clamp_min(1e-12).half().float().clamp_min(6e-8)
    return step, (middle - chosen * reach).half().float()


def gridded(state: State, codes: dict[str, tuple[Tensor, Tensor, Tensor, int]]) -> File:
    """The smaller of two files: packed numbers of so many bits, or the numbers coded by us.

    Args:
        state: the network with its values on the grids.
        codes: name -> number of each value, step and lowest value of each row, bits.
    """
    rest = sum(t.numel() * (2 if t.ndim < 2 else 4) for n, t in state.items() if n not in codes)
    packed = rest + sum(-(-c.numel() * b // 8) + 4 * len(s) for c, s, _, b in codes.values())
    table = {n: t for n, t in state.items() if n not in codes}
    for name, (code, step, low, _) in codes.items():
        table |= {name: code, f"{name}.step": step.half(), f"{name}.low": low.half()}
    coded = len(encode(table))
    return File(min(packed, coded), state, {"packed": packed, "coded": coded})


def rounded(trained: Trained, setting: str) -> File:
    """Each weight to the nearest value of its row's grid."""
    state, codes, bits = small(trained.state()), {}, int(setting)
    for name, t in state.items():
        if t.ndim >= 2:
            rows = t.flatten(1)
            step, low = grid(rows, bits)
            code = ((rows - low[:, None]) / step[:, None]).round().clamp(0, 2**bits - 1)
            codes[name] = code, step, low, bits
            state[name] = (low[:, None] + step[:, None] * code).reshape(t.shape)
    return gridded(state, codes)


def gptq(trained: Trained, setting: str) -> File:
    """GPTQ (Frantar et al. 2022): our H, column loop and correction of biases, on fixed grids.

    Layers follow each other as in `quantize_`. All inputs make H, none is held out.
    """
    model, bits = trained.model, int(setting)
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2}
    parameters = dict(model.named_parameters())
    used, held = batches_of(trained.inputs, torch.device("cpu"))
    batches = [*used, *held]
    codes = {}
    for name, layer in scout(model, weights, batches).items():
        transposed = layer.transposed
        w = matrix(parameters[name].detach(), transposed)
        own = bits if layer.products else max(bits, TOKEN_BITS)
        step, low = grid(w, own)
        scaled = (w - low[:, None]) / step[:, None]
        numbers = torch.arange(2**own, dtype=torch.float64)
        book = Codebook(numbers, torch.zeros_like(numbers), 0.0)
        code = scaled.round().clamp(0, 2**own - 1).long()
        pieces = []
        if layer.products and not layer.note:
            seen = moments(model, layer, weights, batches, 0)
            pieces = pieces_of(layer, seen, seen)
            unit = unit_of(pieces)
            for piece in pieces:
                by = factor(piece.hessian, DAMPING, unit)
                code[piece.rows] = compensate(scaled[piece.rows], by, book, clipped=False).which
        values = low[:, None] + step[:, None] * code
        put_(parameters, layer, Chosen(book, code, values), pieces, "compensated")
        codes[name] = code.float(), step, low, own
    return gridded(small(trained.state()), codes)


# --- with inputs ---


def with_inputs(trained: Trained, setting: str) -> File:
    """`quantize_` at so many bits per weight, or by default."""
    asked = {} if setting == "default" else {"bits": float(setting)}
    report = quantize_(trained.model, trained.inputs, **asked)
    file = ours(small(trained.state()))
    more = {"bits": report.bits, "error": report.error, "plain_error": report.plain_error,
            "attempts": len(report.tried), "compensated": str(report.compensated)}  # fmt: skip
    return file._replace(more=more)


# --- the standard ---


def nncodec(trained: Trained, setting: str) -> File:
    """NNCodec (Becking et al. 2023), ISO/IEC 15938-17: DeepCABAC with dependent quantisation.

    The setting is qp, whose 4 steps double the step of the grid, and `opt` where NNCodec chooses a
    qp for each tensor from it.
    """
    if find_spec("nncodec") is None:
        raise MissingError("NNCodec is not installed (pip install nncodec)")
    import nncodec.nn as codec

    qp, _, how = setting.partition(" ")
    state = trained.state()
    arrays = {n: t.numpy().astype(np.float32) for n, t in state.items()}
    arguments = {"qp": int(qp), "opt_qp": how == "opt", "verbose": False}
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments["results"] = folder  # it writes its file besides
        data = codec.encode(arrays, arguments)
        back = codec.decode(data, arguments)
    found = {n: torch.from_numpy(np.array(a, np.float32)) for n, a in back.items()}
    return File(len(data), {n: found[n].reshape(t.shape) for n, t in state.items()}, {})


METHODS: dict[str, Callable[[Trained, str], File]] = {
    "float32": dense,
    "float16": float16,
    "k-means": k_means,
    "rtn": rounded,
    "gptq": gptq,
    "nncodec": nncodec,
    "swsmix": data_free,
    "swsmix with inputs": with_inputs,
}


if __name__ == "__main__":
    for name, method in METHODS.items():
        print(f"{name}: {(method.__doc__ or 'as it is').splitlines()[0]}")
