"""A snapped network as an ONNX file whose weights are indices into codebooks.

A tensor of k values becomes two constants and two nodes, which any ONNX runtime has:

    index (uint4 where k <= 16, uint8 where k <= 256) -> Cast -> Gather(codebook) -> the tensor

The codebook holds the values themselves, so that the network computes with the same weights to the
last bit. Tensors of more values, and those too small to gain by it, stay as they are.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swsmix._files import replacing

_MOST = 256  # values of a codebook
_OVERHEAD = 200  # bytes of the two nodes and their names, about
_OPSET = 21  # the first with uint4
_LIMIT = 2**31  # bytes of a protobuf
_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class OnnxReport:
    """What `export_onnx` has written.

    Attributes:
        size_bytes: the size of the file.
        float_bytes: the size that it would have without codebooks.
        num_values: tensor -> the number of its values, for those with a codebook.
        as_they_are: the tensors of at least two dimensions that have none.
        inputs: the names of the file's inputs, those of the arguments of `forward`.
    """

    size_bytes: int
    float_bytes: int
    num_values: dict[str, int]
    as_they_are: tuple[str, ...]
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        """Three or four lines."""
        values = ", ".join(f"{name} ({k})" for name, k in self.num_values.items())
        lines = [
            f"{self.size_bytes:,} bytes, {self.float_bytes:,} without codebooks",
            f"inputs: {', '.join(self.inputs)}",
            f"tensors with a codebook (values): {values}",
        ]
        if self.as_they_are:
            lines.append(f"tensors as they are: {', '.join(self.as_they_are)}")
        return "\n".join(lines)


@torch.no_grad()
def export_onnx(
    path: str | os.PathLike[str],
    module: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    *,
    state: Mapping[str, Tensor] | None = None,
    dynamic_batch: bool = True,
) -> OnnxReport:
    """Write a snapped network to an ONNX file, its weights as indices and codebooks.

    Call it after `snap_`, `compress_` or `quantize_`, or give the `state` of `load_compressed`.
    The graph is that of `torch.onnx.export`, in evaluation mode. It needs the extra `onnx`.

    Args:
        path: the file; written whole or not at all.
        module: the network, which stays as it is.
        example_inputs: its input, or its positional inputs, of the shapes that it will get.
        state: a state_dict to export in place of the network's own.
        dynamic_batch: let the first axis of every input have any length.

    Returns:
        The sizes, and which tensors have a codebook.

    Raises:
        ImportError: if onnx or onnxscript is not installed.
        TypeError: if the example inputs are not tensors.
        ValueError: if no tensor has few values, the network cannot be traced, or it is too large
            for one ONNX file.

    Example:
        >>> from swsmix import MixturePrior, snap_
        >>> net = nn.Linear(100, 100)
        >>> index = snap_(MixturePrior(net, num_components=16))
        >>> report = export_onnx("net.onnx", net, torch.randn(2, 100))  # doctest: +SKIP
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(each, Tensor) for each in inputs):
        kinds = [type(each).__name__ for each in inputs]
        raise TypeError(
            f"example_inputs must be a tensor or a sequence of tensors, got {kinds}; give the "
            "positional inputs of the network's forward"
        )
    _check_packages()
    size = sum(t.nbytes for t in module.state_dict().values())
    if size >= _LIMIT:
        raise ValueError(
            f"a network to export must be smaller than {_LIMIT:,} bytes, the most that one ONNX "
            f"file holds, got {size:,}: export its parts"
        )
    with replacing(path) as temporary:
        own = copy.deepcopy(module).cpu().eval()
        if state is not None:
            own.load_state_dict(dict(state))
        if short := [n for n, t in own.state_dict().items() if t.dtype == torch.bfloat16]:
            raise ValueError(
                "a network to export must be in float32 or float16, which ONNX Runtime computes in "
                f"on a CPU, got bfloat16 in {short[:3]}: export model.float(), and the inputs too"
            )
        model = _graph(own, tuple(each.detach().cpu() for each in inputs), dynamic_batch)
        float_bytes = model.ByteSize()
        num_values, as_they_are = _look_up_(model)
        if not num_values:
            raise ValueError(
                f"a network to export must have weights of at most {_MOST} values per tensor, got "
                f"none among {list(as_they_are)}: snap it first (snap_, compress_, quantize_), or "
                "use torch.onnx.export for a network of floats"
            )
        data = model.SerializeToString()
        temporary.write_bytes(data)
    names = tuple(each.name for each in model.graph.input)
    return OnnxReport(len(data), float_bytes, num_values, tuple(as_they_are), names)


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"an export to ONNX must have {' and '.join(_PACKAGES)}, got no "
            f"{' and no '.join(missing)}: pip install swsmix[onnx]"
        )


