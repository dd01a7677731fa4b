"""Numbers on a grid as SVG: darker is larger."""

import math
from collections.abc import Sequence
from html import escape

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 260, 56, 34, 96, 44


def heat_map(
    title: str, places: Sequence[float], values: Sequence[Sequence[float]], x_name: str, y_name: str, of: str
) -> str:
    """Squares whose darkness is a value, between the least and the largest finite one.

    Args:
        title: above the plot.
        places: of rows and of columns, ascending.
        values: rows of values, from the first place of ``y_name`` on, each along ``x_name``; what is not finite is
            crossed out.
        x_name: of the columns.
        y_name: of the rows, drawn upwards.
        of: what the values are.

    Returns:
        An SVG element.
    """
    finite = [v for line in values for v in line if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    width, height, cell = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM, _SIDE / len(places)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" class="chart">'
        f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>'
    ]
    for i, line in enumerate(values):
        y = _TOP + _SIDE - (i + 1) * cell
        for j, value in enumerate(line):
            x = _LEFT + j * cell
            name = f"{places[j]:g}, {places[i]:g}: {value:.4g}"
            if math.isfinite(value):
                dark = (value - low) / (high - low) if high > low else 0.0
                parts.append(_square(x, y, cell, dark, name))
            else:
                parts.append(
                    f'<path d="M{x:.1f} {y:.1f}l{cell:.1f} {cell:.1f}m0 {-cell:.1f}l{-cell:.1f} {cell:.1f}" '
                    f'stroke="currentColor"><title>{name}</title></path>'
                )
    for place, end in ((places[0], 0.5), (places[-1], len(places) - 0.5)):
        parts.append(
            f'<text x="{_LEFT + end * cell:.1f}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{place:g}</text>'
            f'<text x="{_LEFT - 6}" y="{_TOP + _SIDE - end * cell + 4:.1f}" text-anchor="end">{place:g}</text>'
        )
    for k in range(5):
        y = _TOP + _SIDE - (k + 1) * 20
        parts.append(_square(_LEFT + _SIDE + 14, y, 20, k / 4, ""))
        parts.append(f'<text x="{_LEFT + _SIDE + 40}" y="{y + 14}">{low + k / 4 * (high - low):.3g}</text>')
    middle = _TOP + _SIDE / 2
    parts.append(
        f'<text x="{_LEFT + _SIDE / 2}" y="{height - 8}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_name)}</text>'
        f'<text x="{_LEFT + _SIDE + 14}" y="{_TOP + _SIDE + 16}">{escape(of)}</text></svg>'
    )
    return "".join(parts)


def _square(x: float, y: float, side: float, dark: float, name: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill="currentColor" '
        f'fill-opacity="{0.05 + 0.9 * dark:.3f}"><title>{escape(name)}</title></rect>'
    )
