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
import math
import re
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from swsmix._colors import NEUTRAL, component_colors
from swsmix._labels import visible
from swsmix.inspection.comparison import Comparison, Row
from swsmix.inspection.dark import for_both
from swsmix.inspection.figures import Picture
from swsmix.inspection.inspect import Group, InspectedTensor, Inspection
from swsmix.inspection.measures import FAR
from swsmix.inspection.sorting import KEYS
from swsmix.training.history import History

MAX_FRAMES = 200


def html_page(inspection: Inspection | Comparison, pictures: Iterable[Picture] = ()) -> str:
    """The inspection, or the comparison of several, as the text of one HTML file.

    Args:
        inspection: the inspection, or the comparison.
        pictures: figures for the page, from `draw_figures`.

    Returns:
        HTML, the same for the same data.

    Example:
        >>> Path("report.html").write_text(html_page(inspect("model.pt")))  # doctest: +SKIP
    """
    source = files("swsmix.inspection")
    template, style, *scripts = (
        (source / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js", "page_tables.js", "page_compared.js")
    )
    script = "\n".join(scripts)
    parts = {
        "title": html.escape(inspection.title),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": json.dumps(_data_of(inspection), allow_nan=False).replace("<", "\\u003c"),
        "figures": "\n".join(_figure(picture) for picture in pictures),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figure(picture: Picture) -> str:
    from swsmix import plots

    with tempfile.TemporaryDirectory() as folder:
        svg = plots.save(picture.figure, Path(folder) / "figure.svg").read_bytes()
    # Two decimals are enough for the vertices of paths, which are most of the page.
    svg = re.sub(rb"([ML] -?\d+\.\d\d)\d* (-?\d+\.\d\d)\d*", rb"\1 \2", svg)
    caption = html.escape(visible(picture.caption))
    both = for_both(svg.decode("utf-8")).encode("utf-8")
    source = "data:image/svg+xml;base64," + base64.b64encode(both).decode()
    return (
        f'<figure><div class="scroll"><img alt="{caption}" src="{source}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_of(shown: Inspection | Comparison) -> dict[str, Any]:
    if isinstance(shown, Inspection):
        return _data(shown)
    first, *others = (
        {"checkpoint": name} | _data(each)
        for name, each in zip(shown.names, shown.inspections, strict=True)
    )
    return first | {"others": others, "compared": [_row(row) for row in shown.rows]}


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": visible(row.name),
        "low": float(row.edges[0]),
        "high": float(row.edges[-1]),
        "values": [
            None if v is None else {key: _number(value) for key, value in v.items()}
            for v in row.values
        ],
        "differences": [
            {key: _number(row.difference(i, key)) for key in KEYS} for i in range(len(row.values))
        ],
        "reference": {key: row.reference(key) for key in KEYS},
        "far": [None if m is None else [m.mean, FAR * m.std] for m in row.measured],
        "counts": [None if c is None else [int(n) for n in c] for c in row.counts],
    }


def _number(value: float) -> float | str | None:
    """A measure for JSON, which has neither nan nor infinity."""
    return None if math.isnan(value) else str(value) if math.isinf(value) else float(f"{value:.6g}")


def _data(inspection: Inspection) -> dict[str, Any]:
    tensors, size = inspection.layers, inspection.num_clustered
    what = "" if size == inspection.size else f", of the {size:,} weights that are clustered"
    summary = {
        "file": visible(str(inspection.path)),
        "kind": inspection.kind,
        "weights": f"{inspection.size:,}",
        "tensors": f"{len(tensors):,}",
        "mixtures": f"{len(inspection.groups):,}",
        "clusters in use": f"{inspection.num_clusters:,}{what}" if size else "none: not clustered",
        "bits per weight": f"{inspection.bits_per_weight:.2f}{what}" if size else "–",
        "non-zero": f"{100 * inspection.nonzero:.1f} %",
    }
    order = {group.name: i for i, group in enumerate(inspection.groups)}
    return {
        "summary": summary,
        "groups": [_group(group, inspection.history) for group in inspection.groups],
        "layers": [_tensor(tensor, order[group.name]) for tensor, group in tensors],
        "leftOut": {visible(name): visible(why) for name, why in inspection.left_out.items()},
        "values": tensors[0][0].measures.values,
        "neutral": NEUTRAL,
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
        "colors": component_colors(mixture.mean),
        "present": present,
        "far": _far(group),
        "frames": frames,
    }


def _far(group: Group) -> list[float]:
    """The mean of a group's weights, and the distance from it at which outliers begin."""
    mean = sum(t.size * t.measures.mean for t in group.layers) / group.size
    square = sum(t.size * (t.measures.std**2 + (t.measures.mean - mean) ** 2) for t in group.layers)
    return [mean, FAR * math.sqrt(square / group.size)]


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
        "mean": tensor.measures.mean,
        "std": tensor.measures.std,
        "kurtosis": _number(tensor.measures.kurtosis),
        "ggShape": _number(tensor.measures.shape),
        "left": _number(tensor.measures.left),
        "outliers": tensor.measures.outliers,
    }


def _short(values: Any) -> list[float]:
    return [float(f"{v:.9g}") for v in values.tolist()]
