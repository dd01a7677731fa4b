"""What each client of a federation has, as a chart: a bar per client, as long as its images, divided by labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from medvfm_jax.report.words import counted, share, text

_WIDTH, _STEP, _TOP, _BAR = 960, 30, 34, 16
_COLOURS = 4


def holdings_chart(held: Sequence[Mapping[str, Any]]) -> str:
    """Rows {"client", "patients", "images", "pixels": {label: n}} -> inline SVG; "" without rows.

    The length of a bar is the number of images; its parts are the labels' shares of the client's foreground.
    """
    if not held:
        return ""
    labels = list(dict.fromkeys(label for row in held for label in row.get("pixels") or {}))
    names = min(max(max(len(str(row["client"])) for row in held) * 7 + 16, 90), 300)
    longest = max(row.get("images") or 0 for row in held) or 1
    room, height = _WIDTH - names - 200, _TOP + _STEP * len(held) + 8
    title = "Images of each client, divided by labels" if len(labels) > 1 else "Images of each client"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">',
        f'<text class="title" x="0" y="14">{title}</text>',
    ]
    for index, row in enumerate(held):
        y = _TOP + _STEP * index
        parts.append(f'<text x="0" y="{y + _BAR / 2}" dy="4">{text(row["client"])}</text>')
        images = row.get("images") or 0
        x, length = float(names), room * images / longest
        pixels = row.get("pixels") or {}
        total = sum(pixels.values())
        for k, label in enumerate(labels if total else ()):
            part = pixels.get(label, 0)
            width = length * part / total
            parts.append(
                f'<rect class="f{k % _COLOURS}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}">'
                f"<title>{text(label)}: {share(part, total)}</title></rect>"
            )
            x += width
        if not total:
            parts.append(
                f'<rect class="axis" fill="none" x="{x:.1f}" y="{y}" width="{length:.1f}" height="{_BAR}"/>'
            )
        said = f"{counted(images, 'image')}, {counted(row.get('patients') or 0, 'patient')}"
        parts.append(
            f'<text class="value" x="{_WIDTH}" y="{y + _BAR / 2}" dy="4" text-anchor="end">{said}</text>'
        )
    if len(labels) > 1:
        x = _WIDTH
        for k, label in reversed(list(enumerate(labels))):
            parts.append(f'<text x="{x}" y="14" text-anchor="end">{text(label)}</text>')
            x -= 7 * len(label) + 14
            parts.append(f'<rect class="f{k % _COLOURS}" x="{x}" y="6" width="9" height="9"/>')
            x -= 16
    return "".join([*parts, "</svg>"])
