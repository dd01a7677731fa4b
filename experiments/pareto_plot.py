"""A cost against a score as SVG, with the line of those that nothing beats in both."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 900, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 40, 52


class Dot(NamedTuple):
    """One method: what it costs (above 0, the less the better) and its score (the more the better)."""

    name: str
    cost: float
    score: float


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """Those for which no other costs as little and scores higher, cheapest first.

    >>> [dot.name for dot in frontier([Dot("a", 1, 0.5), Dot("b", 2, 0.4), Dot("c", 3, 0.6)])]
    ['a', 'c']
    """
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.cost, -dot.score)):
        if not best or dot.score > best[-1].score:
            best.append(dot)
    return best


def labels(dots: Sequence[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Where the names of dots (x, y, name) begin: to the right of each, higher or lower where another one stands there.

    >>> labels([(10, 50, "a"), (12, 51, "b")])
    [(17, 50), (19, 63)]
    """
    taken: list[tuple[float, float, float]] = []
    for x, y, name in dots:
        width = 6.0 * len(name)
        for offset in (0, 12, -12, 24, -24, 36, -36):
            place = (x + 7, y + offset, width)
            if not any(
                place[0] < left + wide and left < place[0] + width and abs(place[1] - at) < 12
                for left, at, wide in taken
            ):
                break
        taken.append(place)
    return [(left, at) for left, at, _ in taken]


def pareto_plot(title: str, dots: Sequence[Dot], cost: str, score: str) -> str:
    """SVG of the dots over a logarithmic axis of costs.

    Args:
        title: above the plot.
        dots: methods; those without a finite score are left out.
        cost: name of the horizontal axis.
        score: name of the vertical axis.

    Returns:
        The text of an SVG file.
    """
    dots = [dot for dot in dots if dot.cost > 0 and math.isfinite(dot.score)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    if not dots:
        return "".join([*parts, "</svg>\n"])
    least, most = (pick(math.log10(dot.cost) for dot in dots) for pick in (min, max))
    low, high = (pick(dot.score for dot in dots) for pick in (min, max))
    # From and to a tick, three of which make a decade.
    ticks = [
        factor * 10.0**power
        for power in range(math.floor(least), math.ceil(most) + 1)
        for factor in (1, 2, 5)
    ]
    first = max((i for i, tick in enumerate(ticks) if math.log10(tick) <= least), default=0)
    last = min(
        (i for i, tick in enumerate(ticks) if math.log10(tick) >= most and i > first), default=len(ticks) - 1
    )
    ticks = ticks[first : last + 1]
    left, right = math.log10(ticks[0]), math.log10(ticks[-1])
    bottom, top = math.floor(low * 20) / 20, max(math.ceil(high * 20) / 20, math.floor(low * 20) / 20 + 0.05)

    def px(value: float) -> float:
        return _LEFT + (math.log10(value) - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def py(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    for tick in ticks:
        x = px(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:,.10g}</text>'
        )
    for tick in range(round(bottom * 20), round(top * 20) + 1):
        y = py(tick / 20)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 20:.2f}</text>')
    best = frontier(dots)
    line = " ".join(f"{px(dot.cost):.1f},{py(dot.score):.1f}" for dot in best)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#d95f02" stroke-width="1.5"/>')
    for dot in dots:
        colour = "#d95f02" if dot in best else "#1b6ca8"
        x, y = px(dot.cost), py(dot.score)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    places = labels([(px(dot.cost), py(dot.score), dot.name) for dot in dots])
    for dot, (x, y) in zip(dots, places):
        parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" font-size="11">{escape(dot.name)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(cost)}</text>')
    parts.append(f'<text x="8" y="{_TOP - 6}">{escape(score)}</text>')
    return "".join([*parts, "</svg>\n"])
