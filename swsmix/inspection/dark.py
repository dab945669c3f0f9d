"""A picture for a page that may be dark: its greys follow the reader's setting, its colours stay.

In the dark white paper becomes the page's own ground, ink becomes light, and every grey between
them changes place with its opposite. A component's colour is the same in both, and the same as on
the page, so that it goes on saying the sign and size of its mean.
"""

from __future__ import annotations

import base64
import io
import re

PAPER = 0x16  # the ground of the page in the dark, as in page.css
_GREY = re.compile(r"(fill|stroke): #([0-9a-f]{2})\2\2\b")
_IMAGE = re.compile(r'<image (?=[^>]*?href="data:image/png;base64,\s*([^"]*)")')


def opposite(grey: int) -> int:
    """A grey (0 to 255) in the dark: 255, white, is the page's ground."""
    return round(255 - PAPER - grey * (255 - 2 * PAPER) / 255)


def for_both(svg: str) -> str:
    """An SVG of matplotlib's whose greys are others where the reader's setting is dark.

    Args:
        svg: as `plots.save` writes it, with colours in styles, each as #rrggbb.

    Example:
        >>> text = for_both('<svg><path style="fill: #ffffff; stroke: #0072b2"/></svg>')
        >>> "fill: var(--gff); stroke: #0072b2" in text, "--gff: #161616" in text
        (True, True)
    """
    greys = sorted({"00", *(match[2] for match in _GREY.finditer(svg))})
    svg = _GREY.sub(r"\1: var(--g\2)", svg)
    svg = _IMAGE.sub(lambda image: f'<image class="{_kind(image[1])}" ', svg)
    light = "; ".join(f"--g{g}: #{g}{g}{g}" for g in greys)
    dark = "; ".join(f"--g{g}: #{3 * format(opposite(int(g, 16)), '02x')}" for g in greys)
    inverted = 1 - PAPER / 255
    style = (
        f"<style>svg {{ {light}; fill: var(--g00) }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} "
        f"image.grey {{ filter: invert({inverted:.3f}) }} }}</style>"
    )
    head = re.search(r"<svg\b[^>]*>", svg)
    assert head is not None
    return svg[: head.end()] + style + svg[head.end() :]


def _kind(encoded: str) -> str:
    """Whether an embedded PNG has greys alone."""
    import numpy as np
    from PIL import Image

    data = base64.b64decode(encoded)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
    seen = pixels[pixels[..., 3] > 0]
    return "grey" if np.ptp(seen[:, :3], axis=1).max(initial=0) <= 2 else "colour"
