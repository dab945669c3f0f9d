"""State_dicts of others: from safetensors, or from torch files without unpickling anything else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swsmix.runs import replacing

# Where training scripts keep the network's state in their checkpoints.
_KEYS = ("state_dict", "model_state_dict", "model", "network", "net", "module")


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state_dict from a `.safetensors` file, or one that `torch.save` wrote.

    Args:
        path: the file. A torch file is read with `weights_only=True`; the state may lie in it
            under "state_dict", "model" or the like.

    Returns:
        name -> tensor, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds something other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held: Any = torch.load(path, weights_only=True, map_location="cpu")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {path} as tensors: {reason}") from None
    for key in _KEYS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held:
        raise ValueError(f"{path} holds {type(held).__name__}, not a state_dict of tensors")
    other = {str(n): type(t).__name__ for n, t in held.items() if not isinstance(t, Tensor)}
    if other:
        raise ValueError(f"{path} holds more than tensors, {other}: save model.state_dict() alone")
    return {str(n): t for n, t in held.items()}


def write_state(path: str | os.PathLike[str], state: dict[str, Tensor]) -> None:
    """Write a state_dict, whole or not at all: as safetensors, or by `torch.save` for `.pt`.

    Args:
        path: the file, `.safetensors`, `.pt` or `.pth`.
        state: name -> tensor.

    Raises:
        ValueError: for another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{path} must end in .safetensors, .pt or .pth")
    with replacing(path) as temporary:
        if suffix == ".safetensors":
            save_file({n: t.contiguous() for n, t in state.items()}, temporary)
        else:
            torch.save(state, temporary)
