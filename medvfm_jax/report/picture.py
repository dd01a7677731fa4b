"""One PNG out of several overlays, each with a line of text under it: for a README, a slide, a message."""

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

_GROUND, _INK, _GAP, _LINE = "#ffffff", "#17202b", 12, 24


class Panel(NamedTuple):
    """A picture (PNG bytes) and what it shows."""

    png: bytes
    caption: str


def grid(rows: Sequence[Sequence[Panel]], *, side: int = 360) -> bytes:
    """Rows of panels -> PNG; each picture is fitted into a square of `side` pixels above its caption."""
    columns = max(len(row) for row in rows)
    width = _GAP + columns * (side + _GAP)
    height = _GAP + len(rows) * (side + _LINE + _GAP)
    canvas = Image.new("RGB", (width, height), _GROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            x, y = _GAP + j * (side + _GAP), _GAP + i * (side + _LINE + _GAP)
            with Image.open(io.BytesIO(panel.png)) as picture:
                picture = picture.convert("RGB")
                picture.thumbnail((side, side))
                canvas.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
            pen.text((x + side / 2, y + side + _LINE / 2), panel.caption, _INK, font, anchor="mm")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
