"""A trained network to few values and a small file.

    recipe       compress_: sparsify, quantise, snap, fine-tune, with training data
    targets      Target: how far the loss may rise, or how large the file may be
    codebooks    quantize_state: a codebook per tensor, without data
    rate         one price of a bit for all tensors: by bits, file size or distortion
    entropy_constrained  the values of one tensor at a price of a bit
    matrices     a tensor surveyed, and set to such values
    lost_rows    rows set to one value before a batch norm, which are warned of
    snap         snap_: each weight to its centre; snapped_state
    merging      merge_components: components that are nearly the same become one
    duplicates   the values of a file: components that describe the same weights share one
    centres      refine_, tie: the centres fitted to the data after snapping
    batch_norms  fold_batch_norms_: into the layers before them
    transforms   dead neurons folded, neurons sorted: the same outputs, fewer bytes
    report       snapping_report: what snapping changes, tensor by tensor
    export       export_onnx: indices and codebooks for ONNX runtimes
    streamed     a state_dict one tensor after another; `memory` that is given back
    saving       save_compressed; `swsmix.codec` has the format and load_compressed

`compress_` uses `phases`, `clusters` (of one tensor, between the phases), `straight_through`
(training with snapped answers), and for a target `search`, with `multiplier` (tau under a
constraint) and `spending` (cheaper values for snapped weights).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swsmix.codec import load_compressed as load_compressed
    from swsmix.compression.batch_norms import fold_batch_norms_ as fold_batch_norms_
    from swsmix.compression.centres import refine_ as refine_
    from swsmix.compression.centres import tie as tie
    from swsmix.compression.codebooks import quantize_state as quantize_state
    from swsmix.compression.export import OnnxReport as OnnxReport
    from swsmix.compression.export import export_onnx as export_onnx
    from swsmix.compression.inputs import InputsReport as InputsReport
    from swsmix.compression.inputs import quantize_ as quantize_
    from swsmix.compression.merging import merge_components as merge_components
    from swsmix.compression.recipe import Compressed as Compressed
    from swsmix.compression.recipe import Recipe as Recipe
    from swsmix.compression.recipe import compress_ as compress_
    from swsmix.compression.report import snapping_report as snapping_report
    from swsmix.compression.saving import save_compressed as save_compressed
    from swsmix.compression.snap import Quantized as Quantized
    from swsmix.compression.snap import assign as assign
    from swsmix.compression.snap import quantize as quantize
    from swsmix.compression.snap import snap_ as snap_
    from swsmix.compression.snap import snapped_state as snapped_state
    from swsmix.compression.targets import Reached as Reached
    from swsmix.compression.targets import Target as Target
    from swsmix.compression.targets import TargetError as TargetError

# Imported at the first use: `swsmix.snap_` needs neither the codec nor the training loop.
_HOME = {
    "Compressed": "compression.recipe",
    "InputsReport": "compression.inputs",
    "OnnxReport": "compression.export",
    "Quantized": "compression.snap",
    "Reached": "compression.targets",
    "Recipe": "compression.recipe",
    "Target": "compression.targets",
    "TargetError": "compression.targets",
    "assign": "compression.snap",
    "compress_": "compression.recipe",
    "export_onnx": "compression.export",
    "fold_batch_norms_": "compression.batch_norms",
    "load_compressed": "codec",
    "merge_components": "compression.merging",
    "quantize": "compression.snap",
    "quantize_": "compression.inputs",
    "quantize_state": "compression.codebooks",
    "refine_": "compression.centres",
    "save_compressed": "compression.saving",
    "snap_": "compression.snap",
    "snapped_state": "compression.snap",
    "snapping_report": "compression.report",
    "tie": "compression.centres",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    value = getattr(importlib.import_module(f"swsmix.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
