"""Points of two numbers each as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from medvfm_jax.report.charts import ticks

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 44


class Point(NamedTuple):
    """A named pair; error: half the length of a bar through y, None for no bar."""

    name: str
    x: float
    y: float
    error: float | None = None


def scatter(title: str, points: Sequence[Point], x_name: str, y_name: str) -> str:
    """The points with their names as tooltips; x on a logarithmic axis where all are above 0 and far apart.

    Args:
        title: above the plot.
        points: those that are not finite are left out, and the title says how many.
        x_name: of the horizontal axis.
        y_name: of the vertical axis.

    Returns:
        An SVG element.
    """
    shown = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if len(shown) < len(points):
        title += f" ({len(points) - len(shown)} without a number)"
    head = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">'
        f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>'
    )
    if not shown:
        return head + f'<text x="{_LEFT}" y="{_HEIGHT / 2:.0f}">nothing to show</text></svg>'
    least, most = min(p.x for p in shown), max(p.x for p in shown)
    logarithmic = least > 0 and most / least > 30

    def along(value: float) -> float:
        return math.log10(value) if logarithmic else value

    px = _axis([along(p.x) for p in shown], _LEFT, _WIDTH - _RIGHT)
    heights = [p.y + sign * (p.error or 0) for p in shown for sign in (-1, 1)]
    py = _axis(heights, _HEIGHT - _BOTTOM, _TOP)
    parts = [head]
    for value in ticks(min(heights), max(heights)) if max(heights) > min(heights) else [heights[0]]:
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py(value):.1f}" y2="{py(value):.1f}" class="grid"/>'
            f'<text x="{_LEFT - 6}" y="{py(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for value in (least, most) if most > least else (least,):
        parts.append(
            f'<text x="{px(along(value)):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:.3g}</text>'
        )
    for p in shown:
        x, y = px(along(p.x)), py(p.y)
        if p.error:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{py(p.y - p.error):.1f}" y2="{py(p.y + p.error):.1f}" '
                'stroke="currentColor" stroke-opacity="0.5"/>'
            )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="currentColor"><title>{escape(p.name)}: {p.x:.4g}, '
            f"{p.y:.4g}</title></circle>"
        )
    scale = ", logarithmic" if logarithmic else ""
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_name)}{scale}'
        f'</text><text x="12" y="{(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f})">{escape(y_name)}</text></svg>'
    )
    return "".join(parts)


def _axis(values: Sequence[float], start: float, end: float):
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    return lambda value: start + (value - low) / (high - low) * (end - start)
