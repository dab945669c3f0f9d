"""An inspection as one self-contained page of HTML, which loads nothing from anywhere.

The page holds its data as JSON and its figures as SVG. Its own script draws the histogram, and a
content security policy forbids everything else. Names from a foreign checkpoint stay data: they
never become markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from swsmix import plots
from swsmix._labels import visible
from swsmix.inspection.figures import Picture
from swsmix.inspection.inspect import Group, InspectedTensor, Inspection
from swsmix.training.history import History

MAX_FRAMES = 200


def html_page(inspection: Inspection, pictures: Iterable[Picture] = ()) -> str:
    """The inspection as the text of one HTML file.

    Args:
        inspection: the inspection.
        pictures: figures for the page, from `draw_figures`.

    Returns:
        HTML, the same for the same data.

    Example:
        >>> Path("report.html").write_text(html_page(inspect("model.pt")))  # doctest: +SKIP
    """
    source = files("swsmix.inspection")
    template, style, script = (
        (source / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    parts = {
        "title": html.escape(inspection.title),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": json.dumps(_data(inspection), allow_nan=False).replace("<", "\\u003c"),
        "figures": "\n".join(_figure(picture) for picture in pictures),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figure(picture: Picture) -> str:
    with tempfile.TemporaryDirectory() as folder:
        svg = plots.save(picture.figure, Path(folder) / "figure.svg").read_bytes()
    # Two decimals are enough for the vertices of paths, which are most of the page.
    svg = re.sub(rb"([ML] -?\d+\.\d\d)\d* (-?\d+\.\d\d)\d*", rb"\1 \2", svg)
    caption = html.escape(visible(picture.caption))
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return (
        f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
    )


def _data(inspection: Inspection) -> dict[str, Any]:
    tensors = inspection.layers
    clustered = [t for t, _ in tensors if t.clustered]
    size = sum(t.size for t in clustered)
    bits = sum(t.bits_per_weight * t.size for t in clustered) / max(size, 1)
    nonzero = sum(t.nonzero for t, _ in tensors) / inspection.size
    groups = [group for group in inspection.groups if group.clustering]
    clusters = sum(int((group.claimed > 0).sum()) for group in groups)
    what = "" if size == inspection.size else f", of the {size:,} weights that are clustered"
    summary = {
        "file": visible(str(inspection.path)),
        "kind": inspection.kind,
        "weights": f"{inspection.size:,}",
        "tensors": f"{len(tensors):,}",
        "mixtures": f"{len(inspection.groups):,}",
        "clusters in use": f"{clusters:,}{what}" if clustered else "none: not clustered",
        "bits per weight": f"{bits:.2f}{what}" if clustered else "–",
        "non-zero": f"{100 * nonzero:.1f} %",
    }
    order = {group.name: i for i, group in enumerate(inspection.groups)}
    return {
        "summary": summary,
        "groups": [_group(group, inspection.history) for group in inspection.groups],
        "layers": [_tensor(tensor, order[group.name]) for tensor, group in tensors],
        "leftOut": {visible(name): visible(why) for name, why in inspection.left_out.items()},
    }


def _group(group: Group, history: History | None) -> dict[str, Any]:
    mixture = group.mixture
    own = (mixture.mixing, mixture.mean, mixture.std)
    present = _frame("now", group.counts, group.edges, *own, claimed=group.claimed)
    frames = [present]
    if history is not None and len(history.series.get(group.name, {}).get("mean", [])) > 1:
        frames = _frames(group, history)
    return {
        "name": visible(group.name),
        "origin": group.origin,
        "clustering": str(group.clustering),
        "findings": [f"This mixture {found.message}." for found in group.findings],
        "size": group.size,
        "colors": plots.component_colors(mixture.mean),
        "present": present,
        "frames": frames,
    }


def _frames(group: Group, history: History) -> list[dict[str, Any]]:
    """Evenly spaced records of a history, their components sorted by the last means."""
    columns = history.series[group.name]
    records = len(columns["mean"])
    epochs = history.scalars.get("epoch", [])
    unit, at = ("epoch", epochs) if len(epochs) == records else ("record", list(range(records)))
    order = columns["mean"][-1].argsort(stable=True)
    claimed = columns.get("claimed")  # a run of an older version has none
    return [
        _frame(
            f"{unit} {at[i]:g}",
            columns["bin_counts"][i].numpy(),
            columns["bin_edges"][i].numpy(),
            *(columns[name][i][order] for name in ("mixing", "mean", "std")),
            claimed=None if claimed is None else claimed[i][order].numpy(),
        )
        for i in np.unique(np.linspace(0, records - 1, MAX_FRAMES).round().astype(int)).tolist()
    ]


def _frame(
    label: str, counts: Any, edges: Any, mixing: Any, mean: Any, std: Any, *, claimed: Any
) -> dict[str, Any]:
    known = {} if claimed is None else {"claimed": [int(n) for n in claimed]}
    return known | {
        "label": label,
        "low": float(edges[0]),
        "high": float(edges[-1]),
        "counts": [int(n) for n in counts],
        "mixing": _short(mixing),
        "mean": _short(mean),
        "std": _short(std),
    }


def _tensor(tensor: InspectedTensor, group: int) -> dict[str, Any]:
    return {
        "name": visible(tensor.name),
        "group": group,
        "shape": " × ".join(map(str, tensor.weights.shape)),
        "size": tensor.size,
        "clusters": tensor.num_clusters if tensor.clustered else None,
        "bits": round(tensor.bits_per_weight, 4) if tensor.clustered else None,
        "nonzero": round(tensor.nonzero / tensor.size, 6),
        "claimed": [int(n) for n in tensor.claimed],
        "shares": [round(share, 6) for share in tensor.shares.tolist()],
        "counts": [int(n) for n in tensor.counts],
    }


def _short(values: Any) -> list[float]:
    return [float(f"{v:.9g}") for v in values.tolist()]
