"""Figures and films as files: the same bytes each time, written whole or not at all."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from swsmix._files import replacing
from swsmix._histogram import Array
from swsmix.plots.density import back_to_front, curve_step, density_panel, lowest, peaks
from swsmix.plots.given import refusal
from swsmix.plots.style import METADATA, component_colors, make_panels, settle, space_ticks, styled
from swsmix.plots.training import common_histograms, group_of, series, time_axis
from swsmix.training.history import History


@styled
def save(figure: Figure, path: str | Path, *, dpi: float = 200) -> Path:
    """Write a figure, whole or not at all, the same bytes each time: no dates, fixed ids.

    A constrained layout is computed at the first save and then kept.

    Args:
        figure: any figure.
        path: the file, .png, .pdf or .svg.
        dpi: dots per inch of PNGs, and of rasterised parts in the other formats.

    Raises:
        TypeError: if it is no figure, or the path no path.
        ValueError: for another suffix.

    Example:
        >>> save(entropy({"fc1": 0.41}), "entropy.pdf")  # doctest: +SKIP
    """
    if not isinstance(figure, Figure):
        raise TypeError(
            refusal("figure", "a figure", figure, "draw one, as by plots.clusters(prior)")
        )
    path = path_of(path)
    kind = path.suffix[1:].lower()
    if kind not in METADATA:
        raise ValueError(f"path: needs .png, .pdf or .svg, got {path.name!r}: change its suffix")
    settle(figure)
    picture = io.BytesIO()  # matplotlib's own files complain once more when they are collected
    figure.savefig(picture, format=kind, dpi=dpi, metadata=METADATA[kind])
    with replacing(path) as temporary:
        temporary.write_bytes(picture.getvalue())
    return path


def path_of(given: object) -> Path:
    """A path.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(given, str | Path):
        return Path(given)
    raise TypeError(refusal("path", "the path of a file", given, 'pass one, as "picture.png"'))


@styled
def animate_collapse(
    history: History,
    path: str | Path,
    group: str | None = None,
    *,
    seconds: float = 8.0,
    max_frames: int = 100,
    width: float = 4.8,
) -> Path:
    """The weights' collapse as a film: histogram, density and centres over training.

    Triangles are the centres that claim weights; the curves of the others are dashed. A component
    ends below the bars where its mixing is smaller than its share of the weights, as a mixing
    proportion pinned for zero makes it.

    Args:
        history: the history of a run.
        path: the file, .gif, or .mp4 if ffmpeg is installed.
        group: the group of weights; needed if there are several.
        seconds: the length of the film; the last frame stays for two seconds more.
        max_frames: the largest number of records shown, evenly spaced.
        width: width of the picture, in inches of 120 pixels.

    Raises:
        TypeError: if it is no history, or the path no path.
        ValueError: for another suffix, or if ffmpeg is missing.

    Example:
        >>> animate_collapse(history, "collapse.gif")  # doctest: +SKIP
    """
    path, group = path_of(path), group_of(history, group, "animate_collapse")
    kind, ffmpeg = path.suffix.lower(), shutil.which("ffmpeg")
    if kind not in {".gif", ".mp4"} or (kind == ".mp4" and ffmpeg is None):
        needs = "needs ffmpeg for .mp4" if kind == ".mp4" else "needs .gif or .mp4"
        raise ValueError(f"path: {needs}, got {path.name!r}: change the suffix to .gif")
    edges, counts = common_histograms(history, group)
    epochs, unit = time_axis(history, len(counts))
    mixing, mean, std = (series(history, group, name) for name in ("mixing", "mean", "std"))
    colors = component_colors(history.stacked(group, "mean")[-1])
    claimed = history.claimed(group).numpy()
    step = edges[1] - edges[0]
    unit_bar = 1 / (counts[0].sum() * step)  # the density of one weight in a bin
    heights = peaks(mixing, std, curve_step(edges))
    live = heights[series(history, group, "count") >= 1]
    bottom = lowest(unit_bar, live)
    top = 2 * max(unit_bar * counts.max(), heights.max())
    figure, (panel,) = make_panels(None, 1, width=width, row=0.6 * width)
    figure.set_dpi(120)
    canvas: Any = FigureCanvasAgg(figure)
    frames: list[Image.Image] = []
    for i in np.unique(np.linspace(0, len(counts) - 1, max_frames).round().astype(int)).tolist():
        for artist in (*panel.lines, *panel.patches, *panel.collections):
            artist.remove()
        parameters = mixing[i], mean[i], std[i]
        density_panel(
            panel, edges, counts[i], parameters, colors, claimed[i], log=True, bottom=bottom
        )
        panel.set(ylim=(bottom, top), xlabel="weight", ylabel="density (1 / weight)")
        _mark_centres(panel, mixing[i], claimed[i], mean[i], colors)
        if not frames:
            space_ticks(panel)
            panel.yaxis.set_minor_locator(NullLocator())  # in all frames alike
        panel.set_title(f"{unit} {epochs[i]:g}", y=1.05)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
        figure.set_layout_engine("none")  # the first frame's layout, so that nothing jumps
    frame_seconds = max(0.02, seconds / len(frames))
    with replacing(path) as temporary:
        if kind == ".gif":
            _write_gif(frames, temporary, frame_seconds)
        else:
            _write_mp4(frames, temporary, frame_seconds, str(ffmpeg))
    return path


def _mark_centres(
    panel: Axes, mixing: Array, claimed: Array, mean: Array, colors: Sequence[str]
) -> None:
    """A triangle above the panel at each centre that claims a weight."""
    for j in back_to_front(mixing, claimed):
        if claimed[j] < 1:
            continue
        panel.plot(
            mean[j],
            1.02,
            "v",
            color=colors[j],
            ms=3.5,
            mew=0,
            clip_on=False,
            transform=panel.get_xaxis_transform(),
        )


def _write_gif(frames: list[Image.Image], path: Path, frame_seconds: float) -> None:
    chosen = [np.asarray(frames[i]) for i in (0, len(frames) // 2, -1)]
    palette = Image.fromarray(np.concatenate(chosen)).quantize(96)
    small = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    duration = [round(100 * frame_seconds) * 10] * (len(small) - 1) + [2000]
    small[0].save(path, "GIF", save_all=True, append_images=small[1:], duration=duration, loop=0)


def _write_mp4(frames: list[Image.Image], path: Path, frame_seconds: float, ffmpeg: str) -> None:
    width, height = (2 * (side // 2) for side in frames[0].size)  # yuv420p needs even sides
    last = [frames[-1]] * max(1, round(2 / frame_seconds))
    pixels = b"".join(f.crop((0, 0, width, height)).tobytes() for f in frames + last)
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {1 / frame_seconds:.4f} -i -"
    target = "-pix_fmt yuv420p -fflags +bitexact -f mp4"
    command = [ffmpeg, "-v", "error", "-y", *source.split(), *target.split(), str(path)]
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[-500:]
        raise ValueError(f"ffmpeg failed, {why!r}: change the suffix to .gif")