def _graph(module: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> Any:
    """The network as ONNX, its tensors under their own names."""
    shapes = None
    if dynamic_batch:
        shapes = tuple({0: torch.export.Dim.DYNAMIC} if each.ndim else {} for each in inputs)
        # An axis of length 1 would be taken for a constant.
        inputs = tuple(torch.cat([e, e]) if e.ndim and len(e) == 1 else e for e in inputs)
    try:
        with _silent():
            # Optimised, a batch norm would be multiplied into the weights before it.
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        batch = ", or give dynamic_batch=False where it works for one length of the batch alone"
        raise ValueError(
            "a network to export must be one that torch.onnx.export can trace, got "
            f"{type(module).__name__}: {_first_line(error)}: rewrite that part"
            f"{batch * dynamic_batch}"
        ) from error
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del each.metadata_props[:]  # which line of Python a node is from, by kilobytes
    return model


def _first_line(error: BaseException) -> str:
    """What the innermost cause says."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}"


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the exporter says of itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _look_up_(model: Any) -> tuple[dict[str, int], list[str]]:
    """Replace the tensors of few values in a graph by lookups.

    Returns:
        Name -> number of values; and the matrices that have too many.
    """
    import onnx

    num_values, as_they_are, nodes, constants = {}, [], [], []
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        found = _codebook(array)
        if found is None:
            constants.append(tensor)
            if array.ndim > 1:
                as_they_are.append(tensor.name)
            continue
        values, index = found
        name, kind, data = tensor.name, onnx.TensorProto.UINT8, index.tobytes()
        if len(values) <= 16:  # two to a byte, the first in the low half
            even = np.append(index, np.zeros(len(index) % 2, index.dtype))
            kind, data = onnx.TensorProto.UINT4, (even[::2] | even[1::2] << 4).tobytes()
        packed = onnx.helper.make_tensor(f"{name}.index", kind, array.shape, data, raw=True)
        codebook = onnx.numpy_helper.from_array(values, f"{name}.codebook")
        constants += [packed, codebook]
        wide = f"{name}.index.int32"  # the type that Gather asks for
        nodes += [
            onnx.helper.make_node("Cast", [packed.name], [wide], to=onnx.TensorProto.INT32),
            onnx.helper.make_node("Gather", [codebook.name, wide], [name]),
        ]
        num_values[name] = len(values)
    nodes += model.graph.node
    for field, new in ((model.graph.initializer, constants), (model.graph.node, nodes)):
        kept = [type(each).FromString(each.SerializeToString()) for each in new]
        del field[:]
        field.extend(kept)
    onnx.checker.check_model(model)
    return num_values, as_they_are


def _codebook(array: Any) -> tuple[Any, Any] | None:
    """The values of a tensor and the index of each element, if it gains by having them."""
    if array.dtype.kind not in "fV" or array.size < 2:
        return None
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    if len(np.unique(bits[: 16 * _MOST])) > _MOST:
        return None  # without sorting all
    values, index = np.unique(bits, return_inverse=True)  # by bits: -0.0 and nan stay themselves
    size = len(values) * array.dtype.itemsize + array.size // (2 if len(values) <= 16 else 1)
    if len(values) > _MOST or size + _OVERHEAD > array.nbytes:
        return None
    return values.view(array.dtype), index.astype(np.uint8)
